"""Runs, networks and files know what a denoiser predicts; older ones, which did not say, eps."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from flashpoint.diffusion import (
    MLP,
    RECIPES,
    Denoiser,
    Points,
    Recipe,
    Schedule,
    Trainer,
    UserError,
    dataset,
    export_model,
    load,
)
from flashpoint.diffusion.compat import BlockMLP
from flashpoint.diffusion.settings import Settings
from flashpoint.diffusion.training import ManyTrainer, Task
from flashpoint.kernels.philox import child_seed

from .helpers import flashpoint

pytestmark = pytest.mark.usefixtures("few_points")

SMALL = ("--recipe", "small", "--steps", 4, "--classifier-steps", 2, "--batch-size", 32,
         "--hidden-layers", "8,8", "--timesteps", 10, "--samples", 20,
         "--device", "cpu")  # fmt: skip
OLDER = Path(__file__).parent / "older_runs"  # made by the last version that knew eps alone
TINY = Recipe(steps=3, hidden_layers=(8,), batch_size=32)


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", data=rng.normal(size=(60, 2)), labels=np.arange(60) % 2)
    return tmp_path / "own.npz"


def cloud():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    return Points(x, torch.arange(50) % 2)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


# The command line


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--schedule", "cosine"], ("cosine", "eps", "linspace")),
        (["--schedule", "cosine", "--prediction", "v"], ("cosine", "v", "linspace")),
        (["--prediction", "flow"], ("flow", "flow", "linspace")),
        (["--prediction", "edm"], ("edm", "edm", "c_noise")),
        (["--schedule", "flow"], ("flow", "flow", "linspace")),
        (["--schedule", "edm", "--prediction", "eps"], ("edm", "eps", "c_noise")),
        (["--schedule", "cosine", "--prediction", "flow"], ("cosine", "flow", "linspace")),
        (
            ["--schedule", "edm", "--time-feature", "sinusoidal"],
            ("edm", "edm", "sinusoidal"),
        ),
    ],
)
def test_schedule_and_prediction_bring_each_other(data, tmp_path, options, wanted):
    folder = tmp_path / "run"
    result = flashpoint("train", *SMALL, "--data", data, *options, "--out", folder)
    assert result.exit_code == 0, result.output
    schedule = load(folder).schedule
    assert (schedule.name, schedule.prediction, schedule.time_feature) == wanted
    assert config_of(folder)["schedule"]["prediction"] == wanted[1]
    assert load(folder).model.prediction == wanted[1]
    assert load(folder).classifier.prediction is None


def test_the_other_options_reach_schedule_and_recipe(data, tmp_path):
    for number, (options, part, wanted) in enumerate([
        (["--weighting", "min-snr"], "denoiser", {"weighting": "min-snr", "low_noise": 0.75}),
        (["--low-noise", 0], "denoiser", {"t_density": "uniform", "low_noise": 0.0}),
        (["--t-density", "log-normal"], "denoiser", {"t_density": "log-normal", "low_noise": 0.75}),
        (["--prediction", "v", "--zero-terminal-snr"], "schedule", {"zero_terminal_snr": True}),
        (
            ["--prediction", "edm", "--sigma-min", 0.01, "--sigma-max", 20, "--sigma-data", 0.5],
            "schedule", {"sigma_min": 0.01, "sigma_max": 20, "sigma_data": 0.5},
        ),
        (
            ["--weighting", "edm", "--sigma-data", 0.5, "--recipe", "classic-a", "--epochs", 1],
            "denoiser", {"weighting": "edm"},
        ),
    ]):  # fmt: skip
        small = [*SMALL[:2], *SMALL[6:]] if "classic-a" in options else SMALL
        folder = tmp_path / str(number)
        result = flashpoint("train", *small, "--data", data, *options, "--out", folder)
        assert result.exit_code == 0, result.output
        config = config_of(folder)
        assert wanted.items() <= config[part].items()
        untouched = {"weighting": "uniform", "t_density": "uniform", "prediction": None}
        given = config["classifier"]
        assert {name: given.get(name, "uniform") for name in untouched} == untouched


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prediction", "velocity"], "--prediction must be one of eps, x0, v, flow, edm, got"),
        (["--weighting", "min_snr"], "did you mean 'min-snr'"),
        (["--t-density", "lognormal"], "did you mean 'log-normal'"),
        (["--schedule", "flow", "--prediction", "eps"], "--prediction must be x0, v, flow or edm"),
        (["--zero-terminal-snr"], "--prediction must be x0, v, flow or edm where no data is left"),
        (["--prediction", "flow", "--zero-terminal-snr"], "--zero-terminal-snr must be left out"),
        (["--prediction", "flow", "--beta-end", 0.1], "--beta-end must be left out with the flow"),
        (["--prediction", "edm", "--beta-start", 0.01], "--beta-start must be left out with the"),
        (["--sigma-max", 10], "--sigma-max must be left out with the linear schedule, got 10.0"),
        (["--prediction", "flow", "--sigma-min", 1], "--sigma-min must be left out with the flow"),
        (["--prediction", "v", "--sigma-data", 2], "--sigma-data must be left out unless schedule"),
        (["--prediction", "edm", "--sigma-data", 0], "--sigma-data must be from 1e-6 to 1e6"),
        (["--prediction", "edm", "--sigma-min", 99], "--sigma-max must be above sigma_min, 99.0"),
        (["--prediction", "flow", "--time-feature", "c_noise"], "--time-feature must be another"),
        (["--recipe", "classic-a", "--t-density", "uniform"], "--t-density must be left out with"),
        (
            ["--recipe", "classic-a", "--low-noise", 0],
            "--low-noise must be left out with a classic",
        ),
        (["--low-noise", 2], "--low-noise must be from 0 to 1, got 2"),
        (["--p-mean", -2], "--p-mean must be left out unless t_density is logit-normal or log-"),
        (["--t-density", "log-normal", "--p-std", 0], "--p-std must be positive, got 0"),
        (["--t-density", "log-normal", "--p-mean", "nan"], "--p-mean must be finite, a number"),
        (["--recipe", "classic-a", "--p-std", 1], "--p-std must be left out with a classic"),
        (["--method", "edn"], "did you mean 'edm'"),
        (["--reverse-steps", 0], "--reverse-steps must be at least 1, got 0"),
        (["--reverse-steps", 501], "--reverse-steps must be from 1 to 500, got 501"),
    ],
)
def test_idle_and_impossible_options_are_one_line(tmp_path, options, message):
    arguments = [*options, "--data", "moons", "--device", "cpu", "--out", tmp_path / "run"]
    for command in ("train", "states"):
        result = flashpoint(command, *arguments)
        assert result.exit_code == 2, result.output
        assert result.output.startswith("error: ")
        assert message in result.output
        assert result.output.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_whole_run_of_v(data, tmp_path):
    arguments = [*SMALL, "--data", data, "--schedule", "cosine", "--prediction", "v"]
    folder = tmp_path / "run"
    result = flashpoint("states", *arguments, "--out", folder)
    assert result.exit_code == 0, result.output
    samples = torch.load(folder / "outputs/uncond_gen_samples.pt", weights_only=True)
    assert samples.shape == (20, 2)
    again = flashpoint("train", *arguments, "--out", folder, "--resume")
    assert again.exit_code == 0, again.output
    for others, message in (
        (["--prediction", "x0"], "schedule.prediction v, now x0"),
        (["--prediction", "v", "--weighting", "p2"], "denoiser.weighting uniform, now p2"),
    ):
        result = flashpoint("train", *arguments, *others, "--out", folder, "--resume")
        assert result.exit_code == 2
        assert message in result.output


# Settings


def test_the_settings_schedule_says_what_the_denoiser_predicts():
    settings = Settings(schedule=Schedule(10, "cosine"), denoiser=replace(TINY, prediction="v"))
    assert settings.schedule == Schedule(10, "cosine", prediction="v")
    assert settings.record()["schedule"]["prediction"] == "v"
    same = Settings(schedule=Schedule(10, "cosine", prediction="v"), denoiser=TINY)
    assert same.changes(settings.record()) == []
    assert settings.changes(same.record()) == []
    other = Settings(schedule=Schedule(10, "cosine"), denoiser=TINY)
    assert other.changes(settings.record()) == ["schedule.prediction v, now eps"]
    with pytest.raises(UserError, match="prediction must be x0, v, flow or edm"):
        Settings(schedule=Schedule(10, "flow"), denoiser=replace(TINY, prediction="eps"))


def test_a_record_with_a_time_embedding_is_the_same_again():
    embedding = {"dim": 4, "order": "cos-sin"}
    settings = Settings(schedule=Schedule(10, "cosine", time_feature=embedding))
    assert settings.changes(settings.record()) == []


# Networks


@pytest.mark.parametrize("prediction", ["x0", "v", "flow", "edm"])
def test_trained_networks_say_what_they_predict(prediction):
    schedule, points = Schedule(10, "cosine"), cloud()
    recipe = replace(TINY, prediction=prediction)
    trainer = Trainer(points, schedule, recipe, device="cpu")
    assert trainer.schedule == schedule.predicting(prediction)
    trainer.run(3)
    model = trainer.model()
    assert model.prediction == copy.deepcopy(model).prediction == prediction
    assert "prediction" not in "".join(model.state_dict())
    tasks = [
        Task(points, schedule, recipe),
        Task(points, schedule, TINY),
        Task(points, schedule, recipe, classify=True),
        Task(points, schedule, replace(recipe, p_uncond=0.1)),
    ]
    models = ManyTrainer(tasks, device="cpu").models()
    assert [each.prediction for each in models] == [prediction, "eps", None, prediction]
    assert Trainer(points, schedule, recipe, classify=True, device="cpu").model().prediction is None


def test_a_network_in_another_layout_predicts_the_same():
    model = MLP(3, 2, [8], activation="relu", linear_input=True)
    model.prediction = "v"
    assert (
        BlockMLP.from_mlp(model).to_mlp().prediction == BlockMLP.from_mlp(model).prediction == "v"
    )


def test_a_schedule_for_another_prediction_is_refused(tmp_path):
    model = MLP(3, 2, [8])
    model.prediction = "v"
    for use in (
        lambda: Denoiser(model, Schedule(10, "cosine")),
        lambda: export_model(model, Schedule(10, "cosine"), "safetensors", tmp_path / "x"),
    ):
        with pytest.raises(UserError, match="predicts v, got one for eps: take schedule"):
            use()
    assert Denoiser(model, Schedule(10, "cosine").predicting("v")).model is model


# Files

FORMATS = ("safetensors", "onnx", "torch.export")


def metadata_in(path, format):
    if format == "onnx":
        session = onnxruntime.InferenceSession(path)
        return session.get_modelmeta().custom_metadata_map
    if format == "torch.export":
        extra = dict.fromkeys(("prediction", "levels", "schedule"), "")
        torch.export.load(path, extra_files=extra)
        return extra
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header["__metadata__"]


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_says_what_its_output_means(tmp_path, format):
    """What x_0 is follows from the file alone."""
    schedule = Schedule(10, "edm", sigma_data=0.5)
    trainer = Trainer(cloud(), schedule, TINY, device="cpu")
    path = tmp_path / f"model.{format}"
    export_model(trainer.model(), trainer.schedule, format, path)
    metadata = metadata_in(path, format)
    assert json.loads(metadata["prediction"]) == "edm"
    levels = {name: torch.tensor(x) for name, x in json.loads(metadata["levels"]).items()}
    t, x, y = torch.arange(10), torch.randn(10, 2), torch.randn(10, 2)
    a, s, p, q = (levels[name][:, None] for name in (
        "signal", "noise", "target_signal", "target_noise"))  # fmt: skip
    x_0 = (q * x - s * y) / (a * q - s * p)
    torch.testing.assert_close(x_0, schedule.x0_hat(x, y, t), rtol=1e-4, atol=1e-4)


def test_a_classifiers_export_says_that_it_predicts_no_point(tmp_path):
    trainer = Trainer(cloud(), Schedule(10, "flow"), TINY, classify=True, device="cpu")
    path = tmp_path / "classifier.safetensors"
    export_model(trainer.model(), trainer.schedule, "safetensors", path)
    metadata = metadata_in(path, "safetensors")
    assert json.loads(metadata["prediction"]) is None
    assert "levels" not in metadata
    assert load(path).model.prediction is None


def test_saved_networks_are_loaded_with_their_prediction(tmp_path):
    schedule, model = Schedule(10, "flow", time_feature="centered"), MLP(3, 2, [8])
    for suffix in ("safetensors", "pt"):
        path = tmp_path / f"x.{suffix}"
        Denoiser(model, schedule).save(path)
        loaded = load(path, schedule=schedule)
        assert loaded.model.prediction == loaded.schedule.prediction == "flow"
    assert model.prediction is None
    wrong = schedule.predicting("v")
    with pytest.raises(UserError, match="schedule must be that of the training of"):
        load(tmp_path / "x.safetensors", schedule=wrong)
    assert load(tmp_path / "x.pt", schedule=wrong).model.prediction == "v"


# Runs of an older version

RESUMED = {
    "fast": ("--recipe", "small", "--steps", 6, "--batch-size", 32),
    "classic": ("--recipe", "classic-b", "--epochs", 2, "--batch-size", 40_000),
}


def resume(kind, folder, *more):
    return flashpoint(
        "train", "--data", "moons", "--timesteps", 10, "--schedule", "cosine", "--hidden-layers",
        "8,8", "--p-uncond", 0.2, "--device", "cpu", *RESUMED[kind], *more, "--out", folder,
        "--resume",
    )  # fmt: skip


@pytest.mark.parametrize("kind", RESUMED)
def test_a_training_of_an_older_version_goes_on(tmp_path, kind):
    folder = tmp_path / "run"
    shutil.copytree(OLDER / kind, folder)
    for more, message in (
        (["--prediction", "v"], "schedule.prediction eps, now v"),
        (["--weighting", "p2"], "denoiser.weighting uniform, now p2"),
    ):
        result = resume(kind, folder, *more)
        assert result.exit_code == 2
        assert message in result.output
    result = resume(kind, folder)
    assert result.exit_code == 0, result.output
    assert "resumed" in result.output
    ended = torch.load(folder / "checkpoints/denoiser.pt", weights_only=True)
    theirs = torch.load(OLDER / kind / "finished.pt", weights_only=True)
    assert ended.keys() == theirs.keys()
    for name, x in ended.items():
        torch.testing.assert_close(x, theirs[name], rtol=1e-4, atol=1e-5)
    assert config_of(folder)["schedule"]["prediction"] == "eps"


@pytest.mark.parametrize("kind", RESUMED)
def test_a_state_of_an_older_version_belongs_to_its_settings_alone(kind):
    """Its digests are those of recipe and schedule without the fields that it did not know."""
    state = torch.load(OLDER / kind / "checkpoints/training.pt", weights_only=True)["denoiser"]
    recipe = {
        "fast": replace(RECIPES["small"][0], steps=6, batch_size=32),
        "classic": replace(RECIPES["classic-b"][0], epochs=2, batch_size=40_000),
    }[kind]
    recipe = replace(recipe, hidden_layers=(8, 8), p_uncond=0.2)
    moons, schedule, seed = dataset("moons"), Schedule(10, "cosine"), child_seed(0, 0)

    def trainer(schedule, recipe):
        return Trainer(moons, schedule, recipe, seed=seed, device="cpu")

    trainer(schedule, recipe).load_state_dict(state)
    trainer(schedule, replace(recipe, prediction="eps")).load_state_dict(state)
    for other, changed in (
        (schedule.predicting("v"), recipe),
        (schedule, replace(recipe, prediction="v")),
        (schedule, replace(recipe, weighting="p2")),
        (schedule.predicting("edm"), recipe),
    ):
        with pytest.raises(UserError, match="belongs to a run with another"):
            trainer(other, changed).load_state_dict(state)


@pytest.mark.parametrize("kind", RESUMED)
def test_a_network_of_an_older_version_is_loaded_and_samples(tmp_path, kind):
    folder = tmp_path / "run"
    shutil.copytree(OLDER / kind, folder)
    denoiser = load(folder)
    assert denoiser.schedule == Schedule(10, "cosine", prediction="eps")
    assert denoiser.model.prediction == "eps"
    assert denoiser.sample(5, device="cpu").x.isfinite().all()
    # Its files of safetensors lacked prediction and levels.
    denoiser.save(tmp_path / "new.safetensors")
    content = (tmp_path / "new.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    old = header["__metadata__"]
    for name in ("prediction", "levels"):
        del old[name]
    fields = json.loads(old["schedule"])
    known = ("num_steps", "name", "beta_start", "beta_end", "time_feature")
    old["schedule"] = json.dumps({name: fields[name] for name in known})
    text = json.dumps(header).encode()
    path = tmp_path / "old.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    again = load(path)
    assert again.schedule == denoiser.schedule
    assert again.model.prediction == "eps"
