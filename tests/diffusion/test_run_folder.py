"""A run owns its folder: a second one is refused or replaces it whole, and outputs harm nothing."""

import json
import os
import shutil
import socket
import threading

import numpy as np
import pytest
import torch
from filelock import FileLock

from flashpoint.diffusion import UserError, files, load
from flashpoint.diffusion.locks import is_locked, lock_folder

from .. import warm_python
from .helpers import flashpoint

pytestmark = pytest.mark.usefixtures("few_points")

SMALL = ("--recipe", "small", "--batch-size", 32, "--hidden-layers", "8,8", "--timesteps", 10,
         "--schedule", "cosine", "--samples", 20, "--device", "cpu")  # fmt: skip


def run(command, *arguments, steps=4, classifier_steps=2):
    lengths = ("--steps", steps, "--classifier-steps", classifier_steps)
    return flashpoint(command, *SMALL, *lengths, *arguments)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with a file of points and a run of it, with all that the commands leave in one."""
    folder = tmp_path_factory.mktemp("template")
    rng = np.random.default_rng(0)
    np.savez(folder / "own.npz", data=rng.normal(size=(60, 2)), labels=np.arange(60) % 2)
    assert run("states", "--data", folder / "own.npz", "--out", folder / "run").exit_code == 0
    for command, *more in (("report", "--real-draws", 10), ("view", "-n", 9), ("export",),
                           ("sample", "-n", 9), ("sample", "-n", 9, "--label", 1),
                           ("interpolate", "--pairs", 2)):  # fmt: skip
        result = flashpoint(command, folder / "run", *more)
        assert result.exit_code == 0, result.output
    for name in ("notes.txt", "outputs/mine.pt", "figures/mine.png", "checkpoints/mine.pt"):
        (folder / "run" / name).write_text("mine")
    return folder


@pytest.fixture
def used(template, tmp_path, monkeypatch):
    """A copy of the template's run, in the working folder, with files of the user."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
            and not path.name.startswith(".lock")}  # fmt: skip


@pytest.mark.parametrize("command", ["train", "states"])
def test_a_second_run_in_a_folder_is_refused(used, command):
    before = content(used)
    result = run(command, "--data", "own.npz", "--seed", 9, "--out", "run")
    assert result.exit_code == 2
    assert result.output.startswith("error: folder run holds a run already")
    assert "--resume goes on with it, --overwrite replaces it" in result.output
    assert result.output.count("\n") == 1
    assert content(used) == before


def test_files_of_one_name_do_not_share_a_run_in_silence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        np.save(f"{folder}/points.npy", np.random.default_rng(number).normal(size=(60, 2)))
    assert run("train", "--data", "a/points.npy").exit_code == 0
    result = run("train", "--data", "b/points.npy")
    assert result.exit_code == 2
    assert "runs/points holds a run already" in result.output


def test_overwriting_leaves_nothing_of_the_old_run_and_all_of_the_users_files(used):
    np.save("plain.npy", np.random.default_rng(0).normal(size=(60, 2)))
    result = run("train", "--data", "plain.npy", "--out", "run", "--overwrite")
    assert result.exit_code == 0, result.output
    names = {str(path.relative_to(used)) for path in content(used)}
    assert names == {
        "config.json", "losses.csv", "checkpoints/denoiser.pt", "checkpoints/training.pt",
        "checkpoints/progress.json", "figures/training_curves.png", "notes.txt",
        "outputs/mine.pt", "figures/mine.png", "checkpoints/mine.pt",
    }  # fmt: skip
    assert load(used).classifier is None
    assert flashpoint("sample", "run", "--label", 1, "-n", 5).exit_code == 2


def test_a_users_file_that_is_named_almost_like_one_of_a_run_is_kept(used):
    own = [used / "outputs/samples_7nights.pt", used / "figures/conditional_2024-01.png"]
    for path in own:
        path.write_text("mine")
    assert run("train", "--out", "run", "--overwrite").exit_code == 0
    assert [path.read_text() for path in own] == ["mine", "mine"]


@pytest.mark.parametrize("option", ["--quiet", "--overwrite", "--resume"])
@pytest.mark.parametrize("content", ['{"name": "app"}', "{", "[]", '{"schedule": {"at": "noon"}}'])
def test_the_config_of_another_program_is_kept(tmp_path, content, option):
    (tmp_path / "config.json").write_text(content)
    result = run("train", "--out", tmp_path, option)
    assert result.exit_code == 2
    last = result.output.splitlines()[-1]
    assert last.startswith(f"error: folder {tmp_path} holds a config.json that is of no run")
    assert (tmp_path / "config.json").read_text() == content


def test_nothing_is_deleted_before_every_argument_is_right(used):
    before = content(used)
    for wrong in (["--steps", 0], ["--data", "missing.npy"], ["--device", "gpu"], ["--resume"],
                  ["--data", "run/outputs/samples.pt"]):  # fmt: skip
        result = run("train", "--out", "run", "--overwrite", *wrong)
        assert result.exit_code == 2, (wrong, result.output)
        assert result.output.count("\n") == 1
    assert content(used) == before


