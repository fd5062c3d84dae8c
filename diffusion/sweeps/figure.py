"""The figure of a sweep: the effect of each factor on each metric, beside real data."""

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from .. import plots
from ..choices import FIGURES
from ..errors import UserError
from ..metrics import standard_metrics
from ..palette import COLORS, INK
from ..plots.style import PAGE, styled
from .keys import text_of
from .results import SEED, SweepTable, mean_of, title_of

FIGURE = "factors"
FIGURE_FILES = tuple(f"{FIGURE}.{suffix}" for suffix in FIGURES)
_MOST_METRICS = 4  # rows of panels; the other metrics are in the table
_ALL = "all models"  # in place of a factor, where only the seed varies
_LOG_FROM = 5.0  # ratio of the largest to the smallest value from which on the axis is logarithmic
_MOST_TICKS = 6


class Effect(NamedTuple):
    """One value of a factor, and what its models score."""

    value: Any
    by_seed: list[float]  # mean over all other factors, for each seed


def effects(table: SweepTable, factor: str, metric: str) -> list[Effect]:
    """Returns the mean of a metric at each value of a factor, over all other factors, by seed.

    All values and seeds are compared over the same combinations of the other factors: those that
    have a score at each of them. Values without any score are left out.

    Args:
        table: the results.
        factor: name of the factor.
        metric: name of the metric.
    """
    found: dict[tuple, dict[tuple, float]] = {}  # {(value, seed): {others: score}}
    for one in table:
        if metric in one.metrics:
            others = tuple(
                value for name, value in one.values.items() if name not in (factor, SEED)
            )
            cell = one.values.get(factor), one.values.get(SEED)
            found.setdefault(cell, {})[others] = one.metrics[metric].value
    shared = set.intersection(*map(set, found.values())) if found else set()
    by_value: dict[Any, list[float]] = {}
    for (value, _), scores in found.items() if shared else ():
        by_value.setdefault(value, []).append(fmean(scores[others] for others in shared))
    return [Effect(value, means) for value, means in by_value.items()]


@styled
def draw_factors(table: SweepTable, save_to: Path | None = None) -> Figure:
    """Draws a panel for each factor and metric: means over all other factors, with 95% intervals.

    Dots are single seeds, intervals are those of the mean over seeds (Student's t), the grey band
    holds 99% of real draws. Of more than four metrics the first are shown, those of every
    evaluation before the others.

    Args:
        table: the results.
        save_to: file.

    Raises:
        ValueError: no model has a metric, or the file cannot be written.
    """
    factors, metrics = table.varied or [_ALL], _shown_metrics(table)
    if not metrics:
        raise UserError("the figure of a sweep must show a metric, and no model has any")
    figure, panels = _panels(len(metrics), len(factors))
    for row, metric in enumerate(metrics):
        drawn = [effects(table, factor, metric) for factor in factors]
        for axis, factor, levels in zip(panels[row], factors, drawn, strict=True):
            _panel(axis, levels)
            last = row == len(metrics) - 1 or len(factors) == 1
            axis.set_xlabel(factor if last and table.varied else "", color=INK)
        _rows_axis(panels[row], table, metric, drawn)
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    if handles:
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center",
            ncols=4 if figure.get_figwidth() >= PAGE else 2,
        )  # fmt: skip
    figure.suptitle(_title(table, metrics), color=INK)
    if save_to is not None:
        plots.save(figure, save_to)
    return figure


def _panels(metrics: int, factors: int) -> tuple[Figure, list[list[Axes]]]:
    """Returns a figure and its panels by metric and factor; those of one factor stand in a row."""
    if factors == 1:
        figure = Figure(figsize=(min(PAGE, 2.4 * metrics + 1), 2.5), layout="constrained")
        return figure, [[axis] for axis in figure.subplots(1, metrics, squeeze=False)[0]]
    width = max(PAGE, 1.5 * factors + 0.6)
    figure = Figure(figsize=(width, 1.7 * metrics + 0.6), layout="constrained")
    return figure, figure.subplots(metrics, factors, squeeze=False, sharey="row").tolist()


