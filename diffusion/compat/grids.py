"""The timesteps and noise levels that chains visit, with the rounding of diffusers.

A noise level is sigma, the weight of eps beside x_0 of weight 1; tables ascend with the timestep,
chains descend.
"""

import math
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from ..errors import UserError, shown

_RHO = 7.0  # Karras et al. 2022, section 5
_BETA_SHAPE = 0.6, 0.6  # Lee et al. 2024, "Beta Sampling is All You Need"


def spaced(spacing: str, total: int, count: int, offset: int) -> np.ndarray:
    """Returns timesteps by their spacing (Lin et al. 2024, table 2), descending, float64.

    Args:
        spacing: ``linspace``, whose timesteps may be fractions, ``leading`` or ``trailing``.
        total: number of timesteps T.
        count: number of those that are visited.
        offset: added to the timesteps of ``leading``.

    Raises:
        ValueError: the offset leads beyond the last timestep.
    """
    if spacing == "linspace":
        return np.linspace(0, total - 1, count)[::-1]
    if spacing == "trailing":
        return np.arange(total, 0, -total / count).round() - 1
    return _leading(total, count, total // count, offset)


def spaced_before_end(spacing: str, last: int, total: int, count: int, offset: int) -> np.ndarray:
    """Returns the same for a chain that does not visit timestep 0, as DPM-Solver's does not.

    Args:
        spacing, total, count, offset: see :func:`spaced`.
        last: the number of timesteps that may be visited.
    """
    if spacing == "linspace":
        return np.linspace(0, last - 1, count + 1).round()[::-1][:-1]
    if spacing == "trailing":
        return np.arange(last, 0, -total / count).round() - 1
    return _leading(total, count + 1, last // (count + 1), offset)[:-1]


def _leading(total: int, count: int, stride: int, offset: int) -> np.ndarray:
    steps = np.arange(count, dtype=np.float64)[::-1] * stride + offset
    if steps[0] >= total:
        raise UserError(
            f"steps_offset must be at most {total - 1 - (count - 1) * stride} with "
            f"{count} of {total} steps, got {offset}"
        )
    return steps


def karras(high: float, low: float, count: int) -> np.ndarray:
    """Returns noise levels with evenly spaced seventh roots (Karras et al. 2022, equation 5)."""
    ramp = np.linspace(0, 1, count)
    start, end = high ** (1 / _RHO), low ** (1 / _RHO)
    return (start + ramp * (end - start)) ** _RHO


def exponential(high: float, low: float, count: int) -> np.ndarray:
    """Returns noise levels with evenly spaced logarithms."""
    return np.exp(np.linspace(math.log(high), math.log(low), count))


def beta(high: float, low: float, count: int) -> np.ndarray:
    """Returns noise levels at quantiles of a beta distribution (Lee et al. 2024)."""
    return low + scipy.stats.beta.ppf(1 - np.linspace(0, 1, count), *_BETA_SHAPE) * (high - low)


def chosen(scheduler: Any, high: float, low: float, count: int) -> np.ndarray | None:
    """Returns the noise levels of the setting that chooses them; None if none of them is set.

    Args:
        scheduler: has the settings ``use_karras_sigmas`` and so on.
        high, low: the first and the last noise level.
        count: their number.
    """
    if scheduler.use_karras_sigmas:
        return karras(high, low, count)
    if scheduler.use_exponential_sigmas:
        return exponential(high, low, count)
    return beta(high, low, count) if scheduler.use_beta_sigmas else None


def timesteps_of(sigmas: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Returns the timesteps, perhaps fractions, of noise levels [S], by their logarithms.

    Args:
        sigmas: noise levels [S].
        table: the logarithm of the noise level of each timestep, [T].
    """
    logs = np.log(np.maximum(sigmas, 1e-10))
    reached = np.cumsum(logs >= table[:, None], axis=0)  # [T, S]
    low = reached.argmax(axis=0).clip(max=len(table) - 2)
    share = np.clip((table[low] - logs) / (table[low] - table[low + 1]), 0, 1)
    return (1 - share) * low + share * (low + 1)


def moved(values: np.ndarray | Tensor, device: str | torch.device | None) -> Tensor:
    """Returns timesteps on a device; None is the CPU.

    Raises:
        ValueError: there is no such device.
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values.copy())
    try:
        return tensor.to(device=device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device must be one that this machine has, got {shown(device)}") from error
