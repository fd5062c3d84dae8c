"""What takes a model takes one of any prediction, under any forward process."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from flashpoint.diffusion import GaussianMixture, Schedule, excess_loss
from flashpoint.diffusion.classification import DiffusionClassifier
from flashpoint.diffusion.latents import invert
from flashpoint.diffusion.reverse_steps import reverse_table, timesteps
from flashpoint.diffusion.rewards import sample_with_reward

from .closed_forms import CASES, PROCESSES, Best, schedule_of

MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]),
    torch.tensor([[-0.8, 0.2], [0.6, -0.3]]),
    torch.tensor([[[0.5, 0.2], [0.2, 0.4]], [[0.3, -0.1], [-0.1, 0.6]]]),
)
X = MIXTURE.draw(12, 0)


def gaussian(mean, covariance):
    return GaussianMixture(torch.ones(1), torch.tensor([mean]), torch.tensor([covariance]))


def ddim(model, schedule, x, num_steps=None):
    """Runs DDIM from x_T, over all timesteps that it visits or a number of them."""
    steps = timesteps(schedule, num_steps, method="ddim")
    for t, (c_x, c_output, *_) in zip(
        steps.tolist(), reverse_table(schedule, steps, method="ddim").tolist(), strict=True
    ):
        x = c_x * x + c_output * model(schedule.inputs(x, t))
    return x


@pytest.mark.parametrize(("process", "prediction"), CASES)
def test_ddim_leads_back_to_inverted_points(process, prediction):
    schedule = schedule_of(process, prediction)
    model = Best(MIXTURE, schedule)
    x = X.float()
    x_T = invert(model, schedule, x, device="cpu")
    torch.testing.assert_close(ddim(model, schedule, x_T), x, atol=1e-5, rtol=0)
    rough = invert(model, schedule, x, iterations=1, device="cpu")
    assert (ddim(model, schedule, rough) - x).abs().max() > 1e-3


@pytest.mark.parametrize(("process", "prediction"), [("cosine", "v"), ("flow", "flow")])
def test_a_few_large_steps_from_almost_pure_noise_are_inverted(process, prediction):
    # In terms of eps_hat alone the first steps hardly contract, and the points are missed by 0.01.
    schedule = schedule_of(process, prediction)
    model, x = Best(MIXTURE, schedule), X.float()
    x_T = invert(model, schedule, x, num_steps=10, device="cpu")
    torch.testing.assert_close(ddim(model, schedule, x_T, 10), x, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("process", "prediction"), CASES)
def test_inversion_of_a_gaussian_is_its_standardisation(process, prediction):
    # The probability flow keeps x_t divided by its standard deviation.
    schedule, s = schedule_of(process, prediction), 0.6
    model = Best(gaussian([0.0, 0.0], [[s**2, 0.0], [0.0, s**2]]), schedule)
    first = timesteps(schedule, None, method="ddim")[0]
    signal, noise = schedule.signal[first], schedule.noise[first]
    want = X / s * (signal**2 * s**2 + noise**2).sqrt()
    found = invert(model, schedule, X, device="cpu")
    torch.testing.assert_close(found, want.float(), rtol=0.04, atol=1e-5)


@pytest.mark.parametrize(("process", "prediction"), CASES)
def test_excess_loss_is_that_of_the_noise(process, prediction):
    schedule, offset = schedule_of(process, prediction), torch.tensor([0.03, -0.04])
    model, steps = Best(MIXTURE, schedule), [0, 1, 20, 60, 98, 99]
    found = excess_loss(model, schedule, MIXTURE, steps=steps, n=100)
    assert found.max() < 1e-8
    # The error of eps_hat for an error of 1 of the output: |signal / (signal q - noise p)|.
    p, q = (each[steps] for each in schedule.target)
    signal, noise = schedule.signal[steps], schedule.noise[steps]
    want = (0.05 * signal / (signal * q - noise * p)).square()
    off = excess_loss(lambda x: model(x) + offset, schedule, MIXTURE, steps=steps, n=100)
    torch.testing.assert_close(off, want, rtol=1e-2, atol=1e-8)


@pytest.mark.parametrize(("process", "prediction"), CASES)
def test_scores_are_those_of_the_noisy_mixture(process, prediction):
    schedule = schedule_of(process, prediction)
    model = Best(MIXTURE, schedule)
    for t in (0, 50, 99):
        signal, noise = schedule.signal[t], schedule.noise[t]
        parts = torch.distributions.MultivariateNormal(
            signal * MIXTURE.means,
            signal**2 * MIXTURE.covariances + noise**2 * torch.eye(2),
        )
        weights = torch.distributions.Categorical(MIXTURE.weights)
        x_t = (signal * X + noise * X.flip(0)).float().double().requires_grad_()
        log_p = torch.distributions.MixtureSameFamily(weights, parts).log_prob(x_t)
        (want,) = torch.autograd.grad(log_p.sum(), x_t)
        x_t = x_t.detach().float()
        score = schedule.score(x_t, model(schedule.inputs(x_t, t)), t)
        rounding = 1e-6 / noise.item() ** 2  # of x_t or the output, in the score
        torch.testing.assert_close(score.double(), want, rtol=1e-4, atol=rounding)


class ByClass:
    """The best conditional denoiser of the components of the mixture, one for each class."""

    num_classes = 2

    def __init__(self, schedule):
        self.parts = [
            Best(GaussianMixture(torch.ones(1), mean[None], covariance[None]), schedule)
            for mean, covariance in zip(MIXTURE.means, MIXTURE.covariances, strict=True)
        ]

    def __call__(self, inputs, labels):
        output = torch.empty(len(inputs), 2)
        for label in labels.unique().tolist():
            output[labels == label] = self.parts[label](inputs[labels == label])
        return output


@cache
def posteriors(process, prediction):
    """Returns the classes' probabilities for X, [n, 2]."""
    schedule = schedule_of(process, prediction)
    classifier = DiffusionClassifier(ByClass(schedule), schedule, noises=3, device="cpu")
    return classifier.predict_proba(X)


