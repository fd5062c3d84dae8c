"""Processes with limits, run together."""

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
    end = time.monotonic() + seconds
    return list(run_together(todo, most, end, dict(os.environ), tmp_path))


@pytest.fixture(autouse=True)
def _interruptible():
    """Lets processes be interrupted although the tests were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr(stages, "GRACE", 1)
    monkeypatch.setattr(stages, "SHORTEST", 0.5)


@pytest.mark.parametrize(("status", "outcome"), [(0, "passed"), (3, "failed")])
def test_outcome_and_output(tmp_path, status, outcome):
    (one,) = run(tmp_path, python("a", f"print('first'); print('last'); exit({status})"))
    assert (one.outcome, one.status, one.last_line) == (outcome, status, "last")
    assert one.good == (status == 0)


@pytest.mark.usefixtures("_impatient")
def test_what_is_cut_short_says_what_it_found(tmp_path):
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('half'); exit(1)"
    (one,) = run(tmp_path, python("a", code, limit=4))
    assert (one.outcome, one.last_line, one.good) == ("out of time", "half", False)
    assert 3 <= one.seconds < 4


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(
    ("said", "good"),
    [
        ("========= COMPUTE-SANITIZER\nstep: right\n========= ERROR SUMMARY: 0 errors", True),
        ("========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 4", False),
    ],
)
def test_a_spare_stage_that_is_cut_short_fails_only_for_what_it_found(tmp_path, said, good):
    code = f"import time; print({said!r}, flush=True); time.sleep(60)"
    (one,) = run(tmp_path, replace(python("a", code, limit=4), spare=True))
    assert (one.outcome, one.good) == ("out of time", good)


@pytest.mark.usefixtures("_impatient")
def test_what_does_not_end_is_killed_with_all_that_it_started(tmp_path):
    child = "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(60)"
    code = (
        f"import subprocess, sys, signal, time; signal.signal(2, signal.SIG_IGN)\n"
        f"one = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print(one.pid, flush=True); time.sleep(60)"
    )
    (one,) = run(tmp_path, python("a", code, limit=3))
    assert one.outcome == "out of time"
    assert one.seconds < 4
    # A process that is dead but not yet waited for by its new parent is a zombie.
    status = Path(f"/proc/{one.last_line}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_they_start_in_order_and_not_too_many_at_once(tmp_path):
    code = "import time; print(time.monotonic()); time.sleep(0.5); print(time.monotonic())"
    found = run(tmp_path, *(python(str(number), code) for number in range(4)), most=2)
    spans = {one.stage.name: tuple(map(float, one.output.split())) for one in found}
    assert sorted(spans) == ["0", "1", "2", "3"]
    assert max(spans[name][0] for name in "01") < min(spans[name][0] for name in "23")
    for moment, _ in spans.values():
        assert sum(start <= moment < end for start, end in spans.values()) <= 2


def test_a_stage_is_told_its_budget(tmp_path):
    code = "import sys; print(sys.argv[1:])"
    stage = python("a", code, limit=40, slack=15)
    assert run(tmp_path, stage)[0].last_line == "['--budget', '25']"
    assert run(tmp_path, stage, seconds=30.5)[0].last_line in (
        "['--budget', '15']", "['--budget', '16']"
    )  # fmt: skip


def test_without_time_nothing_is_started(tmp_path):
    needed, spare = python("a", "print(1)"), python("b", "print(1)", spare=True)
    first, second = run(tmp_path, needed, spare, seconds=5)
    assert (first.outcome, first.good) == ("out of time", False)
    assert (second.outcome, second.good) == ("unavailable", True)
    assert first.status is second.status is None


def test_an_interrupt_ends_all_of_them(tmp_path):
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('interrupted')"
    todo = [python("quick", "pass"), *(python(name, code) for name in "ab")]
    going = run_together(todo, 3, time.monotonic() + 60, dict(os.environ), tmp_path)
    assert next(going).stage.name == "quick"
    start = time.monotonic()
    time.sleep(0.5)
    going.close()
    assert time.monotonic() - start < 5
    assert [(tmp_path / f"{name}.txt").read_text() for name in "ab"] == ["interrupted\n"] * 2
