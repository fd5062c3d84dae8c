"""Distances of all pairs of points, exact wherever the points lie."""

import torch
from torch import Tensor

_MOST_EXACT_DIM = 64  # above it, differences take several times as long as a matrix product


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Returns the Euclidean distances of x [n, d] and y [m, d], float64 [n, m].

    They are norms of differences, so a shift of all points changes nothing. In more than 64
    dimensions they come from a matrix product, whose error grows with the distance from the origin;
    the origin is moved to the mean of y, which leaves an error of about 1e-8 of the spread of y.

    Args:
        x: float64 [n, d].
        y: float64 [m, d].
    """
    if not by_product(x):
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    centre = y.mean(dim=0)
    return torch.cdist(x - centre, y - centre, compute_mode="use_mm_for_euclid_dist")


def by_product(x: Tensor) -> bool:
    """Returns whether :func:`distances` takes a matrix product for points like x [n, d]."""
    return x.shape[1] > _MOST_EXACT_DIM
