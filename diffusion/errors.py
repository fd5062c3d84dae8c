"""Checks of what the user gave: one clear line for every wrong input."""

import math
from collections.abc import Collection
from difflib import get_close_matches
from numbers import Integral, Real


class UserError(ValueError):
    """A request that cannot be met; the message says why, and what is allowed."""


def check_choice(name: str, value: str, allowed: Collection[str], other: str = "") -> None:
    """Raises a :class:`UserError` that suggests an allowed value if one is near.

    Args:
        name: name of the argument.
        value: the value given.
        allowed: the allowed values.
        other: what else is allowed, in words.
    """
    if isinstance(value, str) and value in allowed:
        return
    near = _nearest(str(value).lower(), {choice.lower(): choice for choice in allowed})
    hint = f"; did you mean {near!r}?" if near else ""
    choices = " ".join(filter(None, (", ".join(allowed), other)))
    raise UserError(f"{name} must be one of {choices}, got {value!r}{hint}")


def _nearest(value: str, by_lower: dict[str, str]) -> str | None:
    """Returns the choice that is meant by a beginning or a misspelling of it, if there is one."""
    begun = [choice for choice in by_lower if len(value) > 1 and choice.startswith(value)]
    near = begun or get_close_matches(value, by_lower, n=1)
    return by_lower[near[0]] if near else None


def check_at_least(name: str, value: float, least: float) -> None:
    """Raises :class:`UserError` unless it is a number of at least ``least``."""
    if not (_is_number(value) and value >= least):
        raise UserError(f"{name} must be at least {least}, got {value!r}")


def check_integer(name: str, value: int, least: int, most: int | None = None) -> None:
    """Raises :class:`UserError` unless it is an integer from ``least`` to ``most``, if any."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"{name} must be an integer, got {value!r}")
    if most is None:
        check_at_least(name, int(value), least)
    elif not least <= value <= most:
        raise UserError(f"{name} must be from {least} to {most}, got {int(value)}")


def check_number(name: str, value: float, least: float = -math.inf, most: float = math.inf) -> None:
    """Raises :class:`UserError` unless it is a finite number from ``least`` to ``most``."""
    if _is_number(value) and math.isfinite(value) and least <= value <= most:
        return
    allowed = "finite, a number"
    if math.isfinite(least):
        allowed = f"at least {least} and finite" if most == math.inf else f"from {least} to {most}"
    raise UserError(f"{name} must be {allowed}, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_seed(seed: int) -> int:
    """Returns the seed; raises :class:`UserError` if the generator does not take it."""
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise UserError(f"seed must be an integer, got {seed!r}")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed must be from 0 to 2**63 - 1, got {seed}")
    return int(seed)


class ScheduleWarning(UserWarning):
    """A schedule leaves so much of the data in x_T that no denoiser draws the right samples."""
