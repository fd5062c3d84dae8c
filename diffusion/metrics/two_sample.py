"""Tests of whether two sets of points have one distribution."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import chi2_contingency

from ...kernels.default_state import in_default_state
from ..data import Points
from .distances import label_of_nearest, nearest, nearest_distances
from .inputs import PointsLike, subset, two_sets


class Neighbours(NamedTuple):
    """The result of :func:`nearest_neighbour_test`; both are near 1/2 under the null."""

    sample_by_sample: float  # fraction of samples whose nearest neighbour is a sample
    datum_by_datum: float  # fraction of data points whose nearest neighbour is a data point


class Proximity(NamedTuple):
    """The result of :func:`memorisation`; near 1/2 and 1 for a sampler that does not copy."""

    nearer_to_training: float  # fraction of samples nearer to training than to held-out points
    distance_ratio: float  # median distance to training points over that to held-out points


@in_default_state
def occupancy(samples: PointsLike, data: PointsLike, points: Points) -> float:
    """Returns Pearson's chi-squared for the shares of samples and data in each class's region.

    The region of a class is where the nearest of ``points`` belongs to it. The statistic is that of
    the table (samples, data) x classes. Null: both sets visit the classes with the same
    probabilities. The statistic then has a chi-squared distribution with C - 1 degrees of freedom
    if both are independent draws, and half its size if the data holds an exact share of each class.

    Args:
        samples: [n, d].
        data: [m, d].
        points: labelled points, whose regions divide space between the classes.

    Raises:
        ValueError: the dimensions differ, a set is empty or not finite, or ``points`` has no
            labels.
    """
    counts = [
        torch.bincount(label_of_nearest(x, points), minlength=points.num_classes).numpy()
        for x in (samples, data)
    ]
    table = np.stack(counts)  # [2, C]
    visited = table[:, table.sum(axis=0) > 0]
    return float(chi2_contingency(visited, correction=False).statistic)


@in_default_state
def nearest_neighbour_test(samples: PointsLike, data: PointsLike, seed: int = 0) -> Neighbours:
    """Runs the leave-one-out 1-nearest-neighbour two-sample test, both ways.

    A nearest-neighbour classifier tells samples from data in the union of n samples and n data
    points; the result is the fraction it gets right of each (Lopez-Paz and Oquab 2017, table 3, and
    Xu et al. 2018). Null: both sets have one distribution, and both fractions have mean
    (n - 1) / (2n - 1) (Schilling 1986). Samples that are blurred or off the data lie beside each
    other and raise the first fraction; parts of the data without samples raise the second; copies
    of data points push both below 1/2.

    Args:
        samples: [n, d].
        data: [m, d]; the larger set is cut to the size of the smaller at random.
        seed: seed of that cut.

    Raises:
        ValueError: the dimensions differ, or a set has fewer than 2 points or is not finite.
    """
    samples, data = two_sets(samples, data, least=2)
    n = min(len(samples), len(data))
    pooled = torch.cat((subset(samples, n, seed), subset(data, n, seed)))
    index = nearest(pooled, pooled, 2)[1]  # [2n, 2]
    place = torch.arange(2 * n, device="cpu")
    # Among equal points the first one found may not be the point itself.
    other = torch.where(index[:, 0] == place, index[:, 1], index[:, 0])
    same = (other < n) == (place < n)
    by_sample, by_datum = same.double().view(2, n).mean(dim=1).tolist()
    return Neighbours(by_sample, by_datum)


@in_default_state
def memorisation(
    samples: PointsLike, train: PointsLike, held_out: PointsLike, seed: int = 0
) -> Proximity:
    """Compares the distances of samples to points trained on and to points held out.

    Compare Meehan et al. 2020. Null: the sampler draws from the data's distribution and knows no
    more of the training points than of the held-out ones; a sample is then nearer to either of the
    two equally large sets with probability 1/2. Samples far off the data share the few outermost
    points as their nearest, and scatter about 1/2 more widely than real draws.

    Args:
        samples: [n, d].
        train: [N, d], the points that were trained on.
        held_out: [M, d], other points of the same distribution; the larger of the two sets is cut
            to the size of the smaller at random.
        seed: seed of that cut.

    Raises:
        ValueError: the dimensions differ, or a set is empty or not finite.
    """
    samples, train = two_sets(samples, train, ("samples", "train"))
    samples, held_out = two_sets(samples, held_out, ("samples", "held_out"))
    size = min(len(train), len(held_out))
    to_train, to_held_out = (
        nearest_distances(samples, subset(x, size, seed)) for x in (train, held_out)
    )
    nearer = (to_train < to_held_out).double() + 0.5 * (to_train == to_held_out).double()
    return Proximity(nearer.mean().item(), (to_train.median() / to_held_out.median()).item())
