"""Tests of whether two sets of points have one distribution."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import chi2_contingency
from torch import Tensor

from ..data import Points
from ..errors import check_at_least
from .distances import label_of_nearest, nearest, nearest_distances, subset


class Neighbours(NamedTuple):
    """What :func:`nearest_neighbour_test` returns; both near 1/2 under the null."""

    sample_by_sample: float  # fraction of samples whose nearest neighbour is a sample
    datum_by_datum: float  # fraction of data points whose nearest neighbour is a data point


class Proximity(NamedTuple):
    """What :func:`memorisation` returns; near 1/2 and 1 for a sampler that does not copy."""

    nearer_to_training: float  # fraction of samples nearer to a training than a held-out point
    distance_ratio: float  # median distance to training points over that to held-out points


def occupancy(samples: Tensor, data: Tensor, points: Points) -> float:
    """Chi-squared of how often each class's region is visited by samples and by data.

    A class's region is where a point of it is the nearest of ``points``. The statistic is Pearson's
    of the table (samples, data) x classes. Null: both sets visit the classes with the same
    probabilities; the statistic then has a chi-squared distribution with C - 1 degrees of freedom
    if both are independent draws, and half its size if the data holds an exact share of each class.

    Args:
        samples: [n, d].
        data: [m, d].
        points: labelled points that divide space between the classes.

    Raises:
        ValueError: the dimensions differ.
    """
    counts = [
        torch.bincount(label_of_nearest(x, points), minlength=points.num_classes).numpy()
        for x in (samples, data)
    ]
    table = np.stack(counts)  # [2, C]
    visited = table[:, table.sum(axis=0) > 0]
    return float(chi2_contingency(visited, correction=False).statistic)


def nearest_neighbour_test(samples: Tensor, data: Tensor, seed: int = 0) -> Neighbours:
    """Leave-one-out 1-nearest-neighbour two-sample test, both ways.

    Lopez-Paz and Oquab 2017, table 3, and Xu et al. 2018: the two fractions that a
    nearest-neighbour classifier gets right in the union of n samples and n data points. Null: one
    distribution, and both fractions have mean (n - 1) / (2n - 1) (Schilling 1986). Samples that
    are blurred or off the data lie beside each other and raise the first; parts of the data
    without samples raise the second; copies of data points push both below 1/2.

    Args:
        samples: [n, d].
        data: [m, d]; the larger set is cut to the smaller's size at random.
        seed: of that choice.

    Raises:
        ValueError: the dimensions differ or a set has fewer than 2 points.
    """
    n = min(len(samples), len(data))
    check_at_least("number of points of each set", n, 2)
    pooled = torch.cat((subset(samples, n, seed).double(), subset(data, n, seed).double()))
    index = nearest(pooled, pooled, 2)[1]  # [2n, 2]
    # Among equal points the first found may be another than the point itself.
    other = torch.where(index[:, 0] == torch.arange(2 * n), index[:, 1], index[:, 0])
    same = (other < n) == (torch.arange(2 * n) < n)
    by_sample, by_datum = same.double().view(2, n).mean(dim=1).tolist()
    return Neighbours(by_sample, by_datum)


def memorisation(samples: Tensor, train: Tensor, held_out: Tensor, seed: int = 0) -> Proximity:
    """Whether samples lie nearer to the points that were trained on than to others of their kind.

    Compare Meehan et al. 2020. Null: the sampler draws from the data's distribution and has no
    more to do with the training points than with the held-out ones; a sample is then nearer to
    either of the two equally large sets with probability 1/2. Samples far off the data share the
    few outermost points as their nearest, and scatter about 1/2 more widely than real draws do.

    Args:
        samples: [n, d].
        train: [N, d], the points that were trained on.
        held_out: [M, d], other points of the same distribution; the larger of the two sets is cut
            to the smaller's size at random.
        seed: of that choice.

    Raises:
        ValueError: the dimensions differ or a set is empty.
    """
    size = min(len(train), len(held_out))
    to_train, to_held_out = (
        nearest_distances(samples, subset(x, size, seed)) for x in (train, held_out)
    )
    nearer = (to_train < to_held_out).double() + 0.5 * (to_train == to_held_out).double()
    return Proximity(nearer.mean().item(), (to_train.median() / to_held_out.median()).item())
