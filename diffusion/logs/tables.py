"""Logs that are tables: a file of CSV, or of JSON lines, one row for each call of ``on_log``."""

import csv
import io
import json
import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TextIO

from ...kernels.default_state import methods_in_default_state
from .. import files
from ..errors import UserError
from .callbacks import Callback

_DIGITS = 7  # of a number, as many as float32 has
_COLUMNS = ("step", "network", "loss", "lr", "seconds")  # others follow as they come


class _Table(Callback):
    """A file with one row for each call of ``on_log``, written at once."""

    _suffix: ClassVar[str]
    _start: ClassVar[str]  # of the text of every such file

    def __init__(self, path: str | Path, *, overwrite: bool = False):
        self.path = files.make_target(Path(path), self._suffix)
        self.overwrite = overwrite
        self._network = ""
        self._file: TextIO | None = None

    def on_begin(self, settings: dict[str, Any]) -> None:
        """Opens the file, and cuts off what it holds of later steps.

        Raises:
            ValueError: the file holds another training of this network, or no log at all.
        """
        self._network, first = settings["network"], settings["first_step"]
        found = self._read() if self.path.exists() else []
        kept = [row for row in found if row["network"] != self._network or row["step"] <= first]
        if len(kept) < len(found) and first == 0 and not self.overwrite:
            raise UserError(
                f"file {self.path} holds the log of another {self._network}; take another name, "
                "or overwrite=True"
            )
        self._open(kept)

    def on_log(self, step: int, values: dict[str, float]) -> None:
        """Writes a row."""
        assert self._file is not None  # on_begin was called before
        numbers = {name: float(f"{value:.{_DIGITS}g}") for name, value in values.items()}
        self._file.write(self._line({"step": step, "network": self._network, **numbers}))
        self._file.flush()

    def on_end(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, rows: list[dict[str, Any]]) -> None:
        """Makes these the rows of the file, and opens it for more."""
        files.write_atomically(self.path, self._text(rows).encode())
        self._file = self.path.open("a", encoding="utf-8", newline="")

    def _read(self) -> list[dict[str, Any]]:
        """Returns the rows of the file; a last one that was cut short is left out."""
        try:
            text = self.path.read_text(encoding="utf-8")
            if text and not text.startswith(self._start):
                raise ValueError("another start")
            rows = self._parsed(text[: text.rfind("\n") + 1])
            return [{**row, "step": int(row["step"]), "network": row["network"]} for row in rows]
        except OSError as error:
            raise UserError(f"file {self.path} cannot be read: {files.reason(error)}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"file {self.path} is no log of a training, or damaged; take another name"
            ) from error

    @abstractmethod
    def _parsed(self, text: str) -> list[dict[str, Any]]:
        """Returns the rows of whole lines."""

    @abstractmethod
    def _text(self, rows: Sequence[dict[str, Any]]) -> str:
        """Returns the text of a file with these rows."""

    @abstractmethod
    def _line(self, row: dict[str, Any]) -> str:
        """Returns the text of a further row."""


@methods_in_default_state
class CSVLog(_Table):
    """Writes a table of CSV while a network trains: ``step, network, loss, lr, seconds`` and more.

    Each row is there at once, for ``tail -f`` and ``pandas.read_csv``. A training that goes on
    keeps the rows of the steps before it, and those of other networks; rows of later steps, which
    an earlier process may have left, are cut off.

    Args:
        path: the file, ``.csv``.
        overwrite: a new training replaces the rows that the file holds of the same network.

    Raises:
        ValueError: the name has another ending, or the folder cannot be written to.
    """

    _suffix, _start = ".csv", "step,network"

    def __init__(self, path: str | Path, *, overwrite: bool = False):
        super().__init__(path, overwrite=overwrite)
        self._columns = list(_COLUMNS)

    def on_log(self, step: int, values: dict[str, float]) -> None:
        """Writes a row; a number with a new name gets a column, which is empty in rows before."""
        if not values.keys() <= set(self._columns):
            self._columns = list(dict.fromkeys((*self._columns, *values)))
            self.on_end()
            self._open(self._read())
        super().on_log(step, values)

    def _parsed(self, text: str) -> list[dict[str, Any]]:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("rows of several lengths")
        return rows

    def _text(self, rows: Sequence[dict[str, Any]]) -> str:
        names = (name for row in rows for name in row)
        self._columns = list(dict.fromkeys((*self._columns, *names)))
        return self._line(dict(zip(self._columns, self._columns, strict=True))) + "".join(
            map(self._line, rows)
        )

    def _line(self, row: dict[str, Any]) -> str:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns, lineterminator="\n").writerow(row)
        return text.getvalue()


@methods_in_default_state
class JSONLog(_Table):
    """Writes JSON lines while a network trains, each an object: ``{"step": 50, "loss": ...}``.

    The rows are those of :class:`CSVLog`; a number that is not finite is null.

    Args:
        path: the file, ``.jsonl``.
        overwrite: a new training replaces the rows that the file holds of the same network.

    Raises:
        ValueError: the name has another ending, or the folder cannot be written to.
    """

    _suffix, _start = ".jsonl", '{"step": '

    def _parsed(self, text: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in text.splitlines()]

    def _text(self, rows: Sequence[dict[str, Any]]) -> str:
        return "".join(map(self._line, rows))

    def _line(self, row: dict[str, Any]) -> str:
        numbers = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        return json.dumps(numbers) + "\n"
