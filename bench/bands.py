"""Counts how often ``evaluate`` calls a perfect sampler different, for every metric.

    python -m flashpoint.bench bands [--points 300] [--trials 200] [--record FOLDER]

A trial draws data, held-out points and samples of one distribution anew. ``evaluate`` is told the
points alone, so its bands come from parts of the data. Each is meant to hold 99% of perfect
samplers: the interval of a rate (Clopper and Pearson 1934, 95%) should hold 1% or lie below it.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from scipy.stats import binomtest
from torch import Tensor

from ..diffusion import GaussianMixture, Points, evaluate
from ..diffusion.metrics.table import markdown_table
from ..diffusion.progress import counted
from ..kernels.philox import child_seed
from .battery import five_gaussians
from .record import Record, record_option

RATIOS = (0.1, 0.5, 1.0, 2.0)  # numbers of samples, over that of data points
REAL_DRAWS = 20


def distributions() -> dict[str, GaussianMixture]:
    """Returns the distributions of the trials, by name."""
    wide = torch.diag(torch.linspace(0.3, 2, 10)).square()[None]
    return {
        "Gaussian, 2-D": GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None]),
        "five Gaussians, 2-D": five_gaussians(),
        "Gaussian, 10-D": GaussianMixture(torch.ones(1), torch.zeros(1, 10), wide),
    }


@dataclass(frozen=True)
class Rate:
    """How often a metric called a perfect sampler different.

    Attributes:
        data: name of the distribution.
        ratio: number of samples over that of data points.
        metric: name of the metric.
        alarms, trials: number of trials in which it did, and of all.
    """

    data: str
    ratio: float
    metric: str
    alarms: int
    trials: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the rate."""
        found = binomtest(self.alarms, self.trials).proportion_ci(0.95, "exact")
        return found.low, found.high


def trial(target: GaussianMixture, size: int, samples: int, seed: int) -> dict[str, bool]:
    """Returns whether each metric calls new points different from others, by name."""

    def draw(n: int, stream: int) -> Tensor:
        return target.draw(n, child_seed(seed, stream)).float()

    data = draw(size, 0)
    points = Points(data, (data[:, 0] > 0).long())
    result = evaluate(
        draw(samples, 1), points, repeats=REAL_DRAWS, seed=seed, full=True, held_out=draw(size, 2)
    )
    scores = result.scores | result.battery
    return {name: score.passed is False for name, score in scores.items()}


def rates(size: int, trials: int) -> Iterator[Rate]:
    """Yields the rate of each metric for each distribution and number of samples."""
    for name, target in distributions().items():
        for ratio in RATIOS:
            alarms: Counter[str] = Counter()
            for seed in counted(trials, f"{name}, {ratio:g} N", "trials"):
                alarms.update(trial(target, size, round(ratio * size), seed))
            for metric, count in alarms.items():
                yield Rate(name, ratio, metric, count, trials)


def table(found: list[Rate]) -> str:
    """Returns the rates in Markdown, a row for each distribution and metric."""
    cells: dict[tuple[str, str], list[str]] = {}
    for rate in found:
        low, high = rate.interval
        text = f"{rate.alarms / rate.trials:.1%} ({low:.1%} to {high:.1%})"
        cells.setdefault((rate.data, rate.metric), []).append(text)
    header = ["data", "metric", *(f"{ratio:g} N samples" for ratio in RATIOS)]
    return markdown_table(header, [[*names, *row] for names, row in cells.items()])


@click.command()
@click.option("--points", "size", default=300, show_default=True, help="Number N of data points.")
@click.option("--trials", default=200, show_default=True, help="Trials behind each rate.")
@record_option
def main(size: int, trials: int, folder: Path | None) -> None:
    """Count how often evaluate calls a perfect sampler different."""
    record, found = Record(folder), []
    for rate in rates(size, trials):
        found.append(rate)
        record.put("bands", points=size, rates=[asdict(one) for one in found])
    click.echo(table(found))