def test_no_output_is_an_input_or_a_network(used):
    os.symlink("run/checkpoints/denoiser.pt", "link.pt")
    np.save("prior.npy", np.zeros((9, 2)))
    torch.save(torch.zeros(9, 2), "prior.pt")
    data = {"data": torch.randn(40, 2), "labels": torch.arange(40) % 2}
    torch.save(data, "blobs_train.pt")
    torch.save(data, "points.pt")
    assert run("train", "--data", "points.pt", "--out", "pt").exit_code == 0
    assert flashpoint("export", "run", "--out", "out").exit_code == 0
    os.symlink("points.pt", "page.md")
    before = content(used.parent)
    for arguments in (
        ["sample", "run", "--prior", "prior.pt", "--out", "prior.pt"],
        ["sample", "run", "--prior", "prior.pt", "--out", "run/../prior.pt"],
        ["sample", "run", "--compare", "prior.pt", "--out", "prior.pt"],
        ["sample", "run", "--out", "run/checkpoints/denoiser.pt"],
        ["sample", "run", "--out", "run/checkpoints/training.pt"],
        ["sample", "pt", "--out", "run/checkpoints/denoiser.pt"],
        ["sample", "run", "--out", "link.pt"],
        ["sample", "pt", "--out", "points.pt"],
        ["interpolate", "pt", "--data", "moons", "--other-data", "--out", "points.pt"],
        ["sample", "run/checkpoints/denoiser.pt", "--out", "link.pt"],
        ["data", "blobs_train.pt", "--test-fraction", 0.2, "--out", "blobs.png"],
        ["interpolate", "pt", "--pairs", 2, "--out", "points.pt"],
        ["interpolate", "pt", "--data", "points.pt", "--pairs", 2, "--out", "./points.pt"],
        ["export", "out", "--out", "out"],
        ["study", "betas", "--quick", "--data", "points.pt", "--page", "page.md"],
    ):
        result = flashpoint(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        last = result.output.splitlines()[-1]
        assert last.startswith("error: "), (arguments, result.output)
        assert "would be written over" in last, (arguments, result.output)
        assert content(used.parent) == before, arguments


def test_samples_that_differ_write_nothing(used):
    torch.save(torch.zeros(9, 2), "prior.pt")
    arguments = ["sample", "run", "--prior", "prior.pt", "--device", "cpu"]
    assert flashpoint(*arguments).exit_code == 0
    weights = files.load(used / "checkpoints/denoiser.pt")
    weights["model.0.bias"] += 0.1
    files.save(used / "checkpoints/denoiser.pt", weights)
    before = content(used.parent)
    for more in ([], ["--out", "new.pt"]) * 2:
        result = flashpoint(*arguments, "--compare", "run/outputs/samples.pt", *more)
        assert result.exit_code == 2
        assert "samples differ from run/outputs/samples.pt in 9 of 9 rows" in result.output
        assert content(used.parent) == before


@pytest.mark.usefixtures("used")
def test_what_is_replaced_is_told():
    for arguments in (["sample", "run", "-n", 9], ["view", "run", "-n", 9], ["export", "run"],
                      ["report", "run", "--real-draws", 10], ["data", "moons", "--out", "m.png"],
                      ["interpolate", "run", "--pairs", 2]):  # fmt: skip
        if arguments[0] == "data":
            assert "in place of" not in flashpoint(*arguments).output
        assert "(in place of what was there)" in flashpoint(*arguments).output, arguments


HOLDER = """
import sys, time
from pathlib import Path
from flashpoint.diffusion.locks import lock_folder
lock = lock_folder(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("resume", [[], ["--resume"], ["--overwrite"]])
def test_a_folder_in_use_is_refused_and_free_again_after_a_kill(tmp_path, resume):
    folder = tmp_path / "run"
    folder.mkdir()
    with warm_python.Popen(["-c", HOLDER, folder]) as other:
        assert other.stdout.readline() == "locked\n"
        result = run("train", "--data", "digits", "--out", folder, *resume)
        assert result.exit_code == 2
        assert f"in use by another run (process {other.pid} on {socket.gethostname()})" in (
            result.output
        )
        assert result.output.count("\n") == 1
        assert not (folder / "config.json").exists()
    assert run("train", "--data", "digits", "--out", folder, *resume).exit_code == 0


def test_a_process_may_lock_a_folder_again(tmp_path):
    one, other = lock_folder(tmp_path), lock_folder(tmp_path)
    one.release()
    assert other.is_locked
    other.release()
    assert not other.is_locked
    holder = json.loads((tmp_path / ".lock.json").read_text())
    assert holder["pid"] == os.getpid()


def test_processes_that_ask_for_a_lock_at_once_are_none_that_hold_it(tmp_path):
    asking = FileLock(tmp_path / ".lock", thread_local=False)
    asking.acquire()
    timer = threading.Timer(0.2, asking.release)
    timer.start()
    assert not is_locked(tmp_path)
    timer.join()
    asking.acquire()
    assert is_locked(tmp_path)
    asking.release()


def test_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """Two machines may write a file of a shared folder at once, by processes of one number."""
    path, fsync = tmp_path / "file", os.fsync

    def meanwhile(file):
        monkeypatch.setattr(os, "fsync", fsync)
        files.write_atomically(path, b"the other's")
        fsync(file)

    monkeypatch.setattr(os, "fsync", meanwhile)
    files.write_atomically(path, b"one's")
    assert path.read_bytes() == b"one's"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_files_that_are_gone_are_deleted_and_others_are_named(tmp_path):
    (tmp_path / "one").touch()
    (tmp_path / "folder").mkdir()
    files.delete([tmp_path / "none", tmp_path / "one"])
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(UserError, match=r"folder cannot be deleted: "):
        files.delete([tmp_path / "folder"])
