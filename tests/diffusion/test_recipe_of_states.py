"""The recipe of STATES: its process and sampler, when it is the default, and its quick form."""

import json
import shutil

import numpy as np
import pytest
import torch

from flashpoint.diffusion import RECIPES, UserError, saved_run
from flashpoint.diffusion.report import write_report
from flashpoint.diffusion.run_folder import RunFolder
from flashpoint.diffusion.sampling import METHODS
from flashpoint.diffusion.saved_run import SavedRun
from flashpoint.diffusion.settings import Settings

from .helpers import flashpoint

pytestmark = pytest.mark.usefixtures("few_points")

FEW = ("--steps", 4, "--classifier-steps", 2, "--batch-size", 32, "--hidden-layers", "8,8",
       "--device", "cpu")  # fmt: skip


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", data=rng.normal(size=(60, 2)), labels=np.arange(60) % 2)
    return tmp_path / "own.npz"


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


SAMPLER = ("method", "sampling_steps", "s_churn", "s_noise")


@pytest.mark.parametrize(
    ("options", "schedule", "sampler"),
    [
        ("--timesteps 120", ("edm", 120, 0.005, 10.0), ("edm", 50, 20.0, 1.015)),
        ("--timesteps 30 --sigma-max 20", ("edm", 30, 0.005, 20.0), ("edm", 30, 20.0, 1.015)),
        ("--timesteps 40 --method ddim", ("edm", 40, 0.005, 10.0), ("ddim", *[None] * 3)),
        ("--reverse-steps 60", ("edm", 500, 0.005, 10.0), ("edm", 60, 20.0, 1.015)),
        ("--quick", ("edm", 500, 0.005, 10.0), ("edm", 20, 20.0, 1.015)),
        ("--quick --reverse-steps 30", ("edm", 500, 0.005, 10.0), ("edm", 30, 20.0, 1.015)),
        ("--timesteps 40 --prediction edm", ("edm", 40, 0.002, 80.0), ("ddpm", *[None] * 3)),
        ("--timesteps 40 --beta-end 0.3", ("linear", 40, 0.002, 80.0), ("ddpm", *[None] * 3)),
        ("--beta-end 0.02", ("linear", 500, 0.002, 80.0), ("ddpm", *[None] * 3)),
        ("--quick --method ddim", ("edm", 500, 0.005, 10.0), ("ddim", 50, None, None)),
        ("--prediction v --method heun", ("linear", 500, 0.002, 80.0), ("heun", *[None] * 3)),
    ],
)
def test_the_recipe_states_brings_its_process_unless_another_is_chosen(
    data, tmp_path, options, schedule, sampler
):
    few = [*FEW, "--data", data]
    few += [*options.split(), "--recipe", "states", "--out", tmp_path / "run"]
    result = flashpoint("train", *few)
    assert result.exit_code == 0, result.output
    config = config_of(tmp_path / "run")
    names = ("name", "num_steps", "sigma_min", "sigma_max")
    assert tuple(config["schedule"][name] for name in names) == schedule
    assert tuple(config[name] for name in SAMPLER) == sampler


@pytest.mark.parametrize(
    ("options", "recipe"),
    [
        ([], "states"),
        (["--p-uncond", 0.1], "states"),
        (["--schedule", "cosine"], "fast"),
        (["--prediction", "v"], "fast"),
        (["--data", "moons"], "fast"),
        (["--recipe", "fast"], "fast"),
    ],
)
def test_only_the_data_set_states_under_its_own_schedule_has_a_recipe_of_its_own(
    tmp_path, options, recipe
):
    few = [*FEW, "--timesteps", 50]
    result = flashpoint("train", *few, *options, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    lr = config_of(tmp_path / "run")["denoiser"]["lr"]
    assert lr == RECIPES[recipe][0].lr != RECIPES["small"][0].lr


def test_another_density_of_timesteps_has_its_own_mean(tmp_path):
    few = [*FEW, "--timesteps", 50]
    own = RECIPES["states"][0]
    for number, (options, expected) in enumerate([
        ([], ("log-normal", own.p_mean, own.p_std)),
        (["--p-mean", -2], ("log-normal", -2.0, own.p_std)),
        (["--t-density", "log-normal"], ("log-normal", None, None)),
        (["--t-density", "logit-normal", "--p-std", 2], ("logit-normal", None, 2.0)),
        (["--t-density", "uniform"], ("uniform", None, None)),
    ]):  # fmt: skip
        folder = tmp_path / str(number)
        result = flashpoint("train", *few, *options, "--out", folder)
        assert result.exit_code == 0, result.output
        recipe = config_of(folder)["denoiser"]
        assert tuple(recipe[name] for name in ("t_density", "p_mean", "p_std")) == expected


def test_an_older_run_goes_on_with_the_recipe_that_the_message_names(tmp_path):
    folder = tmp_path / "run"
    few = [*FEW, "--timesteps", 50]
    assert flashpoint("train", *few, "--recipe", "fast", "--out", folder).exit_code == 0
    config = config_of(folder)
    for name in ("method", "s_churn", "s_noise"):
        del config[name]
    for recipe in ("denoiser", "classifier"):
        for name in ("p_mean", "p_std"):
            del config[recipe][name]
    (folder / "config.json").write_text(json.dumps(config))
    result = flashpoint("train", *few, "--out", folder, "--resume")
    assert result.exit_code == 2
    assert "give the same ones (--recipe fast or long), or another --out" in result.output
    result = flashpoint("train", *few, "--recipe", "fast", "--out", folder, "--resume")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "edn"}, "did you mean 'edm'"),
        ({"sampling_steps": 501}, "sampling_steps must be from 1 to 500, got 501"),
        ({"s_churn": 2.0}, "s_churn must be left out unless method is edm, got 2.0 with ddpm"),
        ({"method": "edm", "s_noise": -1}, "s_noise must be .*, got -1"),
        ({"method": "edm", "s_churn": "x"}, "s_churn must be .*, got 'x'"),
    ],
)
def test_settings_refuse_a_sampler_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        Settings(**changes)


def test_only_two_recipes_have_a_quick_form():
    for name in ("fast", "states"):
        quick, whole = Settings.of_recipe(name, quick=True), Settings.of_recipe(name)
        assert quick.denoiser.steps < whole.denoiser.steps / 3
        assert quick.sampling_steps <= (whole.sampling_steps or 500) / 2
        assert quick.method == whole.method
    with pytest.raises(UserError, match="recipe must be one of fast, states"):
        Settings.of_recipe("classic-a", quick=True)


def test_a_run_without_samples_draws_them_as_its_settings_say(states_run, tmp_path):
    folder = shutil.copytree(states_run[0], tmp_path / "run")
    RunFolder(folder).samples_file().unlink()
    config = config_of(folder) | {"method": "edm", "sampling_steps": 6, "s_noise": 1.5}
    (folder / "config.json").write_text(json.dumps(config))
    run = SavedRun(folder, states_run[1], torch.device("cpu"), 0)
    options = {"method": "edm", "num_steps": 6, "s_noise": 1.5}
    drawn = run.sample(saved_run._NUM_SAMPLES, saved_run._SAMPLES, **options)
    assert torch.equal(run.samples, drawn)
    write_report(folder, states_run[1], real_draws=2, say=lambda _: None)
    told = rf"| sampler | {METHODS['edm']}, s\_churn 5, s\_noise 1.5 |"
    assert told in (folder / "report.md").read_text()
