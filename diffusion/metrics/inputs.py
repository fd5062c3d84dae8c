"""Points as metrics take them, from whatever holds numbers, and how many of them a metric reads."""

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ...kernels.philox import permute, seed_tensor
from ..data import Points
from ..errors import UserError, check_seed

PointsLike: TypeAlias = Tensor | np.ndarray | Points  # what metrics take for points

_MOST_POINTS, _MOST_WIDE_POINTS, _WIDE = 5000, 2000, 12


def as_points(name: str, x: Any, least: int = 1) -> Tensor:
    """Returns points as float64 [n, d] on the CPU, without a graph.

    Args:
        name: name of the argument.
        x: a tensor of any real type on any device, a :class:`Points`, or what numpy reads as an
            array of numbers.
        least: smallest allowed number of points.

    Raises:
        ValueError: x is something else, it is not [n, d], it has too few rows or no columns, or
            numbers that are not finite.
    """
    x = _numbers(name, x.data if isinstance(x, Points) else x)
    if x.dim() != 2 or not x.shape[1]:
        raise UserError(f"{name} must be [n, d], a row for each point, got {list(x.shape)}")
    if len(x) < least:
        raise UserError(f"{name} must be at least {least} points, got {len(x)}")
    if not x.isfinite().all():
        row = (~x.isfinite().all(dim=1)).nonzero()[0].item()
        raise UserError(f"{name} must be finite, got NaN or infinity in row {row}")
    return x


def as_finite(name: str, x: Any) -> Tensor:
    """Returns numbers of any shape as float64 on the CPU, without a graph.

    Raises:
        ValueError: x is no tensor or array of finite real numbers.
    """
    x = _numbers(name, x)
    if not x.isfinite().all():
        raise UserError(f"{name} must be finite, got NaN or infinity")
    return x


def _numbers(name: str, x: Any) -> Tensor:
    x = x.detach() if isinstance(x, Tensor) else _tensor(name, x)
    if x.is_complex() or x.is_meta:
        kind = "one without numbers (device meta)" if x.is_meta else f"{x.dtype}"
        raise UserError(f"{name} must be a tensor of real numbers, got {kind}")
    if x.layout != torch.strided:
        x = x.to_dense()
    return x.cpu().double()  # on the CPU first: some devices have no float64


def _tensor(name: str, x: Any) -> Tensor:
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError):  # rows of several lengths
        array = np.asarray(None)
    if array.dtype.kind not in "fiub":
        raise UserError(f"{name} must be an array of real numbers, got {type(x).__name__}")
    return torch.from_numpy(array.astype(np.float64))


def two_sets(
    samples: Any, data: Any, names: tuple[str, str] = ("samples", "data"), least: int = 1
) -> tuple[Tensor, Tensor]:
    """Returns two sets of points as :func:`as_points` does.

    Raises:
        ValueError: one is no set of points, or their dimensions differ.
    """
    a, b = as_points(names[0], samples, least), as_points(names[1], data, least)
    if a.shape[1] != b.shape[1]:
        like = "the data" if names[1] == "data" else names[1]
        raise UserError(f"{names[0]} must be [n, {b.shape[1]}] like {like}, got {list(a.shape)}")
    return a, b


def as_data(data: Any) -> Points:
    """Returns data as :class:`Points`, which it may be already.

    Raises:
        ValueError: it is no set of points.
    """
    return data if isinstance(data, Points) else Points(as_points("data", data))


def most_points(dim: int) -> int:
    """Returns the number of points that an evaluation reads of each set.

    The cost of most metrics is quadratic in it. With 5,000 points, or 2,000 in more than 12
    dimensions, all metrics of one real draw take about a second on one CPU core.
    """
    return _MOST_WIDE_POINTS if dim > _WIDE else _MOST_POINTS


def subset(x: Tensor, size: int, seed: int, draw: int = 0) -> Tensor:
    """Returns ``size`` random rows of x without replacement, or all rows if there are fewer."""
    return x.cpu()[random_rows(len(x), size, check_seed(seed), draw)]


@lru_cache(maxsize=32)  # an evaluation chooses the same rows for each of its real draws
def random_rows(n: int, size: int, seed: int, draw: int = 0) -> Tensor:
    """Returns the numbers of ``size`` random rows of n, int64, or of all rows in random order.

    ``draw`` numbers the choices of one seed.
    """
    rows = torch.arange(min(size, n), device="cpu")
    return permute(rows, n, seed_tensor(seed), draw)[0]
