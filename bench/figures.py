"""The figures of records."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ..diffusion.palette import COLORS, INK
from ..diffusion.plots import save
from ..diffusion.plots.panel import below
from ..diffusion.plots.style import PAGE, look, styled
from .costs import Rates

# Ticks of an axis of ratios, if it is short or long.
_CLOSE = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6)
_FAR = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Speedup(NamedTuple):
    """A peer's time over ours: its median, and the ends of the 95% interval."""

    value: float
    low: float
    high: float


@styled
def roofline_figure(rates: Rates, points: Sequence, path: Path) -> None:
    """Plots operations per second against operations per byte, with the limits of the device."""
    figure = Figure(figsize=(PAGE, 3.6))
    axes = figure.subplots()
    intensity = np.logspace(-1, 5, 200)
    for name, peak in rates.matmul.items():
        axes.loglog(intensity, np.minimum(peak, intensity * rates.memory), color=INK, lw=1)
        axes.annotate(f"{name} {peak / 1e12:.3g} TFLOP/s", (intensity[-1], peak), ha="right",
                      va="bottom", color=INK, fontsize=7)  # fmt: skip
    top = max(rates.matmul.values())
    cache = intensity * rates.cache
    axes.loglog(intensity[cache < top], cache[cache < top], "--", color=INK, lw=1,
                label=f"cache {rates.cache / 1e9:.3g} GB/s")  # fmt: skip
    axes.plot([], [], color=INK, lw=1, label=f"memory {rates.memory / 1e9:.3g} GB/s")
    measured = [point for point in points if point.us and point.flops]
    for number, point in enumerate(measured):
        x, y = point.flops / point.bytes, point.flops / (point.us * 1e-6)
        label = f"{point.name}, {point.rows:,}"
        axes.plot(x, y, ms=4, linestyle="", label=label, **look(number))
    axes.set_xlabel("FLOP per byte of the least memory traffic")
    axes.set_ylabel("FLOP/s")
    figure.legend(loc="outside right upper")
    save(figure, path)


@styled
def speedup_figure(speedups: Mapping[str, Mapping[str, Speedup]], path: Path) -> None:
    """Draws bars of the speedups over each peer with their intervals, in a group for each work.

    The works are sorted by their median speedup, the largest first.

    Args:
        speedups: by peer and work.
        path: file to write.
    """
    works = sorted_works(speedups)
    figure = Figure(figsize=(PAGE, 0.9 + 0.12 * len(works) * (len(speedups) + 1)))
    axes = figure.subplots()
    height = 0.86 / max(1, len(speedups))
    for number, (peer, known) in enumerate(speedups.items()):
        places = [works.index(work) + (number + 0.5) * height - 0.43 for work in known]
        values = np.array([speedup.value for speedup in known.values()])
        ends = np.abs(np.array([[one.low, one.high] for one in known.values()]).T - values)
        axes.barh(
            places, values - 1, height, left=1, color=COLORS[number % len(COLORS)], label=peer,
            xerr=ends, error_kw={"elinewidth": 0.7, "capsize": 1.2, "ecolor": "#000000"},
        )  # fmt: skip
    axes.set_yticks(range(len(works)), works)
    axes.tick_params("y", length=0)
    axes.set_ylim(len(works) - 0.5, -0.5)
    axes.axvline(1, color=INK, lw=0.8)
    axes.set_xscale("log")
    _ticks_around_one(axes)
    axes.set_xlabel(
        "speedup: time of the library / time of ours, with 95% interval; above 1 ours is faster"
    )
    below(figure, axes.get_legend_handles_labels()[0], columns=4)
    save(figure, path)


def sorted_works(speedups: Mapping[str, Mapping[str, Speedup]]) -> list[str]:
    """Returns the works, those with the largest median speedup first."""
    by_work = defaultdict(list)
    for known in speedups.values():
        for work, speedup in known.items():
            by_work[work].append(speedup.value)
    return sorted(by_work, key=lambda work: -median(by_work[work]))


def _ticks_around_one(axes: Axes) -> None:
    """Labels round ratios, of which at least one lies on each side of 1."""
    low, high = axes.get_xlim()
    ratios = _CLOSE if max(high, 1) / min(low, 1) < 6 else _FAR
    below_one, above_one = (0.78, 1.28) if ratios is _CLOSE else (0.45, 2.2)
    low, high = min(low, below_one), max(high, above_one)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator([ratio for ratio in ratios if low <= ratio <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


@styled
def trend_figure(series: dict[str, list[tuple[str, float]]], path: Path) -> None:
    """Plots (date, microseconds of ours) of each work as lines over time."""
    figure = Figure(figsize=(PAGE, 3.4))
    axes = figure.subplots()
    dates = sorted({date for line in series.values() for date, _ in line})
    for number, (title, line) in enumerate(series.items()):
        places = [dates.index(date) for date, _ in line]
        axes.plot(places, [us for _, us in line], label=title, **look(number))
    axes.set_xticks(range(len(dates)), dates, rotation=30, ha="right")
    axes.set_yscale("log")
    axes.set_ylabel("time of ours (\N{MICRO SIGN}s)")
    below(figure, axes.get_legend_handles_labels()[0], columns=2)
    save(figure, path)


@styled
def nights_figure(
    dates: Sequence[str],
    slowdowns: dict[str, list[float | None]],
    changes: Sequence[int],
    path: Path,
) -> None:
    """Plots how much slower than its bar each work was, as lines over nights.

    Args:
        dates: names of the nights.
        slowdowns: fractions by work and night; None, a gap, where a night is invalid.
        changes: numbers of the nights from which on the machine is another, drawn as lines.
        path: file to write.
    """
    figure = Figure(figsize=(PAGE, 3.6))
    axes = figure.subplots()
    nights = np.arange(len(dates))
    for number, (name, line) in enumerate(slowdowns.items()):
        axes.plot(nights, 100 * np.array(line, dtype=float), label=name, **look(number))
    axes.axhline(3, color="0.3", lw=1, ls="--")
    for change in changes:
        axes.axvline(change - 0.5, color="0.6", lw=1, ls=":")
    axes.set_xticks(nights, dates, rotation=60, ha="right")
    axes.set_ylabel("slower than the bar, %; dotted: another driver or version")
    below(figure, axes.get_legend_handles_labels()[0], columns=2)
    save(figure, path)


@styled
def speedrun_figure(results: Sequence[dict], path: Path) -> None:
    """Plots the seconds of each seed, filled where the samples passed."""
    figure = Figure(figsize=(0.75 * PAGE, 0.8 + 0.4 * len(results)))
    axes = figure.subplots()
    for number, track in enumerate(results):
        for seed in track["seeds"]:
            color = COLORS[0] if seed["passed"] else "none"
            axes.plot(seed["seconds"], number, "o", mfc=color, mec=COLORS[0], ms=4)
    axes.set_yticks(range(len(results)), [track["track"] for track in results])
    axes.set_ylim(-0.5, len(results) - 0.5)
    axes.set_xlabel("seconds of training; filled: as good as data")
    save(figure, path)
