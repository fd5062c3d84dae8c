"""Figures. Each function returns a matplotlib Figure; ``save_to`` names a file to write it to.

Points are given as the network sees them and drawn in the user's units, see
:meth:`.Points.in_units`. A figure whose frame leaves points out says how many.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..kernels.default_state import in_default_state
from . import files
from .data import Points
from .models import Perceptron
from .panel import (
    COLORS,
    aspect_of,
    count_outside,
    draw_points,
    frame_of,
    in_units,
    labels_of_axes,
    part_ticks,
    row_of_axes,
    widen,
)
from .schedules import Schedule

SaveTo = str | Path | None

_GRID = 300  # cells along each axis of a classifier's map


def scatter(
    samples: Tensor | np.ndarray,
    labels: Tensor | None = None,
    points: Points | None = None,
    title: str = "",
    save_to: SaveTo = None,
) -> Figure:
    """Draws samples [n, d], coloured by label if labels are given, and the true outlines if known.

    One dimension is drawn as a histogram, three dimensions in space, images as images. Of points
    with more dimensions the first two are drawn.
    """
    figure = Figure(figsize=(6, 6), layout="constrained")
    named = labels is not None and points is not None
    dim = torch.as_tensor(samples).shape[1]
    draw_points(row_of_axes(figure, 1, dim)[0], samples, labels, points, title, legend=named)
    return _finish(figure, save_to)


def panels(
    parts: Sequence[tuple[str, Tensor, Tensor | None]], points: Points, save_to: SaveTo = None
) -> Figure:
    """Draws parts (title, samples [n, d], labels or None) side by side, all in the data's frame."""
    figure = Figure(figsize=(4 * len(parts), 4.2), layout="constrained")
    axes = row_of_axes(figure, len(parts), points.dim)
    for axis, (title, samples, labels) in zip(axes, parts, strict=True):
        draw_points(axis, samples, labels, points, title)
    return _finish(figure, save_to)


def sample_grid(
    rows: Sequence[tuple[Points, Sequence[tuple[str, Tensor, Tensor | None]]]],
    save_to: SaveTo = None,
) -> Figure:
    """Draws a row of small panels for each data set: the data, then its parts.

    Args:
        rows: a data set and its parts (title, samples [n, d], labels or None), row by row.
        save_to: file.
    """
    count = max(len(parts) for _, parts in rows) + 1
    figure = Figure(figsize=(1.6 * count, 1.8 * len(rows)), layout="constrained")
    lines = figure.subfigures(len(rows), squeeze=False)[:, 0]
    for line, (points, parts) in zip(lines, rows, strict=True):
        own = (points.name, points.data[:1000], None)
        panels = zip(row_of_axes(line, count, points.dim), (own, *parts), strict=False)
        for axis, (title, samples, labels) in panels:
            draw_points(axis, samples, labels, points, title)
            axis.set(xticks=[], yticks=[], xlabel="", ylabel="")
            axis.title.set_fontsize("small")
    return _finish(figure, save_to)


@in_default_state
def conditional(
    samples: Sequence[Tensor],
    points: Points,
    save_to: SaveTo = None,
    labels: Sequence[int] | None = None,
) -> Figure:
    """Draws guided samples [n, d] of each class, each panel over the whole data in grey.

    Args:
        samples: a set of samples for each panel.
        points: the data.
        save_to: file.
        labels: classes of the panels; None for all classes in order.
    """
    labels = range(len(samples)) if labels is None else labels
    figure = Figure(figsize=(4 * len(samples), 4.2), layout="constrained")
    axes = row_of_axes(figure, len(samples), points.dim)
    for label, axis, x in zip(labels, axes, samples, strict=True):
        if points.image_shape is None:
            draw_points(axis, points.data, torch.full((len(points),), 6), points, "", alpha=0.15)
        draw_points(axis, x, torch.full((len(x),), label), points, points.class_name(label))
    return _finish(figure, save_to)


