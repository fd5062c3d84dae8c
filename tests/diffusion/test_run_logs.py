"""The logs that a run keeps in its folder, also where it is stopped and goes on."""

import csv
import json
import signal

import numpy as np
import pytest
import torch

from flashpoint import diffusion as fd
from flashpoint.diffusion.choices import LOGS
from flashpoint.diffusion.experiment import Run, Settings
from flashpoint.diffusion.training import engine

from .helpers import flashpoint
from .test_interrupts import SMALL, a_signal_at

pytestmark = pytest.mark.usefixtures("few_points")

RUN = ("train", *SMALL, "--checkpoint-every", 30)


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    points = np.random.default_rng(0).normal(size=(60, 2))
    np.save("own.npy", points)
    np.savez("classes.npz", data=points, labels=np.arange(60) % 2)
    return tmp_path


def rows(path):
    """Returns the rows of a run's losses.csv, without the seconds, which differ."""
    with (path / "losses.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in csv.DictReader(file)
        ]


def done(*arguments):
    result = flashpoint(*arguments)
    assert result.exit_code == 0, result.output
    return result


def test_a_run_logs_both_networks_and_goes_on_as_if_never_stopped(own):
    options = ("--data", "classes.npz", "--steps", 130, "--classifier-steps", 60)
    done(*RUN, *options, "--out", "whole")
    assert [(row["network"], row["step"]) for row in rows(own / "whole")] == [
        ("denoiser", "50"), ("denoiser", "100"), ("denoiser", "130"),
        ("classifier", "50"), ("classifier", "60"),
    ]  # fmt: skip
    for call in (61, 75):  # in the middle of the denoiser, then of the classifier
        with a_signal_at(engine, "training_sums", signal.SIGTERM, call):
            flashpoint(*RUN, *options, *(("--resume",) if call == 75 else ()))
        assert len(rows(own / "run")) < 5
    done(*RUN, *options, "--resume")
    assert rows(own / "run") == rows(own / "whole")
    done(*RUN, *options, "--resume")  # nothing is left to train
    assert rows(own / "run") == rows(own / "whole")


def test_rows_after_the_last_checkpoint_of_a_killed_run_are_written_anew(own):
    with a_signal_at(engine, "training_sums", signal.SIGTERM, 61):
        flashpoint(*RUN, "--steps", 130)
    saved = (own / "run/checkpoints/training.pt").read_bytes()
    done(*RUN, "--steps", 130, "--resume")
    whole = rows(own / "run")
    (own / "run/checkpoints/training.pt").write_bytes(saved)  # as if it had been killed then
    done(*RUN, "--steps", 130, "--resume")
    assert rows(own / "run") == whole
    assert [row["step"] for row in whole] == ["50", "100", "130"]


def test_a_validation_is_in_the_row_of_its_step(own):
    done(*RUN, "--steps", 60)
    (first, last) = rows(own / "run")
    history = torch.load("run/checkpoints/training.pt", weights_only=True)["validation"]
    assert (first["nll"], last["step"]) == ("", "60")
    assert float(last["nll"]) == pytest.approx(history[-1][1], rel=1e-6)


def test_a_run_that_had_no_checkpoint_yet_starts_anew_with_resume(own):
    done(*RUN, "--steps", 60)
    whole = rows(own / "run")
    for path in (*(own / "run/checkpoints").iterdir(), *(own / "run/figures").iterdir()):
        path.unlink()
    refused = flashpoint(*RUN, "--steps", 60)
    assert "holds a run already (losses.csv)" in refused.output
    assert "nothing to resume" in done(*RUN, "--steps", 60, "--resume").output
    assert rows(own / "run") == whole
    (own / "run/config.json").unlink()
    for path in (own / "run/checkpoints").iterdir():
        path.unlink()
    refused = flashpoint(*RUN, "--steps", 60, "--resume")  # whose log is it?
    assert refused.exit_code == 2
    assert rows(own / "run") == whole


def test_other_logs_are_written_if_asked_for_and_overwritten_with_the_run(own):
    done(*RUN, "--steps", 60, "--log", "jsonl", "--log", "tensorboard")
    lines = [json.loads(line) for line in (own / "run/losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [50, 60]
    assert len(list((own / "run/tensorboard/denoiser").iterdir())) == 1
    done(*RUN, "--steps", 20, "--overwrite")
    assert [row["step"] for row in rows(own / "run")] == ["20"]
    assert not (own / "run/losses.jsonl").exists()
    assert not list((own / "run/tensorboard/denoiser").iterdir())
    wrong = flashpoint(*RUN, "--log", "json")
    assert "error: --log must be one of jsonl, tensorboard, got 'json'" in wrong.output
    assert LOGS == ("jsonl", "tensorboard")


class Fails(fd.Callback):
    def on_log(self, step, values):
        raise ConnectionError(f"step {step} has {len(values)} values")


def test_a_run_whose_callback_fails_is_saved(own):
    recipe = fd.Recipe(steps=80, hidden_layers=(8,), batch_size=16)
    settings = Settings(denoiser=recipe, schedule=fd.Schedule(10, "cosine"))
    points, device = fd.Points(torch.randn(60, 2)), torch.device("cpu")
    run = Run(points, settings, own / "run", device=device, callbacks=[Fails()], quiet=True)
    with pytest.raises(fd.UserError) as caught:
        run.train()
    assert str(caught.value) == (
        "callback Fails has failed in on_log at step 50: ConnectionError: step 50 has 3 values; "
        "the training is saved, --resume goes on"
    )
    state = torch.load("run/checkpoints/training.pt", weights_only=True)
    assert state["denoiser"]["step"] == 50
    with pytest.raises(fd.UserError, match="callbacks must be"):
        Run(points, settings, own / "other", device=device, callbacks=[print])