def _title(table: SweepTable, metrics: Sequence[str]) -> str:
    left_out = len(table.metrics) - len(metrics)
    more = f"; metrics in the table alone: {left_out}" if left_out else ""
    return f"{table.data}: {len(table)} models{more}"


def _shown_metrics(table: SweepTable) -> list[str]:
    first = [name for name in standard_metrics() if name in table.metrics]
    return (first + [name for name in table.metrics if name not in first])[:_MOST_METRICS]


def _panel(axis: Axes, levels: Sequence[Effect]) -> None:
    """Draws the values of one factor along x."""
    if not levels:
        axis.text(0.5, 0.5, "no models to compare", transform=axis.transAxes, ha="center",
                  color=INK)  # fmt: skip
        axis.set_xticks([])
        return
    values = [level.value for level in levels]
    numeric = len(values) > 1 and all(
        isinstance(value, Real) and not isinstance(value, bool) for value in values
    )
    places = [float(value) for value in values] if numeric else [*map(float, range(len(values)))]
    for place, level in zip(places, levels, strict=True):
        dots = [place] * len(level.by_seed)
        axis.plot(
            dots, level.by_seed, "o", color=COLORS[5], ms=2.5, mew=0,
            label="single seeds", zorder=3,  # in front: the mean of close ones would hide them
        )  # fmt: skip
    means = [mean_of(level.by_seed) for level in levels]
    axis.errorbar(
        places, [mean.value for mean in means], [mean.half_width or 0.0 for mean in means],
        fmt="o-" if numeric else "o", color=COLORS[0], ms=4, lw=1, capsize=2,
        label="mean over seeds, 95% interval",
    )  # fmt: skip
    if numeric and is_geometric(places):
        axis.set_xscale("log")
    _ticks(axis, places, [_ALL if value is None and len(values) == 1 else text_of(value)
                          for value in values], numeric)  # fmt: skip


def _ticks(axis: Axes, places: Sequence[float], texts: Sequence[str], numeric: bool) -> None:
    """Labels the values; of many numbers as many as do not touch."""
    every = -(-len(places) // _MOST_TICKS) if numeric else 1
    axis.set_xticks(places[::every], texts[::every])
    axis.minorticks_off()
    if sum(map(len, texts[::every])) > 20:
        axis.tick_params("x", rotation=40)
        for label in axis.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    if not numeric:
        axis.set_xlim(-0.5, len(places) - 0.5)


def is_geometric(values: Sequence[float]) -> bool:
    """Returns True if positive numbers are spaced more evenly on a logarithmic axis."""
    low_to_high = sorted(values)
    if len(values) < 2 or low_to_high[0] <= 0:
        return False
    gaps = [high - low for low, high in pairwise(low_to_high)]
    ratios = [math.log(high / low) for low, high in pairwise(low_to_high)]
    return max(ratios) / min(ratios) < max(gaps) / min(gaps)


def _rows_axis(
    axes: Sequence[Axes], table: SweepTable, metric: str, drawn: Sequence[list[Effect]]
) -> None:
    """Draws what the panels of a metric share: real data, and the axis of the metric."""
    axes[0].set_ylabel(_broken(title_of(metric)), color=INK)
    band = table.band(metric)
    for axis in axes:
        if band is not None:
            axis.axhspan(band.low, band.high, color=COLORS[6], alpha=0.35, lw=0, zorder=0,
                         label="99% of real draws")  # fmt: skip
            axis.axhline(band.real, color=INK, lw=0.8, ls="--", zorder=0, label="real data, mean")
    values = [value for levels in drawn for level in levels for value in level.by_seed]
    if values and min(values) > 0 and max(values) > _LOG_FROM * min(values):
        low = min([*values, *([] if band is None else [band.real])])
        for axis in axes:
            axis.set_yscale("log")
            axis.set_ylim(bottom=low / 1.5)
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())


def _broken(title: str, width: int = 26) -> str:
    """Returns a title in lines of about a width."""
    lines = [""]
    for word in title.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
