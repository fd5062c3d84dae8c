"""Diffusion models of point clouds: data, schedules, models, training, sampling, metrics.

The names are imported when the first of them is asked for: PyTorch takes seconds, in which the
command line would be silent and could not be interrupted without a traceback.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Returns a public name, or a module of this package."""
    public = import_module(".public", __name__)
    module = sys.modules.get(f"{__name__}.{name}")
    try:
        found = getattr(public, name) if module is None else module
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = found  # and asked for here no more
    return found


def __dir__() -> list[str]:
    """Returns the public names."""
    return sorted(import_module(".public", __name__).__all__)
