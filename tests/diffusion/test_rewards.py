"""Reward guidance against the tilted distribution in closed form."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from flashpoint.diffusion import ConditionalMLP, GaussianMixture, Schedule, UserError, class_table
from flashpoint.diffusion.rewards import class_reward, posterior_root, sample_with_reward

SCHEDULE = Schedule(100, "cosine")


def best_denoiser(mixture):
    def denoiser(inputs):
        t = ((inputs[0, -1] + 1) / 2 * (SCHEDULE.num_steps - 1)).round().long()
        return mixture.optimal_noise(inputs[:, :-1], SCHEDULE.alpha_bar[t].item()).float()

    return denoiser


MEAN, COVARIANCE = torch.tensor([0.3, -0.2]), torch.tensor([[0.5, 0.2], [0.2, 0.3]])
GAUSSIAN = best_denoiser(GaussianMixture(torch.ones(1), MEAN[None], COVARIANCE[None]))
SLOPE = torch.tensor([1.0, -0.5])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_linear_reward_moves_a_gaussian_by_its_covariance(temperature):
    # p(x) exp(a x / temperature) of N(m, S) is N(m + S a / temperature, S); the value of x_t is
    # the reward of the posterior mean plus a constant, so that nothing is approximated.
    x = sample_with_reward(
        GAUSSIAN, SCHEDULE, 1500, lambda x: x @ SLOPE, dim=2, candidates=12,
        temperature=temperature, device="cpu",
    ).x.double()  # fmt: skip
    want = MEAN + COVARIANCE @ SLOPE / temperature
    torch.testing.assert_close(x.mean(0), want.double(), atol=0.07, rtol=0)
    torch.testing.assert_close(x.T.cov(), COVARIANCE.double(), atol=0.08, rtol=0)


CURVE = torch.tensor([1.5, 1.0])


def curved(x):
    return -(x @ CURVE).square()


def test_a_curved_reward_narrows_a_gaussian_with_draws_of_the_posterior():
    # p(x) exp(-(c x)^2) of N(m, S) is normal with precision S^-1 + 2 c c^T. The reward of x0_hat
    # leaves out how far x_0 is spread around it, the draws put it in.
    precision = COVARIANCE.inverse() + 2 * torch.outer(CURVE, CURVE)
    want, found = (CURVE @ precision.inverse() @ CURVE).item(), {}
    for draws in (16, 0):
        x = sample_with_reward(
            GAUSSIAN, SCHEDULE, 1500, curved, dim=2, candidates=30, temperature=1.0,
            posterior_draws=draws, device="cpu",
        ).x  # fmt: skip
        found[draws] = (x @ CURVE).var().item() / want
    assert found[16] == pytest.approx(1, abs=0.15)  # its standard error is 0.04
    assert found[0] < 0.75


@pytest.mark.parametrize(("signal", "noise"), [(0.3**0.5, 0.7**0.5), (0.6, 0.4), (0.2, 2.0)])
def test_the_spread_of_the_posterior_is_that_of_a_gaussian(signal, noise):
    x = torch.randn(4, 8, 2)
    precision = COVARIANCE.inverse() + (signal / noise) ** 2 * torch.eye(2)
    want = precision.inverse()  # of x_0 given x_t
    x_0 = (signal / noise**2 * x + torch.linalg.solve(COVARIANCE, MEAN)) @ want
    root = posterior_root(x, x_0, noise**2 / signal)
    torch.testing.assert_close(root @ root, want.expand(4, 2, 2))


def test_one_candidate_has_no_regard_for_the_reward():
    x = sample_with_reward(
        GAUSSIAN, SCHEDULE, 1500, lambda x: x @ SLOPE, dim=2, candidates=1, device="cpu"
    ).x
    torch.testing.assert_close(x.mean(0), MEAN, atol=0.06, rtol=0)


def test_the_better_of_two_clusters_is_chosen_and_keeps_its_shape():
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    covariance = 0.02 * torch.eye(2)
    mixture = GaussianMixture(torch.tensor([0.7, 0.3]), means, covariance.expand(2, -1, -1))

    def predict_proba(x):  # that of the two clusters
        right = expit(2 * x[:, 0].astype(float) / 0.02 + np.log(0.3 / 0.7))
        return np.stack((1 - right, right), axis=1)

    reward = class_reward(predict_proba, 1)
    x = sample_with_reward(
        best_denoiser(mixture), SCHEDULE, 400, reward, dim=2, temperature=1.0, device="cpu"
    ).x
    assert (x[:, 0] > 0).double().mean() > 0.99
    assert x.std(0).sub(0.02**0.5).abs().max() < 0.03


def test_a_reward_of_a_class_does_not_depend_on_the_default_device():
    reward = class_reward(lambda x: np.full((len(x), 2), 0.5), 1)
    x = torch.zeros(3, 2)
    with torch.device("meta"):
        found = reward(x)
    assert torch.equal(found, torch.full((3,), 0.5).log())


@pytest.mark.parametrize("draws", [0, 2])
def test_a_sample_depends_on_its_row_alone(draws):
    model = ConditionalMLP(3, 2, [8], class_features=class_table(2))
    options = {"candidates": 3, "temperature": 0.3, "num_steps": 10, "device": "cpu", "seed": 5}
    options["posterior_draws"] = draws
    done = []
    whole = sample_with_reward(
        model, SCHEDULE, 20, lambda x: x[:, 0], batch_size=12, progress=done.append, **options
    ).x
    assert done == [4, 8, 12, 16, 20]
    part = sample_with_reward(model, SCHEDULE, 9, lambda x: x[:, 0], **options).x
    torch.testing.assert_close(whole[:9], part)


def test_wrong_input_is_named():
    for options, message in (
        ({"candidates": 0}, "candidates must be at least 1"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"posterior_draws": -2}, "posterior_draws must be at least 0"),
        ({"posterior_draws": 3}, "posterior_draws must be even, got 3"),
        (
            {"posterior_draws": 4, "candidates": 2},
            "candidates must be at least 3 for posterior_draws in 2 dimensions, got 2",
        ),
        ({"reward": lambda x: x}, r"reward must return a tensor \[50\], got \[50, 2\]"),
    ):
        arguments = {"reward": lambda x: x[:, 0], **options}
        with pytest.raises(UserError, match=message):
            sample_with_reward(GAUSSIAN, SCHEDULE, 5, dim=2, device="cpu", **arguments)
