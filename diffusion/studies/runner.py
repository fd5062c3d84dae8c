"""Runs a study: trains models, draws samples and measures them, and keeps each part as it ends."""

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...kernels.philox import child_seed
from .. import files
from ..data import Points, dataset
from ..device import choose_device
from ..errors import UserError, check_integer, check_seed
from ..models import MLP
from ..rewards import class_reward, sample_with_reward
from ..sampling import SampleConfig, sample_many
from ..training import ManyTrainer, Task
from .protocols import Estimate, Protocol, measure, perfect, standardised
from .store import Store
from .study import Cell, Grid, Model, Study

if TYPE_CHECKING:
    from sklearn.neural_network import MLPClassifier

_TRAINING, _SAMPLING, _MEASURING = range(3)  # streams of random numbers


class StudyRun:
    """One study in a folder; work that the folder holds is not repeated.

    Args:
        study: the study.
        folder: folder of all studies, see :class:`Store`; the study's own numbers, table and
            figures go into the folder of its name in there.
        seed: seed of everything random.
        device: None takes CUDA where there is one.
        together: number of models of one kind that train at once. None is all of them on a GPU and
            one on a CPU, where training together saves little and an interrupt would lose more.
        say: called with a line of text about the progress.
        quiet: shows no progress of the training.

    Raises:
        ValueError: the seed is negative, the folder cannot be written to, or a data set does not
            have what a grid needs.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        together: int | None = None,
        say: Callable[[str], None] = print,
        quiet: bool = False,
    ):
        check_seed(seed)
        check_integer("together", 1 if together is None else together, 1)
        self.study, self.seed, self.say, self.quiet = study, seed, say, quiet
        for cell in study.cells():
            _check_data(cell)
        self.device = choose_device(device)
        self.together = together or (None if self.device.type == "cuda" else 1)
        self.store = Store(files.make_folder(folder), seed)
        self.folder = files.make_folder(folder / study.name)

    def run(self) -> dict:
        """Computes every missing cell and returns :meth:`results`."""
        cells = list(self.study.cells())
        missing = [cell for cell in cells if not self.store.has_cell(cell)]
        self.say(f"{self.study.name}: {len(cells) - len(missing)} of {len(cells)} cells are there")
        for models in self.groups(missing):
            self._train([model for model in models if not self.store.has_model(model)])
            self._draw([cell for cell in missing if cell.model in models])
        return self.results()

    def results(self) -> dict:
        """Writes ``results.json`` and returns its content.

        It holds the numbers of all finished cells, beside the perfect and the published ones.
        """
        models = {cell.model for cell in self.study.cells() if self.store.has_cell(cell)}
        results = {
            "study": self.study.name,
            "varied": self.study.varied,
            "shown": self.study.shown,
            "seed": self.seed,
            "environment": _environment(self.device),
            "models": len(models),
            "training seconds": sum(map(self.store.training_seconds, models)),
            "grids": [self._grid_results(grid) for grid in self.study.grids],
        }
        files.save_json(self.folder / "results.json", results)
        return results

    def _grid_results(self, grid: Grid) -> dict:
        return {
            "title": grid.title,
            "rows": list(grid.rows),
            "columns": list(grid.columns),
            "perfect": {data: self._perfect(data, grid.protocol) for data in grid.rows},
            "cells": [
                {
                    "data": cell.data,
                    "column": cell.column,
                    "scores": (scores := self.store.scores(cell)),
                    "published": {
                        name: grid.published_at(name, cell.data, cell.column) for name in scores
                    },
                }
                for cell in grid.cells()
                if self.store.has_cell(cell)
            ],
        }

    def _perfect(self, data: str, protocol: Protocol) -> dict:
        if not self.store.has_perfect(data, protocol):
            points = data_of(data, protocol.standardise)
            self.store.save_perfect(data, protocol, perfect(points, protocol))
        return self.store.perfect(data, protocol)

    def groups(self, cells: Sequence[Cell]) -> Iterator[Sequence[Model]]:
        """Yields the models that cells need, those of one shape and number of steps together."""
        groups: dict[tuple, list[Model]] = {}
        for model in models_of(cells):
            points = data_of(model.data, model.standardise)
            recipe = model.variant.recipe_for(len(points))
            classes = 0 if recipe.p_uncond is None else points.num_classes
            kind = points.dim, classes, recipe
            groups.setdefault(kind, []).append(model)
        for group in groups.values():
            size = self.together or len(group)
            yield from (group[start : start + size] for start in range(0, len(group), size))

    def _train(self, models: Sequence[Model]) -> None:
        if not models:
            return
        began = time.perf_counter()
        networks = train(models, self.seed, self.device, progress=not self.quiet)
        seconds = (time.perf_counter() - began) / len(models)
        for model, network in zip(models, networks, strict=True):
            self.store.save_model(model, network, seconds)

    def _draw(self, cells: Sequence[Cell]) -> None:
        """Draws the samples of cells and measures them."""
        for cell, x in zip(cells, self._samples(cells), strict=True):
            samples = x.split(cell.protocol.samples)
            points = data_of(cell.data, cell.protocol.standardise)
            scores = measure(samples, points, cell.protocol, child_seed(self.seed, _MEASURING))
            self.store.save_cell(cell, samples, scores)
            self.say(f"{cell.data}, {self.study.varied} {cell.column}: {_line(scores)}")

    def _samples(self, cells: Sequence[Cell]) -> Iterator[Tensor]:
        """Yields the samples [n, d] of each cell on the CPU, class by class."""
        chains = [cell for cell in cells if cell.variant.temperature is None]
        found = iter(draw([self._chain(cell) for cell in chains], self.device))
        for cell in cells:
            yield next(found) if cell.variant.temperature is None else self._seek(cell)

    def _chain(self, cell: Cell) -> tuple[SampleConfig, int]:
        """Returns the configuration of a cell's samples, and their number over all classes."""
        variant, n, label = cell.variant, cell.protocol.samples, None
        if cell.protocol.by_class:
            classes = data_of(cell.data, cell.protocol.standardise).num_classes
            label = torch.arange(classes).repeat_interleave(n)
            n *= classes
        config = SampleConfig(
            self.store.load_model(cell.model),
            variant.schedule,
            child_seed(self.seed, _SAMPLING),
            variance=variant.variance,
            label=label,
            scale=variant.guidance,
        )
        return config, n

    def _seek(self, cell: Cell) -> Tensor:
        """Draws samples of each class by the reward of a classifier."""
        points = data_of(cell.data, cell.protocol.standardise)
        model, classifier = self.store.load_model(cell.model), _classifier(points)
        assert cell.variant.temperature is not None
        parts = [
            sample_with_reward(
                model,
                cell.variant.schedule,
                cell.protocol.samples,
                class_reward(classifier.predict_proba, label),
                temperature=cell.variant.temperature,
                posterior_draws=cell.variant.posterior_draws,
                seed=child_seed(child_seed(self.seed, _SAMPLING), label),
                device=self.device,
            ).x.cpu()
            for label in range(points.num_classes)
        ]
        return torch.cat(parts)


