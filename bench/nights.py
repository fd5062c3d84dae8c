"""The history of the gate: a folder with one file for each night, from which the bars follow.

The bar of a work is a speedup over the frozen reference: that of its first night, or a higher one
that the median of five nights in a row reached. So a slow drift meets a bar that stays, and an
improvement raises it. A new driver or version of torch changes the times of the reference, which
are then compared with those since the change, but never the bar.

A work is slower if it is more than 3% below its bar. Where nights differ so much that this would
raise false alarms, the limit is four standard deviations from night to night, and at most 10%.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

from ..diffusion.errors import UserError
from ..diffusion.files import load_json, make_folder, save_json
from .baseline import same_machine, timings_of
from .timing import Timing
from .verdict import SLOWER, WINDOW, WORDS, Past

_FORMAT = 1
_DEVIATIONS, _MOST_ALLOWED, _NOISE_NIGHTS = 4, 1.10, 30
_ENTRIES = ("format", "date", "device", "suite", "reference work", "sizes", "machine", "verdict",
            "accepted", "update", "works")  # fmt: skip


@dataclass(frozen=True)
class Night:
    """What one night measured.

    Attributes:
        date: when, with its time zone.
        setup: what two nights must share, see :func:`.baseline.setup`.
        machine: the machine and its versions.
        verdict: the night in one line.
        timings: times by work; those of invalid works are not read.
        words: verdict on each work.
        accepted: works that were slower, and whose bar starts anew with this night.
        update: True if the times of the reference start anew with this night.
    """

    date: datetime
    setup: dict[str, Any]
    machine: dict[str, Any]
    verdict: str
    timings: dict[str, Timing]
    words: dict[str, str]
    accepted: tuple[str, ...] = ()
    update: bool = False

    def valid(self, name: str) -> Timing | None:
        """Returns the times of a work; None if it was not measured, or its night is invalid."""
        return None if self.words.get(name) in (None, "invalid") else self.timings[name]

    @property
    def content(self) -> dict:
        """The content of its file."""
        works = {
            name: {
                # JSON knows no NaN, which an invalid work may have.
                key: number if math.isfinite(number) else None
                for key, number in asdict(timing).items()
            } | {"verdict": self.words[name]}
            for name, timing in self.timings.items()
        }  # fmt: skip
        return {
            "format": _FORMAT, "date": self.date.isoformat(), **self.setup,
            "machine": self.machine, "verdict": self.verdict, "accepted": list(self.accepted),
            "update": self.update, "works": works,
        }  # fmt: skip


def read_night(path: Path) -> Night:
    """Returns the night of a file.

    Raises:
        ValueError: the file is damaged or of something else.
    """
    content, where = load_json(path, "night"), f"night {path}"
    if missing := set(_ENTRIES) - content.keys():
        raise UserError(f"{where} lacks {', '.join(sorted(missing))}")
    if content["format"] != _FORMAT:
        raise UserError(f"{where} has format {content['format']}, known is {_FORMAT}")
    try:
        date = datetime.fromisoformat(content["date"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: date must be like 2026-01-31T02:17:00+00:00") from error
    kinds = {"machine": dict, "works": dict, "accepted": list, "update": bool, "verdict": str}
    for name, kind in kinds.items():
        if not isinstance(content[name], kind):
            raise UserError(f"{where}: {name} must be a {kind.__name__}, got {content[name]!r}")
    if date.tzinfo is None:
        raise UserError(f"{where}: date must have a time zone, got {content['date']}")
    works = content["works"]
    words = {name: str(one.get("verdict")) for name, one in works.items() if isinstance(one, dict)}
    if unknown := set(words.values()) - set(WORDS):
        raise UserError(f"{where}: verdict must be of {', '.join(WORDS)}; got {min(unknown)}")
    # An invalid work may hold any number, because it is never compared.
    valid = {name: one for name, one in works.items() if words.get(name) != "invalid"}
    timings = timings_of(valid, where)
    setup = {name: content[name] for name in ("device", "suite", "reference work", "sizes")}
    return Night(date, setup, content["machine"], content["verdict"], timings, words,
                 tuple(content["accepted"]), content["update"])  # fmt: skip


def bar_of(speedups: Sequence[float]) -> float:
    """Returns the first speedup, or the highest median of five in a row if that is higher."""
    windows = (speedups[end - WINDOW : end] for end in range(WINDOW, len(speedups) + 1))
    return max([speedups[0], *map(median, windows)])


def noise_of(speedups: Sequence[float]) -> float:
    """Returns the standard deviation of speedups from night to night, as a fraction.

    It is that of the median change, which neither a step nor a drift moves much; 0 for fewer than
    five nights.
    """
    if len(speedups) < WINDOW:
        return 0.0
    changes = [abs(math.log(after / before)) for before, after in pairwise(speedups)]
    return median(changes) / (NormalDist().inv_cdf(0.75) * math.sqrt(2))


def allowed_with(noise: float) -> float:
    """Returns the slowdown above which a work is slower: four deviations, 3% to 10%."""
    return min(max(SLOWER, 1 + _DEVIATIONS * noise), _MOST_ALLOWED)


class History:
    """The nights before tonight that can be compared with it.

    Args:
        nights: all earlier nights.
        here: what tonight shares with those, see :func:`.baseline.setup`.
        machine: tonight's machine.
        update: True if the times of the reference start anew tonight.

    Attributes:
        nights: the nights that can be compared, oldest first.
        before: the bars by work.
        past: what there is beside them.
        notes: lines for the reader.
    """

    def __init__(
        self,
        nights: Iterable[Night],
        here: Mapping[str, Any],
        machine: Mapping[str, Any],
        update: bool = False,
    ):
        self.here, self.machine, self.update = dict(here), dict(machine), update
        ordered = sorted(nights, key=lambda night: night.date)
        self.nights = [night for night in ordered if night.setup == self.here]
        self._alike = self._same_machine()
        self.before: dict[str, Timing] = {}
        self.past: dict[str, Past] = {}
        for name in dict.fromkeys(name for night in self.nights for name in night.timings):
            self._learn(name)
        self.notes = [
            *self._left_out(ordered), *self._changes(), *self._without_verdict(), *self._noisy()
        ]  # fmt: skip

    def _learn(self, name: str) -> None:
        """Works out bar and past of a work, if it has a valid night."""
        start = max((n for n, night in enumerate(self.nights) if name in night.accepted), default=0)
        valid = [
            (timing, alike)
            for night, alike in zip(self.nights[start:], self._alike[start:], strict=True)
            if (timing := night.valid(name))
        ]
        if not valid:
            return
        speedups = [timing.speedup for timing, _ in valid]
        alike = [timing.peer_us for timing, alike in valid if alike]
        peer_us = median(alike[-WINDOW:] or [valid[-1][0].peer_us])
        bar = bar_of(speedups)
        self.before[name] = Timing(peer_us / bar, peer_us, bar, bar, bar, len(valid))
        allowed = allowed_with(noise_of(speedups[-_NOISE_NIGHTS:]))
        self.past[name] = Past(tuple(speedups[1 - WINDOW :]), bool(alike), allowed)

    def _same_machine(self) -> list[bool]:
        """Returns for each night whether tonight's times of the reference are comparable."""
        alike = [same_machine(night.machine, self.machine) for night in self.nights]
        restarts = [number for number, night in enumerate(self.nights) if night.update]
        first = len(self.nights) if self.update else max(restarts, default=0)
        return [number >= first and same for number, same in enumerate(alike)]

    def _left_out(self, nights: Sequence[Night]) -> list[str]:
        """Returns notes on the nights that cannot be compared with tonight."""
        others: Counter[str] = Counter()
        for night in nights:
            other = [key for key, value in self.here.items() if night.setup[key] != value]
            others.update(f"{key} {night.setup[key]}" for key in other[:1])
        return [f"{count} nights of {what} are not compared" for what, count in others.items()]

    def _changes(self) -> list[str]:
        """Returns a note if tonight is the first on a changed machine."""
        if self.update or not self.nights or any(self._alike):
            return []
        return [
            "the driver, a version or a limit of the machine has changed: the times of the "
            "reference start anew, the bars stay"
        ]

    def _without_verdict(self) -> list[str]:
        """Returns notes on works that nobody has judged for several nights."""
        notes = []
        for name in self.before:
            age = next(
                (age for age, night in enumerate(reversed(self.nights)) if night.valid(name)), 0
            )
            if age >= 2:
                notes.append(f"{name} had no valid measurement in the last {age} nights")
        return notes

    def _noisy(self) -> list[str]:
        """Returns notes on works that differ so much from night to night that more is allowed."""
        return [
            f"{name} differs a lot from night to night: slower means by more than "
            f"{past.allowed - 1:.1%}"
            for name, past in self.past.items() if past.allowed > SLOWER
        ]  # fmt: skip


def missing(nights: Sequence[Night]) -> list[str]:
    """Returns a note if nothing was measured on some days before the last night."""
    days = (nights[-1].date - nights[-2].date).days if len(nights) > 1 else 0
    return [f"the night before was {days} days ago"] if days > 1 else []


def read_nights(folder: Path) -> list[Night]:
    """Returns the nights of a folder; none if it does not exist yet.

    Raises:
        ValueError: the folder cannot be read, or one of its JSON files is damaged.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"history {folder} must be a folder, got a file")
    try:
        return [read_night(path) for path in sorted(folder.glob("*.json"))]
    except UserError as error:
        raise UserError(f"{error}; restore the file, or take it out of the history") from error
    except OSError as error:
        raise UserError(f"history {folder} cannot be read: {error.strerror}") from error


def write_night(folder: Path, night: Night) -> Path:
    """Writes a night to a new file, in one step, and returns its path."""
    stem = f"{night.date.astimezone(UTC):%Y-%m-%dT%H-%M-%SZ}-{night.setup['device']}"
    path, number = make_folder(folder) / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    save_json(path, night.content)
    return path
