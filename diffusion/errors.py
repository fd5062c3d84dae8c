"""Checks of what the user gave: one clear line for every wrong input."""

import math
import sys
from collections.abc import Collection
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any


class UserError(ValueError):
    """A request that cannot be met; the message says why, and what is allowed."""


def check_choice(name: str, value: object, allowed: Collection[str], other: str = "") -> None:
    """Raises a :class:`UserError` that suggests an allowed value if one is near.

    Args:
        name: name of the argument.
        value: the value given.
        allowed: the allowed values.
        other: what else is allowed, in words.
    """
    if isinstance(value, str) and value in allowed:
        return
    hint = did_you_mean(value, allowed) if isinstance(value, str) else ""
    choices = " ".join(filter(None, (", ".join(allowed), other)))
    raise UserError(f"{name} must be one of {choices}, got {shown(value)}{hint}")


def did_you_mean(value: str, allowed: Collection[str], most: int = 1) -> str:
    """Returns a question for what a beginning or a misspelling may stand for; empty for nothing.

    Args:
        value: the value given.
        allowed: the allowed values.
        most: number of values that the question names at most.
    """
    by_lower, value = {choice.lower(): choice for choice in allowed}, value.lower()
    begun = [choice for choice in by_lower if len(value) > 1 and choice.startswith(value)]
    near = begun[:most] or get_close_matches(value, by_lower, n=most)
    return f"; did you mean {' or '.join(repr(by_lower[one]) for one in near)}?" if near else ""


def shown(value: Any) -> str:
    """Returns a value as it appears in an error: short and on one line."""
    tensor, array = _is_a("torch", "Tensor", value), _is_a("numpy", "ndarray", value)
    if tensor or array:
        kind = "a tensor" if tensor else "an array"
        if tensor and str(value.layout) != "torch.strided":
            kind = f"a {str(value.layout).removeprefix('torch.')} tensor"
        if value.ndim == 0:
            return f"{value.item()!r} in {kind}"
        return f"{kind} of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_a(package: str, name: str, value: object) -> bool:
    """Returns True for a value of a package's type; nobody has one before the package is there."""
    kind = getattr(sys.modules.get(package), name, None)
    return kind is not None and isinstance(value, kind)


def check_integer(name: str, value: int, least: int | None = None, most: int | None = None) -> None:
    """Raises :class:`UserError` unless it is an integer from ``least`` to ``most``, if any."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"{name} must be an integer, got {shown(value)}")
    if least is None or (least <= value and (most is None or value <= most)):
        return
    if most is None:
        raise UserError(f"{name} must be at least {least}, got {int(value)}")
    raise UserError(f"{name} must be from {least} to {most}, got {int(value)}")


def check_number(name: str, value: float, least: float = -math.inf, most: float = math.inf) -> None:
    """Raises :class:`UserError` unless it is a finite number from ``least`` to ``most``."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if number and abs(value) <= sys.float_info.max and least <= value <= most:
        return
    allowed = "finite, a number"
    if math.isfinite(least):
        allowed = f"at least {least} and finite" if most == math.inf else f"from {least} to {most}"
    raise UserError(f"{name} must be {allowed}, got {shown(value)}")


def check_seed(seed: int) -> int:
    """Returns the seed; raises :class:`UserError` if the generator does not take it."""
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise UserError(f"seed must be an integer, got {shown(seed)}")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed must be from 0 to 2**63 - 1, got {seed}")
    return int(seed)


class ScheduleWarning(UserWarning):
    """A schedule leaves so much of the data in x_T that no denoiser draws the right samples."""
