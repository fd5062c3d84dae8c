"""The whole experiment: train a denoiser and a classifier, sample, measure, draw.

A run is a folder::

    config.json                         what was asked for
    checkpoints/denoiser.pt             state_dict of the denoiser's averaged weights
    checkpoints/classifier.pt           the same of the classifier, if the data has labels
    checkpoints/training.pt             where training stands, for ``--resume``
    outputs/uncond_gen_samples.pt       float32 [n, d]
    outputs/cond_gen_samples_<c>.pt     float32 [n, d], guided to class c
    metrics.json                        every number, beside what real data scores
    figures/*.png
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event, current_thread, main_thread

import torch
from torch import Tensor
from tqdm import tqdm

from ..kernels.philox import child_seed
from . import files, plots
from .data import Points
from .errors import UserError, check_at_least, check_seed
from .metrics import Evaluation, Score, evaluate, kde_nll
from .metrics.evaluation import data_of
from .models import MLP
from .sampling import sample
from .schedules import Schedule
from .training import RECIPES, ClassicRecipe, Recipe, Trainer
from .training.distributed import Ranks

# Parts of an experiment that draw random numbers of their own.
_DENOISER, _CLASSIFIER, _VALIDATION, _UNCONDITIONAL, _CONDITIONAL, _REAL = range(6)

_VALIDATION_SAMPLES, _VALIDATION_STEPS = 2000, 50


@dataclass(frozen=True)
class Settings:
    """All that decides an experiment's outcome.

    Args:
        seed: of everything.
        schedule: of the forward process.
        denoiser, classifier: how each is trained. A conditional denoiser, one with ``p_uncond``,
            is told the classes and needs no classifier.
        scale: guidance scale of samples by class; None for 1 with a classifier, and for 0 where
            the denoiser is told the class.
        n_samples: samples of each kind.
        sampling_steps: reverse steps per sample; None for all T.
        validate_every: training steps between two validations of the denoiser.
        real_draws: draws of real data behind the bands that samples are measured against.

    Raises:
        ValueError: a number is out of range.
    """

    seed: int = 0
    schedule: Schedule = field(default_factory=Schedule)
    denoiser: Recipe | ClassicRecipe = RECIPES["fast"][0]
    classifier: Recipe | ClassicRecipe = RECIPES["fast"][1]
    scale: float | None = None
    n_samples: int = 5000
    sampling_steps: int | None = None
    validate_every: int = 1000
    real_draws: int = 100

    def __post_init__(self):
        check_seed(self.seed)
        check_at_least("n_samples", self.n_samples, 2)
        check_at_least("validate_every", self.validate_every, 1)
        check_at_least("real_draws", self.real_draws, 2)
        if self.scale is not None and not math.isfinite(self.scale):
            raise UserError(f"scale must be finite, got {self.scale}")

    def quick(self) -> "Settings":
        """Reduced to what takes about a minute on two CPU cores."""
        denoiser, classifier = RECIPES["fast"]
        assert isinstance(denoiser, Recipe)
        assert isinstance(classifier, Recipe)
        return replace(
            self,
            # Averages over fewer steps, so that the first ones are forgotten by the end.
            denoiser=replace(denoiser, steps=1500, ema_decay=0.99),
            classifier=replace(classifier, steps=700, ema_decay=0.98),
            sampling_steps=min(50, self.schedule.num_steps),
            validate_every=1500,
            real_draws=20,
        )


class Run:
    """One experiment in one folder.

    Args:
        points: the data set.
        settings: what to do.
        folder: where the results go.
        device: where the work runs.
        resume: go on with the training state in the folder, if there is one.
        checkpoint_every: training steps between two checkpoints.
        say: takes a line of text about what is going on.
        ranks: the processes that share the work; the first writes all files.

    Raises:
        ValueError: the folder cannot be written to, or holds a run with other settings.
    """

    def __init__(
        self,
        points: Points,
        settings: Settings,
        folder: str | Path,
        *,
        device: torch.device,
        resume: bool = False,
        checkpoint_every: int = 500,
        say: Callable[[str], None] = print,
        ranks: Ranks | None = None,
    ):
        check_at_least("checkpoint_every", checkpoint_every, 1)
        self.ranks = ranks or Ranks()
        self.points, self.settings, self.device, self.say = points, settings, device, say
        self.checkpoint_every = checkpoint_every
        self.folder = files.make_folder(Path(folder))
        self.checkpoints, self.outputs, self.figures = (
            files.make_folder(self.folder / name) for name in ("checkpoints", "outputs", "figures")
        )
        self.nll_data: float | None = None
        try:
            self.nll_data = kde_nll(points.data, points.data)
        except UserError as error:
            say(f"the likelihood under a density estimate is left out: {error}")
        self.denoiser = self._trainer(_DENOISER, settings.denoiser, classify=False)
        self.classifier = None
        told = settings.denoiser.p_uncond is not None
        self.by_class = points.labels is not None and points.num_classes > 1
        if self.by_class and not told:
            self.classifier = self._trainer(_CLASSIFIER, settings.classifier, classify=True)
        self.validation: list[tuple[int, float]] = []
        self.seconds: dict[str, float] = {}
        config = json.loads(json.dumps({"data": points.name, **asdict(settings)}))
        if resume:
            self._resume(config)
        self.ranks.wait()  # all have read what one will write
        if self.ranks.writes:
            files.save_json(self.folder / "config.json", config)

    def _trainer(self, part: int, recipe: Recipe | ClassicRecipe, classify: bool) -> Trainer:
        seed = child_seed(self.settings.seed, part)
        return Trainer(
            self.points,
            self.settings.schedule,
            recipe,
            classify=classify,
            seed=seed,
            device=self.device,
            ranks=self.ranks,
        )

    @property
    def trainers(self) -> dict[str, Trainer]:
        """The trainers that there are, by name."""
        trainers = {"denoiser": self.denoiser, "classifier": self.classifier}
        return {name: trainer for name, trainer in trainers.items() if trainer is not None}

    def _resume(self, config: dict) -> None:
        path = self.checkpoints / "training.pt"
        if not path.is_file():
            self.say(f"nothing to resume in {self.folder}, starting anew")
            return
        before = json.loads((self.folder / "config.json").read_text())
        changed = [key for key in config if before.get(key) != config[key]]
        if changed:
            raise UserError(
                f"run {self.folder} was made with other settings ({', '.join(changed)}); "
                "give the same ones, or another --out"
            )
        state = files.load(path)
        for name, trainer in self.trainers.items():
            trainer.load_state_dict(state[name])
        self.validation = [tuple(pair) for pair in state["validation"]]
        self.say(f"resumed {self.folder} at denoiser step {self.denoiser.step}")

    def save_training(self) -> None:
        """Writes where training stands and the networks so far."""
        if not self.ranks.writes:
            return
        state = {name: trainer.state_dict() for name, trainer in self.trainers.items()}
        files.save(self.checkpoints / "training.pt", {**state, "validation": self.validation})
        for name, trainer in self.trainers.items():
            files.save(self.checkpoints / f"{name}.pt", trainer.model().state_dict())

    def train(self) -> None:
        """Trains both networks; what is left of them after a resume.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once the steps under way are done and saved.
            ValueError: the loss is no longer finite; the last good checkpoint stays.
        """
        with _deferred_interrupt() as interrupted:
            for name, trainer in self.trainers.items():
                start = time.perf_counter()
                self._train(name, trainer, interrupted)
                self.seconds[f"train {name}"] = time.perf_counter() - start
                self.save_training()
        if not self.ranks.writes:
            return
        losses = {name: trainer.losses for name, trainer in self.trainers.items()}
        plots.training_curves(
            losses, self.validation, self.nll_data, self.figures / "training_curves.png"
        )

    def _train(self, name: str, trainer: Trainer, interrupted: Event) -> None:
        total, rows = trainer.total_steps, trainer.task.recipe.batch_size
        with self._progress(total * rows, f"train {name}", "rows") as bar:
            bar.update(trainer.step * rows)
            while trainer.step < total:
                until = min(
                    _next_multiple(trainer.step, every, total)
                    for every in (50, self.checkpoint_every, self.settings.validate_every)
                )
                trainer.run(until - trainer.step, lambda step: bar.update(step * rows - bar.n))
                validates = trainer is self.denoiser and (
                    until % self.settings.validate_every == 0 or until == total
                )
                stops = self.ranks.any(interrupted.is_set())
                saves = until % self.checkpoint_every == 0 or until == total or stops
                self._check_finite(name, trainer, wait=saves or validates)
                if validates and self.ranks.writes:
                    self._validate()
                bar.set_postfix(self._postfix(trainer))
                if saves:
                    self.save_training()
                if stops:
                    raise KeyboardInterrupt

    def _check_finite(self, name: str, trainer: Trainer, wait: bool) -> None:
        step = trainer.bad_step(wait=wait)
        if step is None:
            return
        advice = "try a smaller learning rate"
        if self.device.type == "cuda" and trainer.engine.precision == "fp16":
            advice += ", or precision 'bf16', whose range is that of float32"
        raise UserError(
            f"the {name}'s loss is not finite from step {step} on; training has stopped and "
            f"the last good checkpoint is in {self.checkpoints}; {advice}"
        )

    def _postfix(self, trainer: Trainer) -> dict[str, str]:
        shown = {"loss": f"{trainer.losses_on_host[-50:].mean().item():.4f}"}
        if trainer is self.denoiser and self.validation:
            shown["NLL"] = f"{self.validation[-1][1]:.3f}"
        return shown

    def _progress(self, total: int, title: str, unit: str) -> tqdm:
        return tqdm(
            total=total, desc=title.ljust(16), unit=f" {unit}", unit_scale=True, ncols=100,
            disable=not self.ranks.writes,
        )  # fmt: skip

    def _validate(self) -> None:
        if self.nll_data is None:
            return
        schedule = self.settings.schedule
        x = sample(
            self.denoiser.model(),
            schedule,
            _VALIDATION_SAMPLES,
            method="ddim",
            num_steps=min(_VALIDATION_STEPS, schedule.num_steps),
            seed=child_seed(self.settings.seed, _VALIDATION),
            device=self.device,
        ).x
        self.validation.append((self.denoiser.step, kde_nll(x, self.points.data)))

    def generate(self) -> dict[str, Tensor]:
        """Samples without guidance and of every class, written to ``outputs``; by file name."""
        made = {"uncond_gen_samples": self._sample("sample", _UNCONDITIONAL)}
        if self.by_class:
            start = time.perf_counter()
            classifier = None if self.classifier is None else self.classifier.model()
            classes, each = self.points.num_classes, self.settings.n_samples
            labels = torch.arange(classes).repeat_interleave(each)
            x = self._sample("sample guided", _CONDITIONAL, classifier, labels)
            for label in range(classes):
                made[f"cond_gen_samples_{label}"] = x[labels == label].clone()
            self.seconds["sample guided"] = time.perf_counter() - start
        for name, x in made.items() if self.ranks.writes else ():
            files.save(self.outputs / f"{name}.pt", x)
        return made

    def _sample(self, title: str, part: int, classifier: MLP | None = None, labels=None) -> Tensor:
        start = time.perf_counter()
        n = self.settings.n_samples if labels is None else len(labels)
        first, own = self.ranks.share(n)
        rows = slice(first, first + own)
        model = self.denoiser.model()
        x = torch.zeros(n, self.points.dim, device=self.device)
        with self._progress(own, title, "samples") as bar:
            if own:
                x[rows] = sample(
                    model,
                    self.settings.schedule,
                    own,
                    classifier=classifier,
                    label=None if labels is None else labels[rows],
                    scale=self.settings.scale,
                    num_steps=self.settings.sampling_steps,
                    seed=child_seed(self.settings.seed, part),
                    first_row=first,
                    batch_size=1000 if self.device.type == "cpu" else n,  # small ones show progress
                    device=self.device,
                    progress=lambda done: bar.update(done - bar.n),
                ).x
        self.ranks.add_up(x)
        self.seconds[title] = time.perf_counter() - start
        return x.cpu()

    def check_measurable(self) -> None:
        """Raises :class:`UserError` if there are too few points, or of a class, to measure with."""
        for label in (None, *range(self.points.num_classes if self.by_class else 0)):
            data_of(self.points, label)

    def measure(self, made: dict[str, Tensor]) -> dict[str, Evaluation]:
        """Every metric of the samples that :meth:`generate` returned, written to metrics.json."""
        start = time.perf_counter()
        judge = partial(
            evaluate,
            points=self.points,
            repeats=self.settings.real_draws,
            seed=child_seed(self.settings.seed, _REAL),
        )
        results = {"unconditional": judge(made["uncond_gen_samples"])}
        for label in range(len(made) - 1):
            name = self.points.class_name(label)
            results[name] = judge(made[f"cond_gen_samples_{label}"], label=label)
        self.seconds["measure"] = time.perf_counter() - start
        files.save_json(
            self.folder / "metrics.json",
            {
                "metrics": {name: result.to_dict() for name, result in results.items()},
                "validation": [{"step": step, "nll": nll} for step, nll in self.validation],
                "seconds": self.seconds,
            },
        )
        return results

    def draw(self, made: dict[str, Tensor]) -> None:
        """The figures of data, samples and classifier."""
        points, schedule = self.points, self.settings.schedule
        plots.scatter(points.data, points.labels, points, points.name, self.figures / "data.png")
        plots.panels(
            [
                (f"{points.name}: data", points.data, None),
                ("samples", made["uncond_gen_samples"], None),
            ],
            points,
            self.figures / "unconditional.png",
        )
        if not self.by_class:
            return
        guided = [made[f"cond_gen_samples_{label}"] for label in range(points.num_classes)]
        plots.conditional(guided, points, self.figures / "conditional.png")
        for label, x in enumerate(guided):
            plots.conditional([x], points, self.figures / f"conditional_{label}.png", [label])
        if points.dim == 2 and self.classifier is not None:
            steps = sorted({0, schedule.num_steps // 5, schedule.num_steps // 2})
            plots.classifier_map(
                self.classifier.model(), schedule, points, steps, self.figures / "classifier.png"
            )


@contextmanager
def _deferred_interrupt() -> Iterator[Event]:
    """Ctrl-C sets the event rather than stop a step half-way; a second one stops at once."""
    pressed = Event()

    def press(*_) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    if current_thread() is not main_thread():  # which alone may handle signals
        yield pressed
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _next_multiple(step: int, every: int, last: int) -> int:
    return min((step // every + 1) * every, last)


def summary(results: dict[str, Evaluation]) -> str:
    """The metrics as a table in Markdown, each beside what real data scores."""
    lines = [
        "| samples | NLL | data's own | difference | in the class asked for "
        "| to nearest datum (real: 99% band) | to nearest sample (real: 99% band) "
        "| sliced Wasserstein (real: 99% below) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        purity = "" if result.purity is None else f"{result.purity:.2%}"
        likelihood = "not defined | not defined | "
        if result.nll is not None:
            likelihood = f"{result.nll:.3f} | {result.nll_data:.3f} | {result.delta_nll:+.3f}"
        near, back, sliced = map(result.scores.get, _SUMMARY)
        lines.append(
            f"| {name} | {likelihood} | {purity} | {_beside(near)} | {_beside(back)} "
            f"| {'not defined' if sliced is None else f'{sliced.value:.4f} ({sliced.high:.4f})'} |"
        )
    return "\n".join(lines)


_SUMMARY = ("sample_to_data", "data_to_sample", "sliced_wasserstein")


def _beside(score: Score | None) -> str:
    if score is None:
        return "not defined"
    return f"{score.value:.4f} ({score.low:.4f} to {score.high:.4f})"
