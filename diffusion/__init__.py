"""Diffusion models of point clouds: data, schedules, models, training, sampling, metrics.

The names are imported when they are asked for: PyTorch takes seconds, in which the command line
would be silent and could not be interrupted without a traceback.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Returns a module of this package, or a public name."""
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if find_spec(f"{__name__}.{name}") is not None:
        return import_module(f".{name}", __name__)
    public = import_module(".public", __name__)
    try:
        found = getattr(public, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = found  # and asked for here no more
    return found


def __dir__() -> list[str]:
    """Returns the public names."""
    return sorted(import_module(".public", __name__).__all__)
