"""All metrics of one set of samples, each beside the one that fresh real data scores."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from scipy.stats import t as student_t
from torch import Tensor

from ...kernels.philox import child_seed, permute, seed_tensor
from ..data import Points
from ..errors import UserError, check_at_least
from .distances import emd, label_of_nearest, mmd, nearest_distances, sliced_wasserstein, subset
from .likelihood import kde_nll, kernel_nll, same_dimension
from .two_sample import memorisation, nearest_neighbour_test, occupancy


class _Scale(NamedTuple):
    """Where the metric of a random draw is about normal."""

    to: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


_LINEAR = _Scale(lambda x: x, lambda x: x)
_LOG = _Scale(torch.log, torch.exp)
_CUBE_ROOT = _Scale(lambda x: x ** (1 / 3), lambda x: x**3)  # Wilson and Hilferty 1931


class _Metric(NamedTuple):
    title: str
    scale: _Scale
    less_is_better: bool = False


METRICS = {
    "sample_to_data": _Metric("median distance of a sample to the nearest datum", _LOG),
    "data_to_sample": _Metric("median distance of a datum to the nearest sample", _LOG),
    "sliced_wasserstein": _Metric("sliced Wasserstein distance", _LOG, True),
    "kde_nll": _Metric("NLL under a KDE of the data", _LINEAR),
    "kernel_nll": _Metric("kernel NLL, temperature 0.1", _LINEAR),
    "emd": _Metric("EMD of up to 250 pairs, total", _LOG, True),
    "mmd": _Metric("squared MMD, unbiased", _LINEAR),
    "occupancy": _Metric("chi-squared of the classes' shares", _CUBE_ROOT, True),
    "sample_by_sample": _Metric("samples whose nearest neighbour is a sample", _LINEAR),
    "datum_by_datum": _Metric("data whose nearest neighbour is a datum", _LINEAR),
    "nearer_to_training": _Metric("samples nearer to training than to held-out points", _LINEAR),
    "distance_ratio": _Metric("median distance to training over held-out points", _LOG),
}
_ALWAYS = ("sample_to_data", "data_to_sample", "sliced_wasserstein")


@dataclass(frozen=True)
class Score:
    """A metric of samples beside what real data scores.

    Attributes:
        value: of the samples.
        real: mean over repeated draws of real data.
        low, high: the band that holds 99% of real draws; ``low`` is 0 where less is better.
    """

    value: float
    real: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether the value is inside the band of real draws."""
        return self.low <= self.value <= self.high


@dataclass(frozen=True)
class Evaluation:
    """Samples compared with data.

    Attributes:
        nll: negative log-likelihood of the samples under a KDE of the whole data; None where
            there is no such estimate.
        nll_data: of the data itself, or of its points of the class asked for; None likewise.
        scores: median distance to the nearest data point, of data points to the nearest sample,
            and the sliced Wasserstein distance, by name.
        purity: fraction of samples whose nearest data point has the class asked for; None where
            no class was.
        battery: all other metrics by name, if they were asked for.
        left_out: why, by name, of each metric that is not defined for these samples and data.
    """

    nll: float | None
    nll_data: float | None
    scores: dict[str, Score]
    purity: float | None = None
    battery: dict[str, Score] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def delta_nll(self) -> float | None:
        """The samples' NLL less the data's; None where there is none."""
        return None if self.nll is None or self.nll_data is None else self.nll - self.nll_data

    def to_dict(self) -> dict:
        """Plain numbers for JSON: the NLLs, the purity, and every score by name."""
        scores = {
            name: {**asdict(score), "passed": score.passed}
            for name, score in (self.scores | self.battery).items()
        }
        return {
            "nll": self.nll,
            "nll_data": self.nll_data,
            "delta_nll": self.delta_nll,
            "purity": self.purity,
            **scores,
            **({"left_out": self.left_out} if self.left_out else {}),
        }

    def table(self) -> str:
        """Every score as a row of a table in Markdown."""
        lines = ["| metric | samples | real data | 99% of real draws | |", "| --- " * 5 + "|"]
        for name, score in (self.scores | self.battery).items():
            verdict = "as real data" if score.passed else "**differs**"
            lines.append(
                f"| {METRICS[name].title} | {score.value:.4g} | {score.real:.4g} "
                f"| {score.low:.4g} to {score.high:.4g} | {verdict} |"
            )
        for name, reason in self.left_out.items():
            lines.append(f"| {METRICS[name].title} | | | | left out: {reason} |")
        return "\n".join(lines)


def data_of(points: Points, label: int | None) -> Tensor:
    """The points that samples are compared with, [n, d]: all, or those of one class.

    Raises:
        ValueError: there is no such class, or there are fewer than 4 points.
    """
    of = ""
    if label is not None:
        points.check_label(label)
        of = f" of {points.class_name(label)}"
    data = points.data if label is None else points.of_class(label)
    if len(data) < 4:
        raise UserError(f"evaluation needs at least 4 data points{of}, got {len(data)}")
    return data


