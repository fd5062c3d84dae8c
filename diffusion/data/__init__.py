"""Data sets by name, and points from a user's file.

* :mod:`.points`: the class of every data set.
* :mod:`.load`: points of a user's file. :mod:`.reading` reads the formats, :mod:`.tables` those of
  text, :mod:`.columns` tells labels from coordinates, :mod:`.labels` numbers the classes.
* :mod:`.states`: points on the outlines of five US states.
* :mod:`.clouds`: points in two and three dimensions whose distribution is known.
* :mod:`.images`: digits, and FashionMNIST from the user's files.
* :mod:`.standardisation`: the map between a user's units and points of order one.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path

from ...kernels.default_state import in_default_state
from ..errors import UserError, check_choice
from .clouds import blobs, circles, helix, manycircles, moons, sin_5_5
from .images import digits, fashion_mnist, is_fashion_mnist
from .labels import class_number
from .load import load_points
from .points import Points
from .reading import FILE_TYPES, read_content
from .standardisation import Standardisation
from .states import STATE_NAMES, states_points

__all__ = [
    "DATASETS",
    "STATE_NAMES",
    "Points",
    "Standardisation",
    "class_number",
    "dataset",
    "digits",
    "fashion_mnist",
    "load_points",
    "read_content",
    "states_points",
]

DATASETS: dict[str, Callable[[], Points]] = {
    "states": states_points,
    "moons": moons,
    "circles": circles,
    "blobs": blobs,
    "manycircles": manycircles,
    "helix": helix,
    "sin_5_5": sin_5_5,
    "digits": digits,
}


@in_default_state
def dataset(
    name: str | Path,
    labels: str | None = None,
    standardise: bool | Standardisation = False,
    say: Callable[[str], None] = print,
) -> Points:
    """Returns a data set by its name, or the points of a file.

    Args:
        name: one of :data:`DATASETS`; or a file that :func:`load_points` reads; or FashionMNIST, a
            folder with its IDX files or an ``.npz`` (see :func:`fashion_mnist`).
        labels, standardise, say: see :func:`load_points`; they are for a file of points. Other data
            sets stay as they were published, unless ``standardise`` is a map to use.

    Raises:
        ValueError: there is neither such a data set nor such a file, or it cannot be read.
    """
    if not isinstance(name, (str, PathLike)):
        raise UserError(f"data must be a name or a path, got {type(name).__name__}")
    published = _published(name)
    if published is None:
        return load_points(_file(name), labels, standardise, say)
    if labels is not None:
        raise UserError(f"labels must be left out: {name} has its own, got {labels!r}")
    if isinstance(standardise, Standardisation):
        return published.standardised(standardise)
    return published


def _published(name: str | Path) -> Points | None:
    """Returns a data set as it was published; None for a user's file."""
    if str(name) in DATASETS:
        return DATASETS[str(name)]()
    path = Path(name)
    if is_fashion_mnist(path):
        return fashion_mnist(path)
    if path.is_dir():
        raise UserError(f"data folder {path} holds no IDX files of FashionMNIST")
    return None


def _file(name: str | Path) -> Path:
    path = Path(name)
    if not (path.exists() or path.suffix.lower() in FILE_TYPES or len(path.parts) > 1):
        files = f"or a file ({', '.join(FILE_TYPES)})"
        check_choice("data", str(name), DATASETS, other=files)
    return path
