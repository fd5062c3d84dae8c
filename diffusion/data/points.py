"""Point clouds to train on, and the files that they are read from."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...kernels.philox import permute, seed_tensor
from ..errors import UserError, check_choice
from .standardisation import Standardisation

FILE_TYPES = (".pt", ".npy", ".npz", ".csv")


@dataclass(frozen=True)
class Points:
    """A data set of points.

    Attributes:
        data: float32 [N, d].
        labels: int64 [N] with values 0 ... C - 1, or None.
        class_names: C names, or empty.
        name: name of the data set.
        redraw: ``redraw(n, seed, label=None) -> (data, labels)`` draws n new points from the
            distribution that the data came from, of one class if a label is given; None where
            that distribution is not known.
        outlines: the true curves that the points scatter around, [K, 2] each, for figures.
        image_shape: (height, width) where each point is a grey image, values from -1 to 1.
        standardisation: the map that made ``data`` from a user's points; None for points as they
            came.

    Raises:
        ValueError: the points or labels are empty, not finite or of the wrong shape or type, or
            some classes have a name and some have none.
    """

    data: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    name: str = "points"
    redraw: Callable[..., tuple[Tensor, Tensor | None]] | None = field(default=None, repr=False)
    outlines: tuple[Tensor, ...] = field(default=(), repr=False)
    image_shape: tuple[int, int] | None = None
    standardisation: Standardisation | None = None

    def __post_init__(self):
        if not isinstance(self.data, Tensor) or not self.data.is_floating_point():
            given = self.data.dtype if isinstance(self.data, Tensor) else type(self.data).__name__
            raise UserError(f"{self.name}: points must be a tensor of float32, got {given}")
        if self.data.dim() != 2 or 0 in self.data.shape:
            raise UserError(
                f"{self.name}: points must be [N, d] with at least one row and one column, "
                f"got {list(self.data.shape)}"
            )
        if not self.data.isfinite().all():
            bad = (~self.data.isfinite().all(dim=1)).nonzero()[0].item()
            raise UserError(f"{self.name}: points must be finite, got NaN or infinity in row {bad}")
        if self.image_shape and self.image_shape[0] * self.image_shape[1] != self.dim:
            raise UserError(f"{self.name}: image_shape {self.image_shape} is not {self.dim} pixels")
        if self.labels is None:
            return
        if self.labels.shape != self.data.shape[:1]:
            raise UserError(
                f"{self.name}: labels must be [{len(self.data)}], one per point, "
                f"got {list(self.labels.shape)}"
            )
        if self.labels.dtype != torch.int64:
            raise UserError(f"{self.name}: labels must be int64, got {self.labels.dtype}")
        present = self.labels.unique().tolist()
        if present != list(range(len(present))):
            raise UserError(
                f"{self.name}: labels must be 0, 1, ... without gaps, got {present[:10]}"
            )
        if self.class_names and len(self.class_names) < len(present):
            raise UserError(
                f"{self.name}: class_names must be at least {len(present)}, one per class, "
                f"got {len(self.class_names)}"
            )

    def __len__(self) -> int:
        return len(self.data)

    @property
    def dim(self) -> int:
        """Dimension d of a point."""
        return self.data.shape[1]

    @property
    def num_classes(self) -> int:
        """C; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    @property
    def digest(self) -> str:
        """SHA-256 of points, labels and standardisation, by which a run knows its data again."""
        digest = hashlib.sha256(repr((list(self.data.shape), self.standardisation)).encode())
        for part in (self.data.float(), self.labels):
            if part is not None:
                digest.update(part.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def class_name(self, label: int) -> str:
        """Returns the name of a class in figures and tables."""
        return self.class_names[label] if self.class_names else f"class {label}"

    def of_class(self, label: int) -> Tensor:
        """Returns the points [n, d] with this label."""
        return self.data[self.labels == label]

    def only(self, label: int) -> "Points":
        """Returns the data set of one class alone, without labels.

        Raises:
            ValueError: there is no such class.
        """
        self.check_label(label)
        whole = self.redraw
        redraw = whole and (lambda n, seed, _=None: (whole(n, seed, label)[0], None))
        name = f"{self.name}_{label}"
        return replace(
            self, data=self.of_class(label), labels=None, class_names=(), name=name, redraw=redraw
        )

    def fresh(self, n: int, seed: int) -> "Points":
        """Draws n new points from the same distribution.

        Raises:
            ValueError: the distribution is not known.
        """
        if self.redraw is None:
            raise UserError(
                f"{self.name}: the distribution is not known, new points have no source"
            )
        data, labels = self.redraw(n, seed)
        return replace(self, data=data, labels=labels)

    def split(self, test_fraction: float = 0.2, seed: int = 0) -> tuple["Points", "Points"]:
        """Splits at random into points to train on and points to test with, within each class.

        Args:
            test_fraction: fraction of the points to test with, between 0 and 1.
            seed: seed of the draw.

        Raises:
            ValueError: the fraction is out of range, or a class would be left without points on
                one side.
        """
        if not 0 < test_fraction < 1:
            raise UserError(f"test_fraction must be between 0 and 1, got {test_fraction}")
        order = permute(torch.arange(len(self)), len(self), seed_tensor(seed), 0)[0]
        labels = torch.zeros(len(self), dtype=torch.int64) if self.labels is None else self.labels
        test = torch.zeros(len(self), dtype=torch.bool)
        for label in labels.unique():
            rows = order[labels[order] == label]
            count = round(test_fraction * len(rows))
            if not 0 < count < len(rows):
                raise UserError(
                    f"test_fraction {test_fraction} leaves one side without points of "
                    f"{self.class_name(int(label))}, which has {len(rows)}"
                )
            test[rows[:count]] = True
        return self._rows(~test), self._rows(test)

    def _rows(self, rows: Tensor) -> "Points":
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, data=self.data[rows], labels=labels)

    def check_label(self, label: int) -> None:
        """Raises :class:`UserError` if there is no such class."""
        if not 0 <= label < self.num_classes:
            allowed = f"from 0 to {self.num_classes - 1}" if self.num_classes else "left out"
            raise UserError(f"label must be {allowed}, got {label}")