@pytest.mark.parametrize(("process", "prediction"), CASES)
def test_posteriors_are_those_of_the_components(process, prediction):
    log_p = torch.distributions.MultivariateNormal(MIXTURE.means, MIXTURE.covariances).log_prob(
        X[:, None]
    )
    want = log_p.softmax(dim=1).numpy()
    found = posteriors(process, prediction)
    assert np.abs(found - want).mean() < 0.02
    # The same noise leads to the same bound, whatever the network predicts.
    other = posteriors(process, "x0" if prediction == "v" else "v")
    np.testing.assert_allclose(other, found, atol=2e-3)


def test_a_bound_of_all_timesteps_holds_the_one_without_data():
    # The sum of equation 14 of Kingma et al. 2021, of errors of x_0, written out.
    schedule = Schedule(6, "flow")
    model, x = ByClass(schedule), X[:3].float()
    classifier = DiffusionClassifier(
        model, schedule, timesteps=torch.arange(6), noises=1, device="cpu"
    )
    want = torch.zeros(3, 2, dtype=torch.float64)
    snr = [(1 - t) ** 2 / t**2 for t in (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0)]
    for t, weight in enumerate([snr[0], *(a - b for a, b in pairwise(snr))]):
        noise = classifier._noise(t, torch.arange(3), 2)
        for eps in noise.split(3):
            x_t = (1 - (t + 1) / 6) * x + (t + 1) / 6 * eps
            for label in range(2):
                v = model(schedule.inputs(x_t, t), torch.full((3,), label))  # eps - x_0
                x_0 = x_t - (t + 1) / 6 * v
                want[:, label] -= weight / 4 * (x - x_0).square().sum(dim=1)
    torch.testing.assert_close(classifier.log_likelihood(x), want, rtol=1e-4, atol=1e-4)


@cache
def rewarded(process, prediction):
    """Draws samples with a reward, which is an average over draws of the posterior."""
    schedule = schedule_of(process, prediction)
    return sample_with_reward(
        Best(MIXTURE, schedule), schedule, 40, lambda x: x[:, 0], dim=2, candidates=4,
        temperature=0.5, posterior_draws=4, device="cpu",
    ).x  # fmt: skip


@pytest.mark.parametrize(("process", "prediction"), [case for case in CASES if case[1] != "v"])
def test_a_reward_chooses_alike_for_every_prediction(process, prediction):
    found, other = rewarded(process, prediction), rewarded(process, "v")
    # A rounding error can tip a choice, after which the sample is another.
    same = ((found - other).abs() < 2e-3).all(dim=1)
    assert same.double().mean() > 0.9


@pytest.mark.parametrize("process", [name for name in PROCESSES if name != "cosine"])
def test_a_linear_reward_moves_a_gaussian_by_its_covariance(process):
    # p(x) exp(a x) of N(m, S) is N(m + S a, S).
    mean, covariance = [0.3, -0.2], [[0.5, 0.2], [0.2, 0.3]]
    slope = torch.tensor([1.0, -0.5])
    schedule = schedule_of(process, "v")
    x = sample_with_reward(
        Best(gaussian(mean, covariance), schedule), schedule, 800, lambda x: x @ slope, dim=2,
        candidates=12, temperature=1.0, device="cpu",
    ).x  # fmt: skip
    want = torch.tensor(mean) + torch.tensor(covariance) @ slope
    torch.testing.assert_close(x.mean(0), want, atol=0.09, rtol=0)
    torch.testing.assert_close(x.T.cov(), torch.tensor(covariance), atol=0.1, rtol=0)
