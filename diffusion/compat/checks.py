"""Checks of what scripts of other libraries pass; each error is one line."""

import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, shown

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def integer(name: str, value: object, least: int, most: int | None = None) -> int:
    """Returns a whole number, perhaps numpy's or a tensor of one, as an int.

    Args:
        name: name of the argument.
        value: the value given.
        least: the smallest that is allowed.
        most: the largest that is allowed; None for no limit.

    Raises:
        ValueError: it is no whole number, or out of range.
    """
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    number = None if _is_bool(value) else _index(value)
    if number is None or number < least or (most is not None and number > most):
        raise UserError(f"{name} must be an integer {limits}, got {shown(value)}")
    return number


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """Returns a finite number in [least, most] as a float.

    Raises:
        ValueError: it is no number, not finite, or out of range.
    """
    try:
        result = math.nan if isinstance(value, str) or _is_bool(value) else float(value)
    except (TypeError, ValueError, RuntimeError):
        result = math.nan
    if not (least <= result <= most and math.isfinite(result)):
        limits = f" from {least:g} to {most:g}" if most < math.inf else f" of at least {least:g}"
        limits = "" if least == -math.inf else limits
        raise UserError(f"{name} must be a finite number{limits}, got {shown(value)}")
    return result


def numbers(name: str, value: Any) -> np.ndarray:
    """Returns a sequence, array or tensor of one finite number or more as float64 [N].

    Raises:
        ValueError: it is something else.
    """
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu().double()
        result = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        result = np.empty(0)
    if result.ndim != 1 or len(result) == 0 or not np.isfinite(result).all():
        raise UserError(f"{name} must be one finite number or more, got {shown(value)}")
    return result


def falling(name: str, values: np.ndarray, value: object, *, strictly: bool) -> None:
    """Raises :class:`UserError` unless numbers [N] do not rise, or, if strictly, fall.

    Args:
        name: name of the argument.
        values: the numbers.
        value: the argument as it was given.
        strictly: True allows no equal neighbours.
    """
    steps = np.diff(values)
    if (steps > 0).any() or (strictly and (steps == 0).any()):
        raise UserError(f"{name} must descend, got {shown(value)}")


def flag(name: str, value: object) -> bool:
    """Returns True or False as a bool.

    Raises:
        ValueError: it is neither.
    """
    if not _is_bool(value):
        raise UserError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def path(name: str, value: object) -> Path:
    """Returns the name of a file or folder as a path.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str | Path):
        raise UserError(f"{name} must be a path, got {shown(value)}")
    return Path(value)


def points(name: str, value: object) -> Tensor:
    """Returns the value, a dense tensor of floating-point numbers with at least one axis.

    Raises:
        ValueError: it is something else.
    """
    fits = isinstance(value, Tensor) and value.dtype in _FLOATS and value.layout == torch.strided
    if not isinstance(value, Tensor) or not fits or value.dim() == 0 or value.shape[-1] == 0:
        raise UserError(f"{name} must be a float tensor [B, ..., d], got {shown(value)}")
    return value


def like(name: str, value: object, other: str, x: Tensor, doubled: bool = False) -> Tensor:
    """Returns the value, a tensor of floating-point numbers of the shape and on the device of x.

    Args:
        name: name of the argument.
        value: the value given.
        other: name of x.
        x: float [B, ..., d].
        doubled: True wants twice as many entries along axis 1.

    Raises:
        ValueError: it is no such tensor.
    """
    tensor = points(name, value)
    shape = [*x.shape]
    if doubled:
        shape[1:2] = [2 * size for size in shape[1:2]]
    if list(tensor.shape) != shape:
        relation = f"{other} with axis 1 doubled" if doubled else other
        raise UserError(
            f"{name} must have the shape of {relation}, {shape}, got {list(tensor.shape)}"
        )
    if tensor.device != x.device:
        raise UserError(f"{name} must be on {x.device} like {other}, got {tensor.device}")
    return tensor


def timesteps(value: object, rows: int | None, total: int) -> Tensor:
    """Returns timesteps as int64 [B], or [1] for all; without rows on the CPU.

    Args:
        value: the argument ``timesteps``: one integer, or one for each of the rows.
        rows: number of rows B; None allows any number of timesteps.
        total: number of timesteps T.

    Raises:
        ValueError: they are no integers, of another number or out of range.
    """
    allowed = f"one integer from 0 to {total - 1}, or one for each of {rows} rows"
    if rows is None:
        allowed = f"integers from 0 to {total - 1}"
    t = tensor(value)
    if t is None or t.dtype == torch.bool or t.is_floating_point() or t.is_complex():
        raise UserError(f"timesteps must be {allowed}, got {shown(value)}")
    t = t.long().flatten()
    if rows is None:
        t = t.cpu()
    if rows is not None and len(t) not in (1, rows):
        raise UserError(f"timesteps must be {allowed}, got {len(t)} of them")
    if len(t) and t.device.type == "cpu":  # on a GPU q_sample looks, which waits once
        low, high = torch.stack(t.aminmax()).tolist()
        if low < 0 or high >= total:
            raise UserError(f"timesteps must be {allowed}, got values from {low} to {high}")
    return t


def finite(**tensors: Tensor) -> None:
    """Raises :class:`UserError` that names the first tensor with NaN or an infinity in it.

    It looks at tensors on the CPU alone: on a GPU each step would wait for the one before.
    """
    if torch.compiler.is_compiling() or any(x.device.type != "cpu" for x in tensors.values()):
        return
    try:  # a sum costs a tenth of looking at each number, and none that is not finite escapes it
        total = float(sum(x.detach().sum(dtype=_sum_dtype(x)) for x in tensors.values()))
    except RuntimeError:  # torch.func.vmap shows no values
        return
    if math.isfinite(total):
        return
    for name, x in tensors.items():
        bad = (~x.isfinite()).reshape(len(x), -1).any(1)
        if bad.any():
            raise UserError(
                f"{name} must be finite, got NaN or infinity in {int(bad.sum())} of {len(x)} rows"
            )


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def generators(value: object, rows: int) -> torch.Generator | Sequence[torch.Generator] | None:
    """Returns the argument ``generator``: None, one, or one for each row; of a list of one, that.

    Raises:
        ValueError: it is something else, or there are more or fewer than rows.
    """
    if value is None or isinstance(value, torch.Generator):
        return value
    if not isinstance(value, list | tuple) or not all(
        isinstance(one, torch.Generator) for one in value
    ):
        raise UserError(
            f"generator must be a torch.Generator or a list of one for each row, got {shown(value)}"
        )
    if rows == 0:
        return None
    if len(value) == 1:
        return value[0]
    if len(value) != rows:
        raise UserError(
            f"generator must be one torch.Generator or a list of one for each of {rows} rows, "
            f"got {len(value)} of them"
        )
    return value


def _is_bool(value: object) -> bool:
    is_tensor = isinstance(value, Tensor) and value.dtype == torch.bool
    return is_tensor or isinstance(value, bool | np.bool_)


def _index(value: Any) -> int | None:
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def tensor(value: Any) -> Tensor | None:
    """Returns a value as a tensor; None if it is nothing of the kind."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None
