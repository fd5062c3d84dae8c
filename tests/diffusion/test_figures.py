"""Figures fit for a paper: labels, titles, legends, three dimensions, colours, files."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from flashpoint.diffusion import MLP, Points, Schedule, dataset, plots
from flashpoint.diffusion.metrics.likelihood import kde_band, kde_nll
from flashpoint.diffusion.plots.panel import color_of

HELIX = dataset("helix")


def cloud(dim, n=200, classes=0, **options):
    data = torch.randn(n, dim, generator=torch.Generator().manual_seed(dim))
    labels = torch.arange(n) % classes if classes else None
    return Points(data, labels, **options)


def names_of(axis):
    return [
        getattr(axis, f"get_{name}label")() for name in "xyz" if hasattr(axis, f"get_{name}label")
    ]


def legend_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize(
    ("dim", "names"),
    [(1, ["x", "density"]), (2, ["$x_1$", "$x_2$"]), (3, ["$x_1$", "$x_2$", "$x_3$"])],
)
def test_axes_are_labelled(dim, names):
    points = cloud(dim)
    assert names_of(plots.scatter(points.data, points=points).axes[0]) == names
    assert names_of(plots.scatter(points.data).axes[0]) == names


@pytest.mark.parametrize("draw", ["scatter", "density", "conditional", "trajectories"])
def test_axes_say_that_they_are_principal_ones(draw):
    data = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    data *= torch.tensor([3.0, 2.0, 0.1, 0.1, 0.1])
    points = Points(data, torch.arange(300) % 2)
    figure = {
        "scatter": lambda: plots.scatter(data, points=points),
        "density": lambda: plots.density(points, data),
        "conditional": lambda: plots.conditional([data, data], points),
        "trajectories": lambda: plots.trajectories(data.view(3, 100, 5), [9, 5, 0], points),
    }[draw]()
    x, y = names_of(figure.axes[0])
    assert x.startswith("principal axis 1 (6")
    assert x.endswith("% of variance)")
    assert y.startswith("principal axis 2 (")
    if draw == "scatter":  # the widest direction is the first
        across, up = figure.axes[0].collections[0].get_offsets().std(axis=0)
        assert (across, up) == pytest.approx((3, 2), rel=0.15)


def test_three_dimensions_are_drawn_as_three():
    paths = HELIX.data[:60].view(3, 20, 3)
    figures = [
        plots.scatter(HELIX.data, points=HELIX),
        plots.panels([("a", HELIX.data, None), ("b", HELIX.data, None)], HELIX),
        plots.trajectories(paths, [9, 5, 0], HELIX),
        plots.interpolation(paths, HELIX),
    ]
    for figure in figures:
        axis = figure.axes[0]
        assert axis.name == "3d"
        assert axis._focal_length < np.inf  # perspective
        sides = np.diff([axis.get_xlim(), axis.get_ylim(), axis.get_zlim()])[:, 0]
        np.testing.assert_allclose(axis._box_aspect / sides, (axis._box_aspect / sides)[0])
    pairs = [names_of(axis)[0] for axis in plots.density(HELIX, HELIX.data).axes[:6:2]]
    assert pairs == ["$x_1$", "$x_1$", "$x_2$"]


def test_titles_say_class_scale_and_number_of_points():
    points = cloud(2, classes=2, class_names=("Ohio", "Utah"))
    data = points.data
    figure = plots.conditional([data[:7], data], points, scale=1.5)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["Ohio\nguidance scale 1.5\nn = 7", "Utah\nguidance scale 1.5\nn = 200"]
    assert plots.conditional([data], points, labels=[1]).axes[0].get_title() == "Utah\nn = 200"
    assert plots.scatter(data, points=points, title="a").axes[0].get_title() == "a, n = 200"


@pytest.mark.parametrize("classes", [2, 10])
def test_titles_and_legends_do_not_touch_the_data_or_each_other(classes):
    points = cloud(2, classes=classes, class_names=tuple(f"class {k}" for k in range(classes)))
    figure = plots.scatter(points.data, points.labels, points)
    assert legend_of(figure) == list(points.class_names)
    panels = plots.conditional([points.of_class(k) for k in range(classes)], points, scale=2.0)
    for one in (figure, panels):
        one.canvas.draw()
        boxes = [axis.title.get_window_extent() for axis in one.axes]
        for a, b in itertools.combinations(boxes, 2):
            assert not a.overlaps(b)
        for legend in one.legends:
            box = legend.get_window_extent()
            assert not any(box.overlaps(axis.get_window_extent()) for axis in one.axes)
    assert len({color_of(k) for k in range(classes)}) == classes


def test_a_classifiers_panels_show_the_points_that_it_sees():
    points = cloud(2, 400, classes=2)
    schedule = Schedule(100, "cosine")
    figure = plots.classifier_map(MLP(3, 2, [4]), schedule, points)
    for axis, t in zip(figure.axes, (0, 20, 50), strict=True):
        shown = np.concatenate([dots.get_offsets() for dots in axis.collections])
        data = np.concatenate([points.of_class(k) for k in range(2)])
        noise = (shown - schedule.signal[t].item() * data).std()
        assert noise == pytest.approx(schedule.noise[t].item(), rel=0.1)
        assert f"t = {t}, noise / signal = " in axis.get_title()
    assert len(legend_of(figure)) == 2


def test_the_validation_has_a_band_and_no_line_to_fall_below():
    losses = {"denoiser": torch.rand(500) + 1}
    figure = plots.training_curves(losses, [(100, 2.5), (200, 2.1)], (1.9, 2.2))
    curve, validation = figure.axes
    assert (curve.get_xlabel(), curve.get_ylabel()) == ("training step", "loss")
    assert validation.get_ylabel() == "NLL (nats)"
    assert [line.get_label() for line in validation.lines] == ["samples"]
    (band,) = validation.patches
    assert band.get_label() == "99% of real draws"
    box = band.get_extents().transformed(validation.transData.inverted())
    assert (box.y0, box.y1) == pytest.approx((1.9, 2.2))
    assert len(plots.training_curves(losses, [], (1.9, 2.2)).axes) == 1


def test_the_band_of_the_validation_holds_real_draws():
    moons, inside = dataset("moons"), 0
    for seed in range(40):
        data, x = moons.redraw(400, seed)[0], moons.redraw(100, 1000 + seed)[0]
        low, high = kde_band(data, 100)
        inside += low <= kde_nll(x, data) <= high
        assert kde_nll(x + 1, data) > high
    assert inside >= 38
    assert np.diff(kde_band(data, 10_000)) < np.diff(kde_band(data, 100)) / 2


def test_colours_of_paths_are_times():
    paths = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    points = cloud(2)
    figure = plots.trajectories(paths, [30, 20, 10, 0], points)
    lines = next(
        one
        for one in figure.axes[0].collections
        if isinstance(one, LineCollection) and len(one.get_segments()) == 9
    )
    assert lines.get_array().tolist() == [25.0] * 3 + [15.0] * 3 + [5.0] * 3
    bar = figure.axes[1]
    assert bar.get_xlabel() == "timestep t"
    assert bar.get_xlim() == (30, 0)  # from noise to data
    ways = plots.interpolation(paths, points)
    assert ways.axes[1].get_xlabel() == "share of the way"


def test_digits_have_gaps():
    points = Points(torch.ones(4, 9), image_shape=(3, 3))
    (image,) = plots.scatter(points.data, points=points).axes[0].images
    tiles = np.ma.filled(image.get_array().astype(float), np.nan)
    assert tiles.shape == (7, 7)
    assert np.isnan(tiles[3]).all()
    assert np.isnan(tiles[:, 3]).all()
    assert np.nansum(tiles) == 36


@pytest.mark.usefixtures("whole_figures")
@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_one_figure_makes_one_file(tmp_path, suffix):
    points = cloud(2, 3000, classes=3)
    found = []
    for n in range(2):
        path = tmp_path / f"{n}.{suffix}"
        plots.scatter(points.data, points.labels, points, save_to=path)
        found.append(path.read_bytes())
    assert found[0] == found[1]
    assert len(found[0]) < 300_000  # dots of a vector file are pixels
    assert b"2026" not in found[0]


def test_the_style_does_not_leak():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure = plots.scatter(torch.randn(20, 2))
    assert dict(matplotlib.rcParams) == before
    assert figure.axes[0].title.get_fontsize() == 8
    assert to_hex(figure.axes[0].collections[0].get_facecolor()[0]) == color_of(0).lower()


def test_names_of_the_user_are_drawn_letter_by_letter(tmp_path):
    labels = torch.tensor([0, 1, 0, 1])
    points = Points(
        torch.randn(4, 2), labels, ("$x_$", "_hidden"), "$y$", columns=("$a_1", "_b"),
    )  # fmt: skip
    data = plots.scatter(points.data, labels, points, points.name, tmp_path / "data.png")
    assert data.axes[0].get_title() == "\\$y\\$, n = 4"
    assert names_of(data.axes[0]) == ["\\$a_1", " _b"]
    assert [text.get_text() for text in data.legends[0].get_texts()] == ["\\$x_\\$", " _hidden"]
    beside = plots.conditional([points.data, points.data], points, tmp_path / "conditional.png")
    assert beside.axes[0].get_title().startswith("\\$x_\\$\n")
