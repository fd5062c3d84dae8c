"""Metrics against scipy, POT and closed forms, and what the battery must catch."""

import numpy as np
import ot
import pytest
import torch
from scipy.stats import gaussian_kde, wasserstein_distance

from flashpoint.diffusion import (
    Points,
    UserError,
    evaluate,
    kde_nll,
    kernel_nll,
    nearest_distances,
    sliced_wasserstein,
    states_points,
)
from flashpoint.diffusion.metrics import kde_band, likelihood

STATES = states_points()


@pytest.mark.parametrize("dim", [1, 2, 3, 10])
def test_kde_nll_is_that_of_scipy(dim):
    generator = torch.Generator().manual_seed(dim)
    data = torch.randn(300, dim, generator=generator) @ torch.randn(dim, dim, generator=generator)
    samples = torch.randn(70, dim, generator=generator)
    want = -gaussian_kde(data.numpy().T).logpdf(samples.numpy().T).mean()
    assert kde_nll(samples, data) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("chunk", [1, 700])
def test_blocks_of_a_distance_matrix_do_not_change_a_likelihood(chunk, monkeypatch):
    x, data = torch.randn(70, 2), torch.randn(300, 2)
    want = kde_nll(x, data), kernel_nll(x, data), kde_band(data, 50)
    monkeypatch.setattr(likelihood, "_CHUNK", chunk)
    assert (kde_nll(x, data), kernel_nll(x, data), kde_band(data, 50)) == want


def test_kde_nll_names_what_it_cannot_do():
    with pytest.raises(UserError, match=r"samples must be \[n, 2\]"):
        kde_nll(torch.zeros(3, 3), torch.randn(9, 2))
    with pytest.raises(UserError, match="must not lie in a plane"):
        kde_nll(torch.zeros(3, 2), torch.ones(9, 2))


def test_nearest_distances():
    a, b = torch.randn(20, 2), torch.randn(30, 2)
    want = torch.cdist(a.double(), b.double()).min(dim=1).values
    torch.testing.assert_close(nearest_distances(a, b), want)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 20), (30, 47)])
def test_sliced_wasserstein_of_one_dimension_is_that_of_scipy(n, m):
    a, b = torch.randn(n, 1), torch.randn(m, 1) + 1
    want = wasserstein_distance(a[:, 0].numpy(), b[:, 0].numpy())
    assert sliced_wasserstein(a, b) == pytest.approx(want, rel=1e-6)


def test_sliced_wasserstein_is_that_of_pot():
    a, b = torch.randn(200, 2).double(), torch.randn(150, 2).double() * 1.3
    want = ot.sliced_wasserstein_distance(a.numpy(), b.numpy(), n_projections=4000, p=1, seed=0)
    assert sliced_wasserstein(a, b, projections=4000) == pytest.approx(want, rel=0.02)
    assert sliced_wasserstein(a, b) == sliced_wasserstein(a, b)
    assert sliced_wasserstein(a, b) == pytest.approx(sliced_wasserstein(b, a))


def failures(samples, label=None):
    scores = evaluate(samples, STATES, label=label, repeats=20).scores
    return {name for name, score in scores.items() if not score.passed}


@pytest.mark.parametrize("label", [None, 0, 3])
def test_real_draws_pass(label):
    # Three bands of 99% each: three draws in a row fail by chance in fewer than 1 of 10,000.
    assert any(not failures(STATES.redraw(5000, seed, label)[0], label) for seed in (900, 901, 902))


@pytest.mark.parametrize("label", [None, 1])
def test_blur_that_the_likelihood_does_not_see_fails(label):
    real, _ = STATES.redraw(5000, 900, label)
    blurred = real + 0.05 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    result = evaluate(blurred, STATES, label=label, repeats=20)
    assert abs(result.delta_nll) < 0.04
    assert not result.scores["sample_to_data"].passed
    assert not result.scores["data_to_sample"].passed


def test_a_missing_state_fails():
    real, labels = STATES.redraw(5000, 900)
    assert {"data_to_sample", "sliced_wasserstein"} & failures(real[labels != 2])


@pytest.mark.parametrize("label", range(5))
def test_half_an_outline_missing_fails(label):
    real, _ = STATES.redraw(5000, 900, label)
    half = real[real[:, 0] < real[:, 0].median()]
    assert {"sliced_wasserstein", "data_to_sample"} <= failures(half, label)


def test_memorised_points_fail():
    assert "sample_to_data" in failures(STATES.data)


def test_bands_of_data_without_a_known_distribution_tell_good_samples_from_bad():
    generator = torch.Generator().manual_seed(0)
    points = Points(torch.randn(2000, 3, generator=generator), name="own")
    good, bad = (
        evaluate(torch.randn(1000, 3, generator=generator) * scale, points, repeats=20).scores
        for scale in (1.0, 1.5)
    )
    assert all(score.passed for score in good.values())
    assert not any(score.passed for score in bad.values())


def test_purity_counts_samples_near_the_class_asked_for():
    samples = torch.cat((STATES.of_class(1)[:30], STATES.of_class(4)[:10]))
    assert evaluate(samples, STATES, label=1, repeats=2).purity == pytest.approx(0.75)
    assert evaluate(samples, STATES, repeats=2).purity is None


def test_the_dictionary_holds_every_number():
    result = evaluate(STATES.redraw(500, 3)[0], STATES, repeats=10).to_dict()
    assert result["delta_nll"] == pytest.approx(result["nll"] - result["nll_data"])
    for name in ("sample_to_data", "data_to_sample", "sliced_wasserstein"):
        assert set(result[name]) == {"value", "real", "low", "high", "passed"}
        assert np.isfinite(list(result[name].values())).all()


def test_too_little_data_is_named():
    with pytest.raises(UserError, match="at least 8 data points, got 7"):
        evaluate(torch.randn(9, 2), Points(torch.randn(7, 2)))
    few = Points(torch.randn(11, 2), torch.tensor([0] * 8 + [1] * 3))
    for samples, label, message in [
        (torch.randn(9, 2), 1, "at least 8 data points of class 1, got 3"),
        (torch.randn(9, 2), 2, "label must be from 0 to 1, got 2"),
        (torch.randn(1, 2), 0, "samples must be at least 2 points, got 1"),
        (torch.full((9, 2), torch.nan), 0, "samples must be finite"),
    ]:
        with pytest.raises(UserError, match=message):
            evaluate(samples, few, label=label)
