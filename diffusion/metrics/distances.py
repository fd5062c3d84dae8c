"""Distances between two sets of points."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from torch import Tensor

from ...kernels.default_state import in_default_state
from ...kernels.philox import Stream, child_seed, normal_rows
from ..data import Points
from ..errors import UserError, check_integer, check_seed
from .inputs import PointsLike, subset, two_sets
from .pairwise import distances

_TREE_DIM = 12  # above it, a k-d tree visits most points and the whole distance matrix is faster
_CHUNK = 2**23  # elements of a distance matrix held at once
_BANDWIDTH_POINTS = 500  # points of each set that the median distance is computed from


def nearest(points: PointsLike, others: PointsLike, count: int = 1) -> tuple[Tensor, Tensor]:
    """Finds the nearest of the others [m, d] to each of the points [n, d].

    Returns:
        Distances float64 [n, count] in rising order, and indices int64 [n, count].
    """
    points, others = two_sets(points, others, ("points", "others"))
    check_integer("number of points to choose the nearest from", len(others), count)
    if points.shape[1] > _TREE_DIM:
        index = torch.cat(
            [
                distances(part, others).topk(count, dim=1, largest=False).indices
                for part in points.split(max(1, _CHUNK // len(others)))
            ]
        )
        # A distance by matrix product is wrong between points that are very near.
        away = [(points - others[column]).norm(dim=1) for column in index.T]
        return torch.stack(away, dim=1), index
    tree = cKDTree(others.numpy())
    distance, index = tree.query(points.numpy(), k=range(1, count + 1))
    return torch.from_numpy(distance), torch.from_numpy(index)


@in_default_state
def nearest_distances(points: PointsLike, others: PointsLike) -> Tensor:
    """Returns the distance of each point [n, d] to the nearest of the others, float64 [n].

    Args:
        points: [n, d].
        others: [m, d].

    Raises:
        ValueError: the dimensions differ, or a set is empty or not finite.
    """
    return nearest(points, others)[0][:, 0]


def label_of_nearest(samples: PointsLike, points: Points) -> Tensor:
    """Returns the label int64 [n] of the data point nearest to each sample [n, d].

    Raises:
        ValueError: the data has no labels, the dimensions differ, or the samples are empty or not
            finite.
    """
    samples, data = two_sets(samples, points)
    if points.labels is None:
        raise UserError(f"{points.name}: the class of a sample needs labels, got none")
    return points.labels.cpu()[nearest(samples, data)[1][:, 0]]


@in_default_state
def sliced_wasserstein(a: PointsLike, b: PointsLike, projections: int = 64, seed: int = 0) -> float:
    """Returns the sliced 1-Wasserstein distance of a and b (Bonneel et al. 2015).

    It is the mean over random directions of the distance between the projections onto them, which
    is exact in each direction, also for unequal numbers of points.

    Args:
        a: [n, d].
        b: [m, d].
        projections: number of directions.
        seed: seed of the directions.

    Raises:
        ValueError: the dimensions differ, a set is empty or not finite, or there is no direction.
    """
    check_integer("projections", projections, 1)
    seed = check_seed(seed)
    a, b = two_sets(a, b, ("a", "b"))
    centre, dim = b.mean(dim=0), b.shape[1]
    parts = _directions(projections, dim, seed).split(max(1, _CHUNK // (len(a) + len(b))))
    return float(sum(_quantile_gap(part, a - centre, b - centre) for part in parts) / projections)


@lru_cache(maxsize=4)  # an evaluation takes the same ones for each of its real draws
def _directions(count: int, dim: int, seed: int) -> Tensor:
    """Returns random unit vectors, float64 [count, dim]."""
    normal = normal_rows(seed, Stream.SEED, 0, torch.arange(count, device="cpu"), dim)[0]
    return torch.nn.functional.normalize(normal.double(), dim=1)


def _quantile_gap(directions: Tensor, a: Tensor, b: Tensor) -> float:
    """Returns the sum over directions [P, d] of the 1-Wasserstein distance of the projections."""
    # numpy's sort is several times as fast as torch's.
    along_a, along_b = (np.sort((directions @ x.T).numpy()) for x in (a, b))  # [P, n], [P, m]
    n, m = len(a), len(b)
    if n % m == 0 or m % n == 0:  # each of the fewer points stands opposite as many of the others
        few, many = sorted((along_a, along_b), key=lambda along: along.shape[1])
        gap = many.reshape(*few.shape, -1) - few[..., None]  # [P, few, many / few]
        return float(np.abs(gap, out=gap).mean(axis=(1, 2)).sum())
    # Both quantile functions are constant between neighbours among the levels i/n and j/m.
    levels = np.sort(np.concatenate((np.arange(n + 1) / n, np.arange(1, m) / m)))
    middle, width = (levels[1:] + levels[:-1]) / 2, np.diff(levels)
    gap = along_a[:, (middle * n).astype(int)] - along_b[:, (middle * m).astype(int)]
    return float((np.abs(gap) * width).sum())


@in_default_state
def emd(
    samples: PointsLike, data: PointsLike, *, size: int = 250, draws: int = 5, seed: int = 0
) -> float:
    """Returns the earth mover's distance as it is published: the cost of the cheapest assignment.

    ``size`` samples are paired one to one with as many data points such that the sum of the
    Euclidean distances is least; the result is the mean over a few random draws of both. As a sum
    it grows with ``size``, and even between real points it is far from 0. Divided by
    :func:`emd_pairs` it is the mean distance of a pair.

    Args:
        samples: [n, d].
        data: [m, d].
        size: number of points on each side, at most the smaller number of points.
        draws: number of draws, without replacement, that are averaged.
        seed: seed of the draws.

    Raises:
        ValueError: the dimensions differ, a set is empty or not finite, or a count is no positive
            integer.
    """
    check_integer("draws", draws, 1)
    samples, data = two_sets(samples, data)
    size = emd_pairs(samples, data, size)
    costs = []
    for draw in range(draws):
        x, y = subset(samples, size, seed, 2 * draw), subset(data, size, seed, 2 * draw + 1)
        cost = distances(x, y).numpy()
        costs.append(cost[linear_sum_assignment(cost)].sum())
    return float(sum(costs) / draws)


def emd_pairs(samples: Tensor, data: Tensor, size: int = 250) -> int:
    """Returns the number of pairs whose distances :func:`emd` sums.

    Raises:
        ValueError: ``size`` is no positive integer.
    """
    check_integer("size", size, 1)
    return min(size, len(samples), len(data))


@in_default_state
def emd_by_class(
    samples: Sequence[PointsLike], points: Points, *, size: int = 250, draws: int = 5, seed: int = 0
) -> float:
    """Returns the mean over classes of the :func:`emd` between a class's samples and its data.

    Args:
        samples: samples [n, d] of each class.
        points: data with labels.
        size, draws, seed: see :func:`emd`.

    Raises:
        ValueError: the number of sets of samples is not that of the classes, or see :func:`emd`.
    """
    if len(samples) != points.num_classes:
        raise UserError(f"samples must be of {points.num_classes} classes, got {len(samples)}")
    costs = [
        emd(x, points.of_class(label), size=size, draws=draws, seed=child_seed(seed, label))
        for label, x in enumerate(samples)
    ]
    return sum(costs) / len(costs)


@in_default_state
def mmd(
    a: PointsLike, b: PointsLike, *, size: int = 2000, seed: int = 0, unbiased: bool = True
) -> float:
    """Returns the squared maximum mean discrepancy (Gretton et al. 2012, equation 3 or 5).

    The kernel is exp(-|x - y|^2 / (2 s^2)), where s is the median distance between points of the
    two sets taken together (their section 8), estimated from 500 points of each. The mean of the
    unbiased form over real draws is 0, so the result can be negative. The biased form is never
    negative and, like chi-squared, about normal after a cube root.

    Args:
        a: [n, d].
        b: [m, d].
        size: largest number of points of each set; larger sets are cut at random.
        seed: seed of that cut.
        unbiased: leaves out the kernel of each point with itself (equation 3, not 5).

    Raises:
        ValueError: the dimensions differ, a set has fewer than 2 points or is not finite, or
            ``size`` is no integer of at least 2.
    """
    check_integer("size", size, 2)
    a, b = two_sets(a, b, ("a", "b"), least=2)
    x, y = subset(a, size, seed, 0), subset(b, size, seed, 1)
    pooled = torch.cat((x[:_BANDWIDTH_POINTS], y[:_BANDWIDTH_POINTS]))
    bandwidth = torch.pdist(pooled).median()

    def kernel_sum(p: Tensor, q: Tensor) -> Tensor:
        return distances(p, q).div_(bandwidth).square_().mul_(-0.5).exp_().sum()

    n, m = len(x), len(y)
    own = int(unbiased)  # k(x, x) = 1
    within = sum((kernel_sum(p, p) - own * len(p)) / (len(p) * (len(p) - own)) for p in (x, y))
    return float(within - 2 * kernel_sum(x, y) / (n * m))
