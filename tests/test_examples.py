"""Each example runs as its user runs it, and what it promises is there."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from . import warm_python

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments, folder, launcher=()):
    # Plain Python: Triton's interpreter, which the tests switch on, is not what users have.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    program = [*launcher, EXAMPLES / name, "--quick", *arguments]
    done = warm_python.run(program, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart(tmp_path):
    said = run("quickstart.py", folder=tmp_path)
    shares = [float(share) for share in re.findall(r"([\d.]+)% in the state", said)]
    assert len(shares) == 5
    assert np.mean(shares) > 50  # a sample without guidance is in a state in 20% of cases
    assert Image.open(tmp_path / "runs/quickstart/samples.png").width > 500


# Runs an example whose function seconds() sees a clock on which its calls take these times.
CLOCK = """
import runpy, sys, time
durations, clock, now = iter((10, 4, 5, 20, 30, 6)), time.perf_counter, []

def perf_counter():
    if sys._getframe(1).f_code.co_name != "seconds":
        return clock()
    now.append(0 if len(now) % 2 == 0 else next(durations))
    return now[-1]

time.perf_counter, sys.argv = perf_counter, sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_accelerate_a_script(tmp_path):
    said = run("accelerate_a_script.py", folder=tmp_path, launcher=("-c", CLOCK))
    way = "fused" if torch.cuda.is_available() else "layer by layer on cpu, fused on a GPU"
    assert f"net [34-256-256-256-2, silu]: {way}" in said
    assert float(re.search(r"difference of the loss .*: (\S+)", said)[1]) < 1e-3
    before, after, ratio = (
        float(re.search(rf"{name}:? +([\d.]+)", said)[1])
        for name in ("before", "after", "before / after")
    )
    # Rounds of five steps: before 10, 20 and 30 s, after 4, 5 and 6 s, in turn.
    assert (before, after, ratio) == (4000, 1000, 4)


def test_own_data(tmp_path):
    said = run("own_data.py", folder=tmp_path)
    assert "4000 points in 4 dimensions, 2 classes" in said
    data = np.loadtxt(tmp_path / "runs/own_data/tori.csv", delimiter=",", skiprows=1)[:, :4]
    samples = np.load(tmp_path / "runs/own_data/samples.npy")
    assert samples.shape == (500, 4)
    assert np.abs(samples.std(0) / data.std(0) - 1).max() < 0.25


def test_own_data_from_a_file(tmp_path):
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).standard_normal((300, 3)) * 7 + 40)
    said = run("own_data.py", "--data", "mine.npy", folder=tmp_path)
    assert "300 points in 3 dimensions, no classes" in said
    assert abs(np.load(tmp_path / "runs/own_data/samples.npy").mean() - 40) < 3


def test_own_network(tmp_path):
    said = run("own_network.py", folder=tmp_path)
    assert "Residual: loss" in said
    assert "FiLM: loss" in said
    assert len(re.findall(r"[\d.]+% of its samples are of its class", said)) == 2
    out = tmp_path / "runs/own_network"
    assert torch.load(out / "residual.pt", weights_only=True)["last.weight"].shape == (2, 128)
    assert Image.open(out / "samples.png").width > 500


# Runs an example without the packages that it can do without.
WITHOUT = """
import runpy, sys
sys.modules["wandb"] = sys.modules["mlflow"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_callbacks(tmp_path):
    said = run("callbacks.py", folder=tmp_path, launcher=("-c", WITHOUT))
    assert "wandb: not installed; pip install wandb\nmlflow: not installed" in said
    table = (tmp_path / "runs/callbacks/losses.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in table] == ["step", "50", "100", "120"]


@pytest.mark.slow  # four processes start torch
def test_torchrun(tmp_path):
    """Two ranks do what one does."""
    losses, weights = [], []
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    for ranks, launcher in ((1, ()), (2, torchrun)):  # both are in the example's description
        options = ("--out", f"{ranks}", "--device", "cpu")  # there may be one GPU alone
        said = run("torchrun.py", *options, folder=tmp_path, launcher=launcher)
        for rank in range(ranks):
            assert f"rank {rank} of {ranks}, cpu: {256 // ranks} of 256 rows" in said
        losses.append(float(re.search(r"mean loss .*: (\S+)", said)[1]))
        weights.append(torch.load(tmp_path / f"{ranks}" / "denoiser.pt", weights_only=True))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-4)


def test_every_example_is_tested():
    tested = set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text()))
    assert tested == {path.name for path in EXAMPLES.glob("*.py")}
