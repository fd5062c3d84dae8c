"""The best model of a sweep is the folder of an ordinary run, which every command accepts."""

import json

import numpy as np
import pytest
import torch

from flashpoint.diffusion import Points, UserError, load
from flashpoint.diffusion.run_folder import RunFolder
from flashpoint.diffusion.sweeps import Sweep, SweepRun, SweepTable

from .helpers import flashpoint

pytestmark = pytest.mark.usefixtures("few_points")

METRIC = "sliced_wasserstein"
FACTORS = {
    "lr": "1e-3,3e-3", "seed": "3,4", "steps": 60, "timesteps": 20, "prediction": "v",
    "sampling_steps": 10, "beta_end": 0.4, "batch_size": 64, "hidden": "16x2",
}  # fmt: skip


def leave(folder, points="moons", metric=METRIC, say=lambda _: None, factors=FACTORS, **options):
    sweep = Sweep(points, factors, n_samples=80, metrics=(METRIC, "emd"), real_draws=12)
    return SweepRun(
        sweep, folder, best=metric, device="cpu", say=say, quiet=True, **options
    ).run()  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The folder of a sweep, and its table."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, leave(folder)


def test_it_is_the_best_network_with_its_settings(swept):
    folder, table = swept
    best, run = table.best(METRIC), RunFolder(folder / f"best-{METRIC}")
    config, denoiser = run.config(), load(run.path)
    assert config["sweep"] == {"model": str(best), "number": best.number}
    assert config["seed"] == best.values["seed"]
    assert config["denoiser"]["lr"] == best.values["lr"]
    assert config["sampling_steps"] == 10
    assert denoiser.schedule.prediction == "v"
    # The samples and scores are those that the sweep has measured.
    found = json.loads(run.metrics_file.read_text())["metrics"]["unconditional"][METRIC]
    score = best.metrics[METRIC]
    assert (found["value"], found["real"]) == pytest.approx((score.value, score.real), rel=1e-5)
    assert (found["low"], found["high"]) == pytest.approx((score.low, score.high), rel=1e-5)
    assert torch.load(run.samples_file(), weights_only=True).shape == (80, 2)


@pytest.mark.parametrize(
    "command",
    [
        ("report", "--real-draws", 4), ("view", "-n", 20), ("export",),
        ("sample", "-n", 5), ("sample", "-n", 5, "--method", "heun", "--steps", 4),
    ],
    ids=str,
)  # fmt: skip
def test_commands_accept_it(swept, command):
    name, *options = command
    done = flashpoint(name, swept[0] / f"best-{METRIC}", *options)
    assert done.exit_code == 0, done.output


def test_its_samples_are_measured_against_its_data(swept):
    samples = swept[0] / f"best-{METRIC}/outputs/uncond_gen_samples.pt"
    done = flashpoint("evaluate", samples, "--real-draws", 12, "--json")
    assert done.exit_code == 0, done.output
    assert METRIC in done.stdout


def test_it_stays_as_it_is_until_another_model_is_better(swept):
    folder, _ = swept
    config = folder / f"best-{METRIC}/config.json"
    before, said = config.stat().st_mtime_ns, []
    table = leave(folder, resume=True, say=said.append)
    assert config.stat().st_mtime_ns == before
    best = table.best(METRIC)
    assert any(f"best by {METRIC}: {best} (" in line for line in said)
    # With a much longer training one becomes better, and takes its place.
    table = leave(folder, resume=True, factors={**FACTORS, "steps": "60,600"})
    assert table.best(METRIC).values["steps"] == 600
    assert json.loads(config.read_text())["denoiser"]["steps"] == 600
    leave(folder, overwrite=True, metric=None)
    assert not config.exists()


def test_a_guided_model_leaves_no_samples_of_mixed_classes(tmp_path):
    values = {**FACTORS, "p_uncond": 0.2, "scale": 1.0, "seed": 0, "lr": 1e-3}
    leave(tmp_path, factors=values)
    run = RunFolder(tmp_path / f"best-{METRIC}")
    assert not run.samples_file().exists()
    assert run.config()["scale"] == 1.0
    done = flashpoint("sample", run, "-n", 5, "--label", 1)
    assert done.exit_code == 0, done.output


def test_a_user_s_units_are_kept(tmp_path):
    path = tmp_path / "mine.npy"
    np.save(path, np.random.default_rng(0).standard_normal((200, 2)) * 7 + 40)
    values = {**FACTORS, "seed": 0, "lr": 1e-3}
    table = leave(tmp_path / "sweep", points=str(path), factors=values)
    assert isinstance(table, SweepTable)
    x = torch.load(RunFolder(tmp_path / f"sweep/best-{METRIC}").samples_file(), weights_only=True)
    assert abs(x.mean().item() - 40) < 8


def test_a_metric_that_is_not_measured_is_one_line_before_any_work(tmp_path):
    with pytest.raises(UserError, match=r"best must be one of the metrics of the sweep, .*'mmd'"):
        leave(tmp_path / "sweep", points=Points(torch.randn(40, 2)), metric="mmd")
    assert not (tmp_path / "sweep").exists()
