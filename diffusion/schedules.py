"""Variance schedules of the forward process, and the features of a timestep that networks see."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..kernels.default_state import in_default_state, methods_in_default_state
from .errors import ScheduleWarning, UserError, check_choice, check_integer
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
_BETAS = {"beta_start": 1e-4, "beta_end": 0.02}
_MOST_TIMESTEPS = 1_000_000
# Chains start from N(0, I) as if no data were left in x_T. With the best denoiser of a component
# N(m, s^2), of s = 0.3, the mean of its samples falls short by about s sqrt(alpha_bar) = 7% of m.
_MOST_DATA_LEFT = 0.05
# Bounds of sigma / alpha where a chain starts, which multiplies the error of a network there. The
# upper one is alpha_bar = 0.005, little more than the default schedule's own start at 12.5. Chains
# of 5 steps get no further than the lower one without an error that the next steps magnify.
_LOWEST_START, _HIGHEST_START, _START_PER_STEP = 8.0, 14.1, 1.6


@methods_in_default_state
@dataclass(frozen=True)
class Schedule:
    """Variances beta_t of the forward process, t = 0 ... T - 1, and tables that follow from them.

    All tables are float64 [T]; index 0 is the least noisy timestep.

    Args:
        num_steps: number of timesteps T.
        name: one of :data:`SCHEDULES`, such as ``linear`` or ``cosine``.
        beta_start, beta_end: range of beta, rising; the cosine schedule has none and takes only
            the defaults.
        time_feature: the form in which networks see t: ``linspace`` is linspace(-1, 1, T),
            ``centered`` is 2 (t - T/2) / T, ``sinusoidal`` is the :func:`sinusoidal_embedding` of t
            of width 16; a :class:`.TimeEmbedding` is any other of this kind.

    Warns:
        ScheduleWarning: more than a twentieth of the data's variance is left at T - 1, so that even
            the best denoiser draws wrong samples.

    Raises:
        ValueError: T is no integer from 1 to 1,000,000, beta does not rise or is outside (0, 1) or
            of no effect, or a name is unknown.
    """

    num_steps: int = 500
    name: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    time_feature: str | TimeEmbedding = "linspace"

    def __post_init__(self):
        check_integer("num_steps", self.num_steps, 1)
        if self.num_steps > _MOST_TIMESTEPS:
            raise UserError(f"num_steps must be at most {_MOST_TIMESTEPS}, got {self.num_steps}")
        check_choice("schedule", self.name, SCHEDULES)
        self._check_time_feature()
        self._check_betas()
        left = self.alpha_bar[-1].item()
        if left < torch.finfo(torch.float64).tiny:
            raise UserError(
                f"num_steps must leave alpha_bar above 0 in float64, got {self.num_steps} with "
                f"beta from {self.beta_start} to {self.beta_end}"
            )
        if left > _MOST_DATA_LEFT:
            warnings.warn(
                f"the schedule leaves alpha_bar = {left:.2f} at its last timestep, and samples are "
                "right only if it is close to 0: take a larger beta_end, more timesteps or the "
                "cosine schedule",
                ScheduleWarning,
                stacklevel=5,  # who called the constructor
            )

    def _check_betas(self) -> None:
        for field, default in _BETAS.items():
            beta = getattr(self, field)
            if isinstance(beta, bool) or not isinstance(beta, Real) or not 0 < float(beta) < 1:
                raise UserError(f"{field} must be between 0 and 1 (both excluded), got {beta!r}")
            if self.name == "cosine" and beta != default:
                raise UserError(f"{field} must be left out with the cosine schedule, got {beta}")
        if self.beta_start > self.beta_end:
            raise UserError(
                f"beta_end must be at least beta_start, {self.beta_start}, got {self.beta_end}"
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

    def start_of(
        self, num_steps: int | None, *, start: int | None = None, all_levels: bool = False
    ) -> tuple[int, int]:
        """Returns the first timestep of a chain, and how many timesteps it visits.

        An error of the network's eps at the first timestep is multiplied by sigma / alpha, which
        is 10,000 at the end of a cosine schedule, and few large steps magnify what comes out. So a
        chain starts at the noisiest timestep where sigma / alpha is at most 8 in 5 steps, 14 in 9
        or more. Noisier timesteps are N(0, I) as well, up to less than a 64th of the data's
        variance, or a 200th. A chain of more steps than remain visits all that remain.

        Args:
            num_steps: number of timesteps to visit; None for all.
            start: the first timestep, as far as sigma / alpha is at most 14 there.
            all_levels: a chain of more steps than remain starts at T - 1 after all. The noise of
                DDPM corrects the errors of single small steps.

        Raises:
            ValueError: the number is not from 1 to T, or to ``start`` + 1; or ``start`` is no
                timestep.
        """
        last = self.num_steps - 1
        if start is not None:
            check_integer("start", start, 0, last)
            last = int(start)
        if num_steps is not None:
            check_integer("num_steps", num_steps, 1, last + 1)
        count = last + 1 if num_steps is None else int(num_steps)
        most = min(max(_START_PER_STEP * count, _LOWEST_START), _HIGHEST_START)
        if start is not None:
            most = _HIGHEST_START
        level = ((1 - self.alpha_bar) / self.alpha_bar).sqrt()
        first = min(last, max(0, int((level <= most).sum()) - 1))
        if all_levels and count > first + 1:
            first = last
        return first, min(count, first + 1)

    def inputs(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        """Returns a network's inputs [..., d + F]: points and the features of their timestep.

        Args:
            x_t: float32 [..., d].
            t: timestep, a number or int64 [...] on the CPU.
        """
        features = self.time_features[t].float().to(x_t.device)
        return torch.cat((x_t, features.expand(*x_t.shape[:-1], -1)), dim=-1)


def given_schedule(*arguments: Any, **options: Any) -> Schedule:
    """Returns a :class:`Schedule` without a warning: others have published or chosen it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        return Schedule(*arguments, **options)


def check_schedule(schedule: Schedule) -> None:
    """Raises :class:`UserError` unless it is a :class:`Schedule`."""
    if not isinstance(schedule, Schedule):
        raise UserError(f"schedule must be a Schedule, got {type(schedule).__name__}")


@in_default_state
def sinusoidal_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Returns sines and cosines of t at geometric frequencies (Vaswani et al. 2017, 3.5).

    Args:
        t: timesteps, any shape.
        dim: even number of features.
        max_period: the longest period is 2 pi times this.

    Returns:
        float64 [..., dim]: dim / 2 sines, then dim / 2 cosines.

    Raises:
        ValueError: t is no tensor, or dim is not a positive even number.
    """
    if not isinstance(t, Tensor):
        raise UserError(f"t must be a tensor, got {type(t).__name__}")
    check_integer("dim", dim, 2)
    if dim % 2:
        raise UserError(f"dim must be a positive even number, got {dim}")
    return TimeEmbedding(dim, base=max_period).features(t)
