"""A run remembers its data: commands use them, refuse others, and say where they are gone."""

import json
import shutil

import numpy as np
import pytest
import torch

from flashpoint.diffusion import dataset

from .helpers import flashpoint

pytestmark = pytest.mark.usefixtures("few_points")

SMALL = ("--recipe", "small", "--steps", 4, "--classifier-steps", 2, "--batch-size", 32,
         "--hidden-layers", "8,8", "--timesteps", 10, "--schedule", "cosine", "--samples", 20,
         "--device", "cpu")  # fmt: skip
QUICK = {
    "interpolate": ("--pairs", 2, "--count", 3, "--steps", 2),
    "classify": ("-n", 10, "--noises", 1),
    "report": ("--real-draws", 10),
    "view": ("-n", 9),
}


def train(folder, data, *more, command="train"):
    result = flashpoint(command, *SMALL, "--data", data, "--out", folder, *more)
    assert result.exit_code == 0, result.output
    return result.output


def write(path, seed, number=60):
    rng = np.random.default_rng(seed)
    np.savez(path, data=rng.normal(size=(number, 2)), labels=np.arange(number) % 2)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A file of labelled points, a conditional run that was trained on it, and another file."""
    folder = tmp_path_factory.mktemp("template")
    write(folder / "own.npz", 0)
    write(folder / "other.npz", 1, 50)
    train(folder / "run", folder / "own.npz", "--p-uncond", 0.2)
    return folder


@pytest.fixture
def own(template, tmp_path, monkeypatch):
    """A copy of the template as the working folder, whose run remembers the data in there."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "run/config.json"
    file.write_text(file.read_text().replace(str(template), str(tmp_path)))
    return tmp_path


def test_a_run_writes_down_what_it_was_trained_on(own):
    config = json.loads((own / "run/config.json").read_text())
    assert config["source"]["name"] == str(own / "own.npz")
    assert (config["data"], config["points"], config["dim"]) == ("own", 60, 2)


@pytest.mark.parametrize("command", QUICK)
def test_commands_on_a_run_take_its_data_from_any_folder(own, monkeypatch, command):
    (own / "elsewhere").mkdir()
    monkeypatch.chdir(own / "elsewhere")
    result = flashpoint(command, "../run", *QUICK[command])
    assert result.exit_code == 0, result.output
    if command == "interpolate":
        ends = torch.load("../run/outputs/interpolation.pt", weights_only=True)[0]
        data = torch.from_numpy(np.load("../own.npz")["data"])
        assert torch.cdist(ends, data).amin(dim=1).max() < 0.1


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("command", QUICK)
def test_other_data_are_refused_unless_told(command):
    result = flashpoint(command, "run", *QUICK[command], "--data", "other.npz")
    assert result.exit_code == 2
    assert result.output.startswith("error: run run was trained on own, not on other")
    assert result.output.count("\n") == 1
    result = flashpoint(command, "run", *QUICK[command], "--data", "other.npz", "--other-data")
    assert result.exit_code == 0, result.output


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("command", QUICK)
def test_data_that_have_changed_or_moved_are_told(command):
    content = dict(np.load("own.npz"))
    shutil.move("own.npz", "moved.npz")
    result = flashpoint(command, "run", *QUICK[command])
    assert result.exit_code == 2
    assert result.output.startswith("error: the data of run run are no longer at")
    result = flashpoint(command, "run", *QUICK[command], "--data", "moved.npz")
    assert result.exit_code == 0, result.output
    content["data"][3, 0] += 1
    np.savez("own.npz", **content)
    result = flashpoint(command, "run", *QUICK[command])
    assert result.exit_code == 2
    assert "error: the data own are not those that run run was trained on" in result.output
    assert result.output.count("\n") == 1


@pytest.mark.usefixtures("own")
def test_samples_in_a_run_are_measured_against_its_data():
    flashpoint("sample", "run", "-n", 20)
    result = flashpoint("evaluate", "run/outputs/samples.pt", "--real-draws", 10)
    assert result.exit_code == 0, result.output
    result = flashpoint("evaluate", "run/outputs/samples.pt", "--data", "other.npz")
    assert result.exit_code == 2
    assert "was trained on own, not on other" in result.output


def test_a_run_of_an_older_version_is_taken_at_its_word(own):
    train("named", "circles")
    for name in ("run", "named"):
        make_older(own / name)
    result = flashpoint("interpolate", "named", *QUICK["interpolate"])
    assert result.exit_code == 0, result.output
    assert "whether these are the same cannot be checked" in result.output
    result = flashpoint("view", "run", *QUICK["view"])
    assert result.exit_code == 2
    assert "does not say what data it was trained on: give --data" in result.output
    assert flashpoint("view", "run", *QUICK["view"], "--data", "own.npz").exit_code == 0
    result = flashpoint("train", *SMALL, "--data", "circles", "--out", "named", "--resume")
    assert result.exit_code == 0, result.output
    assert "cannot be checked" in result.output


