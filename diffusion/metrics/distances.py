"""Distances between two sets of points."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from torch import Tensor

from ...kernels.philox import Stream, child_seed, normal_rows, permute, seed_tensor
from ..data import Points
from ..errors import UserError, check_at_least
from .likelihood import same_dimension

_TREE_DIM = 12  # above it, a k-d tree visits most points and the whole distance matrix is faster
_BANDWIDTH_POINTS = 500  # points of each set that the median distance is computed from


def nearest(points: Tensor, others: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """Finds the nearest of the others [m, d] to each of the points [n, d].

    Returns:
        Distances float64 [n, count] in rising order, and indices int64 [n, count].
    """
    points, others = (x.cpu() for x in same_dimension(points, others))
    check_at_least("number of points to choose the nearest from", len(others), count)
    if points.shape[1] > _TREE_DIM:
        parts = [
            torch.cdist(part, others).topk(count, dim=1, largest=False)
            for part in points.split(1000)
        ]
        return torch.cat([part.values for part in parts]), torch.cat([p.indices for p in parts])
    tree = cKDTree(others.numpy())
    distance, index = tree.query(points.numpy(), k=range(1, count + 1))
    return torch.from_numpy(distance), torch.from_numpy(index)


def nearest_distances(points: Tensor, others: Tensor) -> Tensor:
    """Returns the distance of each point [n, d] to the nearest of the others, float64 [n].

    Args:
        points: [n, d].
        others: [m, d].

    Raises:
        ValueError: the dimensions differ or there are no others.
    """
    return nearest(points, others)[0][:, 0]


def label_of_nearest(samples: Tensor, points: Points) -> Tensor:
    """Returns the label int64 [n] of the data point nearest to each sample [n, d]."""
    assert points.labels is not None  # its callers have checked that there are classes
    return points.labels[nearest(samples, points.data)[1][:, 0]]


def subset(x: Tensor, size: int, seed: int, draw: int = 0) -> Tensor:
    """Returns ``size`` random rows of x without replacement, or all rows if there are fewer."""
    rows = torch.arange(min(size, len(x)))
    return x.cpu()[permute(rows, len(x), seed_tensor(seed), draw)[0]]


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 64, seed: int = 0) -> float:
    """Returns the sliced 1-Wasserstein distance of a and b (Bonneel et al. 2015).

    It is the mean over random directions of the distance between the projections onto them, which
    is exact in each direction, also for unequal numbers of points.

    Args:
        a: [n, d].
        b: [m, d].
        projections: number of directions.
        seed: seed of the directions.
    """
    dim = a.shape[1]
    directions = normal_rows(seed, Stream.SEED, 0, torch.arange(projections), dim)[0].double()
    directions = torch.nn.functional.normalize(directions, dim=1)
    # numpy's sort is several times as fast as torch's.
    along_a, along_b = (  # [P, n], [P, m]
        np.sort((directions @ x.cpu().double().T).numpy()) for x in (a, b)
    )
    n, m = len(a), len(b)
    if n == m:
        return float(np.abs(along_a - along_b).mean())
    # Both quantile functions are constant between neighbours among the levels i/n and j/m.
    levels = np.sort(np.concatenate((np.arange(n + 1) / n, np.arange(1, m) / m)))
    middle, width = (levels[1:] + levels[:-1]) / 2, np.diff(levels)
    gap = along_a[:, (middle * n).astype(int)] - along_b[:, (middle * m).astype(int)]
    return float((np.abs(gap) * width).sum(axis=1).mean())


def emd(samples: Tensor, data: Tensor, *, size: int = 250, draws: int = 5, seed: int = 0) -> float:
    """Returns the earth mover's distance as it is published: the cost of the cheapest assignment.

    ``size`` samples are paired one to one with as many data points such that the sum of the
    Euclidean distances is least; the result is the mean over a few random draws of both. As a sum
    it grows with ``size``, and even between real points it is far from 0.

    Args:
        samples: [n, d].
        data: [m, d].
        size: number of points on each side, at most the smaller number of points.
        draws: number of draws, without replacement, that are averaged.
        seed: seed of the draws.

    Raises:
        ValueError: the dimensions differ or a count is not positive.
    """
    check_at_least("size", size, 1)
    check_at_least("draws", draws, 1)
    samples, data = same_dimension(samples, data)
    size = min(size, len(samples), len(data))
    costs = []
    for draw in range(draws):
        x, y = subset(samples, size, seed, 2 * draw), subset(data, size, seed, 2 * draw + 1)
        cost = torch.cdist(x, y).numpy()
        costs.append(cost[linear_sum_assignment(cost)].sum())
    return float(sum(costs) / draws)


def emd_by_class(
    samples: Sequence[Tensor], points: Points, *, size: int = 250, draws: int = 5, seed: int = 0
) -> float:
    """Returns the mean over classes of the :func:`emd` between a class's samples and its data.

    Args:
        samples: samples [n, d] of each class.
        points: data with labels.
        size, draws, seed: see :func:`emd`.

    Raises:
        ValueError: the number of sets of samples is not that of the classes.
    """
    if len(samples) != points.num_classes:
        raise UserError(f"samples must be of {points.num_classes} classes, got {len(samples)}")
    costs = [
        emd(x, points.of_class(label), size=size, draws=draws, seed=child_seed(seed, label))
        for label, x in enumerate(samples)
    ]
    return sum(costs) / len(costs)


def mmd(a: Tensor, b: Tensor, *, size: int = 2000, seed: int = 0) -> float:
    """Returns the squared maximum mean discrepancy, unbiased (Gretton et al. 2012, equation 3).

    The kernel is exp(-|x - y|^2 / (2 s^2)), where s is the median distance between points of the
    two sets taken together (their section 8), estimated from 500 points of each. The mean over
    real draws is 0, so the result can be negative.

    Args:
        a: [n, d].
        b: [m, d].
        size: largest number of points of each set; larger sets are cut at random.
        seed: seed of that cut.

    Raises:
        ValueError: the dimensions differ or a set has fewer than 2 points.
    """
    a, b = same_dimension(a, b)
    check_at_least("number of points of each set", min(len(a), len(b)), 2)
    x, y = subset(a, size, seed, 0), subset(b, size, seed, 1)
    pooled = torch.cat((x[:_BANDWIDTH_POINTS], y[:_BANDWIDTH_POINTS]))
    bandwidth = torch.pdist(pooled).median()

    def kernel_sum(p: Tensor, q: Tensor) -> Tensor:
        return torch.cdist(p, q).div_(bandwidth).square_().mul_(-0.5).exp_().sum()

    n, m = len(x), len(y)
    # The unbiased sums leave out k(x, x) = 1, the kernel of each point with itself.
    within = (kernel_sum(x, x) - n) / (n * (n - 1)) + (kernel_sum(y, y) - m) / (m * (m - 1))
    return (within - 2 * kernel_sum(x, y) / (n * m)).item()
