"""The baseline of the gate: a file with the speedup that each work must keep."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..diffusion.errors import UserError
from ..diffusion.files import load_json, save_json
from .machine import describe, reference_hash, short_name
from .record import SUITE
from .timing import Timing
from .verdict import Past, Verdict

_OLD = {"suite", "reference work"}  # what makes the bars of an earlier version incomparable
BASELINES = Path(__file__).with_name("records") / "baselines"


def setup(device: torch.device, small: bool) -> dict[str, str | int]:
    """Returns what two nights must share so that their speedups can be compared."""
    return {
        "device": short_name(device),
        "suite": SUITE,
        "reference work": reference_hash(),
        "sizes": "small" if small else "full",
    }


def same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Returns whether times on two machines, see :func:`.machine.describe`, can be compared."""
    return _versions(one) == _versions(other)


def _versions(machine: Mapping[str, Any]) -> tuple:
    # The driver and the limits of clocks and power; the clock of the moment is left out.
    gpu = str(machine.get("driver, clocks (now, maximum), power limit")).split(", ")
    return (*(machine.get(name) for name in ("torch", "triton", "threads")), gpu[:1] + gpu[2:])


def timings_of(works: object, where: str) -> dict[str, Timing]:
    """Returns the timings that a file holds, by work.

    Raises:
        ValueError: a number is missing, or cannot be a measurement.
    """
    if not isinstance(works, dict) or not all(isinstance(one, dict) for one in works.values()):
        raise UserError(f"{where}: works must be objects of numbers, by name")
    timings = {}
    for name, one in works.items():
        numbers = {field.name: one.get(field.name) for field in fields(Timing)}
        for key, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserError(f"{where}: {key} of {name!r} must be a number, got {value!r}")
        timings[name] = Timing(**numbers)
        if not timings[name].sound:
            given = ", ".join(f"{key} {value}" for key, value in numbers.items())
            raise UserError(
                f"{where}: the numbers of {name!r} must be finite, above 0 and in order "
                f"low, speedup, high; got {given}"
            )
    return timings


@dataclass
class Baseline:
    """The bars in a file.

    Attributes:
        path: the file.
        here: what tonight shares with later nights, see :func:`setup`.
        before: the bars by work; empty without a usable file.
        past: what there is beside them.
        notes: lines for the reader.
    """

    path: Path
    here: dict[str, str | int]
    before: dict[str, Timing]
    past: dict[str, Past]
    notes: list[str]

    @classmethod
    def read(cls, path: Path, here: dict[str, str | int], update: bool) -> "Baseline":
        """Reads the bars; without a file there are none.

        Args:
            path: the file.
            here: what tonight shares with later nights.
            update: True accepts a file of another suite or reference work, which is to be replaced,
                and other times of the reference.

        Raises:
            ValueError: the file is damaged, or of another device, suite, reference work or size.
        """
        if not path.exists():
            return cls(path, here, {}, {}, [])
        content, where = load_json(path, "baseline"), f"baseline {path}"
        if missing := {*here, "works"} - content.keys():
            raise UserError(f"{where} lacks {', '.join(sorted(missing))}")
        other = {name: content[name] for name, value in here.items() if content[name] != value}
        if other and not (update and other.keys() <= _OLD):
            name, value = next(iter(other.items()))
            raise UserError(
                f"{where} was made with {name} {value}, here it is {here[name]}; "
                + ("--update writes a new one" if name in _OLD else "name another file")
            )
        if other:
            return cls(path, here, {}, {}, [f"nothing was compared: {where} is of another suite"])
        before = timings_of(content["works"], where)
        past = dict.fromkeys(before, Past(same_machine=not update))
        return cls(path, here, before, past, [])

    def write(
        self, verdicts: Sequence[Verdict], accepted: Sequence[str], update: bool
    ) -> str | None:
        """Writes the bars for later nights, and returns a line about it; None if nothing is due.

        Without ``update`` only works without a bar, and accepted ones, get tonight's times.
        With it the bar of a work is the higher one of the old and tonight's.
        """
        new = dict(self.before)
        for one in verdicts:
            if one.word == "invalid":
                continue
            if one.before is None or one.name in accepted:
                new[one.name] = one.now
            elif update:
                bar = max(one.before.speedup, one.now.speedup)
                new[one.name] = replace(
                    one.now, speedup=bar, low=min(one.now.low, bar), high=max(one.now.high, bar)
                )
        if new == self.before:
            return None
        if update:  # works that are no longer measured
            new = {one.name: new[one.name] for one in verdicts if one.name in new}
        works = {name: asdict(timing) for name, timing in new.items()}
        save_json(self.path, {**self.here, "machine": describe(), "works": works})
        return f"wrote {self.path.name}"
