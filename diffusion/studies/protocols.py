"""Protocols: the way in which the samples of a cell, and perfect samples, are measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import mean, stdev
from typing import NamedTuple

from torch import Tensor

from ...kernels.philox import child_seed
from ..data import Points
from ..metrics import emd, emd_by_class, kde_nll, kernel_nll, nearest_distances

_REPEATS = 10  # measurements behind a standard deviation
_TEST_POINTS = 5000
_KERNEL_DIM = 3  # above it, no two points are near at the bandwidth of the kernel NLL
_TEST, _FLOOR, _EMD = range(3)  # streams of random numbers


class Estimate(NamedTuple):
    """A metric that was measured several times."""

    value: float  # the mean
    sd: float  # the standard deviation of one measurement


@dataclass(frozen=True)
class Protocol:
    """The way in which samples are compared with data.

    Args:
        samples: number of samples of a cell, or of each class.
        size: number of points on each side of the EMD, which is the mean of 5 draws.
        test_split: compares with points that were not trained on rather than the training data.
        standardise: scales the data to mean 0 and standard deviation 1 per axis before training.
        by_class: draws samples of each class. The EMD is then the mean over classes of the EMD
            between a class's samples and data, and the accuracy is measured too.
        fine: measures the NLL under a density estimate of the data, too, and the distance to the
            data, which sees how sharp samples are: the median over samples of the distance to the
            nearest datum.
    """

    samples: int = 2000
    size: int = 250
    test_split: bool = False
    standardise: bool = False
    by_class: bool = False
    fine: bool = False


WHOLE = Protocol()
OUTLINES = Protocol(fine=True)
TEST_SPLIT = Protocol(size=128, test_split=True, standardise=True)
BY_CLASS = Protocol(samples=500, by_class=True)
IMAGES = Protocol(samples=1000)
IMAGES_BY_CLASS = Protocol(samples=100, size=80, by_class=True)  # half of a class has 87 points


def standardised(points: Points) -> Points:
    """Returns the data scaled to mean 0 and standard deviation 1 per axis, and new draws alike."""
    centre, scale = points.data.mean(0), points.data.std(0, correction=0)

    def redraw(n: int, seed: int, label: int | None = None):
        data, labels = _redrawn(points, n, seed, label)
        return (data - centre) / scale, labels

    return replace(
        points, data=(points.data - centre) / scale, redraw=redraw if points.redraw else None
    )


def measure(
    samples: Sequence[Tensor], points: Points, protocol: Protocol, seed: int = 0
) -> dict[str, Estimate]:
    """Measures every metric of a protocol.

    Args:
        samples: one set [n, d], or one of each class.
        points: the data, :func:`standardised` if the protocol says so.
        protocol: the protocol.
        seed: seed of the draws.

    Returns:
        Estimates by name of the metric. The EMD is repeated with the same samples; the other
        metrics take all samples at once and have a standard deviation of 0.
    """
    emds = [_emd(samples, points, protocol, child_seed(seed, repeat)) for repeat in range(_REPEATS)]
    rest = _other_metrics(samples, points, protocol)
    return {"EMD": _estimate(emds), **{name: Estimate(value, 0.0) for name, value in rest.items()}}


def perfect(points: Points, protocol: Protocol, seed: int = 0) -> dict[str, Estimate]:
    """Measures perfect samples: new draws of the data, as many as a cell has samples.

    If new draws cannot be made, one half of the data stands for the samples and the other half
    for the data. A score below that of perfect samples is not better. The standard deviation is
    that over independent draws.

    Args:
        points: the data, :func:`standardised` if the protocol says so.
        protocol: the protocol.
        seed: seed of the draws.
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
    return {name: _estimate(values) for name, values in repeats.items()}


def _estimate(values: Sequence[float]) -> Estimate:
    return Estimate(mean(values), stdev(values))


def _redrawn(
    points: Points, n: int, seed: int, label: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Draws new points [n, d] and their labels."""
    assert points.redraw is not None  # a study checks this before it runs
    return points.redraw(n, seed, label)


def _new_draws(points: Points, protocol: Protocol, seed: int) -> tuple[list[Tensor], Points]:
    """Returns perfect samples and the data to compare them with: new draws, or halves of it."""
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
    found = {"kernel NLL": kernel_nll(samples[0], points.data)}
    if protocol.fine:
        found["KDE NLL"] = kde_nll(samples[0], points.data)
        nearest = nearest_distances(samples[0], points.data)
        found["distance to the data"] = nearest.median().item()
    return found


def _accuracy(samples: Sequence[Tensor], points: Points) -> float:
    """Returns the share of samples that a classifier of the data assigns to their class."""
    classifier = _knn(points)
    right = [
        float((classifier.predict(x.numpy()) == label).mean()) for label, x in enumerate(samples)
    ]
    return mean(right)


@cache
def _knn(points: Points):
    from ..metrics.knn import fit_knn  # scikit-learn takes a second to import

    return fit_knn(points)
