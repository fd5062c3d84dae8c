"""Denoisers of least loss, for every prediction and every forward process."""

from flashpoint.diffusion import Schedule
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


class Best:
    """The denoiser of least loss for a mixture of Gaussians."""

    def __init__(self, mixture, schedule):
        self.mixture, self.schedule = mixture, schedule

    def __call__(self, inputs):
        """Returns float32 [n, d] of points and timestep features [n, d + F]."""
        schedule, dim = self.schedule, self.mixture.means.shape[1]
        t = (schedule.time_features - inputs[0, dim:]).abs().sum(dim=1).argmin()
        x_t, signal, noise = inputs[:, :dim].double(), schedule.signal[t], schedule.noise[t]
        radius = (signal**2 + noise**2).sqrt()
        eps = self.mixture.optimal_noise(x_t / radius, (signal / radius).square().item())
        x_0 = (x_t - noise * eps) / signal if signal > 0 else self.mean.expand_as(x_t)
        p, q = schedule.target
        return (p[t] * x_0 + q[t] * eps).float()

    @property
    def mean(self):
        """The mean of the data [d], which is all that is known of x_0 where no data is left."""
        return self.mixture.weights @ self.mixture.means / self.mixture.weights.sum()
