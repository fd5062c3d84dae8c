"""Runs that are killed, starved of disk or poisoned: nothing good is lost."""

import os
import random
import signal
import time

import pytest
import torch

from flashpoint.diffusion import UserError, states_points
from flashpoint.diffusion import experiment as module
from flashpoint.diffusion.experiment import Run, Settings
from flashpoint.diffusion.files import save
from flashpoint.diffusion.training import Recipe

from .. import warm_python

COMMAND = ["train", "--steps", "120",
           "--classifier-steps", "40", "--batch-size", "256", "--checkpoint-every", "10",
           "--device", "cpu"]  # fmt: skip


def written(file):
    """Something that changes whenever the file is written anew, which makes another file of it."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def train(folder, *more, kill_after=None, program=("-m", "flashpoint.diffusion")):
    """Trains; ``kill_after`` is a number of checkpoints to wait for, and of seconds from then."""
    with warm_python.Popen(
        [*program, *COMMAND, "--out", folder, *more],
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # more wait for each other on a busy machine
    ) as process:
        if kill_after is not None:
            checkpoint, (count, seconds) = folder / "checkpoints" / "training.pt", kill_after
            seen = written(checkpoint)
            while count and process.poll() is None:
                time.sleep(0.001)
                if (now := written(checkpoint)) != seen:
                    seen, count = now, count - 1
            time.sleep(seconds)
            process.kill()
        output = "".join(process.communicate())
    return process.returncode, output


def weights(folder):
    names = ("denoiser", "classifier")
    return [torch.load(folder / f"checkpoints/{name}.pt", weights_only=True) for name in names]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    code, output = train(folder)
    assert code == 0, output
    return weights(folder)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(whole, tmp_path, kills):
    moments = random.Random(0)
    killed = 0
    for number in range(kills):
        # One of the first checkpoints of 16 is never so late that the run has ended.
        checkpoints = moments.randint(1, 6) if number else 1
        moment = (checkpoints, moments.uniform(0, 0.1))
        code, output = train(tmp_path, "--resume", kill_after=moment)
        killed += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), output
    assert killed > 0
    code, output = train(tmp_path, "--resume")
    assert code == 0, output
    for one, other in zip(whole, weights(tmp_path), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    leftovers = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert {"denoiser.pt", "classifier.pt", "training.pt"} <= set(leftovers)


# Files of more than 100 kB fail as on a full disk.
NO_SPACE = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
runpy.run_module("flashpoint.diffusion", run_name="__main__", alter_sys=True)
"""


def test_a_full_disk_is_told_and_leaves_the_last_good_checkpoint(tmp_path):
    code, output = train(tmp_path, kill_after=(5, 0))
    assert code == -signal.SIGKILL, output
    before = weights(tmp_path)[:1]
    code, output = train(tmp_path, "--resume", program=("-c", NO_SPACE))
    assert code == 2, output
    assert "error: file" in output
    assert "cannot be written" in output
    for one, other in zip(before, weights(tmp_path)[:1], strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def small_run(folder, **options):
    recipe = Recipe(steps=100, hidden_layers=(16,), batch_size=64)
    settings = Settings(denoiser=recipe, classifier=recipe, validate_every=100)
    return Run(states_points(100), settings, folder, device=torch.device("cpu"),
               checkpoint_every=50, **options)  # fmt: skip


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch
):
    run = small_run(tmp_path)
    step = module.Trainer.run

    def poisoned(self, steps, on_step=None):
        if self.step == 50:
            self.parameters[0] = torch.nan
        step(self, steps, on_step)

    monkeypatch.setattr(module.Trainer, "run", poisoned)
    with pytest.raises(UserError, match="denoiser's loss is not finite from step 51 on"):
        run.train()
    state = torch.load(tmp_path / "checkpoints/training.pt", weights_only=True)
    assert state["denoiser"]["step"] == 50
    assert all(value.isfinite().all() for value in weights(tmp_path)[0].values())


def test_an_unwritable_folder_is_told_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        small_run(tmp_path / "file" / "run")


def test_a_failed_write_leaves_no_trace(tmp_path, monkeypatch):
    save(tmp_path / "a.pt", torch.ones(3))

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UserError, match=r"a\.pt cannot be written: No space left on device"):
        save(tmp_path / "a.pt", torch.zeros(3))
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True), torch.ones(3))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_damaged_checkpoint_is_named_on_resume(tmp_path):
    small_run(tmp_path).train()
    (tmp_path / "checkpoints/training.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match="is no checkpoint, or damaged"):
        small_run(tmp_path, resume=True)
