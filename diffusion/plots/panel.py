"""One panel of a figure: points in the frame of their data, a histogram, or images."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..data import Points
from ..palette import COLORS, FAINT, INK
from .space import Space
from .style import COLUMN, PAGE, literal

_MOST_COLUMNS = 5  # of panels in a row
_TITLE = 0.45  # height of a row's titles and ticks, in inches
_TILES = 10  # images of a mosaic along each side


def panels_of(count: int, space: Space, *, extra: float = 0.4) -> tuple[Figure, list[Axes]]:
    """Returns a figure and its panels, in rows, in space for three dimensions.

    Panels in the plane share their axes, which only the outer ones label.

    Args:
        count: number of panels.
        space: what they show, whose frame sets their shape.
        extra: height of what is not in a row of panels, in inches.
    """
    columns = min(count, _MOST_COLUMNS)
    rows = -(-count // columns)
    width = {1: COLUMN, 2: 0.75 * PAGE}.get(columns, PAGE)
    shape = {1: 0.7, 3: 0.85}.get(space.dim, 1.0)
    if space.dim == 2 and space.equal and not is_image(space):
        across, up = space.high - space.low
        shape = float(np.clip(up / across, 0.4, 1.6))
    height = rows * ((width - 0.4) / columns * shape + _TITLE) + extra
    figure = Figure(figsize=(width, height), layout="constrained")
    solid = space.dim == 3
    grid = figure.subplots(
        rows, columns, squeeze=False, sharex=not solid, sharey=not solid,
        subplot_kw={"projection": "3d"} if solid else {},
    )  # fmt: skip
    axes = list(grid.flat)
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[max(0, count - columns) : count]:  # a short last row leaves others outside
        axis.tick_params(labelbottom=True)
    return figure, axes[:count]


def is_image(space: Space) -> bool:
    """Returns True if points are drawn as images."""
    return space.points is not None and space.points.image_shape is not None


def draw_points(
    axis: Axes,
    samples: Tensor | np.ndarray,
    space: Space,
    title: str = "",
    *,
    labels: Tensor | None = None,
    color: str = COLORS[0],
    alpha: float = 0.6,
    outlines: bool = True,
) -> None:
    """Draws samples [n, d] as points, a histogram or images; says how many the frame leaves out.

    Args:
        axis: the panel.
        samples: points as the network sees them.
        space: how they are drawn.
        title: title of the panel.
        labels: int64 [n], for colours; or None.
        color: colour of all points where there are no labels.
        alpha: opacity.
        outlines: draws the true outlines, where they are known.
    """
    axis.set_title(title)
    if space.points is not None and space.points.image_shape is not None:
        _draw_images(axis, torch.as_tensor(samples).cpu().numpy(), space.points.image_shape)
        return
    places = space(samples)
    groups = groups_of(places, labels, color)
    if space.dim == 1:
        _draw_histogram(axis, groups, space, alpha)
    else:
        _draw_cloud(axis, groups, space, alpha)
        if outlines:
            draw_outlines(axis, space)
    set_frame(axis, space)
    say_outside(axis, space.outside(places), len(places))


def draw_behind(axis: Axes, space: Space) -> None:
    """Draws the data in grey, and their true outlines where they are known."""
    assert space.points is not None
    _draw_cloud(axis, [(FAINT, space(space.points.data))], space, 0.4)
    draw_outlines(axis, space)


def groups_of(
    places: np.ndarray, labels: Tensor | None, color: str
) -> list[tuple[str, np.ndarray]]:
    """Returns colour and places of each class, or of all places where there are no labels."""
    if labels is None:
        return [(color, places)]
    of_each = labels.cpu().numpy()
    return [(color_of(label), places[of_each == label]) for label in np.unique(of_each)]


def color_of(label: int) -> str:
    """Returns the colour of a class."""
    return COLORS[int(label) % len(COLORS)]


def _draw_cloud(axis: Axes, groups: list, space: Space, alpha: float) -> None:
    count = sum(len(places) for _, places in groups)
    # Beside the data, samples have dots of the same size.
    size = dot(axis, count if space.points is None else len(space.points))
    for color, places in groups:
        # Thousands of dots are pixels in vector files too.
        options: Any = {"s": size, "linewidths": 0, "rasterized": True}
        if axis.name == "3d":
            options["depthshade"] = True
        axis.scatter(*places.T, alpha=alpha, color=color, **options)


def dot(axis: Axes, count: int) -> float:
    """Returns the area of a dot, in square points, of so many in a panel."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    side = axis.get_window_extent().width / figure.dpi  # inches, before the layout
    return float(np.clip(1500 * side**2 / max(1, count), 0.3, 6))