def load_points(path: str | Path) -> Points:
    """Reads a point cloud from a file.

    ``.pt`` holds ``{"data": [N, d], "labels": [N]}`` or a tensor; ``.npz`` holds arrays of these
    names; ``.npy`` holds an array [N, d]; ``.csv`` holds one point per line. If a ``.csv`` has a
    header whose last column is called ``label`` or ``labels``, that column holds the labels. Labels
    are optional everywhere.

    Args:
        path: the file; its suffix says its format.

    Raises:
        ValueError: the file is missing, of another type, unreadable, or its content is no point
            cloud (see :class:`Points`).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"data file {path} does not exist")
    check_choice(f"type of data file {path.name}", path.suffix.lower(), FILE_TYPES)
    reader = {".pt": _read_pt, ".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv}
    try:
        data, labels = reader[path.suffix.lower()](path)
        if np.iscomplexobj(data):
            raise UserError(f"{path.name}: points must be real numbers, got complex ones")
        data = torch.as_tensor(np.asarray(data, dtype=np.float32))
        if labels is not None:
            labels = np.asarray(labels)
            if not np.array_equal(labels, labels.astype(np.int64)):
                raise UserError(f"{path.name}: labels must be whole numbers")
            labels = torch.as_tensor(labels.astype(np.int64))
    except UserError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"data file {path} cannot be read: {reason}") from error
    return Points(data, labels, name=path.stem)


def _read_pt(path: Path):
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whose text is about the inside of the format
        raise UserError(f"data file {path} cannot be read: no tensors, or damaged") from error
    if isinstance(content, Tensor):
        return content, None
    return _data_and_labels(path, content)


def _read_npy(path: Path):
    return np.load(path, allow_pickle=False), None


def _read_npz(path: Path):
    with np.load(path, allow_pickle=False) as arrays:
        return _data_and_labels(path, {name: arrays[name] for name in arrays.files})


def _data_and_labels(path: Path, content):
    if not isinstance(content, dict) or "data" not in content:
        raise UserError(f"{path.name} must hold 'data' and may hold 'labels'")
    return content["data"], content.get("labels")


def _read_csv(path: Path):
    with path.open() as file:
        header = [name.strip().lower() for name in file.readline().split(",")]
    if header == [""]:
        raise UserError(f"{path.name} is empty or starts with an empty line")
    try:
        [float(name) for name in header]
        skip = 0
    except ValueError:
        skip = 1
    table = np.loadtxt(path, delimiter=",", skiprows=skip, ndmin=2)
    if skip and header[-1] in ("label", "labels"):
        return table[:, :-1], table[:, -1]
    return table, None
