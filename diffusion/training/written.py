"""Recipes and schedules as text, which files keep to tell whether they are still the same."""

from dataclasses import fields
from typing import Any

# Fields of recipes and schedules that files of older versions lack, with the values of that time.
_ADDED_FIELDS: dict[str, tuple] = {
    "prediction": (None, "eps"),
    "weighting": ("uniform",),
    "t_density": ("uniform",),
    "p_mean": (None,),
    "p_std": (None,),
    "zero_terminal_snr": (False,),
    "sigma_min": (0.002,),
    "sigma_max": (80.0,),
    "sigma_data": (1.0,),
}


def known_fields(setting: Any) -> dict[str, Any]:
    """Returns the values of a recipe's or schedule's fields by name, as far as they say something.

    Fields that older versions did not have are left out where they have the value of that time.
    """
    values = {one.name: getattr(setting, one.name) for one in fields(setting)}
    return {
        name: value
        for name, value in values.items()
        if name not in _ADDED_FIELDS or value not in _ADDED_FIELDS[name]
    }


def written(setting: Any) -> str:
    """Returns the text of the :func:`known_fields`, in the form of ``repr``."""
    known = ", ".join(f"{name}={value!r}" for name, value in known_fields(setting).items())
    return f"{type(setting).__qualname__}({known})"
