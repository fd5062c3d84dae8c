"""Variance schedules of the forward process, and what a network is told about the timestep."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .errors import UserError, check_choice


def _linear(steps: int, start: float, end: float) -> Tensor:
    """Ho et al. 2020, section 4."""
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _scaled_linear(steps: int, start: float, end: float) -> Tensor:
    """Linear in sqrt(beta); Rombach et al. 2022."""
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()


def _sigmoid(steps: int, start: float, end: float) -> Tensor:
    """A logistic curve over [-6, 6]; Xu et al. 2022 (GeoDiff)."""
    return start + (end - start) * torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()


def _sech(steps: int, start: float, end: float) -> Tensor:
    """The rising half of a hyperbolic secant over [-4, 0], scaled to run from start to end."""
    sech = 1 / torch.linspace(-4, 0, steps, dtype=torch.float64).cosh()
    return start + (end - start) * (sech - 1 / math.cosh(4)) / (1 - 1 / math.cosh(4))


def _cosine(steps: int, start: float, end: float) -> Tensor:  # noqa: ARG001
    """alpha_bar a squared cosine; Nichol and Dhariwal 2021, equation 17. Has no beta range."""
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "cosine": _cosine,
    "scaled_linear": _scaled_linear,
    "sigmoid": _sigmoid,
    "sech": _sech,
}
TIME_FEATURES = ("linspace", "centered", "sinusoidal")
EMBEDDING_DIM = 16  # of a timestep or a class, where it is sinusoidal


@dataclass(frozen=True)
class Schedule:
    """The variances beta_t of the forward process, t = 0 ... T - 1, and all that follows from them.

    Everything is float64 [T]; index 0 is the least noisy timestep.

    Args:
        num_steps: number of timesteps T.
        name: one of ``linear``, ``cosine``, ``scaled_linear``, ``sigmoid``, ``sech``.
        beta_start, beta_end: range of beta; the cosine schedule has none and ignores them.
        time_feature: what the network sees of t: ``linspace`` is linspace(-1, 1, T),
            ``centered`` is 2 (t - T/2) / T, ``sinusoidal`` the :func:`sinusoidal_embedding` of t
            of width 16.

    Raises:
        ValueError: T is less than 1, a beta is outside (0, 1), or a name is unknown.
    """

    num_steps: int = 500
    name: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    time_feature: str = "linspace"

    def __post_init__(self):
        if self.num_steps < 1:
            raise UserError(f"num_steps must be at least 1, got {self.num_steps}")
        check_choice("schedule", self.name, SCHEDULES)
        check_choice("time_feature", self.time_feature, TIME_FEATURES)
        for field in ("beta_start", "beta_end"):
            if not 0 < getattr(self, field) < 1:
                raise UserError(
                    f"{field} must be between 0 and 1 (both excluded), got {getattr(self, field)}"
                )

    @cached_property
    def beta(self) -> Tensor:
        """Variance that each step adds."""
        return SCHEDULES[self.name](self.num_steps, self.beta_start, self.beta_end)

    @cached_property
    def alpha(self) -> Tensor:
        """1 - beta."""
        return 1 - self.beta

    @cached_property
    def alpha_bar(self) -> Tensor:
        """Product of alpha up to t: the part of x_t's variance that is still data."""
        return self.alpha.cumprod(0)

    @cached_property
    def alpha_bar_prev(self) -> Tensor:
        """alpha_bar of the next less noisy timestep; 1 before the first."""
        return torch.cat((torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]))

    @cached_property
    def posterior_variance(self) -> Tensor:
        """Variance of q(x_{t-1} | x_t, x_0); Ho et al. 2020, equation 7."""
        return self.beta * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @cached_property
    def time_features(self) -> Tensor:
        """What the network sees of each timestep, [T, 1], or [T, 16] if it is sinusoidal."""
        if self.time_feature == "sinusoidal":
            return sinusoidal_embedding(torch.arange(self.num_steps), EMBEDDING_DIM)
        if self.time_feature == "linspace":
            return torch.linspace(-1, 1, self.num_steps, dtype=torch.float64)[:, None]
        steps = torch.arange(self.num_steps, dtype=torch.float64)[:, None]
        return 2 * (steps - self.num_steps / 2) / self.num_steps


def sinusoidal_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sines and cosines of t at geometrically spaced frequencies (Vaswani et al. 2017, 3.5).

    Args:
        t: timesteps, any shape.
        dim: even number of features.
        max_period: the longest period is 2 pi times this.

    Returns:
        float64 [..., dim]: dim / 2 sines, then dim / 2 cosines.

    Raises:
        ValueError: dim is not a positive even number.
    """
    if dim < 2 or dim % 2:
        raise UserError(f"dim must be a positive even number, got {dim}")
    half = torch.arange(dim // 2, dtype=torch.float64, device=t.device)
    angle = t[..., None].double() * max_period ** (-half / (dim // 2))
    return torch.cat((angle.sin(), angle.cos()), dim=-1)
