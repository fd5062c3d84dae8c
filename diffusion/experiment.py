"""The whole experiment: trains a denoiser and a classifier, draws samples, measures and draws them.

:mod:`.run_folder` describes the folder that a run leaves.
"""

import time
import weakref
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels.philox import child_seed
from ..kernels.workers import rows_for_all
from . import files, plots
from .choices import FIGURES
from .data import Points
from .errors import UserError, check_choice, check_integer
from .initial import Initial, record_of_initial
from .interrupts import Request, Stopped, deferred
from .locks import lock_folder
from .logs import Callback, CallbackError, check_callbacks, check_logs, logs_in
from .made_with import made_with
from .metrics import Evaluation, evaluate
from .metrics.evaluation import data_of
from .models import MLP
from .progress import Progress
from .run_figures import draw_samples
from .run_folder import RunFolder
from .run_record import changed_length, check_lengths, check_same_run, record_of
from .run_validation import Validation
from .sampling import sample
from .settings import Settings
from .training import ClassicRecipe, Recipe, Task, Trainer
from .training.distributed import Ranks
from .training.reports import Reports

__all__ = ["Run", "Settings", "check_measurable"]

# Streams of random numbers, one for each part of an experiment.
_DENOISER, _CLASSIFIER, _VALIDATION, _UNCONDITIONAL, _CONDITIONAL, _REAL = range(6)

_ALL_CLASSES = "unconditional"  # samples without guidance, among those by the name of their class


