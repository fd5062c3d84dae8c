"""Figures of points: data, samples, their densities and a classifier's answers.

Points are given as the network sees them and drawn in the user's units, see
:meth:`.Points.in_units`. A figure whose frame leaves points out says how many.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from ...kernels.default_state import in_default_state
from ..data import Points
from ..models import Perceptron
from ..palette import COLORS
from ..schedules import Schedule
from .panel import (
    color_of,
    draw_behind,
    draw_outlines,
    draw_points,
    is_image,
    name_classes,
    panels_of,
    part_ticks,
    say_outside,
    set_frame,
)
from .space import Space, is_equal
from .style import COLUMN, PAGE, SaveTo, finish, literal, styled

_GRID = 300  # cells along each axis of a classifier's map
_FEWEST, _MOST = 20, 80  # cells of a density along each axis


@styled
def scatter(
    samples: Tensor | np.ndarray,
    labels: Tensor | None = None,
    points: Points | None = None,
    title: str = "",
    save_to: SaveTo = None,
) -> Figure:
    """Draws samples [n, d], coloured by label if labels are given, and the true outlines if known.

    One dimension is drawn as a histogram, three dimensions in space, images as images. Of points
    with more dimensions the two principal axes of the data are drawn.

    Args:
        samples: the points.
        labels: int64 [n].
        points: the data set, whose frame, units and names of classes the figure has.
        title: title; their number is added.
        save_to: file.
    """
    space = Space.of(samples if points is None else points)
    figure, (axis,) = panels_of(1, space)
    draw_points(axis, samples, space, titled(literal(title), len(samples)), labels=labels)
    if labels is not None and points is not None and not is_image(space):
        name_classes(figure, points)
    return finish(figure, save_to)


@styled
def panels(
    parts: Sequence[tuple[str, Tensor, Tensor | None]], points: Points, save_to: SaveTo = None
) -> Figure:
    """Draws parts (title, samples [n, d], labels or None) side by side, all in the data's frame."""
    space = Space.of(points)
    figure, axes = panels_of(len(parts), space)
    for axis, (title, samples, labels) in zip(axes, parts, strict=True):
        draw_points(axis, samples, space, titled(literal(title), len(samples)), labels=labels)
    return finish(figure, save_to)


