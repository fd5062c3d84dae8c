"""Verdicts of the gate: tonight's times of a work beside the bar that they must reach."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from statistics import median
from typing import NamedTuple

from ..diffusion.metrics.table import markdown_table
from .timing import Timing

SLOWER, REFERENCE_MOVED = 1.03, 1.10
WINDOW = 5  # nights of a rolling median
_MOST_MEASUREMENTS = 3


class Status(IntEnum):
    """Exit statuses of the gate, beside 2 for a wrong argument or file, and 130 and 143."""

    AS_BEFORE = 0
    SLOWER = 1
    INVALID = 3
    FIRST = 4
    BROKEN = 5


class Past(NamedTuple):
    """What earlier nights say of a work, beside its bar.

    Attributes:
        recent: speedups of the valid nights just before, at most four.
        same_machine: False if the driver, a version or a limit of power has changed since, so that
            the time of the reference has no earlier one beside it.
        allowed: slowdown above which a work is slower: 1.03, or more where nights differ a lot.
    """

    recent: tuple[float, ...] = ()
    same_machine: bool = True
    allowed: float = SLOWER


_NO_PAST = Past()


@dataclass(frozen=True)
class Verdict:
    """Tonight's times of a work beside its bar.

    Attributes:
        now: tonight's times.
        before: the bar: the speedup that ours must keep, and the time of the reference; None for a
            work that has no bar yet.
        past: what earlier nights say beside the bar.
    """

    name: str
    now: Timing
    before: Timing | None
    past: Past = _NO_PAST

    @property
    def slowdown(self) -> float | None:
        """Slowdown of ours against the reference; 1 for none, None without a bar."""
        return None if self.before is None else self.before.speedup / self.now.speedup

    @property
    def least(self) -> float | None:
        """The same at the favourable bound of the interval."""
        return None if self.before is None else self.before.speedup / self.now.high

    @property
    def reference_moved(self) -> float | None:
        """Tonight's time of the reference over the earlier one."""
        return None if self.before is None else self.now.peer_us / self.before.peer_us

    @property
    def sound(self) -> bool:
        """False if a number of tonight, or of the bar, is no measurement."""
        return self.now.sound and (self.before is None or self.before.sound)

    @property
    def drifted(self) -> bool:
        """True if the last five nights, tonight included, are slower in their median."""
        if self.before is None or len(self.past.recent) < WINDOW - 1:
            return False
        middle = median((*self.past.recent, self.now.speedup))
        return self.before.speedup / middle > self.past.allowed

    @property
    def slower(self) -> bool:
        if self.before is None or not self.sound:
            return False
        return self.before.speedup / self.now.high > self.past.allowed or self.drifted

    @property
    def faster(self) -> bool:
        if self.before is None or not self.sound:
            return False
        return self.now.low / self.before.speedup > self.past.allowed

    @property
    def invalid(self) -> bool:
        if not self.sound:
            return True
        if self.before is None or not self.past.same_machine:
            return False
        moved = self.now.peer_us / self.before.peer_us
        return not 1 / REFERENCE_MOVED <= moved <= REFERENCE_MOVED

    @property
    def word(self) -> str:
        """The verdict in words, one of ``WORDS``."""
        if self.invalid:
            return "invalid"
        if self.before is None:
            return "first night"
        return "slower" if self.slower else "faster" if self.faster else "as before"


WORDS = ("slower", "invalid", "first night", "faster", "as before")


def compare(
    now: Mapping[str, Timing],
    before: Mapping[str, Timing],
    past: Mapping[str, Past] | None = None,
) -> list[Verdict]:
    """Returns a verdict on each work of tonight; a work that has no bar gets its first night."""
    past = past or {}
    return [
        Verdict(name, timing, before.get(name), past.get(name, _NO_PAST))
        for name, timing in now.items()
    ]


def judge(
    names: Sequence[str],
    before: Mapping[str, Timing],
    past: Mapping[str, Past],
    measure: Callable[[Sequence[str]], dict[str, Timing]],
) -> list[Verdict]:
    """Measures all works, and those that seem slower or invalid again; returns the verdicts.

    A work is slower, or invalid, if two measurements say so. One that could not be measured gets no
    verdict.
    """
    said: dict[str, list[Verdict]] = {name: [] for name in names}
    todo = list(names)
    for _ in range(_MOST_MEASUREMENTS):
        measured = compare(measure(todo), before, past)
        for one in measured:
            said[one.name].append(one)
        todo = [one.name for one in measured if not _settled(said[one.name])]
        if not todo:
            break
    return [verdicts[-1] for verdicts in said.values() if verdicts]


def _settled(verdicts: Sequence[Verdict]) -> bool:
    """Returns whether the last verdict stands: no alarm, or an alarm for the second time."""
    words = [one.word for one in verdicts]
    return words[-1] not in ("slower", "invalid") or words.count(words[-1]) == 2


def status_of(verdicts: Iterable[Verdict]) -> Status:
    """Returns the worst status: a slower work is never hidden by an invalid or a new one."""
    words = {one.word for one in verdicts}
    for word, status in (
        ("slower", Status.SLOWER), ("invalid", Status.INVALID), ("first night", Status.FIRST),
    ):  # fmt: skip
        if word in words:
            return status
    return Status.AS_BEFORE


def headline(verdicts: Sequence[Verdict]) -> str:
    """Returns one line that names every work that is not as before."""
    if all(one.word == "first night" for one in verdicts):
        return "first night, nothing was compared"
    by_word = {word: [one.name for one in verdicts if one.word == word] for word in WORDS}
    parts = [
        f"{word}: {'; '.join(names)}"
        for word, names in by_word.items() if names and word != "as before"
    ]  # fmt: skip
    return ". ".join(parts) or "as fast as before"


def table(verdicts: Sequence[Verdict]) -> str:
    """Returns the table of tonight beside the bars, in Markdown."""

    def percent(ratio: float | None) -> str:
        return "" if ratio is None else f"{ratio - 1:+.1%}"

    header = ("work", "ours, us", "reference, us", "slower by", "at least", "reference moved", "")
    return markdown_table(header, (
        (
            one.name, f"{one.now.ours_us:.1f}", f"{one.now.peer_us:.1f}",
            percent(one.slowdown) if one.sound else "", percent(one.least) if one.sound else "",
            percent(one.reference_moved) if one.sound else "",
            f"**{one.word}**" if one.word in WORDS[:3] else one.word,
        )
        for one in verdicts
    ))  # fmt: skip
