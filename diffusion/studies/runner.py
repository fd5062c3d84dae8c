"""Runs a study: trains what is missing, draws, measures, and keeps every cell as it ends.

A folder of studies::

    cells/<data>-<digest>.json    numbers of a cell, named after all that decides them
    cells/<data>-<digest>.pt      float32 [n, d], its samples
    perfect/<data>-<digest>.json  what perfect samples score
    <study>/results.json          the study's numbers, put together
    <study>/table.md, *.png       its tables and figures
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ...kernels.philox import child_seed
from .. import files
from ..datasets import dataset
from ..device import choose_device
from ..errors import check_at_least
from ..models import MLP
from ..points import Points
from ..sampling import SampleConfig, sample_many
from ..training import Trainer
from .protocols import Protocol, Score, measure, perfect, prepare
from .study import Cell, Grid, Model, Study

_TRAINING, _SAMPLING, _MEASURING = range(3)  # what draws random numbers of its own
_ON_CPU = 5  # models trained together where that saves no time, only risks losing their work


class StudyRun:
    """One study in a folder; cells that the folder holds already are not done again.

    Args:
        study: what to do.
        folder: where; cells are shared by all studies in it.
        seed: of everything.
        device: None takes CUDA where there is one.
        say: called with a line now and then.

    Raises:
        ValueError: a number is out of range or the folder cannot be written to.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        say: Callable[[str], None] = print,
    ):
        check_at_least("seed", seed, 0)
        self.study, self.seed, self.say = study, seed, say
        self.device = choose_device(device)
        self.folder = files.make_folder(folder / study.name)
        self._cells = files.make_folder(folder / "cells")
        self._perfect = files.make_folder(folder / "perfect")

    def run(self) -> dict:
        """Does every cell that is missing; returns what ``results.json`` holds."""
        missing = [cell for cell in self.study.cells() if not self._file(cell).is_file()]
        total = len(list(self.study.cells()))
        self.say(f"{self.study.name}: {total - len(missing)} of {total} cells are there already")
        for models in self._groups(missing):
            self._do(models, missing)
        results = self.results()
        files.save_json(self.folder / "results.json", results)
        return results

    def results(self) -> dict:
        """The numbers of all cells, beside the perfect and the published ones."""
        return {
            "study": self.study.name,
            "varied": self.study.varied,
            "seed": self.seed,
            "environment": _environment(self.device),
            "training seconds": self._training_seconds(),
            "grids": [self._grid_results(grid) for grid in self.study.grids],
        }

    def samples_of(self, cell: Cell) -> list[Tensor]:
        """The samples of a cell that is done: one set [n, d], or one of each class."""
        return list(files.load(self._file(cell).with_suffix(".pt")))

    def _grid_results(self, grid: Grid) -> dict:
        cells = grid.cells()
        return {
            "title": grid.title,
            "rows": list(grid.rows),
            "columns": list(grid.columns),
            "perfect": {cell.data: self._perfect_scores(cell) for cell in cells},
            "cells": [
                {
                    "data": cell.data,
                    "column": cell.column,
                    "metrics": (scores := self._read(cell)["metrics"]),
                    "published": {
                        name: grid.published_at(name, cell.data, cell.column) for name in scores
                    },
                }
                for cell in cells
            ],
        }

    def _training_seconds(self) -> float:
        seconds = {cell.model: self._read(cell)["training seconds"] for cell in self.study.cells()}
        return sum(seconds.values())

    def _groups(self, cells: Sequence[Cell]) -> Iterator[list[Model]]:
        """The models that cells need, those that train together in one list."""
        groups: dict[tuple, list[Model]] = {}
        for cell in cells:
            model = cell.model
            points = data_of(model.data, model.protocol)
            recipe = model.setting.recipe_for(len(points))
            group = groups.setdefault((points.dim, recipe), [])
            if model not in group:
                group.append(model)
        for group in groups.values():
            group.sort(key=lambda model: model.setting.schedule.num_steps)  # chains of one length
            together = len(group) if self.device.type == "cuda" else _ON_CPU
            for start in range(0, len(group), together):
                yield group[start : start + together]

    def _do(self, models: list[Model], missing: Sequence[Cell]) -> None:
        """Trains models and finishes the cells that need them."""
        began = time.perf_counter()
        networks = dict(zip(models, train(models, self.seed, self.device), strict=True))
        seconds = (time.perf_counter() - began) / len(models)
        cells = [cell for cell in missing if cell.model in networks]
        configs = [self._sampling(cell, networks[cell.model]) for cell in cells]
        for cell, samples in zip(cells, draw(configs, self.device), strict=True):
            self._finish(cell, samples.split(cell.protocol.samples), seconds)

    def _sampling(self, cell: Cell, network: MLP) -> tuple[SampleConfig, int]:
        """What to draw for a cell, and how many in all, class by class."""
        setting, n = cell.setting, cell.protocol.samples
        label = None
        if cell.protocol.by_class:
            classes = data_of(cell.data, cell.protocol).num_classes
            label = torch.arange(classes).repeat_interleave(n)
            n *= classes
        seed = child_seed(self.seed, _SAMPLING)
        config = SampleConfig(
            network,
            setting.schedule,
            seed,
            variance=setting.variance,
            label=label,
            scale=setting.guidance,
        )
        return config, n

    def _finish(self, cell: Cell, samples: Sequence[Tensor], seconds: float) -> None:
        points = data_of(cell.data, cell.protocol)
        scores = measure(samples, points, cell.protocol, child_seed(self.seed, _MEASURING))
        files.save(self._file(cell).with_suffix(".pt"), torch.stack(list(samples)))
        content = {
            "data": cell.data,
            "setting": asdict(cell.setting),
            "protocol": asdict(cell.protocol),
            "metrics": {name: score._asdict() for name, score in scores.items()},
            "training seconds": seconds,  # of its model's share of those trained together
        }
        files.save_json(self._file(cell), content)
        self.say(f"{cell.data}, {self.study.varied} {cell.column}: {_line(scores)}")

    def _perfect_scores(self, cell: Cell) -> dict:
        file = self._perfect / f"{cell.data}-{_digest(cell.protocol)}.json"
        if not file.is_file():
            points = data_of(cell.data, cell.protocol)
            scores = perfect(points, cell.protocol)
            files.save_json(file, {name: score._asdict() for name, score in scores.items()})
        return json.loads(file.read_text())

    def _read(self, cell: Cell) -> dict:
        return json.loads(self._file(cell).read_text())

    def _file(self, cell: Cell) -> Path:
        digest = _digest(cell.setting, cell.protocol, self.seed)
        return self._cells / f"{cell.data}-{digest}.json"


