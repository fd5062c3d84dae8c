"""The figure of a sweep: what its panels show is what the results say."""

from itertools import product

import pytest
from PIL import Image

from flashpoint.diffusion import UserError
from flashpoint.diffusion.metrics import Score
from flashpoint.diffusion.sweeps.figure import draw_factors, effects, is_geometric
from flashpoint.diffusion.sweeps.results import SweepResult, SweepTable, mean_of

FACTORS = {"lr": (1e-4, 1e-3, 1e-2), "activation": ("silu", "relu"), "seed": (0, 1)}
NAMES = ("emd", "mmd", "kernel_nll", "sliced_wasserstein", "sample_to_data")


def table(value_of, factors=FACTORS, metrics=("emd",), skipped=()):
    """A table whose models score what a function of their values says."""
    results = []
    for number, values in enumerate(product(*factors.values())):
        named = dict(zip(factors, values, strict=True))
        score = Score(value_of(named), 1.0, 0.5, 2.0, 100)
        scores = {} if number in skipped else dict.fromkeys(metrics, score)
        results.append(SweepResult(number, named, scores, 1.0, 10))
    return SweepTable("moons", factors, results)


def tenfold(values):
    return {1e-4: 1.0, 1e-3: 2.0, 1e-2: 4.0}[values["lr"]] + 10 * values["seed"]


def test_an_effect_is_the_mean_over_all_other_factors_by_seed():
    one = table(lambda values: tenfold(values) + (values["activation"] == "relu"))
    assert effects(one, "lr", "emd") == [
        (1e-4, [1.5, 11.5]), (1e-3, [2.5, 12.5]), (1e-2, [4.5, 14.5]),
    ]  # fmt: skip
    assert effects(one, "activation", "emd")[1] == ("relu", [10 / 3, 10 / 3 + 10])


def test_values_are_compared_over_the_same_models():
    # Model 0 has no score: lr 1e-4, silu, seed 0. So silu counts at no value and no seed.
    one = table(
        lambda values: tenfold(values) + 100 * (values["activation"] == "silu"), skipped=(0,)
    )
    found = [(1e-4, [1.0, 11.0]), (1e-3, [2.0, 12.0]), (1e-2, [4.0, 14.0])]
    assert sorted((value, sorted(means)) for value, means in effects(one, "lr", "emd")) == found


def test_models_with_nothing_in_common_are_not_compared():
    one = table(tenfold, skipped=(0, 6, 7))  # silu with seed 0 at lr 1e-4, relu at 1e-3
    assert effects(one, "lr", "emd") == []
    assert draw_factors(one).axes[0].texts[0].get_text() == "no models to compare"


def test_a_value_whose_models_all_failed_is_left_out():
    one = table(tenfold, skipped=(8, 9, 10, 11))
    assert [level.value for level in effects(one, "lr", "emd")] == [1e-4, 1e-3]


@pytest.mark.parametrize(
    ("values", "geometric"),
    [
        ((1e-4, 1e-3, 1e-2), True), ((500.0, 1000.0, 2000.0), True), ((1.0, 2.0, 3.0), False),
        ((0.0, 0.1, 1.0), False), ((3e-4, 1e-3, 3e-3), True), ((1.0,), False),
    ],
)  # fmt: skip
def test_an_axis_is_logarithmic_where_the_values_are_geometric(values, geometric):
    assert is_geometric(values) == geometric


def test_a_panel_shows_means_intervals_seeds_and_real_data():
    figure = draw_factors(table(tenfold))
    lr, activation = figure.axes
    assert (lr.get_xlabel(), activation.get_xlabel()) == ("lr", "activation")
    assert (lr.get_xscale(), activation.get_xscale()) == ("log", "linear")
    assert lr.get_ylabel().replace("\n", " ") == "EMD of up to 250 pairs, total"
    bars = lr.containers[0]
    assert bars[0].get_xdata().tolist() == [1e-4, 1e-3, 1e-2]
    assert bars[0].get_ydata().tolist() == [6.0, 7.0, 9.0]
    (low, high), *_ = (segment[:, 1] for segment in bars[2][0].get_segments())
    assert (high - low) / 2 == pytest.approx(mean_of([1.0, 11.0]).half_width)
    dots = next(line for line in lr.lines if line.get_label() == "single seeds")
    assert [*dots.get_ydata()] == [1.0, 11.0]
    assert dots.zorder > bars[0].zorder  # else the mean hides seeds that are close to it
    band = next(patch for patch in lr.patches if patch.get_label() == "99% of real draws")
    assert band.get_extents().transformed(lr.transData.inverted()).y0 == pytest.approx(0.5)
    assert [text.get_text() for text in activation.get_xticklabels()] == ["silu", "relu"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == [
        "99% of real draws", "mean over seeds, 95% interval", "real data, mean", "single seeds",
    ]  # fmt: skip


@pytest.mark.usefixtures("whole_figures")
def test_the_number_of_panels_is_bounded(tmp_path):
    factors = dict.fromkeys(("steps", "timesteps", "batch_size", "warmup", "lr"), (1, 2))
    one = table(lambda values: 1.0 + values["lr"], factors, NAMES)
    figure = draw_factors(one, tmp_path / "factors.png")
    assert len(figure.axes) == 5 * 4
    assert "in the table alone: 1" in figure.get_suptitle()
    assert Image.open(tmp_path / "factors.png").width > 1000


def test_a_sweep_over_seeds_alone_has_one_panel_for_each_metric():
    figure = draw_factors(table(lambda values: values["seed"] + 1.0, {"seed": (0, 1, 2)}))
    (axis,) = figure.axes
    assert axis.containers[0][0].get_ydata().tolist() == [2.0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["all models"]


def test_a_figure_of_no_metric_is_one_line():
    with pytest.raises(UserError, match="no model has any"):
        draw_factors(table(tenfold, metrics=()))
