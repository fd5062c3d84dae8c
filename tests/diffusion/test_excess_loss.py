"""The excess loss and the optimal noise against closed forms."""

import math

import pytest
import torch

from flashpoint.diffusion import (
    MLP,
    GaussianMixture,
    PointMasses,
    Schedule,
    excess_loss,
    states_points,
)

STATES = states_points(1500)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SCHEDULE = Schedule(100)


def mixture(dim, count=3):
    factor = normal(count, dim, dim, seed=2).double()
    covariances = factor @ factor.mT / dim + 0.1 * torch.eye(dim)
    return GaussianMixture(torch.arange(1.0, count + 1), 2 * normal(count, dim), covariances)


def step_of(feature):
    return ((feature[0, 0] + 1) / 2 * (SCHEDULE.num_steps - 1)).round().long().item()


@pytest.mark.parametrize("dim", [1, 2, 64])
def test_optimal_noise_is_tweedies_formula(dim):
    target, alpha_bar = mixture(dim), 0.6
    x = normal(20, dim, seed=5).double().requires_grad_()
    components = torch.distributions.MultivariateNormal(
        alpha_bar**0.5 * target.means.double(),
        alpha_bar * target.covariances + (1 - alpha_bar) * torch.eye(dim),
    )
    weights = torch.distributions.Categorical(target.weights.double())
    log_p = torch.distributions.MixtureSameFamily(weights, components).log_prob(x)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    torch.testing.assert_close(
        target.optimal_noise(x.detach(), alpha_bar), -((1 - alpha_bar) ** 0.5) * score
    )


@pytest.mark.parametrize("dim", [1, 3, 64])
def test_optimal_noise_of_points_is_that_of_very_narrow_gaussians(dim):
    data = normal(30, dim).double()
    narrow = GaussianMixture(torch.ones(30), data, 1e-9 * torch.eye(dim).expand(30, dim, dim))
    x = normal(20, dim, seed=1).double()
    torch.testing.assert_close(
        PointMasses(data).optimal_noise(x, 0.7), narrow.optimal_noise(x, 0.7), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("target", [mixture(2), PointMasses(normal(50, 2))])
def test_excess_loss_of_the_best_denoiser_is_0_and_of_an_offset_its_square(target):
    def best(inputs):
        return target.optimal_noise(
            inputs[:, :2], SCHEDULE.alpha_bar[step_of(inputs[:, 2:])].item()
        )

    assert excess_loss(best, SCHEDULE, target, n=100).max() < 1e-24
    off = excess_loss(lambda x: best(x) + torch.tensor([0.3, -0.4]), SCHEDULE, target, n=100)
    torch.testing.assert_close(off, torch.full((50,), 0.25).double())


def test_excess_loss_of_silence_is_closed_form_for_one_gaussian():
    target = mixture(3, count=1)
    steps = [0, 30, 99]
    found = excess_loss(lambda x: torch.zeros(len(x), 3), SCHEDULE, target, steps=steps, n=20_000)
    # eps* = sqrt(1 - a) S^-1 (x - sqrt(a) mu) has covariance (1 - a) S^-1.
    want = []
    for a in SCHEDULE.alpha_bar[steps].tolist():
        covariance = a * target.covariances[0] + (1 - a) * torch.eye(3)
        want.append((1 - a) * covariance.inverse().trace().item())
    assert found.tolist() == pytest.approx(want, rel=0.03)


def test_excess_loss_is_what_the_training_loss_has_above_its_least():
    target, model, t = mixture(2), MLP(3, 2, [16]), 40
    alpha_bar = SCHEDULE.alpha_bar[t].item()
    x_0, eps = target.draw(100_000, 1), normal(100_000, 2, seed=9).double()
    x_t = (alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps).float()
    with torch.no_grad():
        feature = SCHEDULE.time_features[t].float().expand(len(x_t), 1)
        predicted = model(torch.cat((x_t, feature), dim=1)).double()
    best = target.optimal_noise(x_t, alpha_bar)
    above = (predicted - eps).square().sum(dim=1) - (best - eps).square().sum(dim=1)
    error = 4 * above.std().item() / math.sqrt(len(above))
    excess = excess_loss(model, SCHEDULE, target, steps=[t], n=100_000).item()
    assert excess == pytest.approx(above.mean().item(), abs=error)


def test_a_mixture_draws_its_own_moments():
    target = mixture(3)
    x = target.draw(50_000, 3)
    weights = (target.weights / target.weights.sum()).double()
    mean = weights @ target.means.double()
    delta = target.means.double() - mean
    covariance = torch.einsum("k,kij->ij", weights, target.covariances)
    covariance += torch.einsum("k,ki,kj->ij", weights, delta, delta)
    torch.testing.assert_close(x.mean(dim=0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(x.T.cov(), covariance, atol=0.15, rtol=0)
    assert torch.equal(x, target.draw(50_000, 3))
    rows = {tuple(row) for row in PointMasses(STATES.data[:20]).draw(500, 0).float().tolist()}
    assert rows == {tuple(row) for row in STATES.data[:20].tolist()}


def test_a_network_for_another_time_feature_is_refused():
    schedule = Schedule(100, time_feature="sinusoidal")
    with pytest.raises(ValueError, match=r"model must take 18 coordinates, .* got 3"):
        excess_loss(MLP(3, 2, [8]), schedule, PointMasses(STATES.data), steps=[1], n=4)