def train(models: Sequence[Model], seed: int, device: str | torch.device) -> list[MLP]:
    """Trains models of one network shape together."""
    trained = []
    for model in tqdm(models, "models", leave=False):
        points = data_of(model.data, model.protocol)
        trainer = Trainer(
            points,
            model.setting.schedule,
            model.setting.recipe_for(len(points)),
            seed=child_seed(seed, _TRAINING),
            device=device,
        )
        trainer.run(trainer.total_steps)
        trained.append(trainer.model())
    return trained


def draw(configs: Sequence[tuple[SampleConfig, int]], device: str | torch.device) -> list[Tensor]:
    """Samples [n, d] on the CPU for each configuration and number, as many as can at once."""
    places: dict[int, list[int]] = {}
    for place, (_, n) in enumerate(configs):
        places.setdefault(n, []).append(place)
    found = {}
    for n, group in places.items():
        samples = sample_many([configs[place][0] for place in group], n, device=device)
        found |= zip(group, (drawn.x.cpu() for drawn in samples), strict=True)
    return [found[place] for place in range(len(configs))]


@cache
def data_of(name: str, protocol: Protocol) -> Points:
    """A data set as a protocol has it."""
    return prepare(dataset(name), protocol)


def _digest(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _line(scores: dict[str, Score]) -> str:
    return ", ".join(f"{name} {score.value:.2f}" for name, score in scores.items())


def _environment(device: torch.device) -> dict:
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
