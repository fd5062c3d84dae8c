"""The blocks of docs/logs.md run as they stand, and the example of callbacks, with stubs."""

# ruff: noqa: ARG001 - the stubs have the parameters of what they stand for

import csv
import re
import runpy
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from .helpers import flashpoint

pytestmark = pytest.mark.usefixtures("few_points")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/logs.md").read_text()


def blocks(kind):
    found = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert found
    return found


def wandb(told):
    """A module with the functions of wandb that callbacks call, and their parameters."""

    def init(entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None,
             config=None, **others):  # fmt: skip
        told.append(("begin", project, config))
        return SimpleNamespace(log=log, finish=finish)

    def log(data, step=None, commit=None):
        told.append(("log", step, data))

    def finish(exit_code=None, quiet=None):
        told.append(("end",))

    module = ModuleType("wandb")
    module.init, module.log, module.finish = init, log, finish
    return module


def mlflow(told):
    """The same of mlflow."""

    def start_run(run_id=None, experiment_id=None, run_name=None, nested=False, **others):
        told.append(("begin",))

    def log_params(params, synchronous=None, run_id=None):
        assert all(re.fullmatch(r"[\w\-. /]+", name) for name in params)  # what MLflow allows
        told.append(("params", params))

    def log_metrics(metrics, step=None, synchronous=None, run_id=None, timestamp=None,
                    model_id=None, dataset=None):  # fmt: skip
        told.append(("log", step, metrics))

    def end_run(status="FINISHED"):
        told.append(("end",))

    module = ModuleType("mlflow")
    for function in (start_run, log_params, log_metrics, end_run):
        setattr(module, function.__name__, function)
    return module


@pytest.fixture
def trackers(tmp_path, monkeypatch):
    """What wandb and mlflow are told, by name, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    told = {"wandb": [], "mlflow": []}
    monkeypatch.setitem(sys.modules, "wandb", wandb(told["wandb"]))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow(told["mlflow"]))
    return told


def check(told, steps):
    settings = next(part for what in told for part in what if isinstance(part, dict))
    assert (settings["network"], settings["recipe/hidden_layers"]) == ("denoiser", [32, 32])
    logged = {what[1]: what[2] for what in told if what[0] == "log"}
    assert list(logged) == steps
    assert all(values.keys() == {"loss", "lr", "seconds"} for values in logged.values())
    assert (told[0][0], told[-1]) == ("begin", ("end",))


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_each_block_of_python_runs(number, trackers, capsys):
    code = blocks("python")[number]
    exec(compile(code, "docs/logs.md", "exec"), {"__name__": "__main__"})
    said = capsys.readouterr()
    for name, told in trackers.items():
        if f"import {name}\n" in code:
            check(told, [50, 100, 150, 200])
    assert ("progress=True" in code) == ("train denoiser: 200 of 200 steps" in said.err)
    if "Printed" in code:
        assert said.out.startswith("denoiser of moons, lr 0.006\nstep 50: loss ")
        assert said.out.endswith(" s\ndone\n")


def test_the_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = []
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            name, *arguments = shlex.split(line)
            assert name == "flashpoint"
            results.append(flashpoint(*arguments))
            assert results[-1].exit_code == 0, results[-1].output
    with (tmp_path / "runs/moons/losses.csv").open(newline="") as file:
        columns = csv.DictReader(file).fieldnames
    described = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert [*columns, "validation_loss"] == described  # no points are held out here
    logged = {path.name for path in (tmp_path / "runs/logged").iterdir()}
    assert logged >= {"losses.csv", "losses.jsonl", "tensorboard"}
    assert results[-1].stderr == ""


def test_the_example_tells_both_trackers(trackers, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["callbacks.py", "--quick"])
    runpy.run_path(str(ROOT / "examples/callbacks.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "wandb: told, too\nmlflow: told, too\n" in said
    for told in trackers.values():
        check(told, [50, 100, 120])
    assert len((tmp_path / "runs/callbacks/losses.csv").read_text().splitlines()) == 4