class Run:
    """One experiment in one folder.

    Args:
        points: the data set.
        settings: settings of the experiment.
        folder: folder of the results.
        device: device of training and sampling.
        validation: held-out points, whose loss is recorded during the training.
        initial: the networks that the training starts from; None for random ones.
        resume: goes on with the training state in the folder, if there is one.
        overwrite: deletes the files of a run that the folder holds.
        source: where the points come from, as the folder is to remember it.
        checkpoint_every: number of training steps between two checkpoints.
        logs: kinds of logs beside ``losses.csv``, see :func:`.logs_in`.
        callbacks: objects that are told how each training goes.
        say: called with a line of text about the progress.
        quiet: shows no progress of training and sampling.
        ranks: the processes that share the work; the first one writes all files.
        figure_format: format of the figures: png, svg or pdf.

    Attributes:
        folder: the folder, as a :class:`.RunFolder`.
        by_class: True if samples of each class are drawn too.
        validation: what is measured while training, a :class:`.Validation`.
        seconds: duration of each part of the experiment.
        stage: what the run is doing, for messages.

    Raises:
        ValueError: the folder cannot be written to, another process trains in it, it holds a run
            that is neither resumed nor overwritten, or a run of other settings or other data.
    """

    def __init__(
        self,
        points: Points,
        settings: Settings,
        folder: str | Path,
        *,
        device: torch.device,
        validation: Points | None = None,
        initial: Initial | None = None,
        resume: bool = False,
        overwrite: bool = False,
        source: dict[str, Any] | None = None,
        checkpoint_every: int = 500,
        logs: Collection[str] = (),
        callbacks: Sequence[Callback] = (),
        say: Callable[[str], None] = print,
        quiet: bool = False,
        ranks: Ranks | None = None,
        figure_format: str = "png",
    ):
        check_choice("figure_format", figure_format, FIGURES)
        check_integer("checkpoint_every", checkpoint_every, 1)
        if resume and overwrite:
            raise UserError("resume and overwrite exclude each other")
        check_logs(logs)
        check_callbacks(callbacks)
        self.ranks = ranks or Ranks()
        self.points, self.settings, self.device, self.say = points, settings, device, say
        self.checkpoint_every, self.quiet = checkpoint_every, quiet
        self.figure_format = figure_format
        self.folder, self.stage = RunFolder(Path(folder)), "before the training"
        self._initial = initial
        seed = child_seed(settings.seed, _VALIDATION)
        self.validation = Validation(points, settings, validation, device, seed)
        self._record = record_of(points, source, settings, record_of_initial(initial))
        self.ranks.first(self._occupy)
        resumes = resume and self.folder.training_file.exists()
        if resumes:
            check_same_run(
                self.folder, points, settings, say, self._record["init"], self._record["source"]
            )
        elif resume:
            say(f"nothing to resume in {self.folder}, starting anew")
        if not resumes:
            self.folder.check_settings_file()
        if not resumes and not overwrite:
            self.folder.check_unused(resume=resume)
        self.denoiser = self._trainer(_DENOISER, settings.denoiser, classify=False)
        self.classifier = None
        self.by_class = points.labels is not None and points.num_classes > 1
        if self.by_class and settings.denoiser.p_uncond is None:
            self.classifier = self._trainer(_CLASSIFIER, settings.classifier, classify=True)
        self.seconds: dict[str, float] = {}
        if resumes:
            self._resume()
        say(f"{points.name}: {len(points)} points in {points.dim} dimensions, on {device}")
        self.validation.find_band(say)
        self.ranks.first(lambda: self._begin(anew=not resumes))
        own_logs = logs_in(self.folder.path, logs) if self.ranks.writes else []
        self.callbacks = [*own_logs, *callbacks]

    def _occupy(self) -> None:
        """Makes the folder and locks it for as long as this object lives."""
        files.make_folder(self.folder.path)
        weakref.finalize(self, lock_folder(self.folder.path).release)
        self.folder.make()

    def _begin(self, anew: bool) -> None:
        """Writes the settings; a new run deletes what an earlier one left."""
        if anew:
            self.folder.clear()
        files.save_json(self.folder.config_file, self._record)

    def _trainer(self, stream: int, recipe: Recipe | ClassicRecipe, classify: bool) -> Trainer:
        seed = child_seed(self.settings.seed, stream)
        task = Task(self.points, self.settings.schedule, recipe, classify, seed)
        return Trainer(
            self.points,
            self.settings.schedule,
            recipe,
            classify=classify,
            seed=seed,
            device=self.device,
            ranks=self.ranks,
            initial=None if self._initial is None else self._initial.network(task, self.say),
        )

    @property
    def trainers(self) -> dict[str, Trainer]:
        """The trainers by name of the network."""
        trainers = {"denoiser": self.denoiser, "classifier": self.classifier}
        return {name: trainer for name, trainer in trainers.items() if trainer is not None}

    def _resume(self) -> None:
        path = self.folder.training_file
        state = files.load(path)
        check_lengths(self.trainers, state, path)
        try:
            for name, trainer in self.trainers.items():
                trainer.load_state_dict(state[name])
            self.validation.load_state(state)
            self.seconds = dict(state.get("seconds", {}))
        except UserError as error:
            raise UserError(f"file {path} is of another run: {error}") from error
        except Exception as error:  # of any kind, from a file of any content
            raise UserError(f"file {path} does not hold the state of this training") from error
        self.say(f"resumed {self.folder} at denoiser step {self.denoiser.step}")
        for name, trainer in self.trainers.items():
            line = changed_length(name, trainer, self.folder.config() or {})
            if line:
                self.say(line)

    def save_training(self) -> None:
        """Writes the state of the training and the networks so far."""
        if not self.ranks.writes:
            return
        state = {name: trainer.state_dict() for name, trainer in self.trainers.items()}
        more = self.validation.state() | {"seconds": self.seconds}
        files.save(self.folder.training_file, state | more | made_with(self.device))
        for name, trainer in self.trainers.items():
            files.save(self.folder.network_file(name), trainer.model().state_dict())
        steps = {
            name: {"step": trainer.step, "of": trainer.total_steps}
            for name, trainer in self.trainers.items()
        }
        files.save_json(self.folder.progress_file, steps)

    def train(self) -> None:
        """Trains both networks to the end of their recipes, and draws the training curves.

        Raises:
            KeyboardInterrupt: after Ctrl-C or another signal to stop, once the steps under way are
                done and saved.
            ValueError: a loss is not finite, and the last good checkpoint stays; or a callback has
                failed, and the training is saved.
        """
        with deferred() as request:
            for name, trainer in self.trainers.items():
                try:
                    self._train(name, trainer, request)
                except CallbackError as error:
                    self.save_training()
                    raise UserError(f"{error}; the training is saved, --resume goes on") from error
                self.save_training()
        if not self.ranks.writes:
            return
        losses = {name: trainer.losses for name, trainer in self.trainers.items()}
        figure, found = self.folder.figures / "training_curves", self.validation
        path = figure.with_suffix(f".{self.figure_format}")
        plots.training_curves(losses, found.nlls, found.band, path, held_out=found.losses)
        # Those of a part of the training, drawn in another format, end too early.
        files.delete({figure.with_suffix(f".{other}") for other in FIGURES} - {path})

    def _train(self, name: str, trainer: Trainer, request: Request) -> None:
        title, total = f"train {name}", trainer.total_steps
        before = self.seconds.get(title, 0)
        began = time.perf_counter() - before
        callbacks = self.callbacks if trainer.step < total else ()
        with (
            self._progress(title, total, "steps", trainer.step) as progress,
            Reports(trainer, callbacks, seconds=before) as reports,
        ):
            while trainer.step < total:
                until = min(
                    min((trainer.step // every + 1) * every, total)
                    for every in (50, self.checkpoint_every, self.settings.validate_every)
                )
                trainer.run(until - trainer.step, progress.to)
                self.stage = f"at step {self.denoiser.step:,}"
                validates = until % self.settings.validate_every == 0 or until == total
                stops = self.ranks.any(request.is_set())
                saves = until % self.checkpoint_every == 0 or until == total or stops
                self._check_finite(name, trainer, wait=saves or validates)
                measured = self._validate(name, trainer) if validates else {}
                progress.note(**self._notes(name, trainer))
                self.seconds[title] = time.perf_counter() - began
                reports.to(trainer.step, measured, wait=saves)
                if saves:
                    self.save_training()
                if stops:
                    raise Stopped(request.number)

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

    def _validate(self, name: str, trainer: Trainer) -> dict[str, float]:
        """Measures samples of the denoiser, and held-out points; returns the numbers by name."""
        if not self.ranks.writes:
            return {}
        samples = self.validation.of_samples(trainer) if trainer is self.denoiser else {}
        return samples | self.validation.of_held_out(name, trainer)

    def _notes(self, name: str, trainer: Trainer) -> dict[str, str]:
        loss = trainer.losses_on_host[-50:].mean().item()
        return {"loss": f"{loss:.4f}"} | self.validation.notes(name)

    def _progress(self, title: str, total: int, unit: str, start: int = 0) -> Progress:
        shown = self.ranks.writes and not self.quiet
        return Progress(title, total, unit, start=start, shown=shown)

    def generate(self) -> dict[int | None, Tensor]:
        """Draws samples [n, d] like the points' data, and writes them to files in their units.

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
            files.save(self.folder.samples_file(label), self.points.in_units(x))
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
        self.stage = "after the training, while samples were drawn"
        with self._progress(title, own, "samples") as progress:
            if own:
                x[rows] = sample(
                    model,
                    self.settings.schedule,
                    own,
                    classifier=classifier,
                    label=None if labels is None else labels[rows],
                    scale=None if labels is None else self.settings.scale,
                    **self.settings.sampler,
                    seed=child_seed(self.settings.seed, stream),
                    first_row=first,
                    # On a CPU a batch that occupies all threads takes seconds, and shows progress.
                    batch_size=rows_for_all() if self.device.type == "cpu" else n,
                    device=self.device,
                    progress=progress.to,
                ).x
        self.ranks.add_up(x)
        self.seconds[title] = time.perf_counter() - start
        return x.cpu()

    def measure(self, samples: dict[int | None, Tensor]) -> dict[str, Evaluation]:
        """Computes every metric of the samples and writes them to ``metrics.json``.

        Args:
            samples: result of :meth:`generate`.

        Returns:
            Evaluations by kind of samples: ``unconditional``, then the name of each class.
        """
        self.stage = "after the training, while the samples were measured"
        start = time.perf_counter()
        seed = child_seed(self.settings.seed, _REAL)
        results = {
            self._kind(label): evaluate(
                x, self.points, label=label, repeats=self.settings.real_draws, seed=seed
            )
            for label, x in samples.items()
        }
        self.seconds["measure"] = time.perf_counter() - start
        files.save_json(
            self.folder.metrics_file,
            {
                "metrics": {name: result.to_dict() for name, result in results.items()},
                **self.validation.record(),
                "seconds": self.seconds,
            },
        )
        return results

    def _kind(self, label: int | None) -> str:
        """Returns the name of a class's samples in ``metrics.json``; None is of all classes."""
        if label is None:
            return _ALL_CLASSES
        name = self.points.class_name(label)
        return f"class {name}" if name == _ALL_CLASSES else name

    def draw(self, samples: dict[int | None, Tensor]) -> None:
        """Draws the figures of data, samples and classifier.

        Args:
            samples: result of :meth:`generate`.
        """
        self.stage = "after the training, while figures were drawn"
        classifier = None if self.classifier is None else self.classifier.model()
        draw_samples(
            samples, self.points, self.settings, classifier, self.folder.figures, self.figure_format
        )


def check_measurable(points: Points) -> None:
    """Raises :class:`UserError` if the data, or a class, has too few points for the metrics."""
    for label in (None, *range(points.num_classes if points.num_classes > 1 else 0)):
        data_of(points, label)