def make_older(folder):
    """Takes out of a run's settings what older versions did not write down."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for key in ("source", "digest", "points", "dim", "standardisation", "class_names"):
        del config[key]
    file.write_text(json.dumps(config))


def test_points_of_an_older_run_stay_as_they_came(own):
    rng = np.random.default_rng(0)
    np.savez("far.npz", data=rng.normal(5, 0.3, size=(60, 2)), labels=np.arange(60) % 2)
    train("far", "far.npz", "--no-standardise", "--p-uncond", 0.2)
    assert flashpoint("export", "far").exit_code == 0
    make_older(own / "far")
    for run in ("far", "far/exports/denoiser.safetensors"):
        result = flashpoint("interpolate", run, *QUICK["interpolate"], "--data", "far.npz")
        assert result.exit_code == 0, result.output
        assert "standardised:" not in result.output
    arguments = ("train", *SMALL, "--p-uncond", 0.2, "--out", "far", "--resume")
    result = flashpoint(*arguments, "--data", "far.npz")
    assert result.exit_code == 0, result.output
    assert "standardised:" not in result.output
    assert json.loads((own / "far/config.json").read_text())["standardisation"] is None


@pytest.mark.usefixtures("own")
def test_data_in_other_units_than_a_run_are_told_apart():
    result = flashpoint("interpolate", "run", *QUICK["interpolate"], "--data", "own.npz",
                        "--no-standardise")  # fmt: skip
    assert result.exit_code == 2
    assert "were read in another way" in result.output
    result = flashpoint("train", *SMALL, "--data", "own.npz", "--p-uncond", 0.2, "--out", "run",
                        "--no-standardise", "--resume")  # fmt: skip
    assert result.exit_code == 2
    assert "of dimension 2, standardised; now own: 60 points of dimension 2)" in result.output


def test_points_that_are_held_out_are_not_trained_on_and_are_classified(own):
    train("held", "own.npz", "--p-uncond", 0.2, "--test-fraction", 0.25)
    assert json.loads((own / "held/config.json").read_text())["points"] == 44
    result = flashpoint("classify", "held", *QUICK["classify"], "-n", 1000)
    assert "16 points of own, held out of the training" in result.output
    result = flashpoint("classify", "held", *QUICK["classify"], "--test-fraction", 0.5)
    assert result.exit_code == 2
    assert "--test-fraction is for a run that has held nothing out" in result.output
    result = flashpoint("classify", "run", *QUICK["classify"])
    assert "which the run was trained on" in result.output
    assert "held out" not in result.output.splitlines()[0].replace("to hold some out", "")


def test_an_empty_name_is_neither_the_default_nor_the_working_folder(own, monkeypatch):
    monkeypatch.chdir(own / "run")
    for arguments in (
        ["train", "--data", ""],
        ["evaluate", "../own.npz", "--data", ""],
        ["evaluate", "../own.npz", "--held-out", ""],
        ["report", ".", "--data", ""],
        ["data", ""],
        *([command, ""] for command in ("sample", "report", "view", "export", "classify")),
    ):
        result = flashpoint(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert "got ''" in result.output
        assert result.output.count("\n") == 1


@pytest.mark.usefixtures("own")
def test_a_path_may_start_in_the_home_folder(own, monkeypatch):
    monkeypatch.setenv("HOME", str(own / "home"))
    shutil.copytree("run", "home/run")
    shutil.copy("own.npz", "home")
    options = ("--data=~/own.npz", "--out=~/ways.pt", *QUICK["interpolate"])
    result = flashpoint("interpolate", "~/run", *options)
    assert result.exit_code == 0, result.output
    assert (own / "home/ways.pt").is_file()
    assert not (own / "~").exists()


@pytest.mark.usefixtures("own")
def test_a_run_of_one_class_remembers_the_class():
    train("one", "moons", "--only-class", 1)
    result = flashpoint("interpolate", "one", *QUICK["interpolate"])
    assert result.exit_code == 0, result.output
    ends = torch.load("one/outputs/interpolation.pt", weights_only=True)[0]
    assert torch.cdist(ends, dataset("moons").of_class(1)).amin(dim=1).max() < 0.1


def test_a_run_goes_on_with_the_same_data_alone(own):
    arguments = ("train", *SMALL, "--data", "own.npz", "--p-uncond", 0.2, "--out", "run")
    content = dict(np.load("own.npz"))
    assert flashpoint(*arguments, "--resume").exit_code == 0
    shutil.copy("own.npz", "copy.npz")
    for change in ({"data": content["data"] + 1}, {"labels": 1 - content["labels"]}):
        np.savez("own.npz", **(content | change))
        before = (own / "run/checkpoints/training.pt").read_bytes()
        result = flashpoint(*arguments, "--resume")
        assert result.exit_code == 2
        last = result.output.splitlines()[-1]
        assert last.startswith("error: the data have changed since run run was started")
        assert (own / "run/checkpoints/training.pt").read_bytes() == before
