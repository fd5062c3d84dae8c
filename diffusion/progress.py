"""Progress of long work: a bar on a terminal, and a line now and then where there is none."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

_LINE_AFTER = 60.0  # seconds without a line
_LEAST = 1.0  # seconds between two lines


def silence(line: str) -> None:
    """Prints nothing, in place of a function that prints a line of text."""


def note(line: str) -> None:
    """Prints a line beside the results of a command, on stderr."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Shows on stderr how far some work is; a context, which ends the bar.

    Args:
        title: what is done.
        total: number of units in all.
        unit: name of a unit.
        start: number of units that were done before.
        shown: False shows nothing.
    """

    def __init__(self, title: str, total: int, unit: str, *, start: int = 0, shown: bool = True):
        self.title, self.total, self.unit = title, max(total, 1), unit
        self._done, self._notes = start, ""
        self._shown, self._began = shown, time.monotonic()
        self._last, self._printed = self._began, -1
        self._bar = None
        if shown and sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=start, desc=title.ljust(16), unit=f" {unit}", ncols=100,
                unit_scale=True,
            )  # fmt: skip
        elif shown:
            self._print()

    def to(self, done: int) -> None:
        """Shows that so many units are done in all."""
        before, self._done = self._done, done
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            return
        waited = time.monotonic() - self._last
        tenth = 10 * done // self.total > 10 * before // self.total
        if self._shown and (waited > _LINE_AFTER or (tenth and waited > _LEAST)):
            self._print()

    def note(self, **notes: str) -> None:
        """Shows numbers beside the progress, by name."""
        self._notes = "".join(f", {name} {value}" for name, value in notes.items())
        if self._bar is not None:
            self._bar.set_postfix(notes)

    def _print(self) -> None:
        self._last, self._printed = time.monotonic(), self._done
        seconds = "" if self._last == self._began else f", {self._last - self._began:.0f} s"
        print(
            f"{self.title}: {self._done:,} of {self.total:,} {self.unit}{self._notes}{seconds}",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._shown and self._done != self._printed:
            self._print()
