"""The grid of a sweep: values in every form, their product, and one line for each mistake."""

import numpy as np
import pytest

from flashpoint.diffusion import RECIPES, Schedule, UserError, dataset
from flashpoint.diffusion.sweeps import KEYS, Sweep, read_grid, settings_of, text_of
from flashpoint.diffusion.sweeps.keys import values_of

MOONS = dataset("moons")


def sweep(**factors):
    return Sweep(MOONS, factors)


@pytest.mark.parametrize(
    ("key", "given", "values"),
    [
        ("lr", "1e-3, 3e-3", (1e-3, 3e-3)),
        ("lr", [0.001, "3e-3"], (1e-3, 3e-3)),
        ("lr", 1, (1.0,)),
        ("seed", "0..3", (0, 1, 2, 3)),
        ("seed", "7,0..1", (7, 0, 1)),
        ("seed", range(3), (0, 1, 2)),
        ("seed", np.arange(2), (0, 1)),
        ("hidden", "64x3,64-128-64,32", ((64, 64, 64), (64, 128, 64), (32,))),
        ("hidden", [[64, 128], "8x2", 16], ((64, 128), (8, 8), (16,))),
        ("hidden", "256-64x2", ((256, 64, 64),)),
        ("zero_terminal_snr", "true,false", (True, False)),
        ("p_uncond", "none,0.1", (None, 0.1)),
        ("p_uncond", [None, 0.1], (None, 0.1)),
        ("prediction", ("eps", "v"), ("eps", "v")),
        ("sampling_steps", "10", (10,)),
    ],
)
def test_values_are_read_from_text_lists_and_numbers(key, given, values):
    found = values_of(key, given)
    assert found == values
    assert list(map(type, found)) == list(map(type, values))


@pytest.mark.parametrize("key", ["lr", "hidden", "zero_terminal_snr", "p_uncond", "seed"])
def test_a_value_that_is_shown_can_be_given_again(key):
    values = {
        "lr": (0.1 + 0.2, 1e-5), "hidden": ((64, 64), (64, 32), (7,)), "seed": (3,),
        "zero_terminal_snr": (True, False), "p_uncond": (None, 0.25),
    }[key]  # fmt: skip
    assert values_of(key, ",".join(map(text_of, values))) == values


def test_models_are_the_product_in_order():
    models = sweep(lr="1e-3,3e-3", hidden="8,16x2", seed="0..2").models
    assert [model.number for model in models] == list(range(12))
    assert models[0].values == {"lr": 1e-3, "hidden": (8,), "seed": 0}
    assert models[4].values == {"lr": 1e-3, "hidden": (16, 16), "seed": 1}
    assert [model.seed for model in models] == [0, 1, 2] * 4
    assert (models[-1].recipe.lr, models[-1].recipe.hidden_layers) == (3e-3, (16, 16))
    assert str(models[4]) == "lr=0.001 hidden=16x2 seed=1"


def test_keys_set_recipe_schedule_and_sampling():
    model = sweep(
        recipe="small", steps=7, timesteps=40, schedule="cosine", prediction="v", method="ddim",
        sampling_steps=9, eta=0.5,
    ).models[0]  # fmt: skip
    assert model.schedule == Schedule(40, "cosine", prediction="v")
    assert (model.recipe.steps, model.recipe.batch_size) == (7, RECIPES["small"][0].batch_size)
    assert model.sampling == {"method": "ddim", "num_steps": 9, "eta": 0.5}
    assert sweep(recipe="classic-a", epochs=3).models[0].recipe.epochs == 3


def test_another_density_of_timesteps_has_its_own_mean():
    models = sweep(recipe="states", t_density="uniform,log-normal").models
    assert [(one.recipe.p_mean, one.recipe.p_std) for one in models] == [(None, None)] * 2
    moved = sweep(recipe="states", t_density="log-normal", p_mean=[-2, -1]).models
    assert [(one.recipe.p_mean, one.recipe.p_std) for one in moved] == [(-2, None), (-1, None)]


def test_models_have_the_names_that_earlier_versions_gave_them():
    values = {"lr": 1e-3, "steps": 20, "t_density": "log-normal", "prediction": "edm"}
    model = sweep(**values).models[0]
    assert (model.training_id("x"), model.id("x", 7)) == ("4314d3511ec5a828", "a4c5f3a869f13375")


def test_flow_and_edm_bring_the_schedule_of_their_name():
    names = [model.schedule.name for model in sweep(prediction="eps,flow,edm").models]
    assert names == ["linear", "flow", "edm"]
    kept = sweep(prediction="v,flow", schedule="cosine").models
    assert [(one.schedule.name, one.schedule.prediction) for one in kept] == [
        ("cosine", "v"), ("cosine", "flow"),
    ]  # fmt: skip


