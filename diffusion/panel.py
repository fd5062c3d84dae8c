"""One panel of a figure: points in the user's units, in the frame of their data."""

import math
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .data import Points

# The palette of Okabe and Ito, which colour-blind readers can tell apart, and three more colours
# for ten classes.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#7B3F00",
    "#222222", "#A6A600",
)  # fmt: skip
INK = "#444444"

_MARGIN = 0.1  # between the data and the frame, as a part of the data's extent
_MOST_UNEQUAL = 4.0  # sides of a frame whose units are still drawn equally long


def draw_points(
    axis: Axes,
    samples: Tensor | np.ndarray,
    labels: Tensor | None,
    points: Points | None,
    title: str,
    alpha: float = 0.6,
    legend: bool = False,
) -> None:
    """Draws samples [n, d] as points, a histogram or images; says how many the frame leaves out.

    Args:
        axis: the panel.
        samples: points as the network sees them.
        labels: int64 [n], for colours; or None.
        points: the data, whose frame the panel has; None frames the samples.
        title: title of the panel.
        alpha: opacity.
        legend: names the classes.
    """
    x = in_units(samples, points)
    if points is not None and points.image_shape is not None:
        _draw_images(axis, x, points.image_shape, title)
        return
    if x.shape[1] == 1:
        _draw_histogram(axis, x, points, title, alpha)
        return
    groups: list[tuple[Any, Any]] = [(None, slice(None))]
    if labels is not None:
        of_each = labels.cpu().numpy()
        groups = [(label, of_each == label) for label in np.unique(of_each)]
    shown = 3 if axis.name == "3d" else 2
    for label, rows in groups:
        name = None
        if legend and points is not None and label is not None:
            name = points.class_name(int(label))
        color = COLORS[(label or 0) % len(COLORS)]
        options: Any = {"s": 2, "linewidths": 0, "alpha": alpha, "color": color, "label": name}
        axis.scatter(*x[rows, :shown].T, **options)
    if points is not None and points.outlines:
        rings = [in_units(torch.cat((ring, ring[:1])), points) for ring in points.outlines]
        axis.add_collection(LineCollection(rings, colors=INK, linewidths=0.4))
    low, high = _extent(x) if points is None else frame_of(points)
    axis.set(title=title, aspect=aspect_of(low[:shown], high[:shown]))
    if points is not None:
        _set_frame(axis, low, high)
        count_outside(axis, x[:, :shown], low[:shown], high[:shown])
        axis.set(**labels_of_axes(points, shown))
    if legend:
        axis.legend(markerscale=5, frameon=False, fontsize="small", loc="upper right")


def _draw_images(axis: Axes, x: np.ndarray, image_shape: tuple[int, int], title: str) -> None:
    mosaic, count = _mosaic(x, image_shape)
    axis.imshow(mosaic, cmap="gray", vmin=-1, vmax=1)
    left_out = f"{count} of {len(x):,}" if count < len(x) else ""
    axis.set(title=title, xticks=[], yticks=[], xlabel=left_out)


def _draw_histogram(
    axis: Axes, x: np.ndarray, points: Points | None, title: str, alpha: float
) -> None:
    low, high = _extent(x) if points is None else frame_of(points)
    edges = np.linspace(low[0], high[0], 101)
    each = np.full(len(x), 1 / (len(x) * (edges[1] - edges[0])))
    axis.hist(x[:, 0], bins=edges.tolist(), weights=each, color=COLORS[0], alpha=alpha)
    axis.set(title=title, xlim=(low[0], high[0]), **labels_of_axes(points, 1))
    count_outside(axis, x, low, high)


def in_units(x: Tensor | np.ndarray, points: Points | None) -> np.ndarray:
    """Returns points [n, d] in the user's units."""
    x = torch.as_tensor(x).detach().cpu()
    return (x if points is None else points.in_units(x)).numpy()


def frame_of(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lower and upper corner of the frame, each [d], in the user's units."""
    return _extent(in_units(points.data, points))


def _extent(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the corners of a frame around points [n, d], each [d]."""
    low, high = x.min(axis=0), x.max(axis=0)
    margin = np.where(high > low, _MARGIN * (high - low), 0.5)
    return low - margin, high + margin


def _set_frame(axis: Axes, low: np.ndarray, high: np.ndarray) -> None:
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    if axis.name == "3d":
        axis.set(zlim=(low[2], high[2]))


def widen(axis: Axes, x: Tensor) -> None:
    """Widens the frame so that points [..., 2 or 3] in the user's units lie inside too."""
    low, high = _extent(x.flatten(0, -2).numpy())
    before = np.array([getattr(axis, f"get_{name}lim")() for name in "xyz"[: len(low)]]).T
    _set_frame(axis, np.minimum(low, before[0]), np.maximum(high, before[1]))


def aspect_of(low: np.ndarray, high: np.ndarray) -> str:
    """Returns how long units are drawn: equally, unless one side of the frame would vanish."""
    sides = high - low
    return "equal" if sides.max() <= _MOST_UNEQUAL * sides.min() else "auto"


def labels_of_axes(points: Points | None, count: int) -> dict[str, str]:
    """Returns the names of the coordinates where the data has them."""
    names: tuple[str, ...] = ("x",) if count == 1 else ()
    if points is not None and points.columns:
        names = points.columns[:count]
    return {f"{axis}label": name for axis, name in zip("xyz", names, strict=False)}


def part_ticks(axis: Axes) -> None:
    """Draws so few ticks along x that long numbers, such as 500,000, do not touch."""
    longest = max(map(abs, axis.get_xlim()))
    if longest >= 1e4 and isinstance(axis.xaxis.get_major_locator(), MaxNLocator):
        axis.locator_params(axis="x", nbins=3)


def count_outside(axis: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Says how many points [n, k] the frame leaves out, if there are any."""
    outside = int((~((x >= low) & (x <= high)).all(axis=1)).sum())
    if outside:
        write: Any = getattr(axis, "text2D", axis.text)  # of a panel in space
        text = f"{outside:,} of {len(x):,} outside"
        write(0.02, 0.02, text, transform=axis.transAxes, fontsize="x-small", color=INK)


def row_of_axes(figure: Figure, count: int, dim: int) -> list[Axes]:
    """Returns a row of panels, in space for three dimensions and otherwise in the plane."""
    projection = {"projection": "3d"} if dim == 3 else {}
    return list(figure.subplots(1, count, squeeze=False, subplot_kw=projection)[0])


def _mosaic(samples: np.ndarray, image_shape: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Returns the first images [n, d] as one, a square of up to ten by ten, and their number."""
    height, width = image_shape
    side = min(10, math.ceil(len(samples) ** 0.5))
    tiles = np.full((side * side, height, width), -1.0)
    shown = samples[: side * side]
    tiles[: len(shown)] = shown.reshape(-1, height, width)
    image = tiles.reshape(side, side, height, width).swapaxes(1, 2).reshape(side * height, -1)
    return image, len(shown)
