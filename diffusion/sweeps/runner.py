"""Runs a sweep: trains, draws and measures its models, and keeps each as soon as it is finished."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.default_state import in_default_state, methods_in_default_state
from .. import files
from ..chains import SampleConfig
from ..choices import FIGURES
from ..data import Points
from ..device import choose_device, own_device
from ..errors import UserError, check_choice, check_integer
from ..metrics.yardstick import Yardstick
from ..progress import Progress, silence
from ..sampling import sample_many
from ..training import ManyTrainer, Task
from .best import check_best, leave_best
from .figure import FIGURE, draw_factors
from .grid import Sweep, points_of
from .groups import Training, chunks_of, part_of, trainings_of
from .models import SweepModel
from .progress import SweepProgress
from .results import SweepTable
from .shards import WHOLE, Part, check_part, occupy, this_part
from .store import SweepFolder, Trained


@methods_in_default_state
class SweepRun:
    """A sweep in a folder; work that the folder holds is not repeated.

    Networks of one kind train in the same launches, a chunk of them at once. What a chunk gave is
    kept when it ends.

    Args:
        sweep: the sweep.
        folder: folder of the results.
        device: None takes CUDA where there is one.
        together: number of networks that train at once at most; None takes as many as memory, or a
            CPU's cache, holds.
        resume: goes on with the sweep that the folder holds; values of a key may have been added.
        overwrite: deletes the files of a sweep that the folder holds.
        part: the part of the sweep to do. Parts of one sweep share the folder and may run at once,
            on several machines.
        best: name of a metric, whose best model is left as a run; None leaves none.
        figure_format: format of the figure: png, svg or pdf.
        say: called with a line of text about the progress.
        quiet: shows no progress.

    Raises:
        ValueError: the folder cannot be written to, another process works in it, it holds a sweep
            that is neither resumed nor overwritten, or one of other data; or the sweep does not
            measure the metric ``best``.
    """

    def __init__(
        self,
        sweep: Sweep,
        folder: str | Path,
        *,
        device: str | torch.device | None = None,
        together: int | None = None,
        resume: bool = False,
        overwrite: bool = False,
        part: Part = WHOLE,
        best: str | None = None,
        figure_format: str = "png",
        say: Callable[[str], None] = print,
        quiet: bool = False,
    ):
        check_integer("together", 1 if together is None else together, 1)
        if resume and overwrite:
            raise UserError("resume and overwrite exclude each other")
        self.sweep, self.together, self.say, self.quiet = sweep, together, say, quiet
        check_best(best, sweep.metrics or ())
        self.part, self.best, self.device = part, best, choose_device(device)
        check_choice("figure_format", figure_format, FIGURES)
        self.figure_format = figure_format
        self.folder = SweepFolder(Path(folder), sweep)
        files.make_folder(self.folder.path)
        if not part.is_all:
            check_part(self.folder, part, resume=resume, overwrite=overwrite)
        elif not (resume or overwrite):
            self.folder.check_unused()
        if resume:
            self.folder.check_same()
        occupy(self.folder.path, part, self)
        self.trainings = part_of(trainings_of(sweep), *part)
        self.folder.begin(anew=overwrite)

    @property
    def models(self) -> list[SweepModel]:
        """The models of this part."""
        return [model for training in self.trainings for model in training.models]

    def run(self) -> SweepTable:
        """Does what is missing, and returns the results of all finished models of the sweep.

        Where these are all its models, their table, figure and best model are written.
        """
        total = len(self.models)
        trainings = [one for one in self.trainings if self._missing(one)]
        chunks = list(chunks_of(trainings, self.device, self.together))
        done = total - sum(len(self._missing(one)) for one in trainings)
        name = self.sweep.points.name
        if not chunks:
            self.say(f"{name}: all {total} models are there")
            return self._end()
        self.say(
            f"{name}: {done} of {total} models are there; {len(trainings)} networks to train or "
            f"draw from, up to {max(map(len, chunks))} at once, on {self.device}"
        )
        cost, yardstick = sum(map(self._cost, trainings)), self._yardstick()
        with Progress("sweep", total, "models", start=done, shown=not self.quiet) as bar:
            progress = SweepProgress(bar, cost, done, total)
            for chunk in chunks:
                self._do(chunk, yardstick, progress)
        return self._end()

    def _end(self) -> SweepTable:
        """Returns the table of all finished models; whichever part ends last writes it."""
        sweep, path = self.sweep, self.folder.path
        table = SweepTable(sweep.points.name, dict(sweep.factors), self.folder.results())
        if len(table) < len(sweep.models):
            self.say(
                f"part {self.part} is done; {len(table)} of all {len(sweep.models)} models are "
                "there, and the part that ends last writes the table"
            )
            return table
        table.write(path)
        if table.metrics:
            draw_factors(table, path / f"{FIGURE}.{self.figure_format}")
        if self.best is not None:
            leave_best(self.folder, table, self.best, self.device, self.say)
        return table

    def _missing(self, training: Training) -> list[SweepModel]:
        return [model for model in training.models if not self.folder.has_result(model)]

    def _cost(self, training: Training) -> float:
        """Returns the multiplications of what is missing of a training and its models."""
        trained = self.folder.training(training.models[0]) is not None
        n = self.sweep.n_samples
        drawing = (training.drawing_cost(model, n) for model in self._missing(training))
        return (0.0 if trained else training.cost) + sum(drawing)

    def _yardstick(self) -> Yardstick:
        sweep = self.sweep
        return Yardstick(
            sweep.points, sweep.n_samples, sweep.metrics or (), repeats=sweep.real_draws,
            progress=not self.quiet,
        )  # fmt: skip

    def _do(self, chunk: Sequence[Training], yardstick: Yardstick, progress: SweepProgress) -> None:
        """Trains a chunk, then draws and measures the samples of its models."""
        self._train(chunk, progress)
        models = [model for one in chunk for model in self._missing(one)]
        cost = sum(map(self._cost, chunk))
        began = time.perf_counter()
        samples = self._draw(models)
        drawing = (time.perf_counter() - began) / len(models)
        progress.spent(cost)
        for model, x in zip(models, samples, strict=True):
            began = time.perf_counter()
            failed = x if isinstance(x, str) else ""
            scores = {} if isinstance(x, str) else yardstick.measure(x)
            measuring = time.perf_counter() - began
            seconds = self._trained(model).seconds + drawing + measuring
            self.folder.save_result(model, scores, seconds, failed)
            progress.finished(measuring)

    def _train(self, chunk: Sequence[Training], progress: SweepProgress) -> None:
        """Trains the networks of a chunk that are not there, and keeps them."""
        missing = [one for one in chunk if self.folder.training(one.models[0]) is None]
        if not missing:
            return
        began = time.perf_counter()
        trainer = ManyTrainer([one.task for one in missing], device=self.device)
        trainer.run(trainer.total_steps, lambda step: progress.training(missing, step))
        seconds = (time.perf_counter() - began) / len(missing)
        for place, (one, network) in enumerate(zip(missing, trainer.models(), strict=True)):
            step = trainer.bad_step(place)
            failed = "" if step is None else f"the loss is not finite from step {step} on"
            self.folder.save_network(one.models[0], Trained(seconds, failed), network)
        progress.spent(sum(one.cost for one in missing))

    def _trained(self, model: SweepModel) -> Trained:
        trained = self.folder.training(model)
        if trained is None:
            raise UserError(f"folder {self.folder.path} has lost the network of the model {model}")
        return trained

    def _draw(self, models: Sequence[SweepModel]) -> list[Tensor | str]:
        """Returns the samples [n, d] of each model on the CPU, or why there are none."""
        failed = [self._trained(model).failed for model in models]
        trained = [model for model, why in zip(models, failed, strict=True) if not why]
        samples = iter(self._samples([self._config(model) for model in trained]))
        return [why or next(samples) for why in failed]

    def _config(self, model: SweepModel) -> SampleConfig:
        network = self.folder.load_network(model)
        return model.config(network, self.sweep.points, self.sweep.n_samples)

    def _samples(self, configs: Sequence[SampleConfig]) -> list[Tensor | str]:
        """Returns samples of each configuration; where some are not finite, why."""
        n, device = self.sweep.n_samples, self.device
        with suppress(UserError):
            return [drawn.x.cpu() for drawn in sample_many(configs, n, device=device)]
        found: list[Tensor | str] = []
        for config in configs:  # one by one, so that one that diverges stops no other
            try:
                found.append(sample_many([config], n, device=device)[0].x.cpu())
            except UserError as error:
                found.append(str(error))
        return found


@in_default_state
def sweep(
    data: str | Path | Points,
    factors: Mapping[str, Any],
    *,
    out: str | Path | None = None,
    samples: int = 2000,
    metrics: Sequence[str] | None = None,
    real_draws: int = 40,
    device: str | torch.device | None = None,
    together: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    best: str | None = None,
    shard: str | None = None,
    quiet: bool = False,
    model: Callable[[Task], nn.Module] | None = None,
) -> SweepTable:
    """Trains all combinations of some values, and measures the samples of each beside real data.

    Networks of one shape train in the same launches::

        table = sweep("moons", {"lr": [1e-3, 3e-3], "prediction": ["eps", "v"], "seed": range(3)})
        print(table.to_markdown())

    Args:
        data: the data set, its name or that of a file.
        factors: values by key, see :class:`.Sweep`.
        out: folder that keeps the networks, the table and its figure; None keeps no files.
        samples: number of samples that each model is measured by.
        metrics: names of the metrics; None takes those of every evaluation and the likelihood.
        real_draws: number of draws of real data behind the band of each metric.
        device: None takes CUDA where there is one.
        together: number of networks that train at once at most; None takes as many as memory, or a
            CPU's cache, holds.
        resume: goes on with the sweep that the folder holds.
        overwrite: deletes the files of a sweep that the folder holds.
        best: name of a metric, whose best model is left in ``out`` as a run.
        shard: the part of the sweep to do, as in ``3/16``; under ``torchrun`` each process does its
            share of that. Parts of a sweep share the folder ``out``.
        quiet: shows no progress.
        model: function of a :class:`.Task` that makes a network of your own, of its points, recipe
            and schedule; None for the recipe's perceptron. Each is trained alone. Kept results are
            told apart by the name of its class, and by how it prints, so give another ``out`` after
            a change of its ``forward``.

    Returns:
        A list of results, one for each model, which is a table too. Of a sweep in parts it holds
        the models that are finished by now.

    Raises:
        ValueError: a key, a value or an option is wrong, which is found before any work; or the
            folder cannot be used.
    """
    part = this_part(shard)
    if out is None and not (part.is_all and best is None):
        raise UserError("out must be given for a part of a sweep and for the best model, got none")
    if best is not None and model is not None:
        raise UserError(
            "best must be left out with a model of your own, which no run's folder holds; "
            "the table's best(metric) says which it is"
        )
    planned = Sweep(
        points_of(data), factors, samples, metrics, real_draws, progress=not quiet, model=model
    )
    with tempfile.TemporaryDirectory() as nowhere:
        return SweepRun(
            planned, nowhere if out is None else out, device=own_device(device), together=together,
            resume=resume, overwrite=overwrite, part=part, best=best, say=silence, quiet=quiet,
        ).run()  # fmt: skip
