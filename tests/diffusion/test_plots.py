"""Figures: axes in the user's units, and the number of points that a frame leaves out."""

import itertools

import pytest
import torch

from flashpoint.diffusion import MLP, Points, Schedule, Standardisation, plots

MEAN, STD = (500_000.0, 4_649_776.0, -7.0), (100.0, 30.0, 50.0)


def cloud(dim, n=200, **options):
    """Points of order one, of a user's points far from it."""
    data = torch.randn(n, dim, generator=torch.Generator().manual_seed(dim)).clamp(-2, 2)
    return Points(data, standardisation=Standardisation(MEAN[:dim], STD[:dim]), **options)


def limits(axis):
    three = [axis.get_zlim()] if axis.name == "3d" else []
    return [axis.get_xlim(), axis.get_ylim(), *three]


def texts(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def assert_in_units(axis, dims):
    for dim, (low, high) in zip(range(dims), limits(axis), strict=False):
        assert MEAN[dim] - 4 * STD[dim] < low < MEAN[dim] - STD[dim]
        assert MEAN[dim] + STD[dim] < high < MEAN[dim] + 4 * STD[dim]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_axes_are_in_the_users_units(dim):
    points = cloud(dim)
    whole = plots.scatter(points.data, points=points)
    beside = plots.panels([("a", points.data, None)], points)
    figures = [whole, beside]
    if dim > 1:  # in one dimension the steps of the way are across
        figures.append(plots.interpolation(points.data.view(4, 50, dim), points))
    for figure in figures:
        assert_in_units(figure.axes[0], dim)
        assert not texts(figure)


def test_densities_paths_and_regions_are_in_the_users_units():
    points = cloud(2, labels=torch.arange(200) % 2)
    for axis in plots.density(points, points.data).axes[:2]:
        assert_in_units(axis, 2)
    paths = torch.stack((3 * points.data[:5], points.data[:5]))
    assert_in_units(plots.trajectories(paths / 3, [9, 0], points).axes[0], 2)
    classifier = MLP(3, 2, [4])
    for axis in plots.classifier_map(classifier, Schedule(20, "cosine"), points).axes:
        assert_in_units(axis, 2)


def test_a_classifier_of_edm_sees_points_at_the_scale_of_its_process():
    points, seen = cloud(2, labels=torch.arange(200) % 2), []

    def classifier(inputs):
        seen.append(inputs[:, :2].abs().max().item())
        return inputs[:, :2]

    schedule = Schedule(10, "edm", sigma_data=0.5)
    axis = plots.classifier_map(classifier, schedule, points).axes[0]
    corners = torch.tensor([axis.get_xlim(), axis.get_ylim()]).T
    far = points.from_units(corners).abs().max().item()
    assert far > points.data.abs().max()
    # x_0 + sigma eps, scaled by c_in, in place of 1 / sqrt(1 + sigma^2).
    scales = [((1 + s**2) / (s**2 + 0.25)) ** 0.5 for s in schedule.sigma[[0, 2, 5]].tolist()]
    assert scales[0] == pytest.approx(2, rel=1e-4)
    assert seen == pytest.approx([far * scale for scale in scales], rel=1e-3)


def test_columns_name_the_axes():
    figure = plots.scatter(cloud(2).data, points=cloud(2, columns=("east", "north")))
    axis = figure.axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("east", "north")


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_a_frame_says_how_many_points_it_leaves_out(dim):
    points = Points(torch.rand(200, dim))
    samples = points.data.clone()
    samples[:3, 0] = 50.0
    assert "3 of 200 outside" in texts(plots.scatter(samples, points=points))
    assert texts(plots.panels([("a", points.data, None), ("b", samples, None)], points)) == [
        "3 of 200 outside"
    ]
    if dim <= 2:
        assert "3 of 200 outside" in texts(plots.density(points, samples))
    samples[0, 0] = torch.nan
    assert "3 of 200 outside" in texts(plots.scatter(samples, points=points))


@pytest.mark.parametrize("dim", [2, 3])
def test_paths_and_ways_lie_inside_their_frames(dim):
    points = Points(torch.rand(200, dim))
    paths = torch.stack((points.data[:5] + 9, points.data[:5]))
    figures = [plots.interpolation(paths, points)]
    if dim == 2:
        figures.append(plots.trajectories(paths, [9, 0], points))
    for figure in figures:
        for low, high in limits(figure.axes[0])[:dim]:
            assert low < 0
            assert high > 9


def test_a_mosaic_says_how_many_images_it_shows():
    points = Points(torch.zeros(500, 4), image_shape=(2, 2))
    assert plots.scatter(points.data, points=points).axes[0].get_xlabel() == "100 of 500"
    assert plots.scatter(points.data[:9], points=points).axes[0].get_xlabel() == ""


def test_units_of_very_different_size_fill_the_panel():
    data = torch.randn(100, 2)
    wide = Points(data, standardisation=Standardisation((0.0, 0.0), (1.0, 1000.0)))
    assert plots.scatter(data, points=wide).axes[0].get_aspect() == "auto"
    assert plots.scatter(data, points=Points(data)).axes[0].get_aspect() == 1.0


@pytest.mark.parametrize("draw", ["panels", "density", "conditional"])
def test_long_numbers_of_an_axis_do_not_touch(draw):
    points = cloud(2)
    data = points.data
    figure = {
        "panels": lambda: plots.panels([("a", data, None), ("b", data, None)], points),
        "density": lambda: plots.density(points, data),
        "conditional": lambda: plots.conditional([data] * 2, points, labels=[0, 0]),
    }[draw]()
    figure.canvas.draw()
    for axis in figure.axes[:2]:
        low, high = axis.get_xlim()
        ticks = [one for one in axis.get_xticklabels() if low <= one.get_position()[0] <= high]
        boxes = [one.get_window_extent() for one in ticks]
        assert len(boxes) >= 2
        assert all(a.x1 + 2 < b.x0 for a, b in itertools.pairwise(boxes))


def test_the_loss_on_held_out_points_is_drawn_beside_that_of_the_training():
    losses = {name: torch.rand(30) + 1 for name in ("denoiser", "classifier")}
    record = {"denoiser": [(10, 1.5), (30, 1.25)]}
    figure = plots.training_curves(losses, [], None, held_out=record)
    lines = [{line.get_label(): line for line in axis.lines} for axis in figure.axes]
    assert lines[0]["held out"].get_xydata().tolist() == [[10, 1.5], [30, 1.25]]
    assert "held out" not in lines[1]
