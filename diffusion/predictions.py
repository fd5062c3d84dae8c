"""What a denoiser predicts, and how much its error counts at each timestep.

Every common parametrisation is linear in (x_0, eps). A network sees signal x_0 + noise eps and
predicts p x_0 + q eps; two equations, from which x_0 and eps follow.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .choices import NATURAL

_MIN_SNR_GAMMA = 5.0  # Hang et al. 2023, section 3.4
_P2_GAMMA, _P2_K = 1.0, 1.0  # Choi et al. 2022, section 3.2

# Of signal, noise, float64 [T] each, and sigma_data: p and q, float64 [T] each.
Coefficients = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


class Prediction(NamedTuple):
    """What a denoiser predicts; an entry of :data:`PREDICTIONS`."""

    title: str  # in figures and reports
    coefficients: Coefficients


def _eps(signal: Tensor, noise: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """The noise (Ho et al. 2020)."""
    return torch.zeros_like(signal), torch.ones_like(noise)


def _x0(signal: Tensor, noise: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """The clean point (Salimans and Ho 2022, section 4)."""
    return torch.ones_like(signal), torch.zeros_like(noise)


def _v(signal: Tensor, noise: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """The velocity signal eps - noise x_0 along an arc (Salimans and Ho 2022, section 4).

    Levels whose squares do not sum to 1 are brought onto the arc first.
    """
    radius = torch.hypot(signal, noise)
    return -noise / radius, signal / radius


def _flow(signal: Tensor, noise: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """The velocity eps - x_0 along a straight line (Lipman et al. 2023; Liu et al. 2023)."""
    return -torch.ones_like(signal), torch.ones_like(noise)


def _edm(signal: Tensor, noise: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """F of D = c_skip (x_0 + sigma eps) + c_out F (Karras et al. 2022, equation 7 and table 1).

    With sigma = noise / signal, c_skip = sigma_data^2 / (sigma^2 + sigma_data^2) and
    c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2), written for signal = 0, too.
    """
    root = torch.hypot(noise, sigma_data * signal)
    return noise / (sigma_data * root), -sigma_data * signal / root


PREDICTIONS = {
    "eps": Prediction("noise", _eps),
    "x0": Prediction("clean point", _x0),
    "v": Prediction("v", _v),
    "flow": Prediction("flow velocity", _flow),
    "edm": Prediction("EDM", _edm),
}


def natural_schedule(prediction: str | None) -> str:
    """Returns the name of the schedule that goes with a prediction where none is chosen."""
    return next((name for name, natural in NATURAL.items() if natural == prediction), "linear")


def estimates(
    signal: Tensor, noise: Tensor, p: Tensor, q: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns the weights of x_t and of what is predicted in x0_hat, and those in eps_hat.

    They solve signal x_0 + noise eps = x_t and p x_0 + q eps = output. All are float64 [T].
    """
    determinant = signal * q - noise * p
    return (q / determinant, -noise / determinant), (-p / determinant, signal / determinant)


def _uniform(sigma: Tensor, x0_gain: Tensor, eps_gain: Tensor, sigma_data: float) -> Tensor:  # noqa: ARG001
    """1: the error of what the network predicts, as it is."""
    return torch.ones_like(sigma)


def _min_snr(sigma: Tensor, x0_gain: Tensor, eps_gain: Tensor, sigma_data: float) -> Tensor:  # noqa: ARG001
    """min(SNR, 5) times the squared error of x0_hat (Hang et al. 2023, equation 8)."""
    return sigma.pow(-2).clamp(max=_MIN_SNR_GAMMA) * x0_gain.square()


def _p2(sigma: Tensor, x0_gain: Tensor, eps_gain: Tensor, sigma_data: float) -> Tensor:  # noqa: ARG001
    """1 / (1 + SNR) times the squared error of eps_hat (Choi et al. 2022, equation 8)."""
    return eps_gain.square() / (_P2_K + sigma.pow(-2)) ** _P2_GAMMA


def _edm_weight(sigma: Tensor, x0_gain: Tensor, eps_gain: Tensor, sigma_data: float) -> Tensor:  # noqa: ARG001
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 times the squared error of x0_hat.

    Source: Karras et al. 2022, table 1. It makes the error of EDM's network count alike everywhere.
    """
    return (sigma_data**-2 + sigma.pow(-2)) * x0_gain.square()


# Weight of the squared error of what the network predicts, float64 [T], of sigma = noise / signal;
# of the errors of x0_hat and eps_hat for an error of 1, float64 [T] each; and of sigma_data.
WEIGHTINGS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "uniform": _uniform,
    "min-snr": _min_snr,
    "p2": _p2,
    "edm": _edm_weight,
}
