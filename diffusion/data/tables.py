"""Tables of text: .csv files as spreadsheets, pandas, R, numpy and people write them."""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from .columns import LABEL_NAMES, LIKE_A_NUMBER, MISSING, Column, Columns

_DELIMITERS = {"\t": "tabs", ";": "semicolons", ",": "commas", "|": "bars", " ": "spaces"}
_SAMPLE = 200  # lines that the delimiter is told from
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.I)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


class _Lines(NamedTuple):
    """The lines of a file that are neither empty nor comments."""

    texts: list[str]
    numbers: list[int]  # from 1

    def after(self, count: int) -> "_Lines":
        """Returns all but the first lines."""
        return _Lines(self.texts[count:], self.numbers[count:])


def read_table(path: Path) -> Columns:
    """Reads a table of text, whatever its delimiter, header, encoding and decimal mark.

    Raises:
        ValueError: the file is empty or no text, its rows differ in length, or its numbers can be
            read in two ways.
    """
    text, notes = _decoded(path)
    lines, comment = _lines(text)
    if not lines.texts:
        raise UserError(f"{path.name} is empty")
    delimiter = _delimiter(lines.texts[:_SAMPLE])
    if lines.texts[0].lower().startswith("sep=") and len(lines.texts) > 1:
        delimiter, lines = lines.texts[0][4:5] or "\t", lines.after(1)
    rows = _rows(path, lines, delimiter)
    header, skipped = _header(path, rows, lines), 0
    if header is not None:
        rows, skipped = rows[1:], 1
    elif comment is not None:  # numpy writes its header as a comment
        (named,) = _split([comment.lstrip("#").strip()], delimiter) or [[]]
        if len(named) == len(rows[0]) and _are_names(named):
            header = named
    if not rows:
        raise UserError(f"{path.name} holds a header and no points")

    def where(row: int) -> str:
        return f"line {_line_of(lines, delimiter, row + skipped)}"

    return _columns(path, header, rows, notes, where)


def _decoded(path: Path) -> tuple[str, list[str]]:
    """Returns the text of a file, and a note where its encoding had to be guessed."""
    content = path.read_bytes()
    marked = (name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark))
    encoding = next(marked, "utf-8")
    try:
        return _text(path, content.decode(encoding)), []
    except UnicodeDecodeError:
        pass
    try:
        return _text(path, content.decode("cp1252")), ["read as cp1252"]
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is no text: save it as UTF-8") from error


