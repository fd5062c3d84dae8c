"""The kinds of values that fields of settings take, and how values of files and texts are read."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args

from .errors import UserError, did_you_mean, shown

KINDS = {  # of values, with what is allowed in words
    tuple: "widths like 64x3 or 64-128-64",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a name",
    NoneType: "none",
}
NOTHING = object()  # in place of a value


def kinds_of(annotation: Any) -> tuple[type, ...]:
    """Returns the kinds of values that a field of this annotation takes."""
    choices = get_args(annotation)
    if not choices or annotation == tuple[int, ...]:
        choices = (annotation,)
    found = {getattr(choice, "__origin__", None) or choice for choice in choices}
    return tuple(kind for kind in KINDS if kind in found)


def kinds_by_name(*owners: type) -> dict[str, tuple[type, ...]]:
    """Returns the kinds of values of each field of some dataclasses, by the name of the field."""
    return {one.name: kinds_of(one.type) for owner in owners for one in fields(owner)}


def as_kind(kind: type, given: Any) -> Any:
    """Returns a value that is no text as one of a kind, or ``NOTHING`` if it is none."""
    if isinstance(given, bool) or given is None:
        return given if isinstance(given, kind) and kind is not int else NOTHING
    if kind is tuple:
        widths = given if isinstance(given, Sequence) else [given]
        whole = all(isinstance(one, Integral) and not isinstance(one, bool) for one in widths)
        return tuple(map(int, widths)) if whole else NOTHING
    if kind is int and isinstance(given, Integral):
        return int(given)
    if kind is float and isinstance(given, Real):
        return float(given)
    return NOTHING


def of_text(kind: type, text: str) -> Any:
    """Returns a text as a value of a kind, or ``NOTHING`` if it is none."""
    if kind is NoneType:
        return None if text.lower() == "none" else NOTHING
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), NOTHING)
    if kind is str:
        return text if text and text.lower() != "none" else NOTHING
    try:
        return _widths(text) if kind is tuple else kind(text)
    except ValueError:
        return NOTHING


def _widths(text: str) -> tuple[int, ...]:
    """Returns the widths in a text like 64x3, 64-128-64 or 256-64x2."""
    widths: list[int] = []
    for part in text.split("-"):
        width, x, times = part.partition("x")
        count = int(times) if x else 1
        if not 1 <= count <= 1000:
            raise ValueError
        widths += [int(width)] * count
    return tuple(widths)


def of_file(name: str, kinds: Sequence[type], given: Any) -> Any:
    """Returns a value of TOML or JSON as its field takes it.

    A text is a number nowhere, but widths may be one, and ``none`` stands for JSON's null, which
    TOML lacks.

    Args:
        name: name of the value, for messages.
        kinds: the kinds of values that the field takes.
        given: the value.

    Raises:
        ValueError: the value is of another kind.
    """
    for kind in kinds:
        if isinstance(given, str):
            value = of_text(kind, given) if kind in (tuple, str, NoneType) else NOTHING
        else:
            value = as_kind(kind, given)
        if value is not NOTHING:
            return value
    raise UserError(f"{name} must be {in_words(kinds)}, got {shown(given)}")


def in_words(kinds: Sequence[type]) -> str:
    """Returns what values of some kinds may be, for a message."""
    return " or ".join(KINDS[kind] for kind in kinds)


def checked(
    part: str,
    given: Any,
    kinds: Mapping[str, Sequence[type]],
    others: Sequence[str] = (),
    elsewhere: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Returns the values of a table of TOML or JSON, as the fields that it names take them.

    Args:
        part: name of the table, for messages; empty for that of the whole file.
        given: the table.
        kinds: kinds of values by name of the field.
        others: further names, whose values are returned as they are.
        elsewhere: full names of what belongs into other tables, by name, for messages.

    Raises:
        ValueError: it is no table, a name is unknown, or a value is of a wrong kind.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"{part or 'settings'} must be a table, got {shown(given)}")
    values = {}
    for name, value in given.items():
        full = f"{part}.{name}" if part else str(name)
        if name in others:
            values[name] = value
        elif name in kinds:
            values[name] = of_file(full, kinds[name], value)
        else:
            raise UserError(f"{full} is no setting{_hint(str(name), kinds, others, elsewhere)}")
    return values


def _hint(
    name: str,
    kinds: Mapping[str, Sequence[type]],
    others: Sequence[str],
    elsewhere: Mapping[str, str] | None,
) -> str:
    """Returns the known name that an unknown one may stand for, or all of them."""
    known = list(dict.fromkeys((*kinds, *others)))
    near = did_you_mean(name, known)
    found = get_close_matches(name, elsewhere or {}, n=1)
    if elsewhere and found and (not near or name in elsewhere):
        return f"; did you mean {elsewhere[found[0]]!r}?"
    return near or f"; known are {', '.join(known)}"
