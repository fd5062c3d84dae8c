"""Batteries of statistical tests that decide if samples are as good as data.

The bands of a battery are calibrated on real draws in place of samples. The band of a test is the
prediction interval of a further draw (Student), so wide that a real draw fails any of the tests
with probability ``FAMILY`` (Bonferroni). Other real draws then measure the rate at which real draws
pass, and this rate is published.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from scipy.stats import gaussian_kde
from torch import Tensor

from ..diffusion import (
    GaussianMixture,
    Points,
    kde_nll,
    memorisation,
    nearest_neighbour_test,
    sliced_wasserstein,
)
from ..diffusion.metrics import prediction_factor
from ..diffusion.progress import counted

FAMILY = 0.002  # probability that a real draw fails a battery
_FIRST_CHECK_SEED = 10**6  # a calibration is checked on other real draws than it was made of


@dataclass(frozen=True)
class Band:
    """The range in which the statistic of a test must lie."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Calibration:
    """Bands of a battery, and the number of other real draws that passed all its tests."""

    definition: str
    bands: dict[str, Band]
    repeats: int
    passed: int

    def to_dict(self) -> dict:
        return {**asdict(self), "tests": len(self.bands)}

    @classmethod
    def from_dict(cls, content: dict) -> "Calibration":
        bands = {name: Band(**band) for name, band in content["bands"].items()}
        return cls(content["definition"], bands, content["repeats"], content["passed"])


class Battery(ABC):
    """Tests of several sets of samples.

    Attributes:
        definition: everything that the bands depend on, in words. Other words need other bands.
        labels: class of each set of samples; None for all classes.
        size: number of samples in a set.
    """

    definition: str
    labels: tuple[int | None, ...]
    size: int

    @abstractmethod
    def draw(self, seed: int) -> list[Tensor]:
        """Draws real points [size, 2] in place of the samples of each set."""

    @abstractmethod
    def measure(self, sets: Sequence[Tensor]) -> dict[str, float]:
        """Returns the statistic of every test. Tests named ``distance …`` are one-sided."""

    def fixed(self) -> dict[str, Band]:
        """Returns the bands that are set rather than calibrated."""
        return {}

    def failed(self, sets: Sequence[Tensor], bands: dict[str, Band]) -> list[str]:
        """Returns the names of the tests that the samples fail."""
        found = self.measure(sets)
        return [name for name, band in bands.items() if not band.holds(found[name])]

    def calibrate(self, draws: int, repeats: int) -> Calibration:
        """Makes bands from ``draws`` real draws and checks them on ``repeats`` other ones."""
        real = [self.measure(self.draw(seed)) for seed in counted(draws, "bands", "draws")]
        fixed = self.fixed()
        level = FAMILY / (len(real[0]) - len(fixed))
        bands = fixed | {
            name: band_of([one[name] for one in real], level, name.startswith("distance"))
            for name in real[0]
            if name not in fixed
        }
        passed = sum(
            not self.failed(self.draw(_FIRST_CHECK_SEED + seed), bands)
            for seed in counted(repeats, "check", "draws")
        )
        return Calibration(self.definition, bands, repeats, passed)


def band_of(values: Sequence[float], level: float, one_sided: bool) -> Band:
    """Returns the band that a further draw leaves with probability ``level``, if draws are normal.

    The cube root of a distance, which is one-sided, is taken as normal (Wilson and Hilferty 1931
    for chi-squared).
    """
    values = np.asarray(values)
    drawn = np.cbrt(values) if one_sided else values
    tail = level / (1 if one_sided else 2)
    spread = prediction_factor(len(values), tail) * drawn.std(ddof=1)
    low, high = drawn.mean() - spread, drawn.mean() + spread
    return Band(0.0, float(high**3)) if one_sided else Band(float(low), float(high))


# The mixture of Gaussians.

_RINGS, _SECTORS = 6, 8


