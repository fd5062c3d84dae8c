"""Point clouds to train on."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...kernels.default_state import methods_in_default_state
from ...kernels.philox import permute, seed_tensor
from ..errors import UserError, shown
from .labels import check_class, class_number
from .standardisation import Standardisation


@methods_in_default_state
@dataclass(frozen=True)
class Points:
    """A data set of points.

    Attributes:
        data: float32 [N, d].
        labels: int64 [N] with values 0 ... C - 1, or None.
        class_names: C names, all different, or empty.
        name: name of the data set.
        redraw: ``redraw(n, seed, label=None) -> (data, labels)`` draws n new points from the
            distribution that the data came from, of one class if a label is given; None where
            that distribution is not known.
        outlines: the true curves that the points scatter around, [K, 2] each, for figures.
        image_shape: (height, width) where each point is a grey image, values from -1 to 1.
        standardisation: the map that made ``data`` from a user's points; None for points as they
            came.
        columns: d names of the coordinates, or empty.

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
    columns: tuple[str, ...] = ()

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
        if self.columns and len(self.columns) != self.dim:
            raise UserError(
                f"{self.name}: columns must be {self.dim} names, got {len(self.columns)}"
            )
        if self.labels is not None:
            self._check_labels(self.labels)

    def _check_labels(self, labels: Tensor) -> None:
        if labels.shape != self.data.shape[:1]:
            raise UserError(
                f"{self.name}: labels must be [{len(self.data)}], one per point, "
                f"got {list(labels.shape)}"
            )
        if labels.dtype != torch.int64:
            raise UserError(f"{self.name}: labels must be int64, got {labels.dtype}")
        present = labels.unique().tolist()
        if present != list(range(len(present))):
            raise UserError(
                f"{self.name}: labels must be 0, 1, ... without gaps, got {present[:10]}"
            )
        if self.class_names and len(self.class_names) < len(present):
            raise UserError(
                f"{self.name}: class_names must be at least {len(present)}, one per class, "
                f"got {len(self.class_names)}"
            )
        for name in self.class_names:
            if not isinstance(name, str) or not name.strip() or self.class_names.count(name) > 1:
                raise UserError(
                    f"{self.name}: class_names must be words that differ, got {shown(name)}"
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

    def label(self, given: int | str, argument: str = "label") -> int:
        """Returns the number of the class with this name or number.

        Where the names of classes are numbers themselves, as in labels 3, 5 and 7 of a file, a
        number is a name.

        Args:
            given: name or number.
            argument: name of the argument, for messages.

        Raises:
            ValueError: there is no such class.
        """
        return class_number(given, self.class_names, self.num_classes, argument)

    def in_units(self, x: Tensor) -> Tensor:
        """Returns points [..., d] like :attr:`data` in the user's units, as float64.

        They are returned as they are where there is no standardisation.
        """
        return x if self.standardisation is None else self.standardisation.undo(x)

    def from_units(self, x: Tensor) -> Tensor:
        """Returns points [..., d] in the user's units as points like :attr:`data`, float32."""
        return x.float() if self.standardisation is None else self.standardisation.apply(x)

    @property
    def unit_of_distances(self) -> str:
        """Says in a sentence what distances between points are counted in; empty for plain points.

        It stands beside every table of metrics.
        """
        if self.standardisation is None:
            return ""
        return "Distances are in standard deviations of the data."

    def standardised(self, by: Standardisation | None = None) -> "Points":
        """Returns the data set with mean 0 and standard deviation 1 in each dimension.

        Points of a file that lie far from zero are better standardised by :func:`load_points`,
        before they are rounded to float32.

        Args:
            by: the map to use; None for the one that these points define.
        """
        raw = self.in_units(self.data)
        map_ = Standardisation.of(raw) if by is None else by
        map_.check_dim(self.dim, self.name)
        before, whole = self, self.redraw

        def redraw(n: int, seed: int, label: int | None = None) -> tuple[Tensor, Tensor | None]:
            assert whole is not None
            data, labels = whole(n, seed, label)
            return map_.apply(before.in_units(data)), labels

        return replace(
            self,
            data=map_.apply(raw),
            redraw=redraw if whole else None,
            outlines=tuple(map_.apply(before.in_units(ring)) for ring in self.outlines),
            image_shape=None,
            standardisation=map_,
        )

    def of_class(self, label: int) -> Tensor:
        """Returns the points [n, d] with this label."""
        return self.data[self.labels == label]

    def same_class(self, others: "Points", label: int) -> Tensor:
        """Returns the points [n, d] of another data set that are of this data set's class.

        Classes are the same by name, or by number where they have none.

        Raises:
            ValueError: the other data set has no such class.
        """
        name = self.class_names[label] if self.class_names else str(label)
        return others.of_class(others.label(name))

    def only(self, label: int | str) -> "Points":
        """Returns the data set of one class, a name or a number, alone and without labels.

        Raises:
            ValueError: there is no such class.
        """
        return self.of_number(self.label(label))

    def of_number(self, label: int) -> "Points":
        """Returns the data set of the class of this number, alone and without labels.

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
        """Raises :class:`UserError` if there is no class of this number."""
        check_class(label, self.num_classes)
