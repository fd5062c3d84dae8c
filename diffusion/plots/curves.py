"""Figures of numbers: losses, and metrics against the cost or the noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator
from torch import Tensor

from ..palette import COLORS
from .panel import below, part_ticks
from .style import COLUMN, PAGE, SaveTo, finish, look, styled

Band = tuple[float, float]

_LOG_FROM = 5.0  # ratio of the largest to the smallest loss from which on its axis is logarithmic
_MEANS = 100  # means along a curve of losses


@styled
def training_curves(
    losses: Mapping[str, Tensor],
    validation: Sequence[tuple[int, float]],
    band: Band | None,
    save_to: SaveTo = None,
    held_out: Mapping[str, Sequence[tuple[int, float]]] | None = None,
) -> Figure:
    """Draws the loss of each network, and the NLL of samples during the training.

    Args:
        losses: losses [K] by name of the network.
        validation: pairs (step, NLL).
        band: ends of the band that holds the NLL of 99% of real draws; None leaves the NLL out.
        save_to: file.
        held_out: pairs (step, loss on held-out points) by name of the network.
    """
    shows_nll = band is not None and len(validation) > 0
    count = len(losses) + shows_nll
    figure = _row(count)
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis, (name, loss) in zip(axes, losses.items(), strict=False):
        _draw_losses(axis, loss.cpu().numpy())
        if held_out and held_out.get(name):
            axis.plot(*zip(*held_out[name], strict=True), label="held out", **look(1))
        axis.set(title=f"{name}: loss", xlabel="training step", ylabel="loss")
    if band is not None and validation:
        axis = axes[-1]
        draw_band(axis, band)
        axis.plot(*zip(*validation, strict=True), "o-", color=COLORS[0], label="samples")
        axis.set(title="denoiser: NLL of samples", xlabel="training step", ylabel="NLL (nats)")
    for axis in axes:
        part_ticks(axis)
    _legend(figure, axes)
    return finish(figure, save_to)


def _draw_losses(axis: Axes, each: np.ndarray) -> None:
    width = max(1, len(each) // _MEANS)
    smooth = np.convolve(each, np.ones(width) / width, mode="valid")
    steps = np.arange(len(smooth)) + width
    axis.plot(
        np.arange(1, len(each) + 1), each, color=COLORS[5], linewidth=0.3, alpha=0.5,
        label="each step", rasterized=True,
    )  # fmt: skip
    axis.plot(steps, smooth, color=COLORS[0], label="running mean")
    low = smooth.min(initial=np.inf)
    if low > 0 and smooth.max(initial=0) > _LOG_FROM * low:
        axis.set_yscale("log")


def draw_band(axis: Axes, band: Band) -> None:
    """Draws the band of real draws behind the curves."""
    axis.axhspan(
        *band, color=COLORS[6], alpha=0.35, linewidth=0, zorder=0, label="99% of real draws"
    )


def _row(count: int) -> Figure:
    """Returns a figure for a row of panels of curves."""
    width = {1: COLUMN, 2: 0.8 * PAGE}.get(count, PAGE)
    return Figure(figsize=(width, 2.4 if count == 1 else 2.5), layout="constrained")


def _legend(figure: Figure, axes: Sequence[Axes], columns: int = 4) -> None:
    """Adds one legend of all panels, below them."""
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= {name: one for one, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    below(figure, list(handles.values()), columns=columns)


@styled
def against_evaluations(
    curves: Mapping[str, Mapping[str, tuple[Sequence[int], Sequence[float]]]],
    bands: Mapping[str, Band] | None = None,
    save_to: SaveTo = None,
) -> Figure:
    """Draws metrics against the number of evaluations of the denoiser, one panel for each metric.

    Samplers of second order evaluate it twice a step, so that steps would not compare their cost.

    Args:
        curves: evaluations [S] and the metric [S], by name of the metric and of the sampler.
        bands: band of real draws by metric; None where there is none, as of errors, whose axis is
            logarithmic.
        save_to: file.
    """
    figure = _row(len(curves))
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for axis, (metric, samplers) in zip(axes, curves.items(), strict=True):
        if bands is not None:
            draw_band(axis, bands[metric])
        for number, (sampler, (evaluations, values)) in enumerate(samplers.items()):
            axis.plot(evaluations, values, label=sampler, alpha=0.85, **look(number))
        axis.set(xscale="log", xlabel="evaluations of the denoiser", ylabel=metric)
        if bands is None:
            axis.set_yscale("log")
        _ticks_at(axis, sorted({n for counts, _ in samplers.values() for n in counts}))
    _legend(figure, axes, 3 if len(curves) == 1 else 4)
    return finish(figure, save_to)


def _ticks_at(axis: Axes, counts: Sequence[int]) -> None:
    """Labels round numbers of a logarithmic axis."""
    low, high = counts[0], counts[-1]
    places = [mantissa * 10**power for power in range(7) for mantissa in (1, 2, 5)]
    shown = [place for place in places if low <= place <= high] or [low, high]
    axis.xaxis.set_major_locator(FixedLocator(shown))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


@styled
def against_noise(levels: Tensor, curves: Mapping[str, Tensor], save_to: SaveTo = None) -> Figure:
    """Draws the excess loss [S] of each name against the noise level [S], from 0 to 1."""
    figure = Figure(figsize=(COLUMN, 2.9), layout="constrained")
    axis = figure.subplots()
    for number, (name, values) in enumerate(curves.items()):
        axis.plot(levels, values, label=name, **look(number))
    label = r"noise level $\sqrt{1 - \bar\alpha_t}$"
    axis.set(xscale="log", yscale="log", xlabel=label, ylabel="excess loss")
    _legend(figure, [axis], 1)
    return finish(figure, save_to)
