"""Which of the T timesteps a chain of S steps visits: named spacings, and a list of one's own."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import UserError, shown
from .schedules import Schedule

_RHO = 7.0  # Karras et al. 2022, section 5: more of the steps where the noise is low
_HIGHEST_SIGMA = 80.0  # Karras et al. 2022, table 1


def _linspace(schedule: Schedule, first: int, count: int) -> Tensor:  # noqa: ARG001
    """Returns evenly spaced timesteps, both ends included."""
    return torch.linspace(first, 0, count, dtype=torch.float64).round().long()


def _leading(schedule: Schedule, first: int, count: int) -> Tensor:  # noqa: ARG001
    """Returns every k-th timestep from 0 up, k = T // S; the last one may be left out."""
    return torch.arange(count).flip(0) * ((first + 1) // count)


def _trailing(schedule: Schedule, first: int, count: int) -> Tensor:  # noqa: ARG001
    """Returns every (T / S)-th timestep from the last one down; 0 may be left out."""
    total = first + 1
    down = torch.arange(count, dtype=torch.float64) * (total / count)
    return (total - down).round().long() - 1


def _karras(schedule: Schedule, first: int, count: int) -> Tensor:
    """Returns the timesteps nearest to an even spacing of sigma^(1/7), both ends included.

    Source: Karras et al. 2022, equation 5. If the nearest timestep is already taken, the next
    noisier one is visited. Where no data is left sigma is infinite, and counts as 80.
    """
    log_sigma = schedule.sigma[: first + 1].log()
    ends = log_sigma[[-1, 0]].nan_to_num(posinf=math.log(_HIGHEST_SIGMA))
    highest, lowest = (ends / _RHO).exp().tolist()
    wanted = _RHO * torch.linspace(highest, lowest, count, dtype=torch.float64).log()
    nearest = (log_sigma - wanted[:, None]).abs().argmin(dim=1).flip(0)
    nearest[-1] = first
    place = torch.arange(count)
    distinct = (nearest - place).cummax(0).values + place
    return torch.minimum(distinct, first + 1 - count + place).flip(0)


class Spacing(NamedTuple):
    """A spacing of timesteps; an entry of :data:`SPACINGS`."""

    # of the schedule, the first timestep and S; int64 [S], decreasing
    timesteps: Callable[[Schedule, int, int], Tensor]
    # whether it is spread over all timesteps, as published, or from Schedule.start_of on
    over_all: bool


SPACINGS = {
    "linspace": Spacing(_linspace, over_all=False),
    "karras": Spacing(_karras, over_all=False),
    "leading": Spacing(_leading, over_all=True),
    "trailing": Spacing(_trailing, over_all=True),
}


def given_timesteps(schedule: Schedule, given: Sequence[int] | Tensor) -> Tensor:
    """Returns timesteps that the user chose, int64 [S] on the CPU.

    Raises:
        ValueError: they are no whole numbers that fall, from T - 1 at most to 0 at least.
    """
    try:
        steps = torch.as_tensor(given, device="cpu").to_dense()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"timesteps must be whole numbers, got {shown(given)}") from error
    check_timesteps("timesteps", steps, schedule)
    if not isinstance(given, Tensor | np.ndarray) and any(isinstance(t, bool) for t in given):
        raise UserError(f"timesteps must be whole numbers, got {shown(given)}")
    return steps.long()


def check_timesteps(name: str, steps: Tensor, schedule: Schedule) -> None:
    """Raises :class:`UserError` unless it is a tensor of decreasing timesteps of the schedule."""
    whole = isinstance(steps, Tensor) and not (steps.is_floating_point() or steps.is_complex())
    if not whole or steps.dtype == torch.bool or steps.dim() != 1 or not len(steps):
        raise UserError(f"{name} must be a tensor int64 [S], got {shown(steps)}")
    steps = steps.long()  # differences of unsigned numbers wrap
    if not schedule.num_steps > steps[0] or not steps[-1] >= 0 or not (steps.diff() < 0).all():
        raise UserError(
            f"{name} must fall, from {schedule.num_steps - 1} at most to 0 at least, "
            f"got {shown(steps.tolist())}"
        )
