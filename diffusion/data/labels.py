"""Classes by number and by name."""

import unicodedata
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, did_you_mean, shown
from .columns import listed, row_of

_FEW = 10  # points of which each may have a class of its own
_MOST = 1000  # classes; a column with more says something else of each point
_INT64_DIGITS = 19  # fewer always fit
_MISSING = ("", "na", "n/a", "nan", "null")  # where a label should be
_NEAREST = 3  # names that a message suggests


def numbered(
    labels: np.ndarray | Sequence[str],
    file: str,
    where: Callable[[int], str] = row_of,
    names: Sequence[str] = (),
) -> tuple[Tensor, tuple[str, ...]]:
    """Returns the labels of a file as numbers 0 ... C - 1, and the names of the classes.

    Labels that are such numbers already have no names, unless the file has some beside them. Other
    numbers and words are sorted, and are the names. Blanks around words do not count, and several
    between them count as one.

    Args:
        labels: whole numbers, truth values or words, [N] or [N, 1].
        file: name of the file, for messages.
        where: returns the place of a row in the file, in words.
        names: names that the file has beside its labels, in the order of the classes, or none. The
            labels are their numbers, or are among them.

    Returns:
        int64 [N], and C names or none.

    Raises:
        ValueError: a label is missing, a number is not whole, there are too many classes, or the
            names are not those of the labels.
    """
    given = _column(labels, file)
    if given.dtype.kind == "b" and names:
        given = given.astype(np.int64)
    if given.dtype.kind == "U":
        words, rows = np.unique(given, return_inverse=True)
        words = np.array([cleaned(word) for word in words.tolist()])
        missing = np.isin(np.char.lower(words), _MISSING)
        _check_cells(missing[rows], given, file, where, ", as where one is missing")
        given = (words if names else _whole(words))[rows]
    elif given.dtype.kind == "f":
        _check_cells((given != np.trunc(given)) | ~np.isfinite(given), given, file, where)
    classes, numbers = np.unique(given, return_inverse=True)
    _check_count(len(classes), len(given), file)
    known = [str(int(one)) if given.dtype.kind in "iuf" else str(one) for one in classes.tolist()]
    if names:
        order = _places(known, names, given.dtype.kind in "iuf", file)
        ranks = np.argsort(np.argsort(order))
        return torch.from_numpy(ranks[numbers]), tuple(names[place] for place in sorted(order))
    if known == list(map(str, range(len(known)))):
        known = []
    return torch.from_numpy(numbers.astype(np.int64)), tuple(known)


def cleaned(name: str) -> str:
    """Returns a name with single blanks, and with accents as one sign each."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


def alike(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the groups of names that differ in case alone."""
    groups = groupby(sorted(names, key=str.casefold), key=str.casefold)
    return [each for _, group in groups if len(each := tuple(group)) > 1]


def _column(labels: np.ndarray | Sequence[str], file: str) -> np.ndarray:
    """Returns labels as an array [N] of whole numbers, truth values or text."""
    given = np.asarray(labels)
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.ndim != 1:
        raise UserError(f"{file}: labels must be [N], one per point, got {list(given.shape)}")
    if given.dtype.kind not in "biufUS":
        raise UserError(f"{file}: labels must be whole numbers or words, got {given.dtype}")
    return np.char.decode(given, errors="replace") if given.dtype.kind == "S" else given


def _whole(words: np.ndarray) -> np.ndarray:
    """Returns words that are whole numbers, written as Python writes them, as int64."""
    if not (np.char.isdecimal(words) & (np.char.str_len(words) < _INT64_DIGITS)).all():
        return words
    numbers = words.astype(np.int64)
    return numbers if (numbers.astype(words.dtype) == words).all() else words


def _places(known: Sequence[str], names: Sequence[str], numbers: bool, file: str) -> list[int]:
    """Returns the place of each label among the names of the classes.

    Args:
        known: the labels, each once.
        names: the names that the file has beside them.
        numbers: True for labels that are numbers in the file, which count the names from 0 where
            there are so many; others do so where they are no names.
        file: name of the file, for messages.
    """
    count = [int(label) if label.isdecimal() else len(names) for label in known]
    counted, named = max(count, default=0) < len(names), set(known) <= set(names)
    if counted and (numbers or not named):
        return count
    if named:
        return [names.index(label) for label in known]
    raise UserError(
        f"{file}: class_names must be one for each label from 0, or the labels themselves: "
        f"{listed(known)}; got {listed(names)}"
    )


def _check_count(classes: int, points: int, file: str) -> None:
    """Raises :class:`UserError` if labels name or measure each point, and no classes."""
    if points <= _FEW or classes <= min(points // 2, _MOST):
        return
    found = f"{points:,} points have {classes:,} of them"
    if classes == points:
        found = f"each of the {points} points has its own"
    raise UserError(
        f"{file}: labels must be classes, but {found}: leave them out with labels none "
        "(--labels none)"
    )


def _check_cells(wrong: np.ndarray, labels: np.ndarray, file: str, where, why: str = "") -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"{file}: {where(row)}: labels must be whole numbers or words, got "
            f"{shown(labels[row].item())}{why}; labels none (--labels none) leaves them out"
        )


def class_number(
    given: int | str, names: Sequence[str], count: int, argument: str = "label"
) -> int:
    """Returns the number of the class that a user names.

    Args:
        given: name or number of a class. Case counts where names differ in nothing else.
        names: names of the classes, or none. Where some are numbers, a number is a name.
        count: number C of classes.
        argument: name of the argument, for messages.

    Raises:
        ValueError: there is no such class, or there are several.
    """
    names, text = list(names[:count]), cleaned(str(given))
    found = [text] if text in names else _same_but_for_case(text, names)
    if len(found) > 1:
        raise UserError(f"{argument} must be {' or '.join(found)}, got {shown(given)}")
    if found:
        return names.index(found[0])
    if _is_whole(text) and not any(map(_is_whole, names)):
        if not 0 <= int(text) < count:
            raise _no_class(given, count, argument)
        return int(text)
    if names:
        hint = did_you_mean(text, names, most=_NEAREST)
        raise UserError(f"{argument} must be one of {listed(names)}, got {shown(given)}{hint}")
    raise _no_class(given, count, argument)


def _same_but_for_case(text: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if name.casefold() == text.casefold()]


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def check_class(label: int, count: int, argument: str = "label") -> None:
    """Raises :class:`UserError` unless there is a class of this number among ``count``."""
    if not 0 <= label < count:
        raise _no_class(label, count, argument)


def _no_class(label: int | str, count: int, argument: str) -> UserError:
    """Returns the error that says which classes there are."""
    allowed = f"from 0 to {count - 1}" if count else "left out: no classes"
    return UserError(f"{argument} must be {allowed}, got {shown(label)}")
