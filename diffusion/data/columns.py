"""Named columns of a file: which hold coordinates, which labels, and which are left out."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import UserError

LABEL_NAMES = ("label", "labels", "class", "classes", "target", "targets")
NO_LABELS = "none"  # as the name of the column
LIKE_A_NUMBER = re.compile(r"[+-]?[.,]?\d")  # at the start of 1.O, 1,234.5 and 2020-01-01 too
MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-")
_ROW_NAMES = ("index", "id")
_INDEX_NAMES = ("", "unnamed: 0", *_ROW_NAMES, "row")
_LARGEST_EXACT = 2.0**53  # beyond it float64 skips whole numbers
_MOST_NAMED = 8  # columns and classes that a message lists
_MOST_CLASSES = 100  # of a column y that may hold labels or coordinates


class Column(NamedTuple):
    """A column of a table."""

    name: str  # "" for none
    cells: np.ndarray | list[str]  # float64 [N] where all are numbers
    written: np.ndarray | Sequence[str]  # [N], as they are in the file

    @property
    def labels(self) -> np.ndarray | Sequence[str]:
        """The cells as labels: numbers unless these say less than what is written."""
        if not isinstance(self.cells, np.ndarray):
            return self.cells
        if isinstance(self.written, np.ndarray):
            return self.written
        padded = any(c[:1] == "0" and len(c) > 1 and c.strip().isdecimal() for c in self.written)
        large = bool((np.abs(self.cells) >= _LARGEST_EXACT).any())
        return self.written if padded or large else self.cells


def row_of(row: int) -> str:
    """Returns the place of a row in an array, in words."""
    return f"row {row}"


class Content(NamedTuple):
    """What a file holds."""

    data: np.ndarray  # [N, d]
    labels: np.ndarray | Sequence[str] | None  # [N], as they are written
    columns: tuple[str, ...]  # d names of the coordinates, or none
    taken: str  # what was taken for what, in words; "" where there was no choice
    class_names: tuple[str, ...] = ()  # where the file has them beside its labels
    where: Callable[[int], str] = row_of  # returns the place of a row in the file, in words


@dataclass(frozen=True)
class Columns:
    """The columns of a file.

    Args:
        file: name of the file, for messages.
        columns: the columns.
        named: True if the file has names for them.
        notes: what else was found out about the file.
        where: returns the place of a row in the file, in words.
    """

    file: str
    columns: list[Column]
    named: bool = True
    notes: Sequence[str] = ()
    where: Callable[[int], str] = row_of

    def content(self, labels: str | None = None) -> Content:
        """Takes each column for coordinates, labels or an index.

        Args:
            labels: name or number of the column with the labels, from 1; ``none`` for no labels;
                None finds it by its name.

        Raises:
            ValueError: there is no such column, a column may hold labels or coordinates, or a cell
                is no number.
        """
        every = range(len(self.columns))
        alone = not self.named or len(self.columns) == 1
        indices = [] if alone else [number for number in every if self._numbers_rows(number)]
        rest = [number for number in every if number not in indices]
        chosen = self._labels(labels, rest)
        unused = []
        if labels is not None:
            unused = [k for k in rest if k != chosen and self._name(k).lower() in LABEL_NAMES]
        taken = [k for k in rest if k != chosen and k not in unused]
        if not taken:
            raise UserError(f"{self.file} has no column with coordinates")
        data = np.stack([self._coordinates(k) for k in taken], axis=1)
        named = tuple(self._name(k) or f"column {k + 1}" for k in taken) if self.named else ()
        left_out = [*unused, *indices]
        words = self._words(named, len(taken), chosen, left_out)
        given = None if chosen is None else self.columns[chosen].labels
        return Content(data, given, named, words, where=self.where)

    def _words(self, named: Sequence[str], count: int, chosen: int | None, left_out) -> str:
        if named:
            words = [f"column{'s' if count > 1 else ''} {listed(named)}"]
        else:
            words = [f"{count} column{'s' if count > 1 else ''}"]
        if chosen is not None:
            words.append(f"labels from {self._quoted(chosen)}")
        words += [f"{self._quoted(k)} is left out" for k in left_out]
        return "; ".join([*words, *self.notes])

    def _name(self, number: int) -> str:
        return self.columns[number].name

    def _quoted(self, number: int) -> str:
        if not self.named:
            return f"column {number + 1}"
        return repr(self._name(number)) if self._name(number) else "the column without a name"

    def _numbers_rows(self, number: int) -> bool:
        """Returns True if a column numbers or names the rows, by its name or as a first without."""
        name, cells = self._name(number).lower(), self.columns[number].cells
        nameless = name in ("", "unnamed: 0")
        if name not in _ROW_NAMES and (number > 0 or name not in _INDEX_NAMES):
            return False
        if not isinstance(cells, np.ndarray):
            return nameless
        start = cells[0] if cells[0] in (0, 1) else 0
        if np.array_equal(cells, np.arange(len(cells)) + start):
            return True
        # Rows keep their numbers where others were taken away, or their order was changed.
        unique = np.array_equal(cells, np.trunc(cells)) and len(np.unique(cells)) == len(cells)
        if nameless and not unique:
            raise UserError(
                f"{self.file}: the first column has no name and does not number the rows: name it"
            )
        return unique and name != "row"

    def _labels(self, labels: str | None, rest: Sequence[int]) -> int | None:
        """Returns the number of the column with the labels."""
        if labels is not None:
            named = self._by_name(labels, rest)
            if named is None and labels != NO_LABELS:
                known = listed([self._name(k) for k in rest])
                raise UserError(f"labels must be a column of {self.file}: {known}, got {labels!r}")
            return named
        found = [k for k in rest if self.named and self._name(k).lower() in LABEL_NAMES]
        if len(found) > 1:
            names = " and ".join(self._quoted(k) for k in found)
            raise UserError(
                f"{self.file}: {names} may both hold the labels: choose one with labels (--labels)"
            )
        return found[0] if found else self._y(rest)

    def _by_name(self, labels: str, rest: Sequence[int]) -> int | None:
        for same in (str, str.lower):
            found = [k for k in rest if self.named and same(self._name(k)) == same(labels)]
            if len(found) > 1:
                raise UserError(f"{self.file} has {len(found)} columns named {labels!r}")
            if found:
                return found[0]
        number = int(labels) - 1 if labels.isdecimal() else -1
        return number if number in rest else None

    def _y(self, rest: Sequence[int]) -> int | None:
        """Returns a column y that holds labels: beside x it is a coordinate."""
        names = {self._name(k).lower(): k for k in rest} if self.named else {}
        if "y" not in names or len(rest) == 1:
            return None
        cells = self.columns[names["y"]].cells
        if not isinstance(cells, np.ndarray):
            return names["y"] if _is_text(cells) else None
        if "x" in names or not np.array_equal(cells, np.trunc(cells)):
            return None
        if len(np.unique(cells)) > min(_MOST_CLASSES, len(cells) // 2):
            raise UserError(
                f"{self.file}: column {self._quoted(names['y'])} may hold labels or a coordinate: "
                f"say which with labels (--labels {self._name(names['y'])}, or --labels none)"
            )
        return names["y"]

    def _coordinates(self, number: int) -> np.ndarray:
        """Returns the numbers of a column; raises a :class:`UserError` that names a wrong cell."""
        cells, column = self.columns[number].cells, self._column(number)
        if isinstance(cells, np.ndarray):
            if not np.isfinite(cells).all():
                row = int((~np.isfinite(cells)).argmax())
                raise UserError(
                    f"{self.file}: {self.where(row)}, {column}: points must be finite, "
                    f"got {cells[row]}"
                )
            return cells
        row = next(k for k, cell in enumerate(cells) if not _is_number(cell))
        if _is_text(cells):
            raise UserError(
                f"{self.file}: {column} holds text, {cells[row]!r} for one: if it holds the "
                f"labels, say so with labels (--labels {self._name(number)})"
            )
        what = f"{cells[row]!r} is no number" if cells[row] else "the cell is empty"
        raise UserError(f"{self.file}: {self.where(row)}, {column}: {what}")

    def _column(self, number: int) -> str:
        return f"column {self._quoted(number)}" if self.named else self._quoted(number)


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(float(cell))) and "_" not in cell
    except ValueError:
        return False


def _is_text(cells: Sequence[str]) -> bool:
    """Returns True for a column of words, False for one of numbers with a typo."""
    words = sum(not LIKE_A_NUMBER.match(cell) and cell.lower() not in MISSING for cell in cells)
    return 2 * words > len(cells)


def listed(names: Sequence[str]) -> str:
    """Returns names as a list in words, a long one shortened."""
    if len(names) <= _MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[: _MOST_NAMED - 2])}, ... {names[-1]} ({len(names)})"