def _text(path: Path, text: str) -> str:
    if "\0" in text:
        raise UserError(f"{path.name} is no text, or UTF-16 without its mark: save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(text: str) -> tuple[_Lines, str | None]:
    """Returns the lines that are not empty, and the last comment before the first of them."""
    every = [line.strip(" ") for line in text.split("\n")]
    kept = [k for k, line in enumerate(every) if line.strip() and not line.startswith("#")]
    before = every[: kept[0]] if kept else []
    comments = [line for line in before if line.startswith("#")]
    lines = _Lines([every[k] for k in kept], [k + 1 for k in kept])
    return lines, comments[-1] if comments else None


def _split(lines: Sequence[str], delimiter: str, strict: bool = False) -> list[list[str]]:
    ended = (f"{line}\n" for line in lines)  # a quoted cell may span several
    return list(csv.reader(ended, delimiter=delimiter, skipinitialspace=True, strict=strict))


def _delimiter(lines: Sequence[str]) -> str:
    """Returns the delimiter that splits the lines into most numbers and most evenly."""
    best, best_score = ",", (0.0, 0.0)
    for delimiter in _DELIMITERS:
        try:
            rows = _split(lines, delimiter)
        except csv.Error:
            continue
        (width, even), *_ = Counter(map(len, rows)).most_common()
        cells = [cell.strip() for row in (rows[1:] or rows) for cell in row]
        numbers = sum(_NUMBER.fullmatch(cell) is not None for cell in cells)
        score = numbers / max(1, len(cells)), even / len(rows)
        if width > 1 and score > best_score:
            best, best_score = delimiter, score
    return best


def _rows(path: Path, lines: _Lines, delimiter: str) -> list[list[str]]:
    """Returns the cells of each row, all rows equally long but perhaps the first."""
    try:
        rows = _split(lines.texts, delimiter, strict=True)
    except csv.Error as error:
        raise UserError(f"{path.name}: a quotation mark is not closed, or stands alone") from error
    below = rows[1:] if len(rows) > 1 and _are_names(rows[0]) else rows
    width = Counter(map(len, below)).most_common()[0][0]
    first, points = rows[0], rows[1:]
    nameless = len(points) > 0 and (len(first) < width or not first[-1])
    if nameless and width > 1 and all(len(row) == width and not row[-1] for row in points):
        rows = [first[: width - 1], *(row[:-1] for row in points)]  # each line ends in a delimiter
        width -= 1
    for number, row in enumerate(rows):
        named_rows = number == 0 and len(row) == width - 1 and _are_names(row)
        if len(row) != width and not named_rows:
            line = _line_of(lines, delimiter, number)
            raise UserError(
                f"{path.name}: line {line} has {len(row)} {'cells' if len(row) != 1 else 'cell'}, "
                f"the others have {width} between {_DELIMITERS.get(delimiter, repr(delimiter))}"
            )
    return rows


def _line_of(lines: _Lines, delimiter: str, row: int) -> int:
    """Returns the line of a file on which a row ends; a quoted cell may span several lines."""
    reader = csv.reader(lines.texts, delimiter=delimiter, skipinitialspace=True)
    for _ in range(row + 1):
        next(reader)
    return lines.numbers[reader.line_num - 1]


def _header(path: Path, rows: Sequence[Sequence[str]], lines: _Lines) -> list[str] | None:
    """Returns the names in the first row; None where that row holds a point."""
    first = [cell.strip() for cell in rows[0]]
    if _are_names(first):
        return first
    # pandas counts columns without a name, and has none for the column that counts the rows.
    numbers = [cell for cell in first if _NUMBER.fullmatch(cell)]
    counts = len(rows) > 1 and numbers == [str(number) for number in range(len(numbers))]
    if counts and all(cell in numbers or cell.lower() in ("", *LABEL_NAMES) for cell in first):
        if len(numbers) < len(first):
            return first
        if len(first) > 1 and _has_fractions(rows[1:_SAMPLE]):
            raise UserError(
                f"{path.name}: line {lines.numbers[0]}, {', '.join(first)}, may be a header of "
                "numbers or a point: give the columns names, or the point decimals"
            )
    return None


def _are_names(cells: Sequence[str]) -> bool:
    """Returns True for a header: a name at least, and no number."""
    cells = [cell.strip() for cell in cells]
    numbers = any(_NUMBER.fullmatch(cell) for cell in cells)
    names = (c for c in cells if c.lower() not in MISSING and not LIKE_A_NUMBER.match(c))
    return not numbers and any(names)


def _has_fractions(rows: Sequence[Sequence[str]]) -> bool:
    return any("." in cell or "," in cell for row in rows for cell in row)


def _columns(
    path: Path,
    header: Sequence[str] | None,
    rows: Sequence[Sequence[str]],
    notes: list[str],
    where: Callable[[int], str],
) -> Columns:
    cells = list(zip(*rows, strict=True))
    if header is None:
        names, notes = [str(number) for number in range(1, len(cells) + 1)], ["no header", *notes]
    else:
        names = [name.strip() for name in header]
        names = [""] * (len(cells) - len(names)) + names  # R names the rows and not their column
    commas = _decimal_commas(path, cells)
    if commas:
        notes = [*notes, "decimal commas"]
    columns = [
        Column(name, _numbers(column, commas), column)
        for name, column in zip(names, cells, strict=True)
    ]
    return Columns(path.name, columns, header is not None, notes, where)


def _decimal_commas(path: Path, columns: Sequence[Sequence[str]]) -> bool:
    """Returns True if the numbers of a table are written with decimal commas.

    Raises:
        ValueError: the commas may stand between thousands, or there are decimal points too.
    """
    with_comma = [cell for cell in _cells_with(columns, ",") if _NUMBER.fullmatch(cell)]
    thousands = next((c for c in _cells_with(columns, ",") if _THOUSANDS.fullmatch(c)), None)
    if not with_comma and thousands is None:
        return False
    if all(map(_THOUSANDS.fullmatch, with_comma)):
        raise UserError(
            f"{path.name}: the comma in {thousands} may stand before decimals or between "
            "thousands: write decimal points, and nothing between thousands"
        )
    pointed = next((c for c in _cells_with(columns, ".") if _NUMBER.fullmatch(c)), None)
    if pointed is not None:
        raise UserError(
            f"{path.name}: decimals follow a comma in {with_comma[0]} and a point in {pointed}: "
            "write all numbers in one way"
        )
    return True


def _cells_with(columns: Sequence[Sequence[str]], mark: str) -> Iterator[str]:
    return (cell.strip() for column in columns for cell in column if mark in cell)


def _numbers(cells: Sequence[str], commas: bool) -> np.ndarray | list[str]:
    """Returns a column as float64 where all its cells are numbers, otherwise as text."""
    texts = [_pointed(cell) for cell in cells] if commas else cells
    try:
        if any("_" in text for text in texts):  # float() takes 1_000
            raise ValueError
        return np.fromiter(map(float, texts), np.float64, len(texts))
    except ValueError:
        return [text.strip() for text in texts]


def _pointed(cell: str) -> str:
    """Returns a number with a decimal point in place of its comma, and other text as it is."""
    return cell.replace(",", ".") if _NUMBER.fullmatch(cell.strip()) else cell
