"""Checks of what the user gave: one clear line for every wrong input."""

from collections.abc import Collection
from difflib import get_close_matches


class UserError(ValueError):
    """A request that cannot be met; the message says why, and what is allowed."""


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Raises a :class:`UserError` that suggests the nearest allowed value.

    Args:
        name: name of the argument.
        value: the value given.
        allowed: the allowed values.
    """
    if value in allowed:
        return
    near = get_close_matches(str(value), allowed, n=1, cutoff=0)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{hint}")


def check_at_least(name: str, value: float, least: float) -> None:
    """Raises :class:`UserError` if the number is smaller than ``least``."""
    if not value >= least:
        raise UserError(f"{name} must be at least {least}, got {value}")


def check_seed(seed: int) -> int:
    """Returns the seed; raises :class:`UserError` if the generator does not take it."""
    if not 0 <= seed < 2**63:
        raise UserError(f"seed must be from 0 to 2**63 - 1, got {seed}")
    return seed
