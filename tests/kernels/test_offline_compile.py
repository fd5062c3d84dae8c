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


STEP_COUNTERS = """
import torch
from flashpoint.kernels import Course, MLPShape, TrainingData, adamw_state, resources
from flashpoint.kernels.adamw import kernel as adamw
from flashpoint.kernels.adamw import shadow_of
from flashpoint.kernels.q_sample.kernel import draw
from flashpoint.kernels.train_step.kernel import buffers_of, training_sums

shape, one = MLPShape((3, 32, 2)), torch.ones(1, dtype=torch.int64)
parameters = torch.zeros(1, shape.num_parameters)
course = Course(torch.ones(1, 9), one, one, torch.ones(1, 9))
data = TrainingData(torch.zeros(1, 9, 2), torch.ones(1, 5), torch.zeros(1, 5, 1), None, one,
                    torch.arange(5)[None])
shadow, state = shadow_of(parameters, shape, "fp16"), adamw_state(parameters)
buffers, splits = buffers_of(data, shape, 1, 64, "fp16")
sums = torch.zeros(1, splits, shape.num_parameters + 2)
clock = torch.arange(3)  # every second one lies at a multiple of 16 bytes

def step(number):
    training_sums(parameters, shape, data, sums, shadow, buffers, batch_size=64, seed=one,
                  step=clock[number], refresh=None, first_row=0, rows=64, add=False)
    draw(data, one, clock[number], 64)
    adamw.adamw_(parameters, sums, state, course, clock[number + 1], (0.9, 0.99), 1e-8, 0.0, True,
                 0.9, None, None, shadow)

assert clock[0].data_ptr() % 16 != clock[1].data_ptr() % 16
print(*resources.launches(90, {"first": lambda: step(0), "second": lambda: step(1)}), sep="\\n")
"""


def test_a_second_step_needs_no_other_kernels():
    """A CUDA graph of steps is captured after one of them: nothing can be compiled by then."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", STEP_COUNTERS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"first: {name}_kernel" for name in ("train", "weight_gradient", "draw", "adamw")
    ]


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
