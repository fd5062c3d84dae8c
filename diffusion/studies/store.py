"""The folder in which studies keep their work. A file is named after all that decides it."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from ..checkpoints import load_mlp
from ..data import DATASETS
from ..errors import UserError
from ..models import Perceptron
from ..schedules import Schedule
from ..training import Recipe
from .protocols import Estimate, Protocol
from .study import Cell, Model, Variant

Scores = dict[str, dict[str, float]]  # {"EMD": {"value": ..., "sd": ...}}


class Store:
    """The finished work of all studies, so that none repeats the work of another.

    ::

        models/<data>-<digest>.pt     state_dict of a trained model; .json: duration of its training
        cells/<data>-<digest>.pt      samples, float32 [classes or 1, n, d]; .json: their scores
        perfect/<data>-<digest>.json  scores of perfect samples

    Args:
        folder: the folder.
        seed: seed of everything random, which is part of the names of models and cells.

    Raises:
        ValueError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, seed: int):
        self.seed = seed
        self._models, self._cells, self._perfect = (
            files.make_folder(folder / name) for name in ("models", "cells", "perfect")
        )

    def has_model(self, model: Model) -> bool:
        """Returns True if the model has been trained."""
        return self._model_file(model).is_file()

    def save_model(self, model: Model, network: Perceptron, seconds: float) -> None:
        """Keeps a network and its share of the seconds that the training took."""
        file = self._model_file(model)
        files.save_json(file.with_suffix(".json"), {"training seconds": seconds})
        files.save(file, network.state_dict())

    def load_model(self, model: Model) -> Perceptron:
        """Returns a trained model."""
        return load_mlp(self._model_file(model), model.variant.recipe.activation)

    def training_seconds(self, model: Model) -> float:
        """Returns the duration of a model's training, in seconds."""
        return _read(self._model_file(model).with_suffix(".json"), "training seconds")

    def has_cell(self, cell: Cell) -> bool:
        """Returns True if the cell has been measured."""
        return self._cell_file(cell).is_file()

    def save_cell(self, cell: Cell, samples: Sequence[Tensor], scores: dict[str, Estimate]) -> None:
        """Keeps samples [n, d], one set or one of each class, and their scores."""
        file = self._cell_file(cell)
        files.save(file.with_suffix(".pt"), torch.stack(list(samples)))
        content = {
            "data": cell.data,
            "setting": asdict(cell.variant),
            "protocol": asdict(cell.protocol),
            "scores": _plain(scores),
        }
        files.save_json(file, content)

    def scores(self, cell: Cell) -> Scores:
        """Returns a cell's scores by name of the metric."""
        return _read(self._cell_file(cell), "scores")

    def samples(self, cell: Cell) -> list[Tensor]:
        """Returns a cell's samples [n, d], one set or one of each class."""
        return list(files.load(self._cell_file(cell).with_suffix(".pt")))

    def has_perfect(self, data: str, protocol: Protocol) -> bool:
        """Returns True if perfect samples have been measured."""
        return self._perfect_file(data, protocol).is_file()

    def save_perfect(self, data: str, protocol: Protocol, scores: dict[str, Estimate]) -> None:
        """Keeps the scores of perfect samples."""
        files.save_json(self._perfect_file(data, protocol), _plain(scores))

    def perfect(self, data: str, protocol: Protocol) -> Scores:
        """Returns the scores of perfect samples by name of the metric."""
        return files.load_json(self._perfect_file(data, protocol))

    def _model_file(self, model: Model) -> Path:
        return self._models / f"{_label(model.data)}-{_digest(model, self.seed)}.pt"

    def _cell_file(self, cell: Cell) -> Path:
        return (
            self._cells
            / f"{_label(cell.data)}-{_digest(cell.variant, cell.protocol, self.seed)}.json"
        )

    def _perfect_file(self, data: str, protocol: Protocol) -> Path:
        return self._perfect / f"{_label(data)}-{_digest(protocol)}.json"


def _plain(scores: dict[str, Estimate]) -> Scores:
    return {name: score._asdict() for name, score in scores.items()}


def _label(data: str) -> str:
    """Returns a data set's name; for a file, its stem and a digest of its path and content."""
    if data in DATASETS:
        return data
    path = Path(data)
    return f"{path.stem}-{_digest(data, path.read_bytes() if path.is_file() else b'')}"


def _digest(*parts) -> str:
    written = ", ".join(map(_written, parts)) + ("," if len(parts) == 1 else "")
    return hashlib.sha256(f"({written})".encode()).hexdigest()[:12]


# Names and order of the fields in the text that digests are made of. They stay as they are when a
# class changes: otherwise the work in existing folders would no longer be found. A field that is
# added to a class follows where it differs from its default, or from what it says of older work.
_WRITTEN_AS: dict[type, tuple[str | None, dict[str, str]]] = {
    Model: ("Model", {"data": "data", "standardise": "standardise", "setting": "variant"}),
    Variant: (
        "Setting",
        {name: name for name in ("schedule", "recipe", "epochs", "variance", "guidance",
                                 "temperature", "posterior_draws")},
    ),
    Recipe: (
        None,
        {name: name for name in ("steps", "hidden_layers", "batch_size", "lr", "warmup",
                                 "weight_decay", "ema_decay", "low_noise", "activation",
                                 "linear_input", "p_uncond", "class_embedding", "clip_norm",
                                 "chunk_rows")},
    ),
    Schedule: (
        None,
        {name: name for name in ("num_steps", "name", "beta_start", "beta_end", "time_feature")},
    ),
    Protocol: (
        None,
        {name: name for name in ("samples", "size", "test_split", "standardise", "by_class")},
    ),
}  # fmt: skip
_OLDER_WORK: dict[tuple[type, str], Any] = {(Schedule, "prediction"): "eps"}


def _written(value: object) -> str:
    """Returns the text of a value that digests are made of, in the form of ``repr``."""
    for kind, (name, fields) in _WRITTEN_AS.items():
        if isinstance(value, kind):
            texts = [f"{key}={_written(getattr(value, field))}" for key, field in fields.items()]
            texts += _added(value, set(fields.values()))
            return f"{name or type(value).__name__}({', '.join(texts)})"
    return repr(value)


def _added(value: object, known: set[str]) -> Iterator[str]:
    """Yields the text of each other field of a dataclass that differs from its default."""
    for field in dataclass_fields(value) if is_dataclass(value) else ():
        usual = _OLDER_WORK.get((type(value), field.name), field.default)
        if field.name not in known and getattr(value, field.name) != usual:
            yield f"{field.name}={_written(getattr(value, field.name))}"


def _read(file: Path, key: str) -> Any:
    content = files.load_json(file)
    if key not in content:
        raise UserError(f"file {file} holds no {key!r}: delete it, and the study makes it again")
    return content[key]
