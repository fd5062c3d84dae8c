"""Files of a run that are damaged, half-written or of another version: one line that names them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flashpoint.diffusion import MLP

from .helpers import flashpoint

pytestmark = pytest.mark.usefixtures("few_points")

TRAIN = ("train", "--recipe", "small", "--steps", 4, "--batch-size", 32, "--hidden-layers", "8,8",
         "--timesteps", 10, "--schedule", "cosine", "--samples", 20, "--p-uncond", 0.2,
         "--data", "own.npz", "--out", "run", "--device", "cpu")  # fmt: skip
COMMANDS = {
    "sample": ("sample", "run", "-n", 5),
    "interpolate": ("interpolate", "run", "--pairs", 2, "--steps", 2),
    "classify": ("classify", "run", "-n", 5, "--noises", 1),
    "report": ("report", "run", "--real-draws", 10),
    "view": ("view", "run", "-n", 5),
    "export": ("export", "run"),
    "evaluate": ("evaluate", "run/outputs/uncond_gen_samples.pt", "--real-draws", 10),
    "resume": (*TRAIN, "--resume"),
}
NETWORK = ("sample", "interpolate", "classify", "report", "view", "export")
READERS = {
    "config.json": (*COMMANDS,),
    "metrics.json": ("report", "view"),
    "checkpoints/denoiser.pt": NETWORK,
    "checkpoints/progress.json": NETWORK,
    "checkpoints/training.pt": ("report", "view", "resume"),
    "outputs/uncond_gen_samples.pt": ("report", "view", "evaluate"),
}


def folder_in_place(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "foreign": lambda path: path.write_bytes(b"\xff\xfehello"),
    "a folder": folder_in_place,
    "a list": lambda path: write(path, [1]),
    "nothing in it": lambda path: write(path, {}),
    "other names": lambda path: write(path, {"metrics": 3, "schedule": 4, "denoiser": 5}),
}


def write(path, content):
    if path.suffix == ".json":
        path.write_text(json.dumps(content))
    else:
        torch.save(content, path)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    rng = np.random.default_rng(0)
    np.savez(folder / "own.npz", data=rng.normal(size=(60, 2)), labels=np.arange(60) % 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = flashpoint("states", *TRAIN[1:])
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def run(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "run/config.json"
    file.write_text(file.read_text().replace(str(template), str(tmp_path)))
    return tmp_path / "run"


def refused(command, name):
    result = flashpoint(*COMMANDS[command])
    assert result.exit_code == 2, (command, result.output, result.exception)
    lines = [line for line in result.output.splitlines() if "standardised: mean" not in line]
    assert len(lines) == 1, result.output
    assert lines[0].startswith("error: "), result.output
    assert name in lines[0], result.output


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named_by_every_command_that_reads_it(run, name, damage):
    if name == "checkpoints/progress.json" and damage == "nothing in it":
        return  # which says that no network was trained
    DAMAGES[damage](run / name)
    for command in READERS[name]:
        refused(command, Path(name).stem)


@pytest.mark.parametrize("command", NETWORK)
def test_a_network_of_another_shape_than_the_settings_say_is_refused(run, command):
    for other in (MLP(4, 3, [8, 8]), MLP(3, 2, [8, 8, 8]), MLP(3, 2, [8, 9])):
        torch.save(other.state_dict(), run / "checkpoints/denoiser.pt")
        refused(command, "denoiser.pt")


@pytest.mark.parametrize("command", ["report", "view"])
def test_samples_of_another_dimension_are_refused(run, command):
    for content in (torch.zeros(9, 3), torch.zeros(9), torch.zeros(0, 2), {"data": 3}):
        torch.save(content, run / "outputs/uncond_gen_samples.pt")
        refused(command, "uncond_gen_samples.pt")


@pytest.mark.parametrize("command", COMMANDS)
def test_settings_of_a_newer_version_are_told(run, command):
    config = json.loads((run / "config.json").read_text())
    config["schedule"]["warp"] = 3
    (run / "config.json").write_text(json.dumps(config))
    refused(command, "schedule has warp; is it newer?")


def test_a_setting_that_this_version_does_not_know_stops_a_resume(run):
    config = json.loads((run / "config.json").read_text())
    config["denoiser"]["warp"] = 3
    del config["denoiser"]["chunk_rows"]  # an older version had none, as is the default now
    (run / "config.json").write_text(json.dumps(config))
    refused("resume", "denoiser.warp 3, now unknown")
    del config["denoiser"]["warp"]
    (run / "config.json").write_text(json.dumps(config))
    assert flashpoint(*COMMANDS["resume"]).exit_code == 0


def test_a_state_of_another_network_stops_a_resume(run):
    state = torch.load(run / "checkpoints/training.pt", weights_only=True)
    state["denoiser"]["parameters"] = state["denoiser"]["parameters"][:, :-1]
    torch.save(state, run / "checkpoints/training.pt")
    refused("resume", "training.pt is of another run")
