"""Bands of real draws: the range of a metric that a perfect sampler would keep to."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.stats import t as student_t
from torch import Tensor

from ...kernels.philox import permute, seed_tensor
from ..data import Points
from ..errors import UserError, check_integer
from .inputs import most_points, random_rows, subset

# That a real draw lies outside its band if it is normal on the metric's scale. Tails are somewhat
# heavier than that, so that bands of half the chance hold the 99% that they are said to hold.
CHANCE = 0.005
FEWEST_DRAWS = 10  # from which on a value inside its band counts as that of real data
FEWEST_POINTS = 8  # of unknown distribution: 4 to compare with, and draws of 2 of the other 4
_PARTS = 4  # of the samples at most; more would hardly narrow a band, which the data limits


class Scale(NamedTuple):
    """A change of scale, after which the metric of a random draw is about normal."""

    to: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


LINEAR = Scale(lambda x: x, lambda x: x)
LOG = Scale(torch.log, torch.exp)
# Wilson and Hilferty 1931, of what is never negative.
CUBE_ROOT = Scale(lambda x: x ** (1 / 3), lambda x: x.clamp(min=0) ** 3)


@dataclass(frozen=True)
class Score:
    """A metric of samples beside the scores of real data.

    Attributes:
        value: the samples' score.
        real: mean over repeated draws of real data.
        low, high: the band that holds 99% of real draws; ``low`` is 0 where less is better.
        draws: number of real draws behind the band.
    """

    value: float
    real: float
    low: float
    high: float
    draws: int

    @property
    def passed(self) -> bool | None:
        """True inside the band of real draws, False outside.

        None inside a band of fewer than 10 draws, which is so wide that bad samples lie in it too.
        """
        if not self.low <= self.value <= self.high:
            return False
        return True if self.draws >= FEWEST_DRAWS else None

    @property
    def verdict(self) -> str:
        """The same in words."""
        if self.passed is None:
            return f"undecided: {self.draws} draws"
        return "as real data" if self.passed else "differs"


def prediction_factor(
    repeats: int, tail: float, *, variance: float = 1.0, pool: float = math.inf
) -> float:
    """Returns the half-width of Student's prediction interval, in standard deviations.

    Args:
        repeats: number of draws that the mean and the standard deviation come from.
        tail: probability that a further draw lies beyond one end of the interval.
        variance: variance of the further draw, about the mean of all draws that there could be,
            over that of the draws.
        pool: number M of points that all draws are parts of. The variance among M points of
            kurtosis 5 is known as well as with M/2 degrees of freedom.
    """
    freedom = 1 / (1 / (repeats - 1) + 2 / pool)
    return student_t.ppf(1 - tail, freedom) * math.sqrt(variance + 1 / repeats)


@dataclass(frozen=True)
class RealDraws:
    """Real draws in place of samples, and the data that they and the samples are compared with.

    Attributes:
        draws: R draws, float [a, d] each.
        data: [b, d], what both are compared with; no draw holds any of its points.
        points: the data set that regions of classes and density estimates come from.
        pool: number M of points that the draws are parts of; infinite where each draw is new.
    """

    draws: list[Tensor]
    data: Tensor
    points: Points
    pool: float = math.inf

    @property
    def size(self) -> int:
        """Number a of points of a draw."""
        return len(self.draws[0])

    def parts(self, samples: Tensor, seed: int) -> list[Tensor]:
        """Returns 1 to 4 random parts of the samples [n, d] without common points, [a, d] each."""
        count = min(_PARTS, len(samples) // self.size)
        return list(subset(samples, count * self.size, seed).split(self.size))

    def band(self, real: Sequence[float], scale: Scale, parts: int = 1) -> tuple[float, float]:
        """Returns both ends of the interval that holds a perfect sampler's score in 99% of cases.

        Draws of a without replacement from M points scatter too little: the variance of a mean is
        s^2 (1/a - 1/M) among them. That of k a samples differs from the mean of the M points with
        variance s^2 (1/(k a) + 1/M), to which the spread of the draws is widened. Metrics are means
        to first order; what is quadratic in the points scatters less, and its band is too wide.

        Args:
            real: score of each real draw, at least two.
            scale: scale on which the draws are about normal.
            parts: number k of parts of the samples whose scores are averaged on that scale.
        """
        drawn = scale.to(torch.tensor(real, dtype=torch.float64, device="cpu"))
        ours, drift = 1 / (parts * self.size), 1 / self.pool
        factor = prediction_factor(
            len(real),
            CHANCE / 2,
            variance=(ours + drift) / (1 / self.size - drift),
            pool=self.pool,
        )
        spread = factor * drawn.std()
        low, high = (scale.back(drawn.mean() + sign * spread).item() for sign in (-1, 1))
        return low, high


def data_of(points: Points, label: int | None) -> Points:
    """Returns the data set that samples are compared with.

    Args:
        points: the data.
        label: class whose points are returned; None for all points.

    Raises:
        ValueError: there is no such class, or there are fewer points than an evaluation needs:
            8, or 2 where the distribution is known.
    """
    data, of = points, ""
    if label is not None:
        check_integer("label", label)
        data, of = points.of_number(label), f" of {points.class_name(label)}"
    least = FEWEST_POINTS if points.redraw is None else 2
    if len(data) < least:
        raise UserError(f"evaluation needs at least {least} data points{of}, got {len(data)}")
    return data


def real_draws(points: Points, label: int | None, n: int, repeats: int, seed: int) -> RealDraws:
    """Returns real draws, which score what a perfect sampler would score.

    Where the data's distribution is known, a draw is as many new points as there are samples, and
    is compared with the data. Otherwise the data is split once at random: one half is compared
    with, and a draw is a random part of the other half, as large as the samples but at most half
    of it. Given the first half, the samples of a perfect sampler and the points of the second are
    alike, namely independent of each other and of it. Complementary halves are not: what one has
    too much of, the other has too little of. Draws with replacement would hold points twice, which
    no sampler does and which distances to neighbours show.

    Sets of more than :func:`~.inputs.most_points` are cut at random.

    Args:
        points: the data.
        label: class of all points; None for every class.
        n: number of samples.
        repeats: number of draws.
        seed: seed of the draws.

    Raises:
        ValueError: there is no such class, or there are too few points.
    """
    data, most = data_of(points, label), most_points(points.dim)
    if data.redraw is not None:
        size = min(n, most)
        draws = [data.redraw(size, seed + repeat + 1)[0] for repeat in range(repeats)]
        return RealDraws(draws, cut(data, 2 * most, seed).data, cut(points, 2 * most, seed))
    data = cut(data, 4 * most, seed)
    order = random_rows(len(data), len(data), seed)
    first, pool = order[: len(data) // 2], order[len(data) // 2 :]
    size = min(n, len(pool) // 2)
    # All draws are chosen at once, which takes as long as one.
    numbers = torch.arange(1, repeats + 1, device="cpu")[:, None]
    places = torch.arange(size, device="cpu")
    chosen = permute(places, len(pool), seed_tensor(seed).expand(repeats), numbers)  # [R, a]
    draws = [data.data[pool[rows]] for rows in chosen]
    half = part_of(data, first)
    return RealDraws(draws, half.data, half, len(pool))


def cut(points: Points, most: int, seed: int) -> Points:
    """Returns ``most`` random points, or the data set itself if it has no more."""
    if len(points) <= most:
        return points
    return part_of(points, random_rows(len(points), most, seed))


def part_of(points: Points, rows: Tensor) -> Points:
    """Returns some of the points; classes that have none there are left out of the numbering."""
    labels = None
    if points.labels is not None:
        labels = points.labels.cpu()[rows].unique(return_inverse=True)[1]
    return Points(points.data.cpu()[rows], labels, name=points.name)
