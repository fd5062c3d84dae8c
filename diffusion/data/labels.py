"""Classes by number and by name."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, did_you_mean, shown
from .columns import listed, row_of

_FEW = 10  # points of which each may have a class of its own
_INT64_DIGITS = 19  # fewer always fit
_MISSING = ("", "na", "n/a", "nan", "null")  # where a label should be


def numbered(
    labels: np.ndarray | Sequence[str], file: str, where: Callable[[int], str] = row_of
) -> tuple[Tensor, tuple[str, ...]]:
    """Returns the labels of a file as numbers 0 ... C - 1, and the names of the classes.

    Labels that are such numbers already have no names. Other numbers and words are sorted, and are
    the names.

    Args:
        labels: whole numbers, truth values or words, [N] or [N, 1].
        file: name of the file, for messages.
        where: returns the place of a row in the file, in words.

    Returns:
        int64 [N], and C names or none.

    Raises:
        ValueError: a label is missing, a number is not whole, or each point has its own class.
    """
    given = np.asarray(labels)
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.ndim != 1:
        raise UserError(f"{file}: labels must be [N], one per point, got {list(given.shape)}")
    if given.dtype.kind not in "biufUS":
        raise UserError(f"{file}: labels must be whole numbers or words, got {given.dtype}")
    if given.dtype.kind == "S":
        given = np.char.decode(given, errors="replace")
    if given.dtype.kind == "U":
        given = np.char.strip(given)
        _check_cells(np.isin(np.char.lower(given), _MISSING), given, file, where)
        given = _whole(given)
    elif given.dtype.kind == "f":
        _check_cells((given != np.trunc(given)) | ~np.isfinite(given), given, file, where)
    classes, numbers = np.unique(given, return_inverse=True)
    if _FEW < len(given) == len(classes):
        raise UserError(
            f"{file}: labels must be classes, but each of the {len(given)} points has its own: "
            "leave them out with labels none (--labels none)"
        )
    if given.dtype.kind in "iuf":
        classes = classes.astype(np.int64)
        if np.array_equal(classes, np.arange(len(classes))):
            return torch.from_numpy(numbers.astype(np.int64)), ()
    return torch.from_numpy(numbers.astype(np.int64)), tuple(map(str, classes.tolist()))


def _whole(words: np.ndarray) -> np.ndarray:
    """Returns words that are whole numbers, written as Python writes them, as int64."""
    if not (np.char.isdecimal(words) & (np.char.str_len(words) < _INT64_DIGITS)).all():
        return words
    numbers = words.astype(np.int64)
    return numbers if (numbers.astype(words.dtype) == words).all() else words


def _check_cells(wrong: np.ndarray, labels: np.ndarray, file: str, where) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"{file}: {where(row)}: labels must be whole numbers or words, got "
            f"{labels[row].item()!r}; labels none (--labels none) leaves them out"
        )


def class_number(
    given: int | str, names: Sequence[str], count: int, argument: str = "label"
) -> int:
    """Returns the number of the class that a user names.

    Args:
        given: name or number of a class.
        names: names of the classes, or none. Where they are numbers, a number is a name.
        count: number C of classes.
        argument: name of the argument, for messages.

    Raises:
        ValueError: there is no such class.
    """
    if str(given) in names:
        return names.index(str(given))
    text = str(given).strip()
    number = text.isdecimal() or (text[:1] == "-" and text[1:].isdecimal())
    if number and not (names and all(name.lstrip("-").isdecimal() for name in names)):
        if not 0 <= int(text) < count:
            raise _no_class(given, count, argument)
        return int(text)
    if names:
        hint = did_you_mean(str(given), names)
        raise UserError(f"{argument} must be one of {listed(names)}, got {shown(given)}{hint}")
    raise _no_class(given, count, argument)


def check_class(label: int, count: int, argument: str = "label") -> None:
    """Raises :class:`UserError` unless there is a class of this number among ``count``."""
    if not 0 <= label < count:
        raise _no_class(label, count, argument)


def _no_class(label: int | str, count: int, argument: str) -> UserError:
    """Returns the error that says which classes there are."""
    allowed = f"from 0 to {count - 1}" if count else "left out: no classes"
    return UserError(f"{argument} must be {allowed}, got {shown(label)}")