def draw_outlines(axis: Axes, space: Space) -> None:
    """Draws the true outlines of the data, where they are known."""
    if space.points is None or not space.points.outlines or space.dim != 2:
        return
    rings = [space(torch.cat((ring, ring[:1]))) for ring in space.points.outlines]
    axis.add_collection(LineCollection(rings, colors=INK, linewidths=0.4))


def _draw_histogram(axis: Axes, groups: list, space: Space, alpha: float) -> None:
    """Draws densities; those of classes stand on each other."""
    edges = np.linspace(space.low[0], space.high[0], 101)
    each = 1 / (sum(len(places) for _, places in groups) * (edges[1] - edges[0]))
    axis.hist(
        [places[:, 0] for _, places in groups], bins=edges.tolist(), stacked=True, alpha=alpha,
        weights=[np.full(len(places), each) for _, places in groups],
        color=[color for color, _ in groups],
    )  # fmt: skip


def _draw_images(axis: Axes, x: np.ndarray, image_shape: tuple[int, int]) -> None:
    count = min(len(x), _TILES**2)
    side = math.ceil(count**0.5)
    tiles = np.full((side * side, *image_shape), np.nan)
    tiles[:count] = x[:count].reshape(-1, *image_shape)
    draw_mosaic(axis, tiles.reshape(side, side, *image_shape))
    axis.set_xlabel(f"{count} of {len(x):,}" if count < len(x) else "")


def draw_mosaic(axis: Axes, tiles: np.ndarray) -> None:
    """Draws images [rows, columns, height, width], values from -1 to 1, with gaps between them."""
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    rows, columns, height, width = tiles.shape
    image = tiles.swapaxes(1, 2).reshape(rows * height, columns * width)[:-1, :-1]
    axis.imshow(image, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def set_frame(axis: Axes, space: Space) -> None:
    """Sets limits, names and scales of the axes: units of one length, unless a side vanished."""
    low, high = space.low, space.high
    axis.set_xlim(low[0], high[0])
    axis.set(**space.axes)
    if space.dim == 1:
        axis.set_ylabel("density")
    else:
        axis.set_ylim(low[1], high[1])
    if space.dim == 2:
        axis.set_aspect("equal" if space.equal else "auto")
    if axis.name == "3d":
        _set_solid(axis, space)
    else:
        part_ticks(axis)
        if len(axis.get_shared_x_axes().get_siblings(axis)) > 1:
            axis.label_outer()


def _set_solid(axis: Any, space: Space) -> None:
    """Sets a panel in space: perspective, units of one length, and room for the labels."""
    axis.set_zlim(space.low[2], space.high[2])
    axis.set_proj_type("persp")
    axis.set_box_aspect(space.high - space.low if space.equal else (1, 1, 1), zoom=1.0)
    axis.view_init(elev=22, azim=-55)
    for side in (axis.xaxis, axis.yaxis, axis.zaxis):
        side.set_major_locator(MaxNLocator(4))
        side.set_pane_color((1, 1, 1, 0))
        side.labelpad = -4
    axis.tick_params(pad=-2)
    axis.grid(True, linewidth=0.3)


def part_ticks(axis: Axes) -> None:
    """Draws so few ticks along x that long numbers, such as 500,000, do not touch."""
    if axis.name == "3d" or not isinstance(axis.xaxis.get_major_locator(), MaxNLocator):
        return
    figure = axis.get_figure(root=True)
    assert figure is not None
    width = axis.get_window_extent().width / figure.dpi
    longest = max(map(abs, axis.get_xlim()))
    most = 2 if longest >= 1e4 else 3 if longest >= 100 or width < 1.5 else 5
    axis.locator_params(axis="x", nbins=most)


def say_outside(axis: Axes, outside: int, count: int) -> None:
    """Says how many points the frame leaves out, if there are any."""
    if outside:
        write: Any = getattr(axis, "text2D", axis.text)  # of a panel in space
        text = f"{outside:,} of {count:,} outside"
        write(0.02, 0.02, text, transform=axis.transAxes, fontsize="x-small", color=INK)


def name_classes(figure: Figure, points: Points, title: str = "", columns: int = 5) -> None:
    """Adds a legend of the classes below the panels."""
    dots = [
        dot_of(color_of(label), literal(points.class_name(label)))
        for label in range(points.num_classes)
    ]
    below(figure, dots, title, columns)


def dot_of(color: str, label: str) -> Line2D:
    """Returns a dot of a legend."""
    return Line2D([], [], linestyle="", marker="o", markersize=4, color=color, label=label)


def below(figure: Figure, handles: Sequence[Any], title: str = "", columns: int = 5) -> None:
    """Adds a legend below the panels, where it hides nothing."""
    if handles:
        figure.legend(
            handles=list(handles), loc="outside lower center", ncols=min(len(handles), columns),
            title=title or None, title_fontsize=7, handletextpad=0.4, columnspacing=1.2,
        )  # fmt: skip
