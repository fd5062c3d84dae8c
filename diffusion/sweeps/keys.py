"""The keys of a sweep: each field of recipe, schedule and sampling, and how its values are read."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from ..chains import SampleConfig
from ..errors import UserError, did_you_mean, shown
from ..kinds import NOTHING, as_kind, in_words, kinds_of, of_text
from ..schedules import Schedule
from ..training import ClassicRecipe, Recipe

_MOST_VALUES = 100_000  # of a key


class Key(NamedTuple):
    """What a key of a sweep sets."""

    part: str  # schedule, recipe, sampling, or model for the seed and the recipe to start from
    field: str  # of the part
    kinds: tuple[type, ...]  # of its values


def _keys() -> dict[str, Key]:
    """Returns every key, by its name."""
    keys = {"seed": Key("model", "seed", (int,)), "recipe": Key("model", "recipe", (str,))}
    parts: tuple[tuple[str, tuple[type, ...], set[str], dict[str, str]], ...] = (
        # A recipe's prediction is that of the schedule, which alone says what a model predicts.
        ("recipe", (Recipe, ClassicRecipe), {"decay", "prediction"}, {}),
        ("schedule", (Schedule,), set(), {"name": "schedule", "num_steps": "timesteps"}),
        (
            "sampling", (SampleConfig,),
            {"model", "schedule", "seed", "classifier", "label", "x_T", "init", "start"},
            {"num_steps": "sampling_steps"},
        ),
    )  # fmt: skip
    for part, owners, without, names in parts:
        for one in (one for owner in owners for one in fields(owner)):
            kinds = kinds_of(one.type)
            if one.name not in without and set(kinds) - {NoneType}:
                keys.setdefault(names.get(one.name, one.name), Key(part, one.name, kinds))
    return {**keys, "hidden": keys["hidden_layers"]}


KEYS = _keys()


def key_of(name: str) -> str:
    """Returns the name of a key, of which options are written with hyphens.

    Raises:
        ValueError: there is no such key.
    """
    if not isinstance(name, str):
        raise UserError(f"a key of a sweep must be a name, got {shown(name)}")
    key = name.strip().replace("-", "_")
    if key not in KEYS:
        hint = did_you_mean(key, KEYS) or f"; the keys are {', '.join(KEYS)}"
        raise UserError(f"a sweep has no key {shown(name)}{hint}")
    return key


def values_of(key: str, given: Any) -> tuple:
    """Returns the values of a key, each once.

    Args:
        key: name of the key.
        given: text like ``1e-3,3e-3`` or ``0..9``, a list of values, or one value.

    Raises:
        ValueError: there is no value, one is of a wrong kind, or given twice.
    """
    values = []
    for item in _items(given):
        parts = item.split(",") if isinstance(item, str) else [item]
        for part in parts:
            values += _range(key, part) if isinstance(part, str) else [_converted(key, part)]
    if not values:
        raise UserError(f"{key} must have at least one value, got none")
    if len(values) > _MOST_VALUES:
        raise UserError(f"{key} must have at most {_MOST_VALUES:,} values, got {len(values):,}")
    seen: set = set()
    for value in values:
        if value in seen:
            raise UserError(f"{key} holds {text_of(value)} twice{_joined(key)}")
        seen.add(value)
    return tuple(values)


def _joined(key: str) -> str:
    """Returns how the widths of one network are written, for a message about them."""
    if tuple not in KEYS[key].kinds:
        return ""
    return "; the widths of one network are joined by hyphens, as in 64-128-128"


def _items(given: Any) -> Iterable:
    is_list = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
    return list(given) if is_list else [given]


def _range(key: str, text: str) -> list:
    """Returns the value of a text, or those of a range like ``0..9``, both ends included."""
    low, dots, high = text.strip().partition("..")
    if not dots or int not in KEYS[key].kinds:
        return [_converted(key, text.strip())]
    first, last = (_read(key, int, end, text) for end in (low, high))
    if last < first or last - first >= _MOST_VALUES:
        raise UserError(
            f"{key} must be a range that rises, over at most {_MOST_VALUES:,} numbers, got {text!r}"
        )
    return list(range(first, last + 1))


def _converted(key: str, given: Any) -> Any:
    """Returns a value as its field takes it, of text or of a value in Python or TOML."""
    if isinstance(given, np.ndarray | np.generic):
        given = given.tolist()
    for kind in KEYS[key].kinds:
        value = of_text(kind, given) if isinstance(given, str) else as_kind(kind, given)
        if value is not NOTHING:
            return value
    raise _wrong(key, given)


def _read(key: str, kind: type, text: str, whole: str) -> Any:
    value = of_text(kind, text.strip())
    if value is NOTHING:
        raise _wrong(key, whole)
    return value


def _wrong(key: str, given: Any) -> UserError:
    return UserError(f"{key} must be {in_words(KEYS[key].kinds)}, got {shown(given)}")


def text_of(value: Any) -> str:
    """Returns a value as tables show it, and as ``--set`` takes it."""
    if isinstance(value, tuple):
        first, count = (value[0], len(value)) if value else (0, 0)
        if count > 1 and value == (first,) * count:
            return f"{first}x{count}"
        return "-".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)
