"""Are samples as good as data? Batteries of tests that real draws pass jointly.

A battery's bands are calibrated on real draws of the generator in place of samples: for each test
the band of a further draw (Student's prediction interval), so wide that a real draw fails any of
them with probability ``FAMILY`` (Bonferroni). Whether that holds is then measured on other real
draws, and that number is published.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from scipy.stats import gaussian_kde
from scipy.stats import t as student_t
from torch import Tensor
from tqdm import tqdm

from ..diffusion import (
    GaussianMixture,
    Points,
    kde_nll,
    memorisation,
    nearest_neighbour_test,
    sliced_wasserstein,
)

FAMILY = 0.002  # chance that a real draw fails a battery
_FIRST_CHECK_SEED = 10**6  # real draws that check a calibration are none of those it was made of


@dataclass(frozen=True)
class Band:
    """Where a test's statistic must be."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Calibration:
    """Bands of a battery, and how many of so many other real draws passed all its tests."""

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
        definition: all that the bands depend on, in words; other words need other bands.
        labels: the class of each set of samples; None for all classes.
        size: samples in a set.
    """

    definition: str
    labels: tuple[int | None, ...]
    size: int

    @abstractmethod
    def draw(self, seed: int) -> list[Tensor]:
        """Real draws [size, 2] in place of the samples of each set."""

    @abstractmethod
    def measure(self, sets: Sequence[Tensor]) -> dict[str, float]:
        """The statistic of every test; a name that starts with ``distance`` is one-sided."""

    def fixed(self) -> dict[str, Band]:
        """Bands that are set rather than calibrated."""
        return {}

    def failed(self, sets: Sequence[Tensor], bands: dict[str, Band]) -> list[str]:
        """Names of the tests that the samples fail."""
        found = self.measure(sets)
        return [name for name, band in bands.items() if not band.holds(found[name])]

    def calibrate(self, draws: int, repeats: int) -> Calibration:
        """Makes bands from ``draws`` real draws and checks them on ``repeats`` others."""
        real = [self.measure(self.draw(seed)) for seed in _progress(draws, "bands")]
        fixed = self.fixed()
        level = FAMILY / (len(real[0]) - len(fixed))
        bands = fixed | {
            name: band_of([one[name] for one in real], level, name.startswith("distance"))
            for name in real[0]
            if name not in fixed
        }
        passed = sum(
            not self.failed(self.draw(_FIRST_CHECK_SEED + seed), bands)
            for seed in _progress(repeats, "check")
        )
        return Calibration(self.definition, bands, repeats, passed)


def band_of(values: Sequence[float], level: float, one_sided: bool) -> Band:
    """Where a further draw lies but for a chance of ``level``, if draws are normal.

    Distances, which are one-sided, are taken as normal in their cube root (Wilson and Hilferty
    1931 for chi-squared).
    """
    values, count = np.asarray(values), len(values)
    drawn = np.cbrt(values) if one_sided else values
    quantile = student_t.ppf(1 - level / (1 if one_sided else 2), count - 1)
    spread = quantile * math.sqrt(1 + 1 / count) * drawn.std(ddof=1)
    low, high = drawn.mean() - spread, drawn.mean() + spread
    return Band(0.0, float(high**3)) if one_sided else Band(float(low), float(high))


def _progress(count: int, title: str) -> tqdm:
    return tqdm(range(count), desc=title, ncols=80)


# Mixture.

_RINGS, _SECTORS = 6, 8


def five_gaussians() -> GaussianMixture:
    """Five Gaussians on a pentagon, each with a shape of its own."""
    angle = torch.arange(5) * 2 * math.pi / 5
    means = 1.2 * torch.stack((angle.cos(), angle.sin()), dim=1)
    wide, narrow = torch.linspace(0.3, 0.2, 5), torch.linspace(0.1, 0.2, 5)
    turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), dim=1)
    factor = turn.view(5, 2, 2) * torch.stack((wide, narrow), dim=1)[:, None]  # [5, 2, 2]
    return GaussianMixture(torch.ones(5), means, factor @ factor.mT)


def mixture_points(n: int, seed: int = 0) -> Points:
    """n points of the five Gaussians, as many of each, labelled."""
    labels = torch.arange(5).repeat_interleave(-(-n // 5))[:n]
    data = torch.cat(
        [component(label).draw(int((labels == label).sum()), seed + label) for label in range(5)]
    )
    return Points(data.float(), labels, name="five Gaussians")


def component(label: int) -> GaussianMixture:
    """One of the five Gaussians."""
    mixture, one = five_gaussians(), slice(label, label + 1)
    return GaussianMixture(mixture.weights[one], mixture.means[one], mixture.covariances[one])


class MixtureBattery(Battery):
    """Of each Gaussian: log density, occupancy of equally likely cells, nearest neighbours."""

    def __init__(self, size: int = 10_000):
        self.size, self.labels = size, tuple(range(5))
        self.definition = f"five Gaussians 1, {size} samples of each, {_RINGS} x {_SECTORS} cells"
        # What samples are compared with; no model has seen it.
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
    """What would be standard normal if x [n, 2] were of this Gaussian, float64."""
    mean, factor = _mean_and_factor(label)
    return torch.linalg.solve_triangular(factor, (x.double() - mean).T, upper=False).T


def unwhiten(white: Tensor, label: int) -> Tensor:
    """The inverse of :func:`whiten`."""
    mean, factor = _mean_and_factor(label)
    return white @ factor.T + mean


def _mean_and_factor(label: int) -> tuple[Tensor, Tensor]:
    gaussian = component(label)
    return gaussian.means[0].double(), torch.linalg.cholesky(gaussian.covariances[0].double())


def occupancy_of_cells(white: Tensor) -> float:
    """Pearson's chi-squared over rings and sectors, all equally likely for a standard normal."""
    ring = (1 - (-white.square().sum(dim=1) / 2).exp()) * _RINGS
    sector = (torch.atan2(white[:, 1], white[:, 0]) / (2 * math.pi) + 0.5) * _SECTORS
    cell = ring.long().clamp(max=_RINGS - 1) * _SECTORS + sector.long().clamp(max=_SECTORS - 1)
    counts = torch.bincount(cell, minlength=_RINGS * _SECTORS).double()
    expected = len(white) / (_RINGS * _SECTORS)
    return ((counts - expected).square().sum() / expected).item()


