"""How the samples of a cell are measured, and what perfect samples score when measured so."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import mean, stdev
from typing import NamedTuple

from torch import Tensor

from ...kernels.philox import child_seed
from ..data import Points
from ..metrics import emd, emd_by_class, kernel_nll
from ..metrics.knn import train_judge

_REPEATS = 10  # of a measurement, behind its standard deviation
_TEST_POINTS = 5000
_KERNEL_DIM = 3  # above it no two points are near in terms of the kernel NLL's bandwidth
_TEST, _FLOOR, _EMD = range(3)  # what draws random numbers of its own


class Score(NamedTuple):
    """A metric: the mean over repeats, and the standard deviation of one of them."""

    value: float
    sd: float


@dataclass(frozen=True)
class Protocol:
    """How samples are compared with data.

    Args:
        samples: how many are drawn for a cell, or for each class.
        size: points on each side of the EMD, which is the mean of 5 draws.
        test_split: compare with points that were not trained on, else with the training data.
        standardise: data to mean 0 and standard deviation 1 per axis before training.
        by_class: samples are asked for by class; the EMD is the mean over classes of that of a
            class's samples and data, and the accuracy is counted.
    """

    samples: int = 2000
    size: int = 250
    test_split: bool = False
    standardise: bool = False
    by_class: bool = False


WHOLE = Protocol()
TEST_SPLIT = Protocol(size=128, test_split=True, standardise=True)
BY_CLASS = Protocol(samples=500, by_class=True)
IMAGES = Protocol(samples=1000)
IMAGES_BY_CLASS = Protocol(samples=100, size=80, by_class=True)  # halves of a class have 87


def standardised(points: Points) -> Points:
    """The data at mean 0 and standard deviation 1 per axis, and its new draws moved alike."""
    centre, scale = points.data.mean(0), points.data.std(0, correction=0)

    def redraw(n: int, seed: int, label: int | None = None):
        data, labels = _redrawn(points, n, seed, label)
        return (data - centre) / scale, labels

    return replace(
        points, data=(points.data - centre) / scale, redraw=redraw if points.redraw else None
    )


def measure(
    samples: Sequence[Tensor], points: Points, protocol: Protocol, seed: int = 0
) -> dict[str, Score]:
    """Every metric of a protocol.

    Args:
        samples: one set [n, d], or one of each class.
        points: the data, :func:`standardised` if the protocol says so.
        protocol: how.
        seed: of the draws.

    Returns:
        Scores by the metric's name. That of the EMD is over repeats with the same samples; other
        metrics look at all samples at once and have a standard deviation of 0.
    """
    emds = [_emd(samples, points, protocol, child_seed(seed, repeat)) for repeat in range(_REPEATS)]
    rest = _other_metrics(samples, points, protocol)
    return {"EMD": _score(emds), **{name: Score(value, 0.0) for name, value in rest.items()}}


def perfect(points: Points, protocol: Protocol, seed: int = 0) -> dict[str, Score]:
    """What new draws of the data, as many as a cell has samples, score: lower is not better.

    Of data that cannot be drawn anew one half stands for the samples and the other for the data.
    The standard deviation is that over independent draws.
    """
    repeats: dict[str, list[float]] = {}
    for repeat in range(_REPEATS):
        own = child_seed(child_seed(seed, _FLOOR), repeat)
        draws, data = _new_draws(points, protocol, own)
        values = {
            "EMD": _emd(draws, data, protocol, child_seed(own, _EMD)),
            **_other_metrics(draws, data, protocol),
        }
        for name, value in values.items():
            repeats.setdefault(name, []).append(value)
    return {name: _score(values) for name, values in repeats.items()}


def _score(values: Sequence[float]) -> Score:
    return Score(mean(values), stdev(values))


def _redrawn(
    points: Points, n: int, seed: int, label: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Fresh points [n, d] and their labels; every data set of a study can be drawn anew."""
    assert points.redraw is not None
    return points.redraw(n, seed, label)


def _new_draws(points: Points, protocol: Protocol, seed: int) -> tuple[list[Tensor], Points]:
    """Perfect samples and the data to compare them with: new draws, or halves of the data."""
    labels = range(points.num_classes) if protocol.by_class else (None,)
    if points.redraw is None:
        points, half = points.split(0.5, seed)
        return [half.data if label is None else half.of_class(label) for label in labels], points
    draws = [
        points.redraw(protocol.samples, child_seed(seed, number), label)[0]
        for number, label in enumerate(labels)
    ]
    return draws, points


def _emd(samples: Sequence[Tensor], points: Points, protocol: Protocol, seed: int) -> float:
    if protocol.by_class:
        return emd_by_class(samples, points, size=protocol.size, seed=seed)
    data = points.data
    if protocol.test_split:
        data, _ = _redrawn(points, _TEST_POINTS, _TEST)
    return emd(samples[0], data, size=protocol.size, seed=seed)


def _other_metrics(
    samples: Sequence[Tensor], points: Points, protocol: Protocol
) -> dict[str, float]:
    if protocol.by_class:
        return {"accuracy": _accuracy(samples, points)}
    if protocol.test_split or points.dim > _KERNEL_DIM:
        return {}
    return {"kernel NLL": kernel_nll(samples[0], points.data)}


def _accuracy(samples: Sequence[Tensor], points: Points) -> float:
    """How many samples a classifier of the data takes for the class that was asked for."""
    judge = _judge(points)
    right = [float((judge.predict(x.numpy()) == label).mean()) for label, x in enumerate(samples)]
    return mean(right)


@cache
def _judge(points: Points):
    return train_judge(points)
