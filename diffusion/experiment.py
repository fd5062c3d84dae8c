"""The whole experiment: trains a denoiser and a classifier, draws samples, measures and draws them.

:mod:`.run_folder` describes the folder that a run leaves.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..kernels.philox import child_seed
from . import files, plots
from .data import Points
from .errors import UserError, check_at_least, check_seed
from .metrics import Evaluation, evaluate, kde_nll
from .metrics.evaluation import data_of
from .models import MLP
from .run_folder import RunFolder
from .sampling import sample
from .schedules import Schedule
from .training import RECIPES, ClassicRecipe, Recipe, Trainer
from .training.distributed import Ranks

# Streams of random numbers, one for each part of an experiment.
_DENOISER, _CLASSIFIER, _VALIDATION, _UNCONDITIONAL, _CONDITIONAL, _REAL = range(6)

_VALIDATION_SAMPLES, _VALIDATION_STEPS = 2000, 50


@dataclass(frozen=True)
class Settings:
    """The settings of an experiment, which decide its outcome.

    Args:
        seed: seed of everything random.
        schedule: the forward process.
        denoiser, classifier: recipes of the two trainings. A conditional denoiser, which has
            ``p_uncond``, takes the class as an input and needs no classifier.
        scale: guidance scale of samples by class; None is 1 with a classifier and 0 with a
            conditional denoiser.
        n_samples: number of samples without guidance and of samples of each class.
        sampling_steps: number of reverse steps; None for all T.
        validate_every: number of training steps between two validations of the denoiser.
        real_draws: number of draws of real data behind the bands of the metrics.

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
        """Returns reduced settings, which take about a minute on two CPU cores."""
        denoiser, classifier = RECIPES["fast"]
        assert isinstance(denoiser, Recipe)
        assert isinstance(classifier, Recipe)
        return replace(
            self,
            # Averages over fewer steps, so that the initial weights are forgotten by the end.
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
        settings: settings of the experiment.
        folder: folder of the results.
        device: device of training and sampling.
        resume: goes on with the training state in the folder, if there is one.
        checkpoint_every: number of training steps between two checkpoints.
        say: called with a line of text about the progress.
        ranks: the processes that share the work; the first one writes all files.

    Attributes:
        folder: the folder, as a :class:`.RunFolder`.
        by_class: True if samples of each class are drawn too.
        validation: pairs (step, NLL of a few samples) so far.
        seconds: duration of each part of the experiment.

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
        self.folder = RunFolder(Path(folder))
        self.folder.make()
        self.nll_data = self._nll_data()
        self.denoiser = self._trainer(_DENOISER, settings.denoiser, classify=False)
        self.classifier = None
        self.by_class = points.labels is not None and points.num_classes > 1
        if self.by_class and settings.denoiser.p_uncond is None:
            self.classifier = self._trainer(_CLASSIFIER, settings.classifier, classify=True)
        self.validation: list[tuple[int, float]] = []
        self.seconds: dict[str, float] = {}
        config = json.loads(json.dumps({**_data_record(points), **asdict(settings)}))
        if resume:
            self._resume(config)
        self.ranks.wait()  # until every rank has read the file that the first one writes
        if self.ranks.writes:
            files.save_json(self.folder.config_file, config)

    def _nll_data(self) -> float | None:
        """Returns the NLL of the data itself; None where it has no density estimate."""
        try:
            return kde_nll(self.points.data, self.points.data)
        except UserError as error:
            self.say(f"the likelihood under a density estimate is left out: {error}")
            return None

    def _trainer(self, stream: int, recipe: Recipe | ClassicRecipe, classify: bool) -> Trainer:
        seed = child_seed(self.settings.seed, stream)
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
        """The trainers by name of the network."""
        trainers = {"denoiser": self.denoiser, "classifier": self.classifier}
        return {name: trainer for name, trainer in trainers.items() if trainer is not None}

    def _resume(self, config: dict) -> None:
        if not self.folder.training_file.is_file():
            self.say(f"nothing to resume in {self.folder}, starting anew")
            return
        before = json.loads(self.folder.config_file.read_text())
        changed = [key for key in config if before.get(key) != config[key]]
        if changed:
            raise UserError(
                f"run {self.folder} was made with other settings ({', '.join(changed)}); "
                "give the same ones, or another --out"
            )
        state = files.load(self.folder.training_file)
        for name, trainer in self.trainers.items():
            trainer.load_state_dict(state[name])
        self.validation = [tuple(pair) for pair in state["validation"]]
        self.say(f"resumed {self.folder} at denoiser step {self.denoiser.step}")

    def save_training(self) -> None:
        """Writes the state of the training and the networks so far."""
        if not self.ranks.writes:
            return
        state = {name: trainer.state_dict() for name, trainer in self.trainers.items()}
        files.save(self.folder.training_file, {**state, "validation": self.validation})
        for name, trainer in self.trainers.items():
            files.save(self.folder.network_file(name), trainer.model().state_dict())

    def train(self) -> None:
        """Trains both networks to the end of their recipes, and draws the training curves.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once the steps under way are done and saved.
            ValueError: a loss is not finite; the last good checkpoint stays.
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
            losses, self.validation, self.nll_data, self.folder.figures / "training_curves.png"
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
            f"the last good checkpoint is in {self.folder.checkpoints}; {advice}"
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

    def generate(self) -> dict[int | None, Tensor]:
        """Draws samples [n, d] and writes them to files.

        Returns:
            Samples of each class by label; None is the label of those without guidance.
        """
        samples: dict[int | None, Tensor] = {None: self._sample("sample", _UNCONDITIONAL)}
        if self.by_class:
            classifier = None if self.classifier is None else self.classifier.model()
            classes, each = self.points.num_classes, self.settings.n_samples
            labels = torch.arange(classes).repeat_interleave(each)
            x = self._sample("sample guided", _CONDITIONAL, classifier, labels)
            samples |= {label: x[labels == label].clone() for label in range(classes)}
        for label, x in samples.items() if self.ranks.writes else ():
            files.save(self.folder.samples_file(label), x)
        return samples

    def _sample(
        self,
        title: str,
        stream: int,
        classifier: MLP | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Draws this rank's share of the samples and returns those of all ranks, on the CPU."""
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
                    seed=child_seed(self.settings.seed, stream),
                    first_row=first,
                    batch_size=1000 if self.device.type == "cpu" else n,  # small ones show progress
                    device=self.device,
                    progress=lambda done: bar.update(done - bar.n),
                ).x
        self.ranks.add_up(x)
        self.seconds[title] = time.perf_counter() - start
        return x.cpu()

    def check_measurable(self) -> None:
        """Raises :class:`UserError` if the data, or a class, has too few points for the metrics."""
        for label in (None, *range(self.points.num_classes if self.by_class else 0)):
            data_of(self.points, label)

    def measure(self, samples: dict[int | None, Tensor]) -> dict[str, Evaluation]:
        """Computes every metric of the samples and writes them to ``metrics.json``.

        Args:
            samples: result of :meth:`generate`.

        Returns:
            Evaluations by kind of samples: ``unconditional``, then the name of each class.
        """
        start = time.perf_counter()
        seed = child_seed(self.settings.seed, _REAL)
        results = {
            "unconditional" if label is None else self.points.class_name(label): evaluate(
                x, self.points, label=label, repeats=self.settings.real_draws, seed=seed
            )
            for label, x in samples.items()
        }
        self.seconds["measure"] = time.perf_counter() - start
        files.save_json(
            self.folder.metrics_file,
            {
                "metrics": {name: result.to_dict() for name, result in results.items()},
                "validation": [{"step": step, "nll": nll} for step, nll in self.validation],
                "seconds": self.seconds,
            },
        )
        return results

    def draw(self, samples: dict[int | None, Tensor]) -> None:
        """Draws the figures of data, samples and classifier.

        Args:
            samples: result of :meth:`generate`.
        """
        points, figures = self.points, self.folder.figures
        plots.scatter(points.data, points.labels, points, points.name, figures / "data.png")
        parts = [(f"{points.name}: data", points.data, None), ("samples", samples[None], None)]
        plots.panels(parts, points, figures / "unconditional.png")
        if not self.by_class:
            return
        guided = [samples[label] for label in range(points.num_classes)]
        plots.conditional(guided, points, figures / "conditional.png")
        for label, x in enumerate(guided):
            plots.conditional([x], points, figures / f"conditional_{label}.png", [label])
        if points.dim == 2 and self.classifier is not None:
            plots.classifier_map(
                self.classifier.model(), self.settings.schedule, points, figures / "classifier.png"
            )


def _data_record(points: Points) -> dict[str, Any]:
    """Returns what the folder of a run says of its data."""
    map_ = points.standardisation
    return {
        "data": points.name,
        "digest": points.digest,
        "standardisation": None if map_ is None else asdict(map_),
    }


@contextmanager
def _deferred_interrupt() -> Iterator[Event]:
    """Makes Ctrl-C set an event instead of stopping a step half-way; a second one stops at once."""
    pressed = Event()

    def press(*_) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    if current_thread() is not main_thread():  # only the main thread may handle signals
        yield pressed
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _next_multiple(step: int, every: int, last: int) -> int:
    return min((step // every + 1) * every, last)