@styled
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
    size = (max(PAGE, 0.85 * count), (max(PAGE, 0.85 * count) / count + 0.25) * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    for number, (points, parts) in enumerate(rows):
        space, shown = Space.of(points), points.data[:1000]
        own = (titled(f"{literal(points.name)}: data", len(shown), "\n"), shown, None)
        for place, (title, samples, labels) in enumerate((own, *parts), start=1):
            solid = {"projection": "3d"} if space.dim == 3 else {}
            axis = figure.add_subplot(len(rows), count, number * count + place, **solid)
            title = title if place == 1 else titled(title, len(samples), "\n")
            draw_points(axis, samples, space, title, labels=labels)
            axis.set(xlabel="", ylabel="", xticks=[], yticks=[])
            if axis.name == "3d":
                axis.set(zlabel="", zticks=[])
            axis.title.set_fontsize(6)
    return finish(figure, save_to)


@in_default_state
@styled
def conditional(
    samples: Sequence[Tensor],
    points: Points,
    save_to: SaveTo = None,
    labels: Sequence[int] | None = None,
    scale: float | None = None,
) -> Figure:
    """Draws guided samples [n, d] of each class, each panel over the whole data in grey.

    Args:
        samples: a set of samples for each panel.
        points: the data.
        save_to: file.
        labels: classes of the panels; None for all classes in order.
        scale: the guidance scale, for the titles; None leaves it out.
    """
    labels = range(len(samples)) if labels is None else labels
    space = Space.of(points)
    figure, axes = panels_of(len(samples), space)
    guided = "" if scale is None else f"\nguidance scale {scale:g}"
    for label, axis, x in zip(labels, axes, samples, strict=True):
        if not is_image(space) and space.dim > 1:
            draw_behind(axis, space)
        title = f"{literal(points.class_name(label))}{guided}\nn = {len(x):,}"
        draw_points(axis, x, space, title, color=color_of(label))
    return finish(figure, save_to)


def titled(title: str, count: int, gap: str = ", ") -> str:
    """Returns a title with the number of points."""
    return f"{title}{gap if title else ''}n = {count:,}"


@in_default_state
@styled
def classifier_map(
    classifier: Perceptron,
    schedule: Schedule,
    points: Points,
    save_to: SaveTo = None,
) -> Figure:
    """Draws the answer of a classifier of noisy points over the plane, at three timesteps.

    The colour is that of the likeliest class, paler where the classifier is less sure. Over it are
    the data with the noise of the timestep, as the classifier sees them; they are scaled as those
    of a variance-preserving process, so that they are of about one size.

    Args:
        classifier: takes a point in two dimensions and the timestep feature.
        schedule: the forward process.
        points: the data.
        save_to: file.
    """
    steps = sorted({0, schedule.num_steps // 5, schedule.num_steps // 2})
    noisy = [_noised(points.data, schedule, t) for t in steps]
    space = Space.of(points)
    # The frame holds 99% of the noisiest points.
    ends = torch.stack(noisy).float().quantile(torch.tensor([0.005, 0.995]), dim=1).flatten(0, 1)
    space = space.widened(space(ends))
    figure, axes = panels_of(len(steps), space)
    for axis, t, x_t in zip(axes, steps, noisy, strict=True):
        sigma = schedule.sigma[t].item()
        title = f"t = {t}, noise / signal = {sigma:.2g}"
        draw_points(axis, x_t, space, title, labels=points.labels, alpha=0.8, outlines=False)
        if t == 0:
            draw_outlines(axis, space)
        _draw_regions(axis, classifier, schedule, t, space)
    name_classes(figure, points, "Likeliest class, paler where less sure; data noised to t")
    return finish(figure, save_to)


def _noised(x: Tensor, schedule: Schedule, t: int) -> Tensor:
    """Returns points [n, d] with the noise of a timestep, divided by :attr:`Schedule.size`."""
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(t))
    x_t = schedule.signal[t] * x.cpu() + schedule.noise[t] * eps
    return (x_t / schedule.size[t].item()).float()


def _draw_regions(
    axis: Axes, classifier: Perceptron, schedule: Schedule, t: int, space: Space
) -> None:
    (left, right), (bottom, top) = zip(space.low, space.high, strict=True)
    corners = torch.tensor(np.stack((space.low, space.high)))
    assert space.points is not None
    low, high = space.points.from_units(corners)
    grid = torch.cartesian_prod(*(torch.linspace(low[k], high[k], _GRID) for k in range(2)))
    with torch.no_grad():
        inputs = schedule.inputs(grid * schedule.size[t].item(), t)
        p = classifier(inputs).softmax(dim=1)
    best, label = p.max(dim=1)
    palette = torch.tensor([to_rgb(color) for color in COLORS])
    sure = ((best - 1 / p.shape[1]) / (1 - 1 / p.shape[1]))[:, None] * 0.45
    image = 1 - sure * (1 - palette[label % len(COLORS)])
    axis.imshow(
        image.reshape(_GRID, _GRID, 3).transpose(0, 1).numpy(), origin="lower",
        extent=(left, right, bottom, top), interpolation="bilinear", zorder=-1,
        aspect="equal" if space.equal else "auto",
    )  # fmt: skip
    set_frame(axis, space)


@styled
def density(points: Points, samples: Tensor, save_to: SaveTo = None) -> Figure:
    """Draws the densities of data and samples [n, d] on one scale.

    Both are histograms with the same cells: the share of the points in a cell, divided by its
    area. Three dimensions are drawn as three pairs, of more the two principal axes. Samples outside
    the frame are counted but not drawn.
    """
    space = Space.of(points)
    groups = [("data", points.data, space(points.data)), ("samples", samples, space(samples))]
    count = min(_MOST, max(_FEWEST, int(len(points) ** 0.5)))
    cells = [np.linspace(*ends, count + 1) for ends in zip(space.low, space.high, strict=True)]
    if space.dim == 1:
        return finish(_density_curves(groups, cells[0], space), save_to)
    pairs = list(combinations(range(space.dim), 2))
    figure = Figure(figsize=_density_size(space, len(pairs)), layout="constrained")
    grid = figure.subplots(len(pairs), 2, squeeze=False, sharex="row", sharey="row")
    for axes, pair in zip(grid, pairs, strict=True):
        _density_row(figure, axes, groups, [cells[axis] for axis in pair], pair, space)
    for axis, (title, x, _) in zip(grid[0], groups, strict=True):
        axis.set_title(titled(title, len(x)))
    return finish(figure, save_to)


def _density_size(space: Space, rows: int) -> tuple[float, float]:
    width = 0.75 * PAGE
    across, up = (space.high - space.low)[:2]
    shape = float(np.clip(up / across, 0.4, 1.4)) if space.equal else 1.0
    return width, rows * ((width - 1.2) / 2 * shape + 0.45)


def _density_row(
    figure: Figure, axes: Sequence[Axes], groups: Sequence, cells: Sequence[np.ndarray],
    pair: tuple[int, int], space: Space,
) -> None:  # fmt: skip
    """Draws the densities of two coordinates of data and samples."""
    area = np.prod([edges[1] - edges[0] for edges in cells])
    shares = [
        np.histogram2d(places[:, pair[0]], places[:, pair[1]], cells)[0] / (len(places) * area)
        for _, _, places in groups
    ]
    brightest = np.quantile(shares[0][shares[0] > 0], 0.99)
    low, high = (corner[list(pair)] for corner in (space.low, space.high))
    ends = list(zip(low, high, strict=True))
    axes[0].set_ylabel(space.names[pair[1]])
    axes[1].tick_params(labelleft=False)
    for axis, (_, _, places), share in zip(axes, groups, shares, strict=True):
        image = axis.pcolormesh(
            *cells, np.ma.masked_equal(share.T, 0), cmap="magma_r", vmin=0, vmax=brightest,
            rasterized=True,
        )  # fmt: skip
        axis.set(xlabel=space.names[pair[0]], xlim=ends[0], ylim=ends[1])
        axis.set_aspect("equal" if is_equal(low, high) else "auto")
        part_ticks(axis)
        if pair == (0, 1):
            say_outside(axis, space.outside(places), len(places))
    bar = figure.colorbar(image, ax=list(axes), label="density", extend="max", aspect=25)
    bar.outline.set_visible(False)


def _density_curves(groups: Sequence, cells: np.ndarray, space: Space) -> Figure:
    figure = Figure(figsize=(COLUMN, 2.4), layout="constrained")
    axis = figure.subplots()
    for color, (title, x, places) in zip(COLORS, groups, strict=False):
        share = np.histogram(places[:, 0], cells)[0] / (len(x) * (cells[1] - cells[0]))
        axis.stairs(share, cells, color=color, label=titled(title, len(x)))
        say_outside(axis, space.outside(places), len(x))
    set_frame(axis, space)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
