"""Classification by denoising error, against the posterior of Gaussians in closed form."""

import numpy as np
import pytest
import torch

from flashpoint.diffusion import ConditionalMLP, GaussianMixture, Schedule, UserError, class_table
from flashpoint.diffusion.classification import (
    DiffusionClassifier,
    bound_weights,
    error_gains,
    even_timesteps,
)

MEANS = torch.tensor([[-0.6, 0.0], [0.5, 0.3], [0.2, -0.8]])
COVARIANCES = torch.stack((0.1 * torch.eye(2), 0.2 * torch.eye(2),
                           torch.tensor([[0.1, 0.06], [0.06, 0.1]])))  # fmt: skip
SCHEDULE = Schedule(1000, time_feature="linspace")


class Gaussians:
    """The best conditional denoiser of three Gaussians, one for each class."""

    num_classes = 3

    def __init__(self):
        self.parts = [
            GaussianMixture(torch.ones(1), MEANS[k : k + 1], COVARIANCES[k : k + 1])
            for k in range(3)
        ]

    def __call__(self, inputs, labels):
        x, t = inputs[:, :2], ((inputs[0, 2] + 1) / 2 * 999).round().long()
        eps = torch.empty(x.shape, dtype=torch.float64)
        for k, part in enumerate(self.parts):
            rows = labels == k
            eps[rows] = part.optimal_noise(x[rows], SCHEDULE.alpha_bar[t].item())
        return eps.float()


def posterior(x, prior):
    log_p = torch.stack([
        torch.distributions.MultivariateNormal(mean.double(), covariance.double()).log_prob(x)
        for mean, covariance in zip(MEANS, COVARIANCES, strict=True)
    ], dim=1)  # fmt: skip
    return (log_p + prior.double().log()).softmax(dim=1).numpy()


def test_posteriors_of_the_best_denoiser_are_those_in_closed_form():
    prior = torch.tensor([0.7, 0.1, 0.2])
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    classifier = DiffusionClassifier(Gaussians(), SCHEDULE, noises=2, prior=prior, device="cpu")
    found, want = classifier.predict_proba(x), posterior(x, prior)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert np.abs(found - want).mean() < 0.01
    sure = want.max(axis=1) > 0.55
    assert (classifier.predict(x)[sure] == want.argmax(axis=1)[sure]).all()
    assert classifier.score(x, torch.from_numpy(want.argmax(axis=1))) > 0.95


def test_the_bound_counts_every_timestep_once():
    schedule = Schedule(50)
    # Of squared errors of the noise they are those of Ho et al. 2020, equation 12, and 1 at first.
    snr = schedule.alpha_bar / (1 - schedule.alpha_bar)
    found = bound_weights(schedule) * error_gains(schedule)
    torch.testing.assert_close(found, torch.cat((torch.ones(1), snr[:-1] / snr[1:] - 1)))
    for steps in (None, torch.tensor([3]), torch.tensor([0, 7, 49])):
        classifier = DiffusionClassifier(Gaussians(), schedule, timesteps=steps, device="cpu")
        assert classifier.weights.sum().item() == pytest.approx(
            bound_weights(schedule).sum().item()
        )


@pytest.mark.parametrize("schedule", [SCHEDULE, Schedule(1000, "cosine"), Schedule(1000, "flow")])
def test_many_timesteps_share_the_bound(schedule):
    assert even_timesteps(bound_weights(schedule), 100).shape[0] > 60


def test_results_do_not_depend_on_what_else_is_asked():
    model = ConditionalMLP(3, 2, [8], class_features=class_table(3))
    classifier = DiffusionClassifier(model, Schedule(20), noises=2, device="cpu")
    x = torch.randn(30, 2)
    whole = classifier.predict_proba(x)
    np.testing.assert_allclose(whole[:7], classifier.predict_proba(x[:7]), rtol=1e-5)
    assert classifier.predict_proba(x[:0]).shape == (0, 3)
    assert list(classifier.classes_) == [0, 1, 2]


def test_wrong_input_is_named():
    model = ConditionalMLP(3, 2, [8], class_features=class_table(3))
    for options, message in (
        ({"noises": 0}, "noises must be at least 1"),
        ({"prior": torch.ones(2)}, "prior must be 3 positive numbers"),
        ({"timesteps": torch.tensor([5, 3])}, "rising order"),
        ({"timesteps": torch.tensor([20])}, "timesteps must be from 0 to 19"),
    ):
        with pytest.raises(UserError, match=message):
            DiffusionClassifier(model, Schedule(20), device="cpu", **options)
    with pytest.raises(UserError, match=r"x must be \[n, 2\]"):
        DiffusionClassifier(model, Schedule(20), device="cpu").predict(torch.zeros(3))
