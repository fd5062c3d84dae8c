"""Figures of points on their way: from noise to data, and from one datum to another."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Line3DCollection
from PIL import Image
from torch import Tensor

from ...kernels.default_state import in_default_state
from .. import files
from ..data import Points
from ..palette import COLORS, FAINT, INK
from .panel import below, dot_of, draw_behind, draw_mosaic, draw_points, panels_of, set_frame
from .space import Space
from .style import COLUMN, PAGE, SaveTo, finish, styled

_MOST_SEGMENTS = 2000  # as lines in a vector file; more are pixels there
# Without its palest part, which could not be seen on white.
_TIME: Colormap = ListedColormap(colormaps["viridis"](np.linspace(0, 0.85, 256)))


@in_default_state
@styled
def trajectories(
    paths: Tensor, steps: Sequence[int], points: Points, save_to: SaveTo = None
) -> Figure:
    """Draws the paths [K, n, d] of n samples from noise to data, coloured by the timestep.

    They lie over the data in grey, in two principal axes where there are more than three
    dimensions; in one dimension x is drawn against the timesteps [K] of the path.
    """
    space = Space.of(points)
    places = space(paths)
    title = f"{places.shape[1]:,} samples, from noise to data"
    if space.dim == 1:
        return finish(_paths_over_time(places[..., 0], steps, space, title), save_to)
    space = space.widened(places)
    figure, (axis,) = panels_of(1, space, extra=0.8)
    draw_behind(axis, space)
    axis.set_title(title)
    lines = _draw_ways(axis, places, np.asarray(steps, dtype=float), _TIME.reversed())
    ends: Any = {"s": 8, "edgecolors": INK, "linewidths": 0.5, "zorder": 3}
    axis.scatter(*places[0].T, facecolors="white", label="noise", **ends)
    axis.scatter(*places[-1].T, facecolors=INK, label="sample", **ends)
    set_frame(axis, space)
    _add_bar(figure, axis, lines, "timestep t").ax.invert_xaxis()  # time runs to the right
    below(figure, [*axis.get_legend_handles_labels()[0], dot_of(FAINT, "data")])
    return finish(figure, save_to)


def _paths_over_time(x: np.ndarray, steps: Sequence[int], space: Space, title: str) -> Figure:
    """Draws one coordinate [K, n] against the timesteps."""
    figure = Figure(figsize=(COLUMN, 2.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(steps, x, color=COLORS[0], linewidth=0.5, alpha=0.6)
    axis.invert_xaxis()
    axis.set(xlabel="timestep t", ylabel=space.names[0], title=title)
    return figure


def _draw_ways(axis: Any, places: np.ndarray, values: np.ndarray, colors: Colormap) -> Any:
    """Draws ways [K, n, k] whose segments have the colour of their values [K] at both ends."""
    segments = np.stack((places[:-1], places[1:]), axis=2)  # [K - 1, n, 2, k]
    of_each = np.repeat((values[:-1] + values[1:]) / 2, places.shape[1])
    options: Any = {
        "cmap": colors, "norm": Normalize(values.min(), values.max()), "linewidths": 0.8,
        "capstyle": "round", "rasterized": len(of_each) > _MOST_SEGMENTS,
    }  # fmt: skip
    kind: Any = Line3DCollection if axis.name == "3d" else LineCollection
    lines = kind(list(segments.reshape(-1, 2, places.shape[2])), array=of_each, **options)
    return axis.add_collection(lines)


def _add_bar(figure: Figure, axis: Axes, lines: Any, label: str) -> Colorbar:
    """Adds a bar of the colours of ways, below their panel."""
    bar = figure.colorbar(lines, ax=axis, label=label, location="bottom", aspect=40, shrink=0.8)
    bar.outline.set_visible(False)
    return bar


@in_default_state
@styled
def interpolation(ways: Tensor, points: Points, save_to: SaveTo = None) -> Figure:
    """Draws the ways [K, n, d] between n pairs of points, each as a row of images or as a line.

    Lines are coloured by the share of the way, and lie over the data in grey.
    """
    count, pairs, _ = ways.shape
    if points.image_shape is not None:
        tiles = ways.cpu().unflatten(2, points.image_shape).transpose(0, 1).numpy()
        width = min(PAGE, 0.45 * count)
        figure = Figure(figsize=(width, width * pairs / count + 0.3), layout="constrained")
        axis = figure.subplots()
        draw_mosaic(axis, tiles)
        axis.set_xlabel("from a datum (left) to another one (right)")
        return finish(figure, save_to)
    space = Space.of(points)
    places, shares = space(ways), np.linspace(0, 1, count)
    if space.dim == 1:
        return finish(_ways_over_shares(places[..., 0], shares, space), save_to)
    space = space.widened(places)
    figure, (axis,) = panels_of(1, space, extra=0.8)
    draw_behind(axis, space)
    axis.set_title(f"{pairs:,} way{'s' * (pairs > 1)} between two data points")
    lines = _draw_ways(axis, places, shares, _TIME)
    dots: Any = {"s": 8, "cmap": _TIME, "vmin": 0, "vmax": 1, "zorder": 3}
    dots["c"] = np.repeat(shares, pairs)
    axis.scatter(*places.reshape(count * pairs, -1).T, **dots)
    set_frame(axis, space)
    _add_bar(figure, axis, lines, "share of the way")
    return finish(figure, save_to)


def _ways_over_shares(x: np.ndarray, shares: np.ndarray, space: Space) -> Figure:
    """Draws one coordinate [K, n] against the share of the way."""
    figure = Figure(figsize=(COLUMN, 2.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(shares, x, "o-", color=COLORS[0], linewidth=0.6, markersize=2)
    axis.set(xlabel="share of the way", ylabel=space.names[0])
    return figure


@in_default_state
@styled
def animation(frames: Tensor, steps: Sequence[int], points: Points, save_to: str | Path) -> None:
    """Writes a GIF of the way [K, n, d] of samples, which ends with a pause on the last frame.

    One dimension is drawn as a histogram, two or three as points, images as images; of more
    dimensions the two principal axes of the data are drawn.

    Args:
        frames: points [K, n, d].
        steps: timestep of each frame, [K].
        points: the data.
        save_to: file.
    """
    space = Space.of(points)
    figure, (axis,) = panels_of(1, space)
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(130)
    images = []
    titles = [*(f"t = {step}" for step in steps[:-1]), "samples"]
    for x, title in zip(frames, titles, strict=True):
        axis.clear()
        draw_points(axis, x, space, title)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        images.append(image.quantize(32, dither=Image.Dither.NONE))
    lasting = [80] * (len(images) - 1) + [2000]  # milliseconds
    content = io.BytesIO()
    images[0].save(
        content, "gif", save_all=True, append_images=images[1:], duration=lasting, loop=0
    )
    files.write_atomically(Path(save_to), content.getvalue())
