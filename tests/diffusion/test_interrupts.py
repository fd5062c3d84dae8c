"""Runs that are told to stop, and what they say of their progress."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from flashpoint.diffusion import experiment
from flashpoint.diffusion.interrupts import Stopped, deferred, exit_code, stoppable, word_for
from flashpoint.diffusion.training import engine

from .helpers import flashpoint

pytestmark = pytest.mark.usefixtures("few_points")

SMALL = ("--data", "own.npy", "--recipe", "small", "--batch-size", 32, "--hidden-layers", "8,8",
         "--timesteps", 10, "--schedule", "cosine", "--samples", 20, "--device", "cpu",
         "--out", "run")  # fmt: skip
SIGNALS = {"SIGINT": (130, "interrupted"), "SIGTERM": (143, "stopped by SIGTERM"),
           "SIGHUP": (129, "stopped by SIGHUP")}  # fmt: skip


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("own.npy", np.random.default_rng(0).normal(size=(60, 2)))
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has ignored
    yield tmp_path
    signal.signal(signal.SIGHUP, before)


@contextlib.contextmanager
def a_signal_at(owner, name, number, call):
    """Sends this process a signal at the so-many-th call of a function."""
    real, calls = getattr(owner, name), []

    def told(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, told)
        yield


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_saves_the_training_and_says_how_to_go_on(own, name):
    code, words = SIGNALS[name]
    with a_signal_at(engine, "training_sums", getattr(signal, name), 31):
        result = flashpoint("train", *SMALL, "--steps", 300)
    assert result.exit_code == code, result.output
    assert f"{words} at step 50; the same command with --resume goes on" in result.output
    state = torch.load("run/checkpoints/training.pt", weights_only=True)
    assert state["denoiser"]["step"] == 50
    result = flashpoint("train", *SMALL, "--steps", 300, "--resume")
    assert result.exit_code == 0, result.output
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert json.loads((own / "run/checkpoints/progress.json").read_text()) == {
        "denoiser": {"step": 300, "of": 300}
    }


@pytest.mark.parametrize(
    ("function", "stage"), [("sample", "samples were drawn"), ("evaluate", "samples were measured")]
)
def test_a_signal_after_the_training_says_what_is_left(function, stage):
    with a_signal_at(experiment, function, signal.SIGTERM, 1):
        result = flashpoint("states", *SMALL, "--steps", 20)
    assert result.exit_code == 143, result.output
    last = result.output.splitlines()[-1]
    assert last == (
        f"stopped by SIGTERM after the training, while {stage}; the same command with --resume "
        "goes on"
    ).replace("samples were measured", "the samples were measured")
    assert flashpoint("states", *SMALL, "--steps", 20, "--resume").exit_code == 0


def test_a_second_signal_stops_at_once_and_an_ignored_one_stays_ignored():
    with deferred() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.is_set()
        with pytest.raises(Stopped) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
    assert (exit_code(stop.value), word_for(stop.value)) == (143, "stopped by SIGTERM")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_unfinished_run_says_so_wherever_it_is_used(own):
    with a_signal_at(engine, "training_sums", signal.SIGTERM, 31):
        flashpoint("train", *SMALL, "--steps", 3000)
    told = "run is not finished: its denoiser is trained to step 50 of 3,000\n"
    for command in (("sample", "run", "-n", 5), ("view", "run", "-n", 5), ("export", "run"),
                    ("interpolate", "run", "--pairs", 2)):  # fmt: skip
        result = flashpoint(*command)
        assert result.exit_code == 0, result.output
        assert told in result.output
    assert told in flashpoint(
        "sample", own / "run/checkpoints/denoiser.pt", "-n", 5
    ).output.replace(str(own / "run/checkpoints/denoiser.pt"), "run")


def test_the_seconds_of_a_run_are_those_of_all_its_parts(own):
    with a_signal_at(engine, "training_sums", signal.SIGTERM, 31):
        flashpoint("states", *SMALL, "--steps", 100)
    state = torch.load("run/checkpoints/training.pt", weights_only=True)
    state["seconds"]["train denoiser"] += 1000
    torch.save(state, own / "run/checkpoints/training.pt")
    for _ in range(2):  # the second time there is nothing left to train
        assert flashpoint("states", *SMALL, "--steps", 100, "--resume").exit_code == 0
        seconds = json.loads((own / "run/metrics.json").read_text())["seconds"]
        assert 1000 < seconds["train denoiser"] < 1100


def test_quiet_runs_show_no_progress():
    for flag in ("--quiet", "-q"):
        result = flashpoint("train", *SMALL, "--steps", 20, flag, "--overwrite")
        assert result.output == "checkpoints are in run/checkpoints\n"
    assert flashpoint("train", *SMALL, "--steps", 20, "--overwrite").output.count("20 steps") == 2


INTERRUPTED = """
import sys

class Interrupts:  # in place of a user who presses Ctrl-C while torch is imported
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
sys.argv = ["flashpoint", "info"]
import runpy
runpy.run_module("flashpoint.diffusion", run_name="__main__")
"""


def test_an_interrupt_during_the_import_is_one_line():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "\ninterrupted\n")


def test_the_package_is_light_until_a_name_is_asked_for():
    program = (
        "import sys, flashpoint.diffusion as fd\n"
        "assert 'torch' not in sys.modules\n"
        "assert fd.Points.__name__ == 'Points' and fd.metrics.evaluate and 'Points' in dir(fd)\n"
        "from flashpoint.diffusion import *\n"
        "assert sample is fd.sample\n"
        "from flashpoint.diffusion import files\n"
        "try:\n    fd.nothing\nexcept AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "module 'flashpoint.diffusion' has no attribute 'nothing'\n"


ENCODED = """
import sys
from flashpoint.diffusion.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("environment", [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    pytest.param({"PYTHONIOENCODING": "cp1252"}, marks=pytest.mark.slow),
    pytest.param({"PYTHONIOENCODING": "ascii"}, marks=pytest.mark.slow),
])  # fmt: skip
def test_names_that_the_terminal_cannot_show_do_not_stop_a_command(own, environment):
    np.save("Łódź.npy", np.random.default_rng(0).normal(size=(60, 2)))
    arguments = ["evaluate", "Łódź.npy", "--data", "own.npy", "--real-draws", "10"]
    done = subprocess.run(
        [sys.executable, "-c", ENCODED, *arguments], capture_output=True, cwd=own,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"data's own" in done.stdout
