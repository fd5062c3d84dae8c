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

CHANCE = 0.01  # that a real draw lies outside its band


class Scale(NamedTuple):
    """A change of scale, after which the metric of a random draw is about normal."""

    to: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


LINEAR = Scale(lambda x: x, lambda x: x)
LOG = Scale(torch.log, torch.exp)
CUBE_ROOT = Scale(lambda x: x ** (1 / 3), lambda x: x**3)  # Wilson and Hilferty 1931


@dataclass(frozen=True)
class Score:
    """A metric of samples beside the scores of real data.

    Attributes:
        value: the samples' score.
        real: mean over repeated draws of real data.
        low, high: the band that holds 99% of real draws; ``low`` is 0 where less is better.
    """

    value: float
    real: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """True if the value is inside the band of real draws."""
        return self.low <= self.value <= self.high


def prediction_factor(repeats: int, tail: float) -> float:
    """Returns the half-width of Student's prediction interval, in standard deviations.

    Args:
        repeats: number of draws that the mean and the standard deviation come from.
        tail: probability that a further draw lies beyond one end of the interval.
    """
    return student_t.ppf(1 - tail, repeats - 1) * math.sqrt(1 + 1 / repeats)


def band(real: Sequence[float], scale: Scale) -> tuple[float, float]:
    """Returns the two ends of the interval that holds a further real draw in 99% of cases.

    Args:
        real: score of each real draw, at least two.
        scale: scale on which the draws are about normal.
    """
    drawn = scale.to(torch.tensor(real, dtype=torch.float64))
    spread = prediction_factor(len(real), CHANCE / 2) * drawn.std()
    low, high = (scale.back(drawn.mean() + sign * spread).item() for sign in (-1, 1))
    return low, high


def real_pairs(
    points: Points, label: int | None, n: int, repeats: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Returns pairs (real draw, data), which score what a perfect sampler would score.

    Where the data's distribution is known, a real draw is a new draw and the data is the whole
    data. Otherwise both are halves of the data.

    Args:
        points: the data.
        label: class of all points; None for every class.
        n: number of points of a new draw.
        repeats: number of pairs.
        seed: seed of the draws.
    """
    data = points.data if label is None else points.of_class(label)
    if points.redraw is None:
        return [halves(data, seed, repeat) for repeat in range(repeats)]
    return [(points.redraw(n, seed + repeat + 1, label)[0], data) for repeat in range(repeats)]


def halves(x: Tensor, seed: int, draw: int) -> tuple[Tensor, Tensor]:
    """Splits x [n, d] at random; ``draw`` numbers the splits of one seed."""
    order = permute(torch.arange(len(x)), len(x), seed_tensor(seed), draw)[0]
    half = len(x) // 2
    return x[order[:half]], x[order[half:]]
