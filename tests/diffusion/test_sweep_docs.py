"""The examples of docs/sweeps.md run as they stand, in their order, in one folder."""

import os
import re
import shlex
from pathlib import Path

import pytest

from .. import warm_python

PAGE = Path(__file__).parents[2] / "docs/sweeps.md"


def blocks(kind):
    found = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found
    return found


def commands():
    """Yields the arguments of each command that the page shows."""
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line)


LAUNCHERS = {
    "flashpoint": ("-m", "flashpoint.diffusion"),
    "torchrun": ("-m", "torch.distributed.run", "--standalone"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder that a reader works in, with the page's file."""
    path = tmp_path_factory.mktemp("reader")
    (grid,) = blocks("toml")
    (path / "grid.toml").write_text(grid)
    return path


def run(folder, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = warm_python.run(
        arguments, cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow  # nine processes, each of which loads PyTorch
def test_every_command_runs(folder):
    said = [run(folder, *LAUNCHERS[name], *arguments) for name, *arguments in commands()]
    assert "best by sliced_wasserstein" in said[0]
    assert "20 models in 1 group" in said[1]
    for name, models in {"sweep": 12, "from_file": 12, "shared": 8, "array": 8}.items():
        table = (folder / "runs" / name / "table.md").read_text()
        assert table.startswith(f"moons: {models} models"), name
        assert (folder / "runs" / name / "factors.png").exists()


def test_the_python_runs(folder):
    (code,) = blocks("python")
    assert "| lr | models | sliced Wasserstein distance |" in run(folder, "-c", code)
