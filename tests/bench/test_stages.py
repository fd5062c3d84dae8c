"""Processes with limits, run together."""

import math
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flashpoint.bench import stages
from flashpoint.bench.stages import Stage, run_together


def python(name, code, limit=60.0, **options):
    return Stage(name, (sys.executable, "-c", code), limit, **options)


def run(tmp_path, *todo, most=4, seconds=60.0):
    end = stages.time.monotonic() + seconds
    return list(run_together(todo, most, end, dict(os.environ), tmp_path))


@pytest.fixture(autouse=True)
def _interruptible():
    """Lets processes be interrupted although the tests were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Clock:
    """A clock of stages that stands still until a file has a line, then shows some moments.

    A slow machine so changes no outcome: a process has started before its time is up.
    """

    def __init__(self, file, *moments):
        self.file, self.moments, self.now = file, list(moments), 0.0
        self.patience = time.monotonic() + 120

    def monotonic(self):
        return self.now

    def sleep(self, _):
        time.sleep(0.01)
        if self.moments and self.file.exists() and self.file.read_text().endswith("\n"):
            self.now = self.moments.pop(0)
        elif time.monotonic() > self.patience:  # what should have ended is killed
            self.now = math.inf


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """Sets the moments that the clock shows once the process ``a`` has printed a line."""

    def shows(*moments):
        monkeypatch.setattr(stages, "time", Clock(tmp_path / "a.txt", *moments))

    monkeypatch.setattr(stages, "GRACE", 1)
    monkeypatch.setattr(stages, "SHORTEST", 0.5)
    return shows


@pytest.mark.parametrize(("status", "outcome"), [(0, "passed"), (3, "failed")])
def test_outcome_and_output(tmp_path, status, outcome):
    (one,) = run(tmp_path, python("a", f"print('first'); print('last'); exit({status})"))
    assert (one.outcome, one.status, one.last_line) == (outcome, status, "last")
    assert one.good == (status == 0)


def test_what_is_cut_short_says_what_it_found(tmp_path, clock):
    code = (
        "import time\n"
        "try: print('whole', flush=True); time.sleep(600)\n"
        "except KeyboardInterrupt: print('half'); exit(1)"
    )
    clock(2.9, 3.5)
    (one,) = run(tmp_path, python("a", code, limit=4))
    assert (one.outcome, one.output, one.good) == ("out of time", "whole\nhalf\n", False)
    assert one.seconds == 3.5


@pytest.mark.parametrize(
    ("said", "good"),
    [
        ("========= COMPUTE-SANITIZER\nstep: right\n========= ERROR SUMMARY: 0 errors", True),
        ("========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 4", False),
    ],
)
def test_a_spare_stage_that_is_cut_short_fails_only_for_what_it_found(tmp_path, clock, said, good):
    code = f"import time; print({said!r}, flush=True); time.sleep(600)"
    clock(3.5)
    (one,) = run(tmp_path, replace(python("a", code, limit=4), spare=True))
    assert (one.outcome, one.good) == ("out of time", good)


def runs(process):
    """False also if it is dead and its new parent has not waited for it: it is a zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_what_does_not_end_is_killed_with_all_that_it_started(tmp_path, clock):
    deaf = "import signal, time; signal.signal(2, signal.SIG_IGN)"
    code = (
        f"import subprocess, sys; {deaf}\n"
        f"child = [sys.executable, '-c', {deaf!r} + '; print(flush=True); time.sleep(600)']\n"
        "one = subprocess.Popen(child, stdout=subprocess.PIPE); one.stdout.readline()\n"
        "print(one.pid, flush=True); time.sleep(600)"
    )
    clock(2.5, 3.5)
    (one,) = run(tmp_path, python("a", code, limit=3))
    assert one.outcome == "out of time"
    assert one.seconds == 3.5
    end = time.monotonic() + 60
    while runs(one.last_line):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_they_start_in_order_and_not_too_many_at_once(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "print(time.monotonic()); Path(sys.argv[1]).touch()\n"
        # The first two may start at different speeds; neither ends before both have started.
        "while not (all(Path(sys.argv[1]).with_name(n).exists() for n in '01')): time.sleep(0.01)\n"
        "time.sleep(0.5); print(time.monotonic())"
    )
    todo = (python(str(number), code) for number in range(4))
    todo = (replace(one, command=(*one.command, str(tmp_path / one.name))) for one in todo)
    found = run(tmp_path, *todo, most=2)
    spans = {one.stage.name: tuple(map(float, one.output.split())) for one in found}
    assert sorted(spans) == ["0", "1", "2", "3"]
    assert max(spans[name][0] for name in "01") < min(spans[name][0] for name in "23")
    for moment, _ in spans.values():
        assert sum(start <= moment < end for start, end in spans.values()) <= 2


def test_a_stage_is_told_its_budget(tmp_path, clock):
    code = "import sys; print(sys.argv[1:])"
    stage = python("a", code, limit=40, slack=15)
    clock()
    assert run(tmp_path, stage)[0].last_line == "['--budget', '25']"
    assert run(tmp_path, stage, seconds=31)[0].last_line == "['--budget', '16']"


def test_without_time_nothing_is_started(tmp_path):
    needed, spare = python("a", "print(1)"), python("b", "print(1)", spare=True)
    first, second = run(tmp_path, needed, spare, seconds=5)
    assert (first.outcome, first.good) == ("out of time", False)
    assert (second.outcome, second.good) == ("unavailable", True)
    assert first.status is second.status is None


def test_an_interrupt_while_a_process_starts_ends_it_too(tmp_path, monkeypatch):
    begun, popen = [], stages.subprocess.Popen

    def interrupted(*arguments, **options):
        begun.append(popen(*arguments, **options))
        os.kill(os.getpid(), signal.SIGINT)
        return begun[0]

    monkeypatch.setattr(stages.subprocess, "Popen", interrupted)
    monkeypatch.setattr(stages, "GRACE", 0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, python("a", "import time; time.sleep(600)"))
    assert begun[0].returncode is not None  # it was waited for


def test_an_interrupt_ends_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "GRACE", 60)
    code = (
        "import time\n"
        "try: print('started', flush=True); time.sleep(600)\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    files = [tmp_path / f"{name}.txt" for name in "ab"]
    todo = [python("quick", "pass"), *(python(name, code) for name in "ab")]
    todo = [replace(one, limit=600) for one in todo]
    going = run_together(todo, 3, time.monotonic() + 600, dict(os.environ), tmp_path)
    assert next(going).stage.name == "quick"
    start = time.monotonic()
    while not all(file.read_text().endswith("\n") for file in files):
        assert time.monotonic() - start < 60
        time.sleep(0.01)
    start = time.monotonic()
    going.close()
    assert time.monotonic() - start < 60  # else they were killed
    assert [file.read_text() for file in files] == ["started\ninterrupted\n"] * 2
