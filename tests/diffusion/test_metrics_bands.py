"""The bands of real draws: calibrated, of independent draws, and never for few draws alone."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from flashpoint.diffusion import Points, UserError, evaluate
from flashpoint.diffusion.metrics import METRICS, Comparison, Metric, RealDraws, real_draws
from flashpoint.diffusion.metrics import inputs as inputs_module
from flashpoint.diffusion.metrics.bands import LINEAR, prediction_factor

N, TRIALS, REAL_DRAWS = 120, 200, 20
CALIBRATED = ("kernel_nll", "sample_to_data", "mmd")  # all of them: bench/bands.py


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scores(samples, points, seed, names):
    """The scores of some metrics, as in an evaluation."""
    draws = real_draws(points, None, len(samples), REAL_DRAWS, seed)
    values, real = (
        [Comparison(x, draws.data, draws.points, None, seed) for x in sets]
        for sets in (draws.parts(samples, seed), draws.draws)
    )
    for name in names:
        metric = METRICS[name]
        columns = [[metric.function(one) for one in sets] for sets in (values, real)]
        yield name, metric.score(*columns, draws)


FAR = [pytest.param(ratio, marks=pytest.mark.slow) for ratio in (0.1, 2)]


@pytest.mark.parametrize("ratio", [0.5, 1, *FAR])
def test_a_perfect_sampler_is_called_different_in_one_of_a_hundred_cases(ratio):
    alarms = dict.fromkeys(CALIBRATED, 0)
    for trial in range(TRIALS):
        source = generator(1000 * trial)
        points = Points(torch.randn(N, 2, generator=source))
        samples = torch.randn(round(ratio * N), 2, generator=source)
        for name, score in scores(samples, points, trial, CALIBRATED):
            if not isinstance(score, str):  # draws of 12 may scatter too much for the kernel NLL
                alarms[name] += score.passed is False
    for name, count in alarms.items():
        interval = binomtest(count, TRIALS).proportion_ci(0.95, "exact")
        assert interval.low <= 0.01, (name, count)


def test_few_samples_of_another_distribution_differ():
    source = generator(1)
    points = Points(torch.randn(300, 2, generator=source))
    samples = 2 * torch.randn(15, 2, generator=source) + 2
    found = evaluate(samples, points, repeats=10, full=True)
    for name in ("emd", "emd_per_pair", "sliced_wasserstein", "mmd"):
        assert (found.scores | found.battery)[name].passed is False
    assert found.battery["emd"].value == pytest.approx(15 * found.battery["emd_per_pair"].value)


@pytest.mark.parametrize("ratio", [0.25, 1, 3])
@pytest.mark.parametrize(
    ("change", "metric"),
    [
        (lambda x, _: 1.25 * x, "sliced_wasserstein"),
        (lambda x, _: x[x[:, 0] > -0.7], "sliced_wasserstein"),
        (lambda x, data: data[torch.arange(len(x)) % len(data)], "sample_to_data"),
    ],
    ids=["wider", "a part missing", "copies"],
)
def test_bad_samples_differ(change, metric, ratio):
    source = generator(2)
    data = torch.randn(2000, 2, generator=source)
    samples = change(torch.randn(round(2000 * ratio), 2, generator=source), data)
    assert evaluate(samples, Points(data), repeats=20).scores[metric].passed is False


@pytest.mark.parametrize(
    ("n", "size", "parts"), [(6, 6, 1), (25, 25, 1), (60, 25, 2), (900, 25, 4)]
)
def test_a_draw_is_as_large_as_the_samples_and_apart_from_what_it_is_compared_with(n, size, parts):
    data = torch.arange(100.0)[:, None]
    draws = real_draws(Points(data), None, n, 12, seed=3)
    assert draws.size == size
    assert draws.pool == len(draws.data) == 50
    compared = set(draws.data[:, 0].tolist())
    for draw in draws.draws:
        assert len(set(draw[:, 0].tolist())) == size
        assert not compared & set(draw[:, 0].tolist())
    samples = torch.arange(float(n))[:, None]
    found = draws.parts(samples, seed=0)
    assert [len(part) for part in found] == [size] * parts
    assert len(set(torch.cat(found)[:, 0].tolist())) == size * parts


@pytest.mark.parametrize(("size", "parts"), [(20, 1), (20, 4), (50, 2)])
def test_the_band_of_a_mean_has_the_width_of_its_theory(size, parts):
    pool, rng = 100, np.random.default_rng(0)
    misses = []
    for _ in range(400):
        others = rng.normal(size=pool)
        real = [rng.permutation(others)[:size].mean() for _ in range(60)]
        draws = RealDraws([torch.zeros(size, 1)] * 60, torch.zeros(pool, 1), None, pool)
        low, high = draws.band(real, LINEAR, parts)
        value = rng.normal(size=(parts, size)).mean()
        misses.append((value - np.mean(real)) / (high - low) * 2)
    # In half-widths of the band, a perfect sampler's score scatters by 1 over the factor of the
    # band without widening; the error of a standard deviation of 400 is 4%.
    factor = prediction_factor(60, 0.0025, pool=pool) / math.sqrt(1 + 1 / 60)
    assert np.std(misses) * factor == pytest.approx(1, abs=0.15)


def test_a_few_real_draws_never_call_samples_as_good_as_data():
    source = generator(4)
    points = Points(torch.randn(400, 2, generator=source))
    wide = 1.3 * torch.randn(200, 2, generator=source)
    for repeats in (2, 3, 9):
        result = evaluate(wide, points, repeats=repeats, full=True)
        assert not any(score.passed for score in (result.scores | result.battery).values())
    few = evaluate(torch.randn(200, 2, generator=source), points, repeats=3)
    assert "| undecided: 3 draws |" in few.table()
    far = evaluate(wide + 1000, points, repeats=3)
    assert far.scores["sample_to_data"].passed is False
    enough = evaluate(torch.randn(200, 2, generator=source), points, repeats=10)
    assert all(score.passed for score in enough.scores.values())


def test_large_sets_are_cut_and_the_result_says_so(monkeypatch):
    monkeypatch.setattr(inputs_module, "_MOST_POINTS", 100)
    source = generator(5)
    data, samples = (torch.randn(n, 2, generator=source) for n in (5000, 3000))
    labels = torch.arange(5000) % 2
    largest = [0]

    def seen(comparison):
        largest[0] = max(largest[0], len(comparison.samples), len(comparison.data))
        return 1.0

    monkeypatch.setitem(METRICS, "size", Metric("size", seen))
    held_out = torch.randn(4000, 2, generator=source)
    result = evaluate(
        samples, Points(data, labels), repeats=3, full=True, held_out=held_out, label=1
    )
    assert largest == [200]
    assert "of 3,000 samples 400 were drawn at random" in result.notes
    assert "of 2,500 data points 400 were drawn at random" in result.notes
    assert result.to_dict()["notes"] == result.notes
    whole = evaluate(samples[:100], Points(data[:400]), repeats=3)
    assert not [note for note in whole.notes if "at random" in note]


def test_a_metric_that_a_few_points_decide_is_left_out():
    source = generator(7)
    data, samples = (torch.randn(300, 10, generator=source) for _ in range(2))
    result = evaluate(samples, Points(data), repeats=10, full=True)
    assert "a few points decide it" in result.left_out["kernel_nll"]
    near = evaluate(samples[:, :2], Points(data[:, :2]), repeats=10, full=True)
    assert near.battery["kernel_nll"].passed


def test_a_class_without_points_in_a_part_has_no_region():
    source = generator(6)
    labels = torch.zeros(100, dtype=torch.int64)
    labels[:40], labels[40] = 1, 2
    points = Points(torch.randn(100, 2, generator=source) + 5 * labels[:, None], labels)
    for seed in range(4):
        result = evaluate(points.data[:50], points, repeats=3, full=True, seed=seed)
        assert math.isfinite(result.battery["occupancy"].value)


def test_too_few_points_to_split_are_named():
    with pytest.raises(UserError, match="evaluation needs at least 8 data points, got 7"):
        real_draws(Points(torch.randn(7, 2)), None, 5, 3, 0)
