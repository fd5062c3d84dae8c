"""Progress of long work: a bar on a terminal and in a notebook, elsewhere a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from .errors import UserError, shown

# Seconds between two lines: at least the first number, at most the second, and in between this part
# of the time so far, so that the log of a night stays short.
_LEAST, _MOST, _PART = 5.0, 60.0, 1 / 60


def silence(line: str) -> None:
    """Prints nothing, in place of a function that prints a line of text."""


def note(line: str) -> None:
    """Prints a line beside the results of a command, on stderr."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Shows on stderr how far some work is; a context, which ends the bar.

    Where stderr is neither a terminal nor a notebook there is a line at the start, one at the end,
    and one every five seconds in between, in long work every minute.

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
        self._began = time.monotonic()
        self._last, self._printed = self._began, -1
        self._bar = None
        on_terminal = shown and sys.stderr.isatty()
        self._has_lines = shown and not (on_terminal or _in_notebook())
        if shown and not self._has_lines:
            from tqdm.auto import tqdm  # takes a while to import

            self._bar = tqdm(
                total=total, initial=start, desc=title.ljust(16), unit=f" {unit}",
                ncols=100 if on_terminal else None, unit_scale=True,
            )  # fmt: skip
        if self._has_lines:
            self._print()

    def to(self, done: int) -> None:
        """Shows that so many units are done in all."""
        self._done = done
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        wait = min(max(_LEAST, _PART * (now - self._began)), _MOST)
        if self._has_lines and now - self._last >= wait:
            self._print()

    def note(self, **notes: str) -> None:
        """Shows numbers beside the progress, by name."""
        self._notes = "".join(f", {name} {value}" for name, value in notes.items())
        if self._bar is not None:
            self._bar.set_postfix(notes)

    def _print(self) -> None:
        first, self._last = self._printed < 0, time.monotonic()
        self._printed = self._done
        seconds = "" if first else f", {self._last - self._began:.0f} s"
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
        elif self._has_lines and self._done != self._printed:
            self._print()


def counted(total: int, title: str, unit: str) -> Iterator[int]:
    """Yields 0 to ``total - 1``, and shows how far this is.

    Args:
        total, title, unit: see :class:`Progress`.
    """
    with Progress(title, total, unit) as bar:
        for number in range(total):
            yield number
            bar.to(number + 1)


@contextmanager
def reported(
    progress: bool | Callable[[int], None], title: str, total: int, unit: str, *, start: int = 0
) -> Iterator[Callable[[int], None]]:
    """Yields the function to call with the number of units done.

    Args:
        progress: an argument of a public function: True shows a bar, False nothing, and a function
            is the one to call.
        title, total, unit, start: see :class:`Progress`.

    Raises:
        ValueError: see :func:`check_progress`.
    """
    check_progress(progress)
    if callable(progress):
        yield progress
        return
    with Progress(title, total, unit, start=start, shown=progress) as bar:
        yield bar.to


def check_progress(progress: bool | Callable[[int], None]) -> None:
    """Raises :class:`UserError` unless it is what :func:`reported` takes."""
    if not (callable(progress) or isinstance(progress, bool)):
        raise UserError(f"progress must be True, False or a function, got {shown(progress)}")


def _in_notebook() -> bool:
    """Returns True in a kernel of Jupyter, whose stderr is no terminal but shows bars."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return "IPKernelApp" in getattr(shell, "config", {})
