"""What long work shows: bars on terminals and in notebooks, lines elsewhere, nothing if quiet."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flashpoint import diffusion as fd
from flashpoint.diffusion import progress as module
from flashpoint.diffusion.cli import main
from flashpoint.diffusion.progress import Progress, counted

from .helpers import flashpoint

POINTS, SCHEDULE = fd.states_points(60), fd.Schedule(20, "cosine")
RECIPE = fd.Recipe(steps=12, hidden_layers=(8,), batch_size=16)


@pytest.fixture
def now(monkeypatch):
    """The seconds that the clock shows, as a list of one number."""
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    return clock


def test_without_a_terminal_there_is_a_line_every_five_seconds(now, capsys):
    with Progress("train", 1000, "steps") as progress:
        assert capsys.readouterr().err == "train: 0 of 1,000 steps\n"
        for done in range(1, 1001):
            now[0] += 0.04
            progress.note(loss="0.5")
            progress.to(done)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 125 of 1,000 steps, loss 0.5, 5 s"
    assert lines[-1] == "train: 1,000 of 1,000 steps, loss 0.5, 40 s"
    assert len(lines) == 8


def test_the_lines_of_a_night_are_a_minute_apart(now, capsys):
    with Progress("train", 10**6, "steps") as progress:
        for done in range(1, 12 * 3600):
            now[0] += 1
            progress.to(done)
    err = capsys.readouterr().err
    last = [int(line.rsplit(" ", 2)[1]) for line in err.splitlines()[-5:-1]]
    assert set(np.diff(last)) == {60}
    assert len(err) < 60_000


def test_work_that_ends_early_says_how_far_it_came(now, capsys):
    with Progress("train", 10, "steps", start=2) as progress:
        progress.to(7)
        now[0] += 3
    assert capsys.readouterr().err == "train: 2 of 10 steps\ntrain: 7 of 10 steps, 3 s\n"


def test_a_terminal_shows_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(counted(3, "count", "units")) == [0, 1, 2]
    err = capsys.readouterr().err
    assert "\r" in err
    assert "3.00/3.00" in err
    assert "of" not in err


@pytest.mark.parametrize("app", ["IPKernelApp", "TerminalIPythonApp"])
def test_a_notebook_shows_a_bar(monkeypatch, capsys, app):
    shell = SimpleNamespace(config={app: {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    with Progress("train", 4, "steps"):
        pass
    assert ("4 steps" in capsys.readouterr().err) == (app != "IPKernelApp")


CALLS = {
    "Trainer": (lambda shown: fd.Trainer(POINTS, SCHEDULE, RECIPE).run(99, shown), 12),
    "ManyTrainer": (
        lambda shown: fd.ManyTrainer(
            [fd.Task(POINTS, SCHEDULE, RECIPE), fd.Task(POINTS, SCHEDULE, RECIPE, classify=True)]
        ).run(99, shown),
        24,
    ),
    "train_many": (
        lambda shown: fd.train_many([fd.Task(POINTS, SCHEDULE, RECIPE)], progress=shown), 12,
    ),
    "sample": (lambda shown: fd.sample(model(), SCHEDULE, 10, batch_size=3, progress=shown), 10),
    "sample_with_reward": (
        lambda shown: fd.sample_with_reward(
            model(), SCHEDULE, 6, lambda x: x[:, 0], batch_size=20, progress=shown
        ),
        6,
    ),
    "evaluate": (
        lambda shown: fd.evaluate(torch.randn(30, 2), POINTS, repeats=5, progress=shown), 6,
    ),
    "invert": (
        lambda shown: fd.invert(model(), SCHEDULE, POINTS.data[:3], num_steps=4, progress=shown), 4,
    ),
    "interpolate": (
        lambda shown: fd.interpolate(
            model(), SCHEDULE, POINTS.data[:3], POINTS.data[3:6], num_steps=4, progress=shown
        ),
        8,
    ),
    "DiffusionClassifier": (
        lambda shown: fd.DiffusionClassifier(conditional(), SCHEDULE, device="cpu").predict(
            POINTS.data[:7], progress=shown
        ),
        7,
    ),
}  # fmt: skip


def model():
    return fd.Task(POINTS, SCHEDULE, RECIPE).initial()


def conditional():
    return fd.Task(POINTS, SCHEDULE, replace(RECIPE, p_uncond=0.2)).initial()


@pytest.mark.parametrize("name", CALLS)
def test_each_long_call_shows_a_bar_calls_a_function_or_is_silent(name, capsys):
    call, total = CALLS[name]
    call(False)
    assert capsys.readouterr().err == ""
    call(True)
    assert f": {total} of {total} " in capsys.readouterr().err
    seen = []
    call(seen.append)
    assert seen == sorted(set(seen))
    assert seen[-1] == total
    assert capsys.readouterr().err == ""
    with pytest.raises(fd.UserError, match="progress must be True, False or a function, got 3"):
        call(3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("quiet")
    np.save(folder / "own.npy", np.random.default_rng(0).normal(size=(60, 2)))
    done = flashpoint(
        "train", "--data", folder / "own.npy", "--recipe", "small", "--batch-size", 32,
        "--hidden-layers", "8,8", "--timesteps", 10, "--schedule", "cosine", "--steps", 60,
        "--device", "cpu", "--out", folder / "run",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder / "run"


def test_sample_and_evaluate_show_how_far_they_are(run):
    shown = flashpoint("sample", run, "-n", 40, "--device", "cpu").stderr
    assert "sample: 40 of 40 samples" in shown
    shown = flashpoint("evaluate", run / "outputs/samples.pt", "--real-draws", 4).stderr
    assert "measure: 6 of 6 sets of points" in shown


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_quiet_commands_say_only_what_comes_of_them(run, command):
    done = flashpoint("sample", run, "-n", 40, "-q")
    if command == "evaluate":
        done = flashpoint("evaluate", run / "outputs/samples.pt", "--real-draws", 4, "-q")
    assert (done.exit_code, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1 or command == "evaluate"


@pytest.mark.parametrize("quietly", [False, True])
def test_interpolation_shows_how_far_it_is(run, quietly):
    options = ("--pairs", 1, "--count", 3, "--device", "cpu", *["-q"] * quietly)
    done = flashpoint("interpolate", run, *options)
    assert done.exit_code == 0, done.output
    assert ("interpolate: 18 of 18 steps" in done.stderr) != quietly


@pytest.mark.parametrize(("command", "work"), [("report", "write_report"), ("view", "write_view")])
def test_the_page_of_a_run_is_made_quietly(run, command, work, monkeypatch):
    def made(*_, say, **__):
        say("half of it is done")
        return (run / "page",) if command == "report" else run / "page"

    monkeypatch.setattr(f"flashpoint.diffusion.commands.{command}.{work}", made)
    assert flashpoint(command, run).stdout.startswith("half of it is done\n")
    assert flashpoint(command, run, "-q").stdout.startswith("the ")


def test_every_command_that_shows_progress_can_be_quiet():
    quiet = {
        name
        for name, command in main.commands.items()
        if any({"-q", "--quiet"} <= set(param.opts) for param in command.params)
    }
    assert quiet == {
        "states", "train", "sample", "evaluate", "classify", "interpolate", "report", "view",
        "sweep", "study",
    }  # fmt: skip
