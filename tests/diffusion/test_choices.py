"""The names that the command line knows at once, against the functions that they stand for."""

import subprocess
import sys

import pytest

from flashpoint.diffusion import RECIPES, Schedule, choices, data, predictions
from flashpoint.diffusion.chains import METHODS
from flashpoint.diffusion.models import ACTIVATIONS
from flashpoint.diffusion.noise_levels import BETAS
from flashpoint.diffusion.solvers import SOLVERS
from flashpoint.diffusion.spacings import SPACINGS
from flashpoint.diffusion.studies import STUDIES

from .helpers import flashpoint

TABLES = {
    "ACTIVATIONS": ACTIVATIONS, "BETA_SCHEDULES": BETAS, "DATASETS": data.DATASETS,
    "METHODS": METHODS, "PREDICTIONS": predictions.PREDICTIONS, "RECIPES": RECIPES,
    "SOLVERS": SOLVERS, "SPACINGS": SPACINGS, "STUDIES": STUDIES,
    "WEIGHTINGS": predictions.WEIGHTINGS,
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_names_are_those_of_the_functions(name):
    assert getattr(choices, name) == tuple(TABLES[name])


def test_help_tells_the_default_variances():
    text = " ".join(flashpoint("train", "--help").output.split())
    assert f"Smallest variance beta. Default: {Schedule.beta_start}." in text
    assert f"Largest variance beta. Default: {Schedule.beta_end}." in text


LIGHT = """
import sys
sys.argv = ["flashpoint", *sys.argv[1:]]
from flashpoint.diffusion.entry import main
try:
    main()
finally:
    heavy = {"torch", "numpy", "scipy", "matplotlib", "triton"} & set(sys.modules)
    print("imported:", *sorted(heavy), file=sys.stderr)
"""
MISTAKES = {
    "train --lrr 1": "No such option",
    "train --steps 0": "--steps must be at least 1, got 0",
    "train --schedule sigmiod": "did you mean 'sigmoid'?",
    "sample run --method ddpn": "did you mean 'ddpm'?",
    "export run --format onxx": "did you mean 'onnx'?",
    "study timestep": "did you mean 'timesteps'?",
    "trian": "No such command",
}


def light(arguments):
    command = [sys.executable, "-c", LIGHT, *arguments.split()]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", ["--version", "--help", "states --help", "sample --help"])
def test_help_and_version_import_no_large_package(arguments):
    done = light(arguments)
    assert done.returncode == 0
    assert done.stdout
    assert done.stderr == "imported:\n"


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_of_typing_is_answered_without_a_large_package(arguments):
    done = light(arguments)
    first, last = done.stderr.splitlines()
    assert (done.returncode, last) == (2, "imported:")
    assert first.startswith("error: ")
    assert MISTAKES[arguments] in first
