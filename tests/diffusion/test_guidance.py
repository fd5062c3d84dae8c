"""Guidance against Gaussian mixtures, whose classes' posteriors are known at every noise level."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from flashpoint.diffusion import MLP, GaussianMixture, SampleConfig, Schedule, reverse_table
from flashpoint.diffusion.chains import METHODS, prepare
from flashpoint.diffusion.choices import SCHEDULES
from flashpoint.diffusion.predictions import PREDICTIONS
from flashpoint.diffusion.reverse_steps import levels_at
from flashpoint.diffusion.solvers import chain_table
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


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        (name, prediction)
        for name in ("linear", "flow", "edm")
        for prediction in PREDICTIONS
        if (name, prediction) != ("flow", "eps")  # which the schedule refuses
    ],
)
def test_a_classifier_changes_the_noise_whatever_is_predicted(name, prediction):
    """Each row of each method: a gradient g, and eps_hat - scale noise g in place of eps_hat."""
    schedule, steps = Schedule(100, name, prediction=prediction), torch.tensor([90, 40, 12, 0])
    x, x_0, grad = torch.randn(3, 50, 2, dtype=torch.float64)
    for method in METHODS:
        table, t = chain_table(schedule, steps, method=method, scale=lambda t: 1 + t / 10)
        for row, (signal, noise) in enumerate(zip(*levels_at(schedule, t), strict=True)):
            p, q = PREDICTIONS[prediction].coefficients(signal, noise, 1.0)
            eps = (x - signal * x_0) / noise
            told = eps - (1 + t[row] / 10) * noise * grad
            x_0_told = (x - noise * told) / signal
            guided = reverse_step(x, p * x_0 + q * eps, table[row, :4], grad_log_p=grad)
            want = reverse_step(x, p * x_0_told + q * told, table[row, :4])
            torch.testing.assert_close(guided, want)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "ddpm"])
def test_a_gradient_is_multiplied_by_little_in_guided_chains(name, method):
    """By sigma = noise / signal in x0_hat; where no data is left the classifier has no say."""
    torch.manual_seed(0)
    schedule = Schedule(500, name, prediction="v")
    guide = {"classifier": MLP(3, 4, [8]), "label": 1}
    for count in (5, 20, None):
        config = SampleConfig(MLP(3, 2, [8]), schedule, method=method, num_steps=count, **guide)
        chain = prepare(config, 3, torch.device("cpu"))
        assert chain.table.isfinite().all()
        seen = chain.features[:, 0].double()
        t = (seen * 4).exp() if name == "edm" else (seen + 1) * 499 / 2
        sigma = t if name == "edm" else torch.div(*reversed(levels_at(schedule, t)))
        guided = chain.table[:, 3] != 0
        assert guided.sum() >= len(guided) - 1
        assert (sigma[guided] < (8.1 if count == 5 else 14.2)).all()