def test_every_setting_of_a_model_and_the_data_decide_its_name():
    base = {"timesteps": 50, "schedule": "cosine"}
    others = {"lr": 1e-3, "seed": 1, "timesteps": 49, "schedule": "sigmoid", "weighting": "p2"}
    plain = sweep(**base).models[0]
    digest = MOONS.digest
    for key, value in others.items():
        other = sweep(**{**base, key: value}).models[0]
        assert other.training_id(digest) != plain.training_id(digest)
        assert other.id(digest, 10) != plain.id(digest, 10)
    drawn = sweep(**base, method="ddim").models[0]
    assert drawn.training_id(digest) == plain.training_id(digest)
    assert drawn.id(digest, 10) != plain.id(digest, 10)
    assert plain.id(digest, 10) != plain.id(digest, 11)
    assert plain.training_id(digest) != plain.training_id("of other data")
    # Whatever the place in a grid and the order of the keys are, the name is the same.
    same = sweep(schedule="cosine", lr="1e-3,6e-3", timesteps=50).models[1]
    assert same.id(digest, 10) == plain.id(digest, 10)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"lrr": 1}, "a sweep has no key 'lrr'; did you mean 'lr'?"),
        ({"xyz": 1}, "a sweep has no key 'xyz'; the keys are seed, recipe, "),
        ({"lr": "1e-3,abc"}, "lr must be a number, got 'abc'"),
        ({"lr": "1e-3,-1"}, r"lr must be positive and finite, got -1.0 \(in the model lr=-1\)"),
        ({"lr": []}, "lr must have at least one value, got none"),
        ({"lr": "0.001,1e-3"}, "lr holds 0.001 twice"),
        ({"hidden": "64,128,128"}, "hidden holds 128 twice; the widths of one network are joined"),
        ({"hidden": "64x"}, "hidden must be widths like 64x3 or 64-128-64, got '64x'"),
        ({"hidden": 8, "hidden_layers": 9}, "hidden_layers must be given once"),
        ({"steps": 1.5}, "steps must be a whole number, got 1.5"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"seed": "3..1"}, "seed must be a range that rises"),
        ({"seed": -1}, r"seed must be from 0 to 2\*\*63 - 1, got -1"),
        ({"seed": "0..9", "timesteps": 0}, "timesteps must be at least 1, got 0"),
        ({"prediction": "epx"}, "prediction must be one of eps, .* did you mean 'eps'?"),
        (
            {"prediction": "v,eps", "schedule": "cosine,flow"},
            "prediction must be x0, .* got eps with the flow schedule "
            r"\(in the model prediction=eps schedule=flow\)",
        ),
        ({"recipe": "fats"}, "recipe must be one of fast, .* did you mean 'fast'?"),
        ({"recipe": "classic-a", "steps": 9}, "steps must be left out with the recipe classic-a"),
        ({"method": "ddim,dddm"}, "method must be one of ddpm, ddim"),
        ({"sampling_steps": 501}, "sampling_steps must be from 1 to 500, got 501"),
        ({"eta": 0.5}, "eta must be left out unless method is ddim"),
        ({"scale": 1.0}, "scale needs p_uncond"),
        ({"zero_terminal_snr": "maybe"}, "zero_terminal_snr must be true or false, got 'maybe'"),
        ({"seed": "0..99999", "lr": "1,2"}, "a sweep must be of at most 100,000 models"),
    ],
)
def test_a_mistake_is_one_line_that_names_key_and_value(factors, message):
    with pytest.raises(UserError, match=f"^{message}") as caught:
        sweep(**factors)
    assert "\n" not in str(caught.value)


def test_a_conditional_model_needs_labels():
    with pytest.raises(UserError, match="a conditional denoiser needs labels"):
        Sweep("sin_5_5", {"p_uncond": "none,0.1"})


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["emdd"], "metrics must be one of .*did you mean 'emd'"),
        (["occupancy"], "metrics must be one of"),  # of classes, which these data have not
        (["nearer_to_training"], "metrics must be one of"),  # than to points held out
        (["emd", "emd"], "metrics holds emd twice"),
        ([], "metrics must be at least one, got none"),
    ],
)
def test_metrics_are_checked(metrics, message):
    with pytest.raises(UserError, match=message):
        Sweep("sin_5_5", {"lr": 1e-3}, metrics=metrics)


def test_settings_of_the_command_line():
    assert settings_of(["lr=1e-3,3e-3", "sampling-steps=9"]) == {
        "lr": "1e-3,3e-3", "sampling_steps": "9",
    }  # fmt: skip
    for texts, message in (
        (["lr"], "--set must be KEY=VALUE,VALUE"), (["=1"], "--set must be KEY=VALUE,VALUE"),
        (["lr=1", "lr=2"], "lr must be given once, got '1' and '2'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            settings_of(texts)


def test_a_grid_of_a_file(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(
        '[set]\nlr = [1e-3, 3e-3]\nhidden = ["8x2", [8, 16]]\nseed = "0..2"\nsteps = 9\n'
        "p_uncond = 0.1\n"
    )
    found = Sweep(MOONS, read_grid(path)).factors
    assert found == {
        "lr": (1e-3, 3e-3), "hidden": ((8, 8), (8, 16)), "seed": (0, 1, 2), "steps": (9,),
        "p_uncond": (0.1,),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = [", "is no TOML"),
        ("[sets]\nlr = 1", "must be one of set, got 'sets'; did you mean 'set'"),
        ("set = 1", r"must hold a table \[set\]"),
        ("", r"must hold a table \[set\]"),
    ],
)
def test_a_file_with_another_content_is_one_line(tmp_path, text, message):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_grid(path)


def test_every_field_is_a_key():
    wanted = {
        "lr", "steps", "hidden", "hidden_layers", "batch_size", "ema_decay", "weight_decay",
        "warmup", "low_noise", "activation", "weighting", "t_density", "p_uncond", "epochs",
        "schedule", "timesteps", "beta_start", "beta_end", "prediction", "time_feature",
        "zero_terminal_snr", "sigma_data", "sigma_min", "sigma_max", "method", "sampling_steps",
        "scale", "eta", "variance", "seed", "recipe",
    }  # fmt: skip
    assert wanted <= KEYS.keys()
