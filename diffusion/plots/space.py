"""Where points are drawn: the coordinates that a figure shows, their names and their frame."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data import Points
from ..projection import Projection
from .style import literal

_MARGIN = 0.1  # between the data and the frame, as a part of the data's extent
_MOST_UNEQUAL = 4.0  # sides of a frame whose units are still drawn equally long


@dataclass(frozen=True)
class Space:
    """A map of points to the one to three coordinates that are drawn.

    Up to three dimensions are drawn as they are, in the user's units; of more the two principal
    axes of the data, as the network sees them.

    Args:
        points: the data, whose units and names of coordinates count; None for bare points.
        projection: maps points of more than three dimensions.
        names: name of each axis, [k].
        low, high: corners of the frame around the data, [k].
    """

    points: Points | None
    projection: Projection
    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, data: Points | Tensor | np.ndarray) -> "Space":
        """Returns the space of a data set, or of points [n, d] that belong to none."""
        points = data if isinstance(data, Points) else None
        x = torch.as_tensor(data).detach().cpu() if points is None else points.data.cpu()
        dim = x.shape[1]
        projection = Projection.of(x.float(), 2) if dim > 3 else Projection()
        names = ("x",) if dim == 1 else tuple(f"$x_{axis + 1}$" for axis in range(dim))
        if dim > 3:
            shares = enumerate(projection.shares, start=1)
            names = tuple(f"principal axis {n} ({share:.0%} of variance)" for n, share in shares)
        elif points is not None and points.columns:
            names = tuple(map(literal, points.columns))
        space = cls(points, projection, names, np.zeros(dim), np.ones(dim))
        low, high = extent(space(x))
        return cls(points, projection, names, low, high)

    def __call__(self, x: Tensor | np.ndarray) -> np.ndarray:
        """Maps points [..., d] to their places [..., k]."""
        x = torch.as_tensor(x).detach().cpu()
        if self.projection.axes is not None:
            return self.projection(x).numpy()
        return np.asarray(x if self.points is None else self.points.in_units(x))

    @property
    def dim(self) -> int:
        """Number k of coordinates."""
        return len(self.names)

    @property
    def axes(self) -> dict[str, str]:
        """Names of the axes, as matplotlib sets them."""
        return {f"{axis}label": name for axis, name in zip("xyz", self.names, strict=False)}

    @property
    def equal(self) -> bool:
        """True if units are drawn equally long, unless a side of the frame would vanish."""
        return is_equal(self.low, self.high)

    def outside(self, places: np.ndarray) -> int:
        """Returns how many places [n, k] the frame leaves out."""
        return int((~((places >= self.low) & (places <= self.high)).all(axis=1)).sum())

    def widened(self, places: np.ndarray) -> "Space":
        """Returns the space whose frame holds places [..., k] too."""
        low, high = extent(places.reshape(-1, self.dim))
        return Space(
            self.points, self.projection, self.names,
            np.minimum(low, self.low), np.maximum(high, self.high),
        )  # fmt: skip


def is_equal(low: np.ndarray, high: np.ndarray) -> bool:
    """Returns True if the sides of a frame are so alike that its units can be equally long."""
    sides = high - low
    return bool(sides.max() <= _MOST_UNEQUAL * sides.min())


def extent(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the corners of a frame around points [n, k], each [k]."""
    low, high = x.min(axis=0), x.max(axis=0)
    margin = np.where(high > low, _MARGIN * (high - low), 0.5)
    return low - margin, high + margin