def five_gaussians() -> GaussianMixture:
    """Returns five Gaussians on a pentagon, each with a shape of its own."""
    angle = torch.arange(5) * 2 * math.pi / 5
    means = 1.2 * torch.stack((angle.cos(), angle.sin()), dim=1)
    wide, narrow = torch.linspace(0.3, 0.2, 5), torch.linspace(0.1, 0.2, 5)
    turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), dim=1)
    factor = turn.view(5, 2, 2) * torch.stack((wide, narrow), dim=1)[:, None]  # [5, 2, 2]
    return GaussianMixture(torch.ones(5), means, factor @ factor.mT)


def mixture_points(n: int, seed: int = 0) -> Points:
    """Draws n labelled points of the five Gaussians, equally many of each."""
    labels = torch.arange(5).repeat_interleave(-(-n // 5))[:n]
    data = torch.cat(
        [component(label).draw(int((labels == label).sum()), seed + label) for label in range(5)]
    )
    return Points(data.float(), labels, name="five Gaussians")


def component(label: int) -> GaussianMixture:
    """Returns one of the five Gaussians."""
    mixture, one = five_gaussians(), slice(label, label + 1)
    return GaussianMixture(mixture.weights[one], mixture.means[one], mixture.covariances[one])


class MixtureBattery(Battery):
    """Tests of each Gaussian: log density, occupancy of equally likely cells, neighbours."""

    def __init__(self, size: int = 10_000):
        self.size, self.labels = size, tuple(range(5))
        self.definition = f"five Gaussians 1, {size} samples of each, {_RINGS} x {_SECTORS} cells"
        # Samples are compared with these points, which no model has seen.
        self.references = self.draw(-1)

    def draw(self, seed):
        generator = torch.Generator().manual_seed(1000 + seed)
        white = torch.randn(len(self.labels), self.size, 2, generator=generator).double()
        return [unwhiten(x, label) for label, x in zip(self.labels, white, strict=True)]

    def measure(self, sets):
        found = {}
        for label, x in enumerate(sets):
            white = whiten(x, label)
            found[f"log density {label}"] = -white.square().sum(dim=1).mean().item() / 2
            found[f"distance of occupancy {label}"] = occupancy_of_cells(white)
            neighbours = nearest_neighbour_test(x, self.references[label])
            found[f"sample by sample {label}"] = neighbours.sample_by_sample
            found[f"datum by datum {label}"] = neighbours.datum_by_datum
        return found


def whiten(x: Tensor, label: int) -> Tensor:
    """Maps x [n, 2], float64: points of this Gaussian become standard normal."""
    mean, factor = _mean_and_factor(label)
    return torch.linalg.solve_triangular(factor, (x.double() - mean).T, upper=False).T


def unwhiten(white: Tensor, label: int) -> Tensor:
    """Inverts :func:`whiten`."""
    mean, factor = _mean_and_factor(label)
    return white @ factor.T + mean


def _mean_and_factor(label: int) -> tuple[Tensor, Tensor]:
    gaussian = component(label)
    return gaussian.means[0].double(), torch.linalg.cholesky(gaussian.covariances[0].double())


def occupancy_of_cells(white: Tensor) -> float:
    """Returns Pearson's chi-squared over cells that are equally likely for a standard normal.

    A cell is the part of a ring in a sector.
    """
    ring = (1 - (-white.square().sum(dim=1) / 2).exp()) * _RINGS
    sector = (torch.atan2(white[:, 1], white[:, 0]) / (2 * math.pi) + 0.5) * _SECTORS
    cell = ring.long().clamp(max=_RINGS - 1) * _SECTORS + sector.long().clamp(max=_SECTORS - 1)
    counts = torch.bincount(cell, minlength=_RINGS * _SECTORS).double()
    expected = len(white) / (_RINGS * _SECTORS)
    return ((counts - expected).square().sum() / expected).item()


# The STATES data.

_NLL_TOLERANCE = 0.01
_GRID, _GRID_REACH = 300, 3.0


class StatesBattery(Battery):
    """Tests of all states and of each: NLL, sliced Wasserstein, nearest neighbours, memorisation.

    The NLL of all samples of a set is compared with that of the data. Each datum is left out of the
    density that scores it: if it is included, as in :func:`kde_nll`, the data score 0.004 better
    than new points can. The other tests use as many samples as there are data points.
    """

    def __init__(self, points: Points, size: int = 50_000):
        self.points, self.size = points, size
        self.labels = (None, *range(points.num_classes))
        self.definition = f"STATES 2, {len(points)} points, {size} samples of each set"
        self.log_density = SmoothLogDensity(points.data)
        self.data = [self._data(label) for label in self.labels]
        self.own_nll = [leave_one_out_nll(data, points.data) for data in self.data]
        self.held_out = [
            points.redraw(len(data), 999_000, label)[0]
            for label, data in zip(self.labels, self.data, strict=True)
        ]

    def _data(self, label: int | None) -> Tensor:
        return self.points.data if label is None else self.points.of_class(label)

    def draw(self, seed):
        return [self.points.redraw(self.size, 1000 + seed, label)[0] for label in self.labels]

    def fixed(self):
        names = [f"NLL {self._name(label)}" for label in self.labels]
        return dict.fromkeys(names, Band(-_NLL_TOLERANCE, _NLL_TOLERANCE))

    def _name(self, label: int | None) -> str:
        return "of all" if label is None else self.points.class_name(label)

    def measure(self, sets):
        found = {}
        for label, x, data, own_nll, held_out in zip(
            self.labels, sets, self.data, self.own_nll, self.held_out, strict=True
        ):
            name = self._name(label)
            found[f"NLL {name}"] = self.log_density.nll(x) - own_nll
            x = x[: len(data)]
            found[f"distance, sliced Wasserstein {name}"] = sliced_wasserstein(x, data)
            neighbours = nearest_neighbour_test(x, data)
            found[f"sample by sample {name}"] = neighbours.sample_by_sample
            found[f"datum by datum {name}"] = neighbours.datum_by_datum
            found[f"memorisation {name}"] = memorisation(x, data, held_out).nearer_to_training
        return found


class SmoothLogDensity:
    """The log density of :func:`kde_nll` in two dimensions, as a cubic spline over a grid.

    The kernel is wide, so the spline is accurate to 1e-5. A million points take a second.

    Args:
        data: [N, 2].
    """

    def __init__(self, data: Tensor):
        self.data = data
        axis = np.linspace(-_GRID_REACH, _GRID_REACH, _GRID)
        x, y = np.meshgrid(axis, axis, indexing="ij")
        grid = torch.from_numpy(np.stack((x, y), axis=-1).reshape(-1, 2))
        log_p = -pointwise_nll(grid, data).numpy().reshape(_GRID, _GRID)
        self.spline = RectBivariateSpline(axis, axis, log_p)

    def nll(self, x: Tensor) -> float:
        """Returns the mean -log density of x [n, 2], in nats."""
        inside = (x.abs() <= _GRID_REACH).all(dim=1)
        near = x[inside].double().numpy()
        total = -self.spline.ev(near[:, 0], near[:, 1]).sum()
        if not inside.all():
            total += kde_nll(x[~inside], self.data) * int((~inside).sum())
        return float(total / len(x))


def leave_one_out_nll(x: Tensor, data: Tensor) -> float:
    """Returns the mean -log density of data points x [n, 2], each under the KDE of all others."""
    kde = gaussian_kde(data.double().numpy().T)
    at_itself = np.linalg.det(2 * math.pi * kde.covariance) ** -0.5 / len(data)
    others = (kde(x.double().numpy().T) - at_itself) * len(data) / (len(data) - 1)
    return float(-np.log(others).mean())


def pointwise_nll(x: Tensor, data: Tensor) -> Tensor:
    """Returns -log density of each of x [n, 2] under the KDE of :func:`kde_nll`, float64 [n]."""
    kde = gaussian_kde(data.double().numpy().T)
    return -torch.from_numpy(kde.logpdf(x.numpy().T))
