"""Denoisers of least loss, for every prediction and every forward process."""

import torch

from flashpoint.diffusion import GaussianMixture, Schedule
from flashpoint.diffusion.predictions import PREDICTIONS

T = 100
# The variance-preserving ones of beta up to 0.1 leave almost no data, like those of 500 steps.
PROCESSES = {
    "linear": {"num_steps": T, "beta_end": 0.1},
    "cosine": {"num_steps": T, "name": "cosine"},
    "zero terminal SNR": {
        "num_steps": T, "name": "cosine", "zero_terminal_snr": True, "prediction": "v"
    },
    "flow": {"num_steps": T, "name": "flow"},
    "edm": {"num_steps": T, "name": "edm"},
}  # fmt: skip
CASES = [
    (process, prediction)
    for process in PROCESSES
    for prediction in PREDICTIONS
    if prediction != "eps" or process not in ("flow", "zero terminal SNR")
]


def schedule_of(process, prediction):
    return Schedule(**PROCESSES[process] | {"prediction": prediction})


class RoundMixture(GaussianMixture):
    """A mixture of equally likely Gaussians of one covariance v I, in a tenth of the time."""

    @classmethod
    def of(cls, mixture):
        """Returns a mixture that is known to be of this kind."""
        return cls(mixture.weights, mixture.means, mixture.covariances)

    def optimal_noise(self, x, alpha_bar):
        """Returns sqrt(1 - alpha_bar) (x - sum_k p(k | x) mu_k) / s, s and mu_k those of x_t."""
        means, noise = alpha_bar**0.5 * self.means, 1 - alpha_bar
        variance = alpha_bar * self.covariances[0, 0, 0] + noise
        # |x|^2 is the same for all components.
        log_p = (x @ means.T - means.square().sum(dim=1) / 2) / variance
        return noise**0.5 / variance * (x - log_p.softmax(dim=1) @ means)


class Best:
    """The denoiser of least loss for a mixture of Gaussians."""

    def __init__(self, mixture, schedule):
        self.mixture = mixture
        features = schedule.time_features.float().tolist()
        self.timesteps = {tuple(row): t for t, row in enumerate(features)}
        levels = (schedule.signal, schedule.noise, *schedule.target)
        self.levels = torch.stack(levels, dim=1).tolist()  # [T, 4]
        # Of the components of x_t at all timesteps, which takes as long as at one.
        signal, noise = (each[:, None, None, None] for each in levels[:2])
        covariances = signal.square() * mixture.covariances + noise.square() * torch.eye(
            mixture.means.shape[1]
        )  # [T, K, d, d]
        self.means = signal * mixture.means[:, None]  # [T, K, 1, d]
        self.inverse = torch.linalg.inv(covariances)
        self.log_p = (mixture.weights.log() - covariances.logdet() / 2)[..., None]

    def __call__(self, inputs):
        """Returns float32 [n, d] of points and timestep features [n, d + F]."""
        dim = self.mixture.means.shape[1]
        t = self.timesteps[tuple(inputs[0, dim:].tolist())]
        signal, noise, p, q = self.levels[t]
        x_t = inputs[:, :dim].double()
        delta = x_t - self.means[t]  # [K, n, d]
        solved = delta @ self.inverse[t]
        shares = (self.log_p[t] - (delta * solved).sum(dim=2) / 2).softmax(dim=0)
        eps = noise * (shares[..., None] * solved).sum(dim=0)
        x_0 = (x_t - noise * eps) / signal if signal > 0 else self.mean
        return (p * x_0 + q * eps).float()

    @property
    def mean(self):
        """The mean of the data [d], which is all that is known of x_0 where no data is left."""
        return self.mixture.weights @ self.mixture.means / self.mixture.weights.sum()
