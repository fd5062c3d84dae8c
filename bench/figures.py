"""The figures of records."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .costs import Rates

_DPI = 110


def roofline_figure(rates: Rates, points: Sequence, path: Path) -> None:
    """Plots operations per second against operations per byte, with the limits of the device."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    intensity = np.logspace(-1, 5, 200)
    for name, peak in rates.matmul.items():
        line = axes.loglog(intensity, np.minimum(peak, intensity * rates.memory), lw=1)[0]
        axes.annotate(f"{name} {peak / 1e12:.3g} TFLOP/s", (intensity[-1], peak), ha="right",
                      va="bottom", color=line.get_color())  # fmt: skip
    top = max(rates.matmul.values())
    cache = intensity * rates.cache
    axes.loglog(intensity[cache < top], cache[cache < top], "--", color="0.6", lw=1,
                label=f"cache {rates.cache / 1e9:.3g} GB/s")  # fmt: skip
    axes.plot([], [], color="0.3", lw=1, label=f"memory {rates.memory / 1e9:.3g} GB/s")
    for point in points:
        if point.us and point.flops:
            x, y = point.flops / point.bytes, point.flops / (point.us * 1e-6)
            axes.plot(x, y, "o", ms=5, label=f"{point.name}, {point.rows:,}")
    axes.set_xlabel("FLOP per byte of the least memory traffic")
    axes.set_ylabel("FLOP/s")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=_DPI)


def speedup_figure(titles: Sequence[str], speedups: dict[str, Sequence[float]], path: Path) -> None:
    """Draws bars of the speedups over each peer, in one group for each work; NaN where unknown."""
    figure = Figure(figsize=(8, 0.6 + 0.55 * max(3, len(titles))), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / max(1, len(speedups))
    for number, (peer, values) in enumerate(speedups.items()):
        places = np.arange(len(titles)) + number * height
        axes.barh(places, np.asarray(values) - 1, height, left=1, label=peer)
    axes.set_yticks(np.arange(len(titles)) + 0.4 - height / 2, titles, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="0.3", lw=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=7)
    axes.set_xlabel("speedup of ours over each library")
    figure.legend(loc="outside upper center", ncols=3, fontsize=7)
    figure.savefig(path, dpi=_DPI)


def trend_figure(series: dict[str, list[tuple[str, float]]], path: Path) -> None:
    """Plots (date, microseconds of ours) of each work as lines over time."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    dates = sorted({date for line in series.values() for date, _ in line})
    for title, line in series.items():
        axes.plot([dates.index(date) for date, _ in line], [us for _, us in line], "o-", ms=4,
                  label=title)  # fmt: skip
    axes.set_xticks(range(len(dates)), dates, rotation=30, ha="right", fontsize=7)
    axes.set_yscale("log")
    axes.set_ylabel("ours, us")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=_DPI)


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
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    nights = np.arange(len(dates))
    for name, line in slowdowns.items():
        axes.plot(nights, 100 * np.array(line, dtype=float), "o-", ms=3, lw=1, label=name)
    axes.axhline(3, color="0.3", lw=1, ls="--")
    for change in changes:
        axes.axvline(change - 0.5, color="0.6", lw=1, ls=":")
    axes.set_xticks(nights, dates, rotation=60, ha="right", fontsize=7)
    axes.set_ylabel("slower than the bar, %; dotted: another driver or version")
    axes.yaxis.label.set_size(7)
    figure.legend(loc="outside upper center", ncols=2, fontsize=7)
    figure.savefig(path, dpi=_DPI)


def speedrun_figure(results: Sequence[dict], path: Path) -> None:
    """Plots the seconds of each seed, filled where the samples passed."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for number, track in enumerate(results):
        for seed in track["seeds"]:
            color = f"C{number}" if seed["passed"] else "none"
            axes.plot(seed["seconds"], number, "o", mfc=color, mec=f"C{number}", ms=6)
    axes.set_yticks(range(len(results)), [track["track"] for track in results])
    axes.set_ylim(-0.5, len(results) - 0.5)
    axes.set_xlabel("seconds of training; filled: as good as data")
    figure.savefig(path, dpi=_DPI)
