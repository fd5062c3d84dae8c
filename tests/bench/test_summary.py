"""The last lines that a visit prints."""

import re
import subprocess
import sys

import pytest

from flashpoint.bench.stages import Ended, Stage
from flashpoint.bench.summary import CHARACTERS, LINES, of_visit, reasons
from flashpoint.bench.visit import environment_of_stages

TESTS = """
import pytest

@pytest.mark.parametrize("shape", ["(3, 4)-fp16", "(5)-bf16"])
def test_wrong(shape):
    assert 0.25 <= 0.1

def test_crashes():
    raise RuntimeError("out of resource: shared memory\\nRequired: 300000")

@pytest.fixture
def broken():
    raise ValueError("no such thing")

def test_setup(broken):
    pass
"""


def ended(outcome="failed", output="", status=1, name="tests", numbers=0):
    stage = Stage(name, ("true",), 60, numbers=numbers)
    return Ended(stage, outcome, 12.3, 60, status, output)


def test_failing_tests_are_named_with_their_reasons(tmp_path):
    (tmp_path / "test_x.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "--tb", "short", "test_x.py"]
    # Other plugins take a second to import.
    more = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment = environment_of_stages(tmp_path, tmp_path) | more
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    found = reasons(ended(output=done.stdout))
    assert sorted(found) == [
        "test_x.py::test_crashes: RuntimeError: out of resource: shared memory",
        "test_x.py::test_setup: ValueError: no such thing",
        "test_x.py::test_wrong[(3, 4)-fp16]: assert 0.25 <= 0.1",
        "test_x.py::test_wrong[(5)-bf16]: assert 0.25 <= 0.1",
    ]


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("Traceback (most recent call last):\n  File 'x'\nValueError: x must be 3\n",
         "ValueError: x must be 3"),
        ("ImportError while loading conftest\nE   ImportError: no module named ot\nmore\n",
         "ImportError: no module named ot"),
        ("========= COMPUTE-SANITIZER\ntrain_step right\n"
         "========= Invalid __global__ read of size 4 bytes\n=========     at kernel+0x70\n"
         "========= ERROR SUMMARY: 1 error\n",
         "Invalid __global__ read of size 4 bytes"),
        ("step: right\nchain: no time, wrong: error 0.3, allowed 0.1\nguided: 3 ms\n",
         "chain: no time, wrong: error 0.3, allowed 0.1"),
        ("train_step  200 fp16 error 3e-1 WRONG, allowed 2e-02; not timed\nmlp  200 fp16 ok\n",
         "train_step  200 fp16 error 3e-1 WRONG, allowed 2e-02; not timed"),
        ("", "it printed nothing"),
    ],
)  # fmt: skip
def test_first_useful_line(output, reason):
    assert reasons(ended(output=output)) == [reason]


def test_failures_come_first_then_what_was_not_run_then_numbers():
    text = of_visit("check on H100", [
        ended("passed", "noise\n\nstep: 30 us\nchain: 5 ms\n", 0, "works", numbers=2),
        ended("failed", "FAILED tests/kernels/test_a.py::test_b - assert 1 == 2\n"),
        ended("unavailable", "there is no compute-sanitizer", None, "memcheck"),
        ended("out of time", "no time was left for it", None, "racecheck"),
    ], ["results in /out"])  # fmt: skip
    assert text.splitlines() == [
        "== check on H100: 1 of 4 stages passed, 2 did not ==",
        "results in /out",
        "failed: tests after 12 s, status 1",
        "    kernels/test_a.py::test_b: assert 1 == 2",
        "out of time: racecheck",
        "    no time was left for it",
        "unavailable: memcheck, there is no compute-sanitizer",
        "-- works",
        "step: 30 us",
        "chain: 5 ms",
    ]


def test_it_is_short_whatever_happened():
    many = "\n".join(f"FAILED tests/test_{n}.py::test - {'x' * 300}" for n in range(30))
    stages = [ended(output=many, name=f"tests {number}") for number in range(40)]
    stages.append(ended("passed", "y" * 149 + "\n" + "number\n" * 200, 0, "race", numbers=201))
    text = of_visit("all on H100", stages)
    assert len(text.splitlines()) <= LINES
    assert len(text) <= CHARACTERS
    assert "-- race" in text
    assert text.count("number") > 20
    assert re.search(r"\.\.\. \d+ more lines, see log.txt", text)
