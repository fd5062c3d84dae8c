"""The shipped kernels, compiled for GPUs that need not be there, take what they took before."""

import os
import subprocess
import sys
import time

import pytest

from flashpoint.kernels import resources


def compile_offline(*arguments):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "flashpoint.kernels.resources", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=590)


def test_training_and_sampling_on_hopper_in_45_seconds():
    start = time.monotonic()
    done = compile_offline("--main", "--arch", "90")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HGMMA" in done.stdout
    assert time.monotonic() - start < 45


def test_main_kernels_on_the_other_chips():
    done = compile_offline("--main", "--arch", "80", "100")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_every_kernel_on_every_chip():
    done = compile_offline()
    assert done.returncode == 0, done.stdout + done.stderr


def test_interpreted_kernels_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit):
        resources.main(["--main"])
    assert "TRITON_INTERPRET must not be set" in capsys.readouterr().err


GOOD = {
    "registers": 200,
    "spill_stores": 8,
    "spill_loads": 8,
    "stack": 32,
    "shared": 122880,
    "tensor_core": {"HGMMA": 33},
    "seconds": 1.0,
}


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({}, []),
        ({"registers": 255, "stack": 64, "seconds": 5.0, "tensor_core": {"HGMMA": 1}}, []),
        ({"seconds": 5.1}, ["took 5.1 s to compile, 5.0 s are allowed"]),
        ({"spill_stores": 0}, []),
        ({"spill_stores": 16}, ["spill_stores went from 8 to 16 bytes"]),
        ({"spill_loads": 12}, ["spill_loads went from 8 to 12 bytes"]),
        ({"tensor_core": {"HMMA": 99}}, ["no longer uses HGMMA"]),
        (
            {"shared": 232449},
            ["needs 232449 bytes of shared memory, the chip has 232448"],
        ),
    ],
)
def test_what_counts_as_a_problem(change, problems):
    found = resources.Resources(**(GOOD | change))
    assert resources.problems_of(found, 90, GOOD) == problems
