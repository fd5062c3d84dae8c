"""The folder that studies keep their work in, each part named after all that decides it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from .. import files
from ..checkpoints import load_mlp
from ..data import DATASETS
from ..models import Perceptron
from .protocols import Protocol, Score
from .study import Cell, Model

Scores = dict[str, dict[str, float]]  # {"EMD": {"value": ..., "sd": ...}}


class Store:
    """What is done already; shared by all studies, so that none does another's work again.

    ::

        models/<data>-<digest>.pt     state_dict of a trained model, and .json, how long it took
        cells/<data>-<digest>.pt      float32 [classes or 1, n, d], samples, and .json, their scores
        perfect/<data>-<digest>.json  what perfect samples score

    Args:
        folder: where.
        seed: of everything; part of the names of models and cells.

    Raises:
        ValueError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, seed: int):
        self.seed = seed
        self._models, self._cells, self._perfect = (
            files.make_folder(folder / name) for name in ("models", "cells", "perfect")
        )

    def has_model(self, model: Model) -> bool:
        """Whether a trained model is there."""
        return self._model_file(model).is_file()

    def save_model(self, model: Model, network: Perceptron, seconds: float) -> None:
        """Keeps a network; ``seconds`` is its share of the time of those trained together."""
        file = self._model_file(model)
        files.save_json(file.with_suffix(".json"), {"training seconds": seconds})
        files.save(file, network.state_dict())

    def load_model(self, model: Model) -> Perceptron:
        """A trained model."""
        return load_mlp(self._model_file(model), model.setting.recipe.activation)

    def training_seconds(self, model: Model) -> float:
        """How long a model was trained."""
        return _read(self._model_file(model).with_suffix(".json"))["training seconds"]

    def has_cell(self, cell: Cell) -> bool:
        """Whether a cell's scores are there."""
        return self._cell_file(cell).is_file()

    def save_cell(self, cell: Cell, samples: Sequence[Tensor], scores: dict[str, Score]) -> None:
        """Keeps samples [n, d], one set or one of each class, and what they score."""
        file = self._cell_file(cell)
        files.save(file.with_suffix(".pt"), torch.stack(list(samples)))
        content = {
            "data": cell.data,
            "setting": asdict(cell.setting),
            "protocol": asdict(cell.protocol),
            "scores": _plain(scores),
        }
        files.save_json(file, content)

    def scores(self, cell: Cell) -> Scores:
        """A cell's scores by name."""
        return _read(self._cell_file(cell))["scores"]

    def samples(self, cell: Cell) -> list[Tensor]:
        """A cell's samples."""
        return list(files.load(self._cell_file(cell).with_suffix(".pt")))

    def has_perfect(self, data: str, protocol: Protocol) -> bool:
        """Whether the scores of real draws are there."""
        return self._perfect_file(data, protocol).is_file()

    def save_perfect(self, data: str, protocol: Protocol, scores: dict[str, Score]) -> None:
        """Keeps the scores of real draws."""
        files.save_json(self._perfect_file(data, protocol), _plain(scores))

    def perfect(self, data: str, protocol: Protocol) -> Scores:
        """The scores of real draws by name."""
        return _read(self._perfect_file(data, protocol))

    def _model_file(self, model: Model) -> Path:
        return self._models / f"{_label(model.data)}-{_digest(model, self.seed)}.pt"

    def _cell_file(self, cell: Cell) -> Path:
        return (
            self._cells
            / f"{Path(cell.data).stem}-{_digest(cell.setting, cell.protocol, self.seed)}.json"
        )

    def _perfect_file(self, data: str, protocol: Protocol) -> Path:
        return self._perfect / f"{_label(data)}-{_digest(protocol)}.json"


def _plain(scores: dict[str, Score]) -> Scores:
    return {name: score._asdict() for name, score in scores.items()}


def _label(data: str) -> str:
    """A data set's name; of a file or folder its stem and a digest of where and what it is."""
    if data in DATASETS:
        return data
    path = Path(data)
    return f"{path.stem}-{_digest(data, path.read_bytes() if path.is_file() else b'')}"


def _digest(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _read(file: Path) -> dict:
    return json.loads(file.read_text())