def evaluate(
    samples: Tensor,
    points: Points,
    *,
    label: int | None = None,
    repeats: int = 100,
    seed: int = 0,
    full: bool = False,
    held_out: Tensor | None = None,
) -> Evaluation:
    """Scores samples, each metric beside the 99% band of real draws.

    Where the data's distribution is known, a real draw is a new draw of as many points, compared
    with the data. Otherwise it is a random half of the data, compared with the other half, and
    as many of the samples are compared with such a half too. The band is that of a further draw
    (Student's prediction interval), one for each metric: of ten metrics of a perfect sampler, one
    is outside its band in one of ten cases.

    Args:
        samples: [n, d].
        points: the data.
        label: the class that the samples should be of; None for all.
        repeats: number of real draws.
        seed: of the real draws, and of every random choice in a metric.
        full: all metrics rather than three; a real draw of 5,000 points then takes about a second.
        held_out: [M, d] real points that were not trained on, for the check of memorisation. They
            are drawn where the distribution is known; without either the check is left out.

    A metric that is not defined for the data is left out and its reason told: a density estimate
    needs data that fills all its dimensions.

    Raises:
        ValueError: the samples' dimension is not the data's, they are not finite or fewer than 2,
            there is no such class, or there are fewer than 4 points of it.
    """
    check_at_least("repeats", repeats, 2)
    same_dimension(samples, points.data)
    check_at_least("number of samples", len(samples), 2)
    if not samples.isfinite().all():
        raise UserError("samples must be finite, got NaN or infinity")
    if held_out is not None:
        check_at_least("number of held-out points", len(held_out), 2)
    samples = samples.cpu()
    data = data_of(points, label)
    purity = None
    if label is not None:
        purity = (label_of_nearest(samples, points) == label).double().mean().item()
    pairs = real_pairs(points, label, len(samples), repeats, seed)
    if points.redraw:
        trials = [(samples, data), *pairs]
    else:
        trials = [(subset(samples, len(data) // 2, seed), pairs[0][1]), *pairs]
    by_class = points.num_classes > 1 and label is None
    measure = partial(_measure, points=points, by_class=by_class, full=full, seed=seed)
    numbers = [measure(*trial) for trial in trials]
    if full:
        draws = [draw for draw, _ in trials]
        for found, trio in zip(numbers, _trios(draws, points, label, held_out, seed), strict=False):
            found.update(memorisation(*trio, seed)._asdict())
    found, *real = numbers
    scores, left_out = {}, {}
    for name, value in found.items():
        values = torch.tensor([one[name] for one in real], dtype=torch.float64)
        if math.isfinite(value) and METRICS[name].scale.to(values).isfinite().all():
            scores[name] = score(name, value, values.tolist())
        else:
            left_out[name] = "not defined for these points"
    nll = nll_data = None
    try:
        nll, nll_data = kde_nll(samples, points.data), kde_nll(data, points.data)
    except UserError as error:
        left_out["kde_nll"] = str(error)
    return Evaluation(
        nll,
        nll_data,
        {name: scores.pop(name) for name in _ALWAYS if name in scores},
        purity,
        scores,
        left_out,
    )


def real_pairs(
    points: Points, label: int | None, n: int, repeats: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Pairs (real draw, data) that show what a perfect sampler's scores look like."""
    data = points.data if label is None else points.of_class(label)
    if points.redraw is None:
        return [_halves(data, seed, repeat) for repeat in range(repeats)]
    return [(points.redraw(n, seed + repeat + 1, label)[0], data) for repeat in range(repeats)]


def _halves(x: Tensor, seed: int, draw: int) -> tuple[Tensor, Tensor]:
    order = permute(torch.arange(len(x)), len(x), seed_tensor(seed), draw)[0]
    half = len(x) // 2
    return x[order[:half]], x[order[half:]]


def _trios(
    draws: list[Tensor], points: Points, label: int | None, held_out: Tensor | None, seed: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(draw, points trained on, points held out) of the samples, then of each real draw.

    Where real draws cannot be made, halves of the held-out points stand for them and are compared
    with the other halves. Empty where nothing was held out.
    """
    train = points.data if label is None else points.of_class(label)
    if points.redraw:
        if held_out is None:
            held_out = points.redraw(len(train), child_seed(seed, 0), label)[0]
        return [(draw, train, held_out) for draw in draws]
    if held_out is None:
        return []
    halves = [_halves(held_out, seed, repeat) for repeat in range(len(draws) - 1)]
    return [(draws[0], train, halves[0][1]), *((draw, train, rest) for draw, rest in halves)]


def _measure(
    samples: Tensor, data: Tensor, *, points: Points, by_class: bool, full: bool, seed: int
) -> dict[str, float]:
    """The metrics of two sets of points by name."""
    numbers = {
        "sample_to_data": nearest_distances(samples, data).median().item(),
        "data_to_sample": nearest_distances(data, samples).median().item(),
        "sliced_wasserstein": sliced_wasserstein(samples, data),
    }
    if not full:
        return numbers
    try:
        numbers["kde_nll"] = kde_nll(samples, points.data if points.redraw else data)
    except UserError:
        numbers["kde_nll"] = math.nan
    numbers["kernel_nll"] = kernel_nll(samples, data)
    numbers["emd"] = emd(samples, data, seed=seed)
    numbers["mmd"] = mmd(samples, data, seed=seed)
    if by_class:
        numbers["occupancy"] = occupancy(samples, data, points)
    return numbers | nearest_neighbour_test(samples, data, seed)._asdict()


def score(name: str, value: float, real: list[float]) -> Score:
    """A metric of samples beside those of real draws.

    Args:
        name: of the metric in :data:`METRICS`.
        value: of the samples.
        real: of each real draw, at least two.
    """
    scale, repeats = METRICS[name].scale, len(real)
    drawn = scale.to(torch.tensor(real, dtype=torch.float64))
    spread = student_t.ppf(0.995, repeats - 1) * math.sqrt(1 + 1 / repeats) * drawn.std()
    low, high = (scale.back(drawn.mean() + sign * spread).item() for sign in (-1, 1))
    mean = scale.back(drawn).mean().item()
    return Score(value, mean, 0.0 if METRICS[name].less_is_better else low, high)
