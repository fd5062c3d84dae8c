"""Data sets by name, and points from a user's file.

* :mod:`.points`: the class of every data set, and the files it is read from.
* :mod:`.states`: points on the outlines of five US states.
* :mod:`.clouds`: points in two and three dimensions whose distribution is known.
* :mod:`.images`: digits, and FashionMNIST from the user's files.
* :mod:`.standardisation`: the map between a user's units and points of order one.
"""

from collections.abc import Callable
from pathlib import Path

from ..errors import UserError, check_choice
from .clouds import blobs, circles, helix, manycircles, moons, sin_5_5
from .images import digits, fashion_mnist, is_fashion_mnist
from .points import FILE_TYPES, Points, load_points
from .standardisation import Standardisation
from .states import STATE_NAMES, states_points

__all__ = [
    "DATASETS",
    "STATE_NAMES",
    "Points",
    "Standardisation",
    "dataset",
    "digits",
    "fashion_mnist",
    "load_points",
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


def dataset(name: str | Path) -> Points:
    """Returns a data set by its name, or the points of a file.

    Args:
        name: one of :data:`DATASETS`; or a file that :func:`load_points` reads; or FashionMNIST, a
            folder with its IDX files or an ``.npz`` (see :func:`fashion_mnist`).

    Raises:
        ValueError: there is neither such a data set nor such a file, or it cannot be read.
    """
    if str(name) in DATASETS:
        return DATASETS[str(name)]()
    path = Path(name)
    if is_fashion_mnist(path):
        return fashion_mnist(path)
    if path.is_dir():
        raise UserError(f"data folder {path} holds no IDX files of FashionMNIST")
    if path.exists() or path.suffix.lower() in FILE_TYPES or len(path.parts) > 1:
        return load_points(path)
    check_choice("data", str(name), (*DATASETS, *(f"FILE{ending}" for ending in FILE_TYPES)))
    return load_points(path)
