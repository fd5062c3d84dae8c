"""Signals that ask a program to stop: Ctrl-C, and those of batch systems, containers and terminals.

A program that is asked to stop ends its work with :class:`KeyboardInterrupt`, whose subclass
:class:`Stopped` names the signal.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, current_thread, main_thread

# SIGHUP is not known on Windows.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Stopped(KeyboardInterrupt):
    """The program was told to stop by a signal.

    Args:
        number: number of the signal.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def exit_code(stop: KeyboardInterrupt) -> int:
    """Returns the exit code of a program that a signal stopped: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def word_for(stop: KeyboardInterrupt) -> str:
    """Returns what happened to the program, for a message."""
    if exit_code(stop) == 128 + signal.SIGINT:
        return "interrupted"
    return f"stopped by {signal.Signals(exit_code(stop) - 128).name}"


@contextmanager
def stoppable() -> Iterator[None]:
    """Makes each of the signals raise :class:`Stopped` in the main thread."""

    def stop(number: int, _frame: object) -> None:
        raise Stopped(number)

    with _handled_by(stop):
        yield


class Request(Event):
    """Set once the program has been asked to stop."""

    number = signal.SIGINT


@contextmanager
def deferred() -> Iterator[Request]:
    """Makes the first signal set an event, so that no step stops half-way; a second one stops."""
    request = Request()

    def ask(number: int, _frame: object) -> None:
        if request.is_set():
            raise Stopped(number)
        request.number = signal.Signals(number)
        request.set()

    with _handled_by(ask):
        yield request


@contextmanager
def _handled_by(handler) -> Iterator[None]:
    if current_thread() is not main_thread():  # only the main thread may handle signals
        yield
        return
    before = {}
    for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
        # nohup and a shell's & have signals ignored; None was not set by Python and stays.
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
