"""Variance schedules of the forward process, and the features of a timestep that networks see."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .errors import UserError, check_choice
from .time_embedding import TimeEmbedding


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


SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "cosine": _cosine,
    "scaled_linear": _scaled_linear,
    "sigmoid": _sigmoid,
    "sech": _sech,
}
TIME_FEATURES = ("linspace", "centered", "sinusoidal")
EMBEDDING_DIM = 16  # width of the sinusoidal embedding of a timestep or a class


@dataclass(frozen=True)
class Schedule:
    """Variances beta_t of the forward process, t = 0 ... T - 1, and tables that follow from them.

    All tables are float64 [T]; index 0 is the least noisy timestep.

    Args:
        num_steps: number of timesteps T.
        name: one of :data:`SCHEDULES`, such as ``linear`` or ``cosine``.
        beta_start, beta_end: range of beta; the cosine schedule has none and ignores them.
        time_feature: the form in which networks see t: ``linspace`` is linspace(-1, 1, T),
            ``centered`` is 2 (t - T/2) / T, ``sinusoidal`` is the :func:`sinusoidal_embedding` of t
            of width 16; a :class:`.TimeEmbedding` is any other of this kind.

    Raises:
        ValueError: T is less than 1, a beta is outside (0, 1), or a name is unknown.
    """

    num_steps: int = 500
    name: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    time_feature: str | TimeEmbedding = "linspace"

    def __post_init__(self):
        if self.num_steps < 1:
            raise UserError(f"num_steps must be at least 1, got {self.num_steps}")
        check_choice("schedule", self.name, SCHEDULES)
        self._check_time_feature()
        for field in ("beta_start", "beta_end"):
            if not 0 < getattr(self, field) < 1:
                raise UserError(
                    f"{field} must be between 0 and 1 (both excluded), got {getattr(self, field)}"
                )

    def _check_time_feature(self) -> None:
        if isinstance(self.time_feature, Mapping):  # as files write it
            try:
                embedding = TimeEmbedding(**self.time_feature)
            except TypeError as error:
                raise UserError(f"time_feature is no TimeEmbedding: {error}") from None
            object.__setattr__(self, "time_feature", embedding)
        if not isinstance(self.time_feature, TimeEmbedding):
            check_choice("time_feature", self.time_feature, TIME_FEATURES)

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
        """Product of alpha up to t: the share of the data in the variance of x_t."""
        return self.alpha.cumprod(0)

    @cached_property
    def time_features(self) -> Tensor:
        """The features of each timestep that networks see, [T, 1], or [T, F] of an embedding."""
        if isinstance(self.time_feature, TimeEmbedding):
            return self.time_feature.features(torch.arange(self.num_steps))
        if self.time_feature == "sinusoidal":
            return sinusoidal_embedding(torch.arange(self.num_steps), EMBEDDING_DIM)
        if self.time_feature == "linspace":
            return torch.linspace(-1, 1, self.num_steps, dtype=torch.float64)[:, None]
        steps = torch.arange(self.num_steps, dtype=torch.float64)[:, None]
        return 2 * (steps - self.num_steps / 2) / self.num_steps

    def steps_visited(self, num_steps: int | None) -> int:
        """Returns the number of timesteps that a chain visits: ``num_steps``, or all T for None.

        Raises:
            ValueError: the number is not from 1 to T.
        """
        count = self.num_steps if num_steps is None else num_steps
        if not 1 <= count <= self.num_steps:
            raise UserError(f"num_steps must be from 1 to {self.num_steps}, got {num_steps}")
        return count

    def inputs(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        """Returns a network's inputs [..., d + F]: points and the features of their timestep.

        Args:
            x_t: float32 [..., d].
            t: timestep, a number or int64 [...] on the CPU.
        """
        features = self.time_features[t].float().to(x_t.device)
        return torch.cat((x_t, features.expand(*x_t.shape[:-1], -1)), dim=-1)


def sinusoidal_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Returns sines and cosines of t at geometric frequencies (Vaswani et al. 2017, 3.5).

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
    return TimeEmbedding(dim, base=max_period).features(t)
