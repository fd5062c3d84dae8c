"""Checks of what the user gave: one clear line for every wrong input."""

from collections.abc import Collection
from difflib import get_close_matches


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
    """Raises :class:`UserError` if the number is smaller than ``least``."""
    if not value >= least:
        raise UserError(f"{name} must be at least {least}, got {value}")


def check_seed(seed: int) -> int:
    """Returns the seed; raises :class:`UserError` if the generator does not take it."""
    if not 0 <= seed < 2**63:
        raise UserError(f"seed must be from 0 to 2**63 - 1, got {seed}")
    return seed
