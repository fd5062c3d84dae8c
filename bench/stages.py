"""Processes with a time limit each, several at once; what they print goes to files."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Seconds before its limit at which a process is interrupted, so that it can say what it found;
# at the limit it is killed.
GRACE = 4
# Less time than this is not worth the start of a process.
SHORTEST = 12
_POLL = 0.05
# A sanitizer marks its lines; one that is not about itself says what is wrong.
_SANITIZER = re.compile(
    r"^========= (?!COMPUTE-SANITIZER|ERROR SUMMARY: 0|RACECHECK SUMMARY: 0|$|\s)(.+)$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Stage:
    """One process.

    Attributes:
        name: in the record and the summary.
        command: the program and its arguments.
        limit: seconds that it may take.
        slack: seconds of them that it needs beside its ``--budget``, which it is given; None
            without that option.
        numbers: how many of the last lines that it prints belong into the summary.
        environment: variables beside those of all stages.
        spare: it is done as far as time is left for it, and is no failure if that is not all.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    slack: float | None = None
    numbers: int = 0
    environment: tuple[tuple[str, str], ...] = ()
    spare: bool = False

    def command_within(self, limit: float) -> list[str]:
        """The command, told how much time it has."""
        told = [] if self.slack is None else ["--budget", f"{max(1.0, limit - self.slack):.0f}"]
        return [*self.command, *told]


@dataclass(frozen=True)
class Ended:
    """How a stage ended.

    Attributes:
        stage: which one.
        outcome: ``passed``, ``failed``, ``out of time`` or ``unavailable``.
        seconds, limit: that it took, and that it had.
        status: of its process, None if that was not started.
        output: what it printed, or why it was not started.
    """

    stage: Stage
    outcome: str
    seconds: float
    limit: float
    status: int | None
    output: str

    @property
    def good(self) -> bool:
        """Whether nothing was found wrong, and nothing was cut short that should end."""
        unfinished = self.outcome == "out of time" and self.stage.spare
        return self.outcome in ("passed", "unavailable") or (unfinished and self.finding is None)

    @property
    def finding(self) -> str | None:
        """The first thing that a sanitizer found wrong, if it did."""
        found = _SANITIZER.search(self.output)
        return found[1] if found else None

    @property
    def last_line(self) -> str:
        lines = self.output.strip().splitlines()
        return lines[-1] if lines else ""


class _Running:
    """A process that was started."""

    def __init__(self, stage: Stage, limit: float, environment: dict[str, str], scratch: Path):
        self.stage, self.limit, self.start = stage, limit, time.monotonic()
        self.output, self.interrupted = scratch / f"{stage.name.replace('/', '-')}.txt", False
        with self.output.open("wb") as file:
            # A session of its own, so that a signal reaches whatever it starts, and it alone.
            self.process = subprocess.Popen(
                stage.command_within(limit), stdout=file, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, env=environment | dict(stage.environment),
                start_new_session=True,
            )  # fmt: skip

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def ended(self) -> Ended | None:
        """How it ended; None while it runs. It is interrupted and killed when its time is up."""
        seconds = time.monotonic() - self.start
        status = self.process.poll()
        if status is None:
            if seconds > self.limit:
                self.send(signal.SIGKILL)
            elif seconds > self.limit - GRACE and not self.interrupted:
                self.interrupted = True
                self.send(signal.SIGINT)
            return None
        self.send(signal.SIGKILL)  # what it may have left behind
        outcome = "out of time" if self.interrupted else "failed" if status else "passed"
        output = self.output.read_text(errors="replace")
        return Ended(self.stage, outcome, seconds, self.limit, status, output)


def _stop(running: list[_Running]) -> None:
    """Interrupts processes, and kills those that do not end soon."""
    for one in running:
        one.send(signal.SIGINT)
    end = time.monotonic() + GRACE
    while time.monotonic() < end and any(one.process.poll() is None for one in running):
        time.sleep(_POLL)
    for one in running:
        one.send(signal.SIGKILL)
        one.process.wait()


def run_together(
    stages: Iterable[Stage],
    most: int,
    end: float,
    environment: dict[str, str],
    scratch: Path,
) -> Iterator[Ended]:
    """Runs stages, in their order and at most so many at once; each as it ends.

    Args:
        stages: what to run.
        most: how many may run at once.
        end: time.monotonic() at which all must have ended, whatever their own limits are.
        environment: variables of all.
        scratch: a folder for what they print.
    """
    waiting, running = deque(stages), []
    try:
        while waiting or running:
            while waiting and len(running) < most:
                stage = waiting.popleft()
                limit = min(stage.limit, end - time.monotonic())
                if limit < SHORTEST:
                    yield not_started(stage, "no time was left for it")
                else:
                    running.append(_Running(stage, limit, environment, scratch))
            for one in list(running):
                ended = one.ended()
                if ended is not None:
                    running.remove(one)
                    yield ended
            time.sleep(_POLL)
    finally:  # after an interrupt some are left
        _stop(running)


def not_started(stage: Stage, why: str) -> Ended:
    """The end of a stage that never began."""
    outcome = "unavailable" if stage.spare else "out of time"
    return Ended(stage, outcome, 0.0, stage.limit, None, why)