def training_curves(
    losses: dict[str, Tensor],
    validation: Sequence[tuple[int, float]],
    nll_data: float | None,
    save_to: SaveTo = None,
    held_out: Mapping[str, Sequence[tuple[int, float]]] | None = None,
) -> Figure:
    """Draws the loss of each network and the validation NLL against the training step.

    Args:
        losses: losses [K] by name of the network.
        validation: pairs (step, NLL).
        nll_data: NLL of the data itself; None leaves the NLL out.
        save_to: file.
        held_out: pairs (step, loss on held-out points) by name of the network.
    """
    panels = len(losses) + (nll_data is not None)
    figure = Figure(figsize=(5 * panels, 4), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis, (name, loss) in zip(axes, losses.items(), strict=False):
        each = loss.cpu().numpy()
        width = max(1, len(each) // 100)
        smooth = np.convolve(each, np.ones(width) / width, mode="valid")
        axis.plot(each, color=COLORS[5], linewidth=0.4, alpha=0.6, label="each step")
        axis.plot(np.arange(len(smooth)) + width, smooth, color=COLORS[0], label=f"mean of {width}")
        if held_out and held_out.get(name):
            axis.plot(*zip(*held_out[name], strict=True), "o-", color=COLORS[1], label="held out")
        axis.set(title=f"{name} loss", xlabel="step", yscale="log")
        axis.legend(frameon=False)
    if nll_data is None:
        return _finish(figure, save_to)
    if validation:
        axes[-1].plot(*zip(*validation, strict=True), "o-", color=COLORS[0], label="samples")
    axes[-1].axhline(nll_data, color=COLORS[1], linestyle="--", label="the data itself")
    axes[-1].set(title="validation NLL", xlabel="step", ylabel="nats")
    axes[-1].legend(frameon=False)
    return _finish(figure, save_to)


@in_default_state
def classifier_map(
    classifier: Perceptron,
    schedule: Schedule,
    points: Points,
    save_to: SaveTo = None,
) -> Figure:
    """Draws the answer of a classifier of noisy points over the plane, at three timesteps.

    The colour is that of the likeliest class, paler where the classifier is less sure. Noisy points
    are scaled as those of a variance-preserving process, so that the data are of about one size.

    Args:
        classifier: takes a point in two dimensions and the timestep feature.
        schedule: the forward process.
        points: the data.
        save_to: file.
    """
    steps = sorted({0, schedule.num_steps // 5, schedule.num_steps // 2})
    figure = Figure(figsize=(5 * len(steps), 5.2), layout="constrained")
    axes = figure.subplots(1, len(steps), squeeze=False)[0]
    low, high = points.data.amin(0) - 0.5, points.data.amax(0) + 0.5
    x, y = (torch.linspace(low[axis], high[axis], _GRID) for axis in range(2))
    grid = torch.cartesian_prod(x, y)
    (left, bottom), (right, top) = points.in_units(low).tolist(), points.in_units(high).tolist()
    palette = torch.tensor(ListedColormap(COLORS)(range(len(COLORS)))[:, :3]).float()
    for axis, t in zip(axes, steps, strict=True):
        with torch.no_grad():
            x_t = grid * schedule.size[t].item()
            p = classifier(schedule.inputs(x_t, t)).softmax(dim=1)
        best, label = p.max(dim=1)
        sure = ((best - 1 / p.shape[1]) / (1 - 1 / p.shape[1]))[:, None] * 0.55
        image = 1 - sure * (1 - palette[label % len(COLORS)])
        axis.imshow(
            image.reshape(_GRID, _GRID, 3).transpose(0, 1).numpy(),
            origin="lower",
            extent=(left, right, bottom, top),
        )
        draw_points(axis, points.data, points.labels, points, f"t = {t}", legend=t == steps[0])
        axis.set(xlim=(left, right), ylim=(bottom, top))
    return _finish(figure, save_to)


def density(points: Points, samples: Tensor, save_to: SaveTo = None) -> Figure:
    """Draws the densities of data and samples [n, d] on one scale, in the first two dimensions.

    Both are histograms with the same cells: the share of the points in a cell, divided by its
    area. Samples outside the frame are counted but not drawn.
    """
    groups = [("data", in_units(points.data, points)), ("samples", in_units(samples, points))]
    low, high = (corner[:2] for corner in frame_of(points))
    count = min(80, max(20, int(len(points) ** 0.5)))
    cells = [np.linspace(*ends, count + 1) for ends in zip(low, high, strict=True)]
    if points.dim == 1:
        return _density_curves(groups, cells[0], points, save_to)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    area = np.prod([edges[1] - edges[0] for edges in cells])
    shares = [np.histogram2d(x[:, 0], x[:, 1], cells)[0] / (len(x) * area) for _, x in groups]
    brightest = np.quantile(shares[0][shares[0] > 0], 0.99)
    for axis, (title, x), share in zip(axes, groups, shares, strict=True):
        image = axis.pcolormesh(*cells, share.T, cmap="Blues", vmin=0, vmax=brightest)
        axis.set(title=title, aspect=aspect_of(low, high), **labels_of_axes(points, 2))
        count_outside(axis, x[:, :2], low, high)
    figure.colorbar(image, ax=axes, label="density", shrink=0.8, extend="max")
    return _finish(figure, save_to)


def _density_curves(
    groups: Sequence[tuple[str, np.ndarray]], cells: np.ndarray, points: Points, save_to: SaveTo
) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for color, (title, x) in zip(COLORS, groups, strict=False):
        share = np.histogram(x[:, 0], cells)[0] / (len(x) * (cells[1] - cells[0]))
        axis.stairs(share, cells, color=color, label=title)
        count_outside(axis, x, cells[:1], cells[-1:])
    axis.set(ylabel="density", **labels_of_axes(points, 1))
    axis.legend(frameon=False)
    return _finish(figure, save_to)


@in_default_state
def trajectories(
    paths: Tensor, steps: Sequence[int], points: Points, save_to: SaveTo = None
) -> Figure:
    """Draws the paths [K, n, d] of n samples from noise to data, each in a colour of its own.

    In two or more dimensions the first two are drawn, over the data in grey; in one dimension x is
    drawn against the timesteps [K] of the path.
    """
    figure = Figure(figsize=(6, 6), layout="constrained")
    axis = figure.subplots()
    paths = points.in_units(paths.cpu())
    colors = [COLORS[row % 6] for row in range(paths.shape[1])]
    if points.dim == 1:
        for path, color in zip(paths[:, :, 0].T, colors, strict=True):
            axis.plot(steps, path, color=color, linewidth=0.7)
        axis.invert_xaxis()
        axis.set(xlabel="timestep", ylabel=labels_of_axes(points, 1)["xlabel"])
        return _finish(figure, save_to)
    draw_points(axis, points.data, torch.full((len(points),), 6), points, "", alpha=0.2)
    axis.add_collection(
        LineCollection(list(paths[..., :2].mT.permute(2, 0, 1)), colors=colors, linewidths=0.7)
    )
    (x, y), (x_0, y_0) = paths[0, :, :2].T, paths[-1, :, :2].T
    axis.scatter(x, y, s=14, facecolors="white", edgecolors=colors, label="noise", zorder=3)
    axis.scatter(x_0, y_0, s=14, c=colors, label="sample", zorder=3)
    widen(axis, paths[..., :2])
    axis.legend(frameon=False, loc="upper right")
    return _finish(figure, save_to)


@in_default_state
def interpolation(ways: Tensor, points: Points, save_to: SaveTo = None) -> Figure:
    """Draws the ways [K, n, d] between n pairs of points, each as a row of images or as a line."""
    ways = points.in_units(ways.cpu())
    count, pairs, dim = ways.shape
    if points.image_shape is not None:
        figure = Figure(figsize=(count, pairs), layout="constrained")
        height, width = points.image_shape
        strips = ways.unflatten(2, (height, width)).permute(1, 2, 0, 3)  # [n, height, K, width]
        axis = figure.subplots()
        axis.imshow(strips.reshape(pairs * height, -1).numpy(), cmap="gray", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[])
        return _finish(figure, save_to)
    figure = Figure(figsize=(6, 6), layout="constrained")
    axis = row_of_axes(figure, 1, dim)[0]
    if dim == 1:
        axis.plot(ways[..., 0])
        axis.set(xlabel="step of the way", ylabel=labels_of_axes(points, 1)["xlabel"])
        return _finish(figure, save_to)
    draw_points(axis, points.data, torch.full((len(points),), 6), points, "", alpha=0.2)
    for pair in range(pairs):
        shown = 3 if axis.name == "3d" else 2
        axis.plot(*ways[:, pair, :shown].T, "o-", markersize=3, color=COLORS[pair % 6])
    widen(axis, ways[..., : 3 if axis.name == "3d" else 2])
    return _finish(figure, save_to)


def against_steps(
    counts: Sequence[int],
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    real: dict[str, tuple[float, float]],
    save_to: SaveTo = None,
) -> Figure:
    """Draws metrics against the number of reverse steps, one panel for each metric.

    Args:
        counts: numbers of reverse steps.
        curves: metric at each number of steps, by name of the metric and of the sampler.
        real: band of real draws by metric.
        save_to: file.
    """
    figure = Figure(figsize=(5 * len(curves), 4), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for axis, (metric, samplers) in zip(axes, curves.items(), strict=True):
        axis.axhspan(*real[metric], color=COLORS[6], alpha=0.4, label="99% of real draws")
        for color, (sampler, values) in zip(COLORS, samplers.items(), strict=False):
            axis.plot(counts, values, "o-", color=color, label=sampler)
        axis.set(xscale="log", xlabel="reverse steps", ylabel=metric, xticks=counts)
        axis.set_xticklabels([str(count) for count in counts])
        axis.minorticks_off()
        axis.legend(frameon=False)
    return _finish(figure, save_to)


def against_noise(levels: Tensor, curves: dict[str, Tensor], save_to: SaveTo = None) -> Figure:
    """Draws the excess loss [S] of each name against the noise level [S], from 0 to 1."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for color, (name, values) in zip(COLORS, curves.items(), strict=False):
        axis.plot(levels, values, "o-", color=color, markersize=3, label=name)
    axis.set(xscale="log", yscale="log", xlabel="noise level", ylabel="excess loss")
    axis.legend(frameon=False)
    return _finish(figure, save_to)


def against_evaluations(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], save_to: SaveTo = None
) -> Figure:
    """Draws errors [S] of solvers against their evaluations of the denoiser [S], by name."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for color, (name, (evaluations, errors)) in zip(COLORS, curves.items(), strict=False):
        axis.plot(evaluations, errors, "o-", color=color, label=name)
    axis.set(
        xscale="log", yscale="log", xlabel="evaluations of the denoiser",
        ylabel="distance to the exact result",
    )  # fmt: skip
    axis.legend(frameon=False)
    return _finish(figure, save_to)


def animation(frames: Tensor, steps: Sequence[int], points: Points, save_to: str | Path) -> None:
    """Writes the reverse process as a GIF, over the outlines of the data.

    The last frame shows the samples and stays for two seconds. One dimension is drawn as a
    histogram, two or three as points; of more dimensions the first two are drawn.

    Args:
        frames: points [K, n, d].
        steps: timestep of each frame, [K].
        points: the data.
        save_to: file.
    """
    figure = Figure(figsize=(4, 4), dpi=110, layout="constrained")
    canvas, axis = FigureCanvasAgg(figure), row_of_axes(figure, 1, points.dim)[0]
    images = []
    titles = [*(f"t = {step}" for step in steps[:-1]), "samples"]
    for x, title in zip(frames, titles, strict=True):
        axis.clear()
        draw_points(axis, x, None, points, title)
        _finish(figure, None)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        images.append(image.quantize(32, dither=Image.Dither.NONE))
    lasting = [80] * (len(images) - 1) + [2000]  # milliseconds
    content = io.BytesIO()
    images[0].save(
        content, "gif", save_all=True, append_images=images[1:], duration=lasting, loop=0
    )
    files.write_atomically(Path(save_to), content.getvalue())


def _finish(figure: Figure, save_to: SaveTo) -> Figure:
    for axis in figure.axes:
        if axis.name != "3d":
            axis.spines[["top", "right"]].set_visible(False)
            part_ticks(axis)
    if save_to is not None:
        save(figure, Path(save_to), dpi=130)
    return figure


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Writes a figure in the format that the name of the file says, atomically.

    Raises:
        ValueError: the file cannot be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:] or None, dpi=dpi)
    files.write_atomically(path, content.getvalue())
