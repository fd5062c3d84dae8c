"""Guidance against Gaussian mixtures, whose classes' posteriors are known at every noise level."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from flashpoint.diffusion import GaussianMixture, Schedule, reverse_table
from flashpoint.kernels import reverse_step

SCHEDULE = Schedule(100)
WEIGHTS = torch.tensor([0.5, 0.2, 0.3])
MEANS = torch.tensor([[-0.6, 0.0], [0.5, 0.3], [0.2, -0.8]])
COVARIANCES = torch.stack((0.1 * torch.eye(2), 0.2 * torch.eye(2),
                           torch.tensor([[0.1, 0.06], [0.06, 0.1]])))  # fmt: skip
LABEL = 1


def log_p(x, t):
    """log p_t(x, y) of each class, float64 [n, 3]."""
    alpha_bar = SCHEDULE.alpha_bar[t]
    covariances = alpha_bar * COVARIANCES + (1 - alpha_bar) * torch.eye(2)
    parts = [
        MultivariateNormal(alpha_bar.sqrt() * mean, covariance).log_prob(x) + weight.log()
        for weight, mean, covariance in zip(
            WEIGHTS.double(), MEANS.double(), covariances, strict=True
        )
    ]
    return torch.stack(parts, dim=1)


def gradient(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def noises(x, t):
    """eps* of all classes together and of one, [n, 2] each."""
    alpha_bar = SCHEDULE.alpha_bar[t].item()
    rows = slice(LABEL, LABEL + 1)
    whole = GaussianMixture(WEIGHTS, MEANS, COVARIANCES)
    one = GaussianMixture(WEIGHTS[rows], MEANS[rows], COVARIANCES[rows])
    return whole.optimal_noise(x, alpha_bar), one.optimal_noise(x, alpha_bar)


def coefficients(t, method, **options):
    """Of the step from t to t - 1."""
    return reverse_table(SCHEDULE, torch.arange(99, -1, -1), method=method, **options)[99 - t]


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
@pytest.mark.parametrize("t", [0, 40, 99])
def test_the_true_classifier_guides_to_the_class_itself(method, t):
    x = torch.randn(50, 2, dtype=torch.float64)
    eps, eps_of_class = noises(x, t)
    grad = gradient(lambda x: log_p(x, t).log_softmax(dim=1)[:, LABEL], x)
    guided = reverse_step(x, eps, coefficients(t, method, scale=1.0), grad_log_p=grad)
    told = reverse_step(x, eps_of_class, coefficients(t, method))
    torch.testing.assert_close(guided, told)


@pytest.mark.parametrize("w", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("t", [0, 40, 99])
def test_classifier_free_guidance_follows_the_sharpened_density(w, t):
    # The score of p(x | y)^(1 + w) / p(x)^w at the noise level of t.
    x = torch.randn(50, 2, dtype=torch.float64)
    eps, eps_of_class = noises(x, t)

    def sharpened(x):
        joint = log_p(x, t)
        return (1 + w) * joint[:, LABEL] - w * joint.logsumexp(dim=1)

    score = gradient(sharpened, x)
    table = coefficients(t, "ddpm", scale=w, classifier_free=True)
    guided = reverse_step(x, eps_of_class, table, eps_uncond=eps)
    want = reverse_step(x, -((1 - SCHEDULE.alpha_bar[t]) ** 0.5) * score, table)
    torch.testing.assert_close(guided, want)
