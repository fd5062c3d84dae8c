"""How much of the data and how much noise is left at each timestep: the schedules by name.

The variance-preserving ones are curves of beta_t. ``flow`` and ``edm`` are given by their levels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Levels = tuple[Tensor, Tensor]  # signal and noise level of each timestep, float64 [T] each

_KARRAS_RHO = 7.0  # Karras et al. 2022, section 5


def _linear(steps: int, start: float, end: float) -> Tensor:
    """Returns evenly spaced beta (Ho et al. 2020, section 4)."""
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _scaled_linear(steps: int, start: float, end: float) -> Tensor:
    """Returns beta with an evenly spaced square root (Rombach et al. 2022)."""
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()


def _sigmoid(steps: int, start: float, end: float) -> Tensor:
    """Returns beta on a logistic curve over [-6, 6] (Xu et al. 2022, GeoDiff)."""
    return start + (end - start) * torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()


def _sech(steps: int, start: float, end: float) -> Tensor:
    """Returns beta on the rising half of a hyperbolic secant over [-4, 0], from start to end."""
    sech = 1 / torch.linspace(-4, 0, steps, dtype=torch.float64).cosh()
    return start + (end - start) * (sech - 1 / math.cosh(4)) / (1 - 1 / math.cosh(4))


def _cosine(steps: int, start: float, end: float) -> Tensor:  # noqa: ARG001
    """Returns beta for a squared cosine as alpha_bar (Nichol and Dhariwal 2021, equation 17).

    The curve is fixed; start and end are ignored.
    """
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


BETAS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "cosine": _cosine,
    "scaled_linear": _scaled_linear,
    "sigmoid": _sigmoid,
    "sech": _sech,
}


def variance_preserving(beta: Tensor, *, zero_terminal_snr: bool) -> Levels:
    """Returns sqrt(alpha_bar) and sqrt(1 - alpha_bar), alpha_bar being the product of 1 - beta.

    Args:
        beta: variance that each step adds, float64 [T].
        zero_terminal_snr: shifts and scales sqrt(alpha_bar) so that its last value is 0 and its
            first stays (Lin et al. 2024, algorithm 1).
    """
    alpha_bar = (1 - beta).cumprod(0)
    signal = alpha_bar.sqrt()
    if not zero_terminal_snr:
        return signal, (1 - alpha_bar).sqrt()
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    return signal, (1 - signal.square()).sqrt()


def flow(steps: int) -> Levels:
    """Returns 1 - t and t of x_t = (1 - t) x_0 + t eps, for t = 1 / T ... 1 (Liu et al. 2023)."""
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return 1 - t, t


def edm(steps: int, sigma_min: float, sigma_max: float, sigma_data: float) -> Levels:
    """Returns c_in and c_in sigma, the levels in the input of EDM's network c_in (x_0 + sigma eps).

    sigma^(1/7) is evenly spaced (Karras et al. 2022, equation 5), c_in = 1 / sqrt(sigma^2 +
    sigma_data^2) (table 1).
    """
    root = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / _KARRAS_RHO), sigma_max ** (1 / _KARRAS_RHO)
    sigma = (low + root * (high - low)) ** _KARRAS_RHO
    c_in = (sigma.square() + sigma_data**2).rsqrt()
    return c_in, c_in * sigma