def models_of(cells: Iterable[Cell]) -> list[Model]:
    """Returns the models that cells need, each once."""
    return list(dict.fromkeys(cell.model for cell in cells))


def train(
    models: Sequence[Model], seed: int, device: str | torch.device, *, progress: bool = True
) -> list[MLP]:
    """Trains models, those of one network shape and batch size in the same launches.

    Args:
        models: the models.
        seed: seed of everything random.
        device: device of the training.
        progress: shows a bar on stderr.
    """
    tasks = []
    for model in models:
        points = data_of(model.data, model.standardise)
        recipe = model.variant.recipe_for(len(points))
        tasks.append(Task(points, model.variant.schedule, recipe, seed=child_seed(seed, _TRAINING)))
    trainer = ManyTrainer(tasks, device=device)
    trainer.run(trainer.total_steps, progress)
    return trainer.models()


def draw(configs: Sequence[tuple[SampleConfig, int]], device: torch.device) -> list[Tensor]:
    """Draws samples [n, d] for each configuration and number n, as many as possible at once.

    Args:
        configs: pairs of configuration and number of samples.
        device: device of the sampling.

    Returns:
        Samples on the CPU, in the order of the configurations.
    """
    places: dict[int, list[int]] = {}
    for place, (_, n) in enumerate(configs):
        places.setdefault(n, []).append(place)
    found: dict[int, Tensor] = {}
    for n, group in places.items():
        samples = sample_many([configs[place][0] for place in group], n, device=device)
        found |= zip(group, (drawn.x.cpu() for drawn in samples), strict=True)
    return [found[place] for place in range(len(configs))]


@cache
def data_of(name: str, standardise: bool) -> Points:
    """Returns a data set by name, as the models see it."""
    points = dataset(name, standardise=True)  # which leaves a published data set as it is
    return standardised(points) if standardise else points


@cache
def _classifier(points: Points) -> "MLPClassifier":
    """Returns the classifier that gives the reward; the accuracy comes from another one."""
    from sklearn.neural_network import MLPClassifier  # takes a second to import

    network = MLPClassifier((100, 50), max_iter=500, random_state=0)
    return network.fit(np.asarray(points.data), np.asarray(points.labels))


def _check_data(cell: Cell) -> None:
    """Raises :class:`UserError` if the data set lacks labels or new draws that a cell needs."""
    points = data_of(cell.data, cell.protocol.standardise)
    if cell.protocol.by_class and points.labels is None:
        raise UserError(f"{points.name}: the study draws samples by class, which needs labels")
    if cell.protocol.test_split and points.redraw is None:
        raise UserError(f"{points.name}: the study compares with new points, which cannot be drawn")


def _line(scores: dict[str, Estimate]) -> str:
    return ", ".join(f"{name} {score.value:.2f}" for name, score in scores.items())


def _environment(device: torch.device) -> dict:
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else f"CPU {platform.machine()}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
