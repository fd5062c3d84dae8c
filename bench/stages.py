"""Runs processes with a time limit each, several at once, and stores their output in files."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Seconds before its limit at which a process is interrupted, so that it can report its results.
# At the limit it is killed.
GRACE = 4
# The fewest seconds for which a process is started.
SHORTEST = 12
_POLL = 0.05
# A sanitizer marks its lines; a line that is not about itself reports a fault.
_SANITIZER = re.compile(
    r"^========= (?!COMPUTE-SANITIZER|ERROR SUMMARY: 0|RACECHECK SUMMARY: 0|$|\s)(.+)$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Stage:
    """A process to run.

    Attributes:
        name: name in the record and the summary.
        command: program and arguments.
        limit: the most seconds that it may take.
        slack: seconds of the limit that are not passed to it as ``--budget``; None if it has no
            such option.
        numbers: number of its last lines that belong into the summary.
        environment: variables beside those of all stages.
        spare: if True, it uses the time that is left, and running out of time is not a failure.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    slack: float | None = None
    numbers: int = 0
    environment: tuple[tuple[str, str], ...] = ()
    spare: bool = False

    def command_within(self, limit: float) -> list[str]:
        """Returns the command with the time that it has, if it takes a budget."""
        if self.slack is None:
            return [*self.command]
        return [*self.command, "--budget", f"{max(1.0, limit - self.slack):.0f}"]


@dataclass(frozen=True)
class Ended:
    """The end of a stage.

    Attributes:
        stage: the stage that ended.
        outcome: ``passed``, ``failed``, ``out of time`` or ``unavailable``.
        seconds, limit: time that it took, and its limit.
        status: exit status of its process; None if that was not started.
        output: output of the process, or the reason why it was not started.
    """

    stage: Stage
    outcome: str
    seconds: float
    limit: float
    status: int | None
    output: str

    @property
    def good(self) -> bool:
        """True if no fault was found, and the stage was complete or may be incomplete."""
        unfinished = self.outcome == "out of time" and self.stage.spare
        return self.outcome in ("passed", "unavailable") or (unfinished and self.finding is None)

    @property
    def finding(self) -> str | None:
        """The first fault that a sanitizer found, if any."""
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
            # A session of its own, so that a signal reaches all that it starts, and nothing else.
            self.process = subprocess.Popen(
                stage.command_within(limit), stdout=file, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, env=environment | dict(stage.environment),
                start_new_session=True,
            )  # fmt: skip

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def ended(self) -> Ended | None:
        """Returns its end, or None while it runs; stops it when its time is up."""
        seconds = time.monotonic() - self.start
        status = self.process.poll()
        if status is None:
            if seconds > self.limit:
                self.send(signal.SIGKILL)
            elif seconds > self.limit - GRACE and not self.interrupted:
                self.interrupted = True
                self.send(signal.SIGINT)
            return None
        self.send(signal.SIGKILL)  # processes that it may have left behind
        outcome = "out of time" if self.interrupted else "failed" if status else "passed"
        output = self.output.read_text(encoding="utf-8", errors="replace")
        return Ended(self.stage, outcome, seconds, self.limit, status, output)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Holds back requests to stop while a process starts, which nothing would end otherwise."""
    came, before = [], {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(signal.getsignal(number)):
            before[number] = signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in came:
        signal.raise_signal(number)


def _stop(running: list[_Running]) -> None:
    """Interrupts processes and kills those that do not end soon."""
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
    """Runs stages in their order, several at once, and yields each when it ends.

    Args:
        stages: stages to run.
        most: the largest number that may run at once.
        end: time.monotonic() at which all must have ended, whatever their own limits are.
        environment: variables of all stages.
        scratch: folder for their output.
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
                    with _interrupts_later():
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
    """Returns the end of a stage that never began."""
    outcome = "unavailable" if stage.spare else "out of time"
    return Ended(stage, outcome, 0.0, stage.limit, None, why)