# STATES.

_NLL_TOLERANCE = 0.01
_GRID, _GRID_REACH = 300, 3.0


class StatesBattery(Battery):
    """Of all states and of each: NLL, sliced Wasserstein, nearest neighbours, memorisation.

    The NLL takes all samples of a set and is compared with that of the data, each datum left out of
    the density that it is scored by: counted in, as in :func:`kde_nll`, data score 0.004 better
    than anything new can. The other tests take as many samples as there are data points.
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
    """The log density of :func:`kde_nll` in two dimensions, from a cubic spline over a grid.

    The kernel is wide, so the spline is exact to 1e-5, and a million points take a second.

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
        """Mean -log density of x [n, 2], in nats."""
        inside = (x.abs() <= _GRID_REACH).all(dim=1)
        near = x[inside].double().numpy()
        total = -self.spline.ev(near[:, 0], near[:, 1]).sum()
        if not inside.all():
            total += kde_nll(x[~inside], self.data) * int((~inside).sum())
        return float(total / len(x))


def leave_one_out_nll(x: Tensor, data: Tensor) -> float:
    """Mean -log density of some x [n, 2] of the data, each under the KDE of all other data."""
    kde = gaussian_kde(data.double().numpy().T)
    at_itself = np.linalg.det(2 * math.pi * kde.covariance) ** -0.5 / len(data)
    others = (kde(x.double().numpy().T) - at_itself) * len(data) / (len(data) - 1)
    return float(-np.log(others).mean())


def pointwise_nll(x: Tensor, data: Tensor) -> Tensor:
    """-log density of each of x [n, 2] under the KDE of :func:`kde_nll`, float64 [n]."""
    kde = gaussian_kde(data.double().numpy().T)
    return -torch.from_numpy(kde.logpdf(x.numpy().T))
