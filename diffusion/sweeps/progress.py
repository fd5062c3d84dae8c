"""The progress of a sweep: the number of models done, and the time that is left."""

import time
from collections.abc import Sequence

from ..progress import Progress
from .groups import Training

_EVERY = 0.5  # seconds between two notes


class SweepProgress:
    """Shows how many models are finished, what is going on, and how long the rest will take.

    The time left follows from the multiplications that are left in training and drawing, at the
    pace of those done, and from the duration of measuring a model.

    Args:
        bar: shows it.
        cost: multiplications of all training and drawing to be done.
        done: number of models that were finished before.
        total: number of models in all.
    """

    def __init__(self, bar: Progress, cost: float, done: int, total: int):
        self._bar = bar
        self._cost, self._spent, self._partly = cost, 0.0, 0.0
        self._before, self._finished, self._total = done, done, total
        self._began, self._measuring = time.monotonic(), 0.0
        self._noted = -_EVERY

    def training(self, chunk: Sequence[Training], step: int) -> None:
        """Shows that so many steps of a chunk are done."""
        shares = (min(1.0, step / one.task.total_steps) * one.cost for one in chunk)
        self._partly = sum(shares)
        longest = max(one.task.total_steps for one in chunk)
        if time.monotonic() - self._noted >= _EVERY:
            self._note(f"{len(chunk)} at step {step:,} of {longest:,}")

    def spent(self, cost: float) -> None:
        """Counts the multiplications of work that has ended."""
        self._spent += cost
        self._partly = 0.0

    def finished(self, seconds: float) -> None:
        """Shows that one more model is finished, whose measuring took so many seconds."""
        self._measuring += seconds
        self._finished += 1
        self._note("measuring")

    def left(self) -> float | None:
        """Returns the seconds left; None as long as nothing says them."""
        spent, measured = self._spent + self._partly, self._finished - self._before
        if not spent and not measured:
            return None
        computing = time.monotonic() - self._began - self._measuring
        left = computing * (self._cost / spent - 1) if spent else 0.0
        return left + self._measuring / max(1, measured) * (self._total - self._finished)

    def _note(self, now: str) -> None:
        self._noted = time.monotonic()
        left = self.left()
        self._bar.note(now=now, **({} if left is None else {"left": duration(left)}))
        self._bar.to(self._finished)


def duration(seconds: float) -> str:
    """Returns a duration in words, as precise as an estimate can be."""
    if seconds < 100:
        return f"{max(0.0, seconds):.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
