"""The registry of metrics, from which evaluations, tables, reports and the viewer follow."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..data import Points
from ..errors import UserError
from .bands import CUBE_ROOT, LINEAR, LOG, RealDraws, Scale, Score
from .distances import emd, emd_pairs, mmd, nearest_distances, sliced_wasserstein
from .likelihood import kde_nll, kernel_nll
from .two_sample import Neighbours, Proximity, memorisation, nearest_neighbour_test, occupancy


@dataclass(frozen=True)
class Comparison:
    """Two sets of points to be compared, and everything else that a metric may look at.

    Args:
        samples: [n, d], samples or a real draw in their place.
        data: [m, d], the data they are compared with.
        points: the data set that regions of classes and density estimates come from.
        label: class of the samples; None for all classes.
        seed: seed of every random choice in a metric.
        memory: (points trained on, points held out) for the check of memorisation; None where no
            points were held out.
    """

    samples: Tensor
    data: Tensor
    points: Points
    label: int | None = None
    seed: int = 0
    memory: tuple[Tensor, Tensor] | None = None

    @cached_property
    def transport(self) -> float:
        """Cost of the cheapest assignment, the published EMD."""
        return emd(self.samples, self.data, seed=self.seed)

    @cached_property
    def neighbours(self) -> Neighbours:
        """Result of the nearest-neighbour test."""
        return nearest_neighbour_test(self.samples, self.data, self.seed)

    @cached_property
    def proximity(self) -> Proximity:
        """Result of the check of memorisation."""
        assert self.memory is not None  # otherwise its metrics do not apply
        return memorisation(self.samples, *self.memory, self.seed)


def _always(comparison: Comparison) -> bool:  # noqa: ARG001
    return True


@dataclass(frozen=True)
class Metric:
    """A metric of samples: how it is computed, judged and shown.

    Args:
        title: name in tables and figures.
        function: computes it; NaN says that it is not defined for these points.
        scale: scale on which the scores of real draws are roughly normally distributed.
        less_is_better: True if the band of real draws starts at 0.
        heading: heading of its column in tables with one row per set of samples. A metric with a
            heading belongs to every evaluation, one without to full evaluations only.
        by_steps: True if a report plots it against the number of reverse steps.
        applies: returns True for comparisons that have what the metric needs.
        most_spread: largest standard deviation of real draws on the scale at which they are about
            normal.
    """

    title: str
    function: Callable[[Comparison], float]
    scale: Scale = LINEAR
    less_is_better: bool = False
    heading: str | None = None
    by_steps: bool = False
    applies: Callable[[Comparison], bool] = _always
    most_spread: float = math.inf

    def band(self, real: Sequence[float], draws: RealDraws, parts: int = 1) -> tuple[float, float]:
        """Returns the band that holds 99% of perfect samplers (see :meth:`.RealDraws.band`)."""
        low, high = draws.band(real, self.scale, parts)
        return 0.0 if self.less_is_better else low, high

    def score(
        self, values: Sequence[float], real: Sequence[float], draws: RealDraws
    ) -> Score | str:
        """Returns the samples' value beside the scores of real draws, or why there is none.

        Args:
            values: scores of the parts of the samples; their mean on the metric's scale counts.
            real: score of each real draw, at least two.
            draws: the real draws.
        """
        found, drawn = (
            self.scale.to(torch.tensor(scores, dtype=torch.float64, device="cpu"))
            for scores in (values, real)
        )
        value = self.scale.back(found.mean()).item()
        if not (math.isfinite(value) and drawn.isfinite().all()):
            return "not defined for these points"
        if drawn.std() > self.most_spread:
            return f"a few points decide it: real draws scatter by {drawn.std():.2g}"
        low, high = self.band(real, draws, len(values))
        return Score(value, self.scale.back(drawn).mean().item(), low, high, len(real))


def _kde_nll(c: Comparison) -> float:
    """Returns the NLL; NaN if there is no density estimate of the data."""
    try:
        return kde_nll(c.samples, c.points.data)
    except UserError:
        return math.nan


METRICS = {
    "kde_nll": Metric("NLL under a KDE of the data", _kde_nll, by_steps=True),
    "sample_to_data": Metric(
        "median distance of a sample to the nearest datum",
        lambda c: nearest_distances(c.samples, c.data).median().item(),
        CUBE_ROOT,
        heading="to nearest datum",
    ),
    "data_to_sample": Metric(
        "median distance of a datum to the nearest sample",
        lambda c: nearest_distances(c.data, c.samples).median().item(),
        CUBE_ROOT,
        heading="to nearest sample",
    ),
    "sliced_wasserstein": Metric(
        "sliced Wasserstein distance",
        lambda c: sliced_wasserstein(c.samples, c.data),
        LOG,
        less_is_better=True,
        heading="sliced Wasserstein",
        by_steps=True,
    ),
    # Where the kernel is narrow beside the distances, a few pairs make up the mean: among draws of
    # 75 points in ten dimensions it scatters by half a nat, and far from normally.
    "kernel_nll": Metric(
        "kernel NLL, temperature 0.1",
        lambda c: kernel_nll(c.samples, c.data),
        most_spread=0.25,
    ),
    "emd": Metric(
        "EMD of up to 250 pairs, total",
        lambda c: c.transport,
        LOG,
        less_is_better=True,
    ),
    "emd_per_pair": Metric(
        "EMD of up to 250 pairs, per pair",
        lambda c: c.transport / emd_pairs(c.samples, c.data),
        LOG,
        less_is_better=True,
    ),
    "mmd": Metric(
        "squared MMD",
        lambda c: mmd(c.samples, c.data, seed=c.seed, unbiased=False),
        CUBE_ROOT,
        less_is_better=True,
    ),
    "occupancy": Metric(
        "chi-squared of the classes' shares",
        lambda c: occupancy(c.samples, c.data, c.points),
        CUBE_ROOT,
        less_is_better=True,
        applies=lambda c: c.points.num_classes > 1 and c.label is None,
    ),
    "sample_by_sample": Metric(
        "samples whose nearest neighbour is a sample", lambda c: c.neighbours.sample_by_sample
    ),
    "datum_by_datum": Metric(
        "data whose nearest neighbour is a datum", lambda c: c.neighbours.datum_by_datum
    ),
    "nearer_to_training": Metric(
        "samples nearer to training than to held-out points",
        lambda c: c.proximity.nearer_to_training,
        applies=lambda c: c.memory is not None,
    ),
    "distance_ratio": Metric(
        "median distance to training over held-out points",
        lambda c: c.proximity.distance_ratio,
        LOG,
        applies=lambda c: c.memory is not None,
    ),
}


def standard_metrics() -> dict[str, Metric]:
    """Returns the metrics that belong to every evaluation, by name."""
    return {name: metric for name, metric in METRICS.items() if metric.heading is not None}
