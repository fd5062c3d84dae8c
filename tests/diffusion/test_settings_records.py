"""Settings are written down and read again, whole or in part, and nothing wrong is passed over."""

import json
from dataclasses import fields, replace

import pytest

from flashpoint.diffusion import RECIPES, ClassicRecipe, Recipe, Schedule, TimeEmbedding, UserError
from flashpoint.diffusion.choices import DECAYS, PREDICTIONS, SCHEDULES
from flashpoint.diffusion.cli import main
from flashpoint.diffusion.commands.settings import field_of
from flashpoint.diffusion.data import dataset
from flashpoint.diffusion.recorded import decay_from
from flashpoint.diffusion.run_record import record_of
from flashpoint.diffusion.settings import OF_RUN, Settings
from flashpoint.diffusion.training import CosineDecay, PlainRecipe, PlateauDecay, StepDecay


def read_again(settings):
    return Settings.from_record(json.loads(json.dumps(settings.record())))


@pytest.mark.parametrize(
    ("name", "quick"), [*((name, False) for name in RECIPES), ("fast", True), ("states", True)]
)
def test_every_recipe_is_read_as_it_was_written(name, quick):
    settings = replace(Settings.of_recipe(name, 7, quick=quick), scale=2.5, n_samples=33)
    assert read_again(settings) == settings


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_schedule_and_prediction_is_read_as_it_was_written(name, prediction):
    if name == "flow" and prediction == "eps":
        prediction = "x0"
    schedule = Schedule(200, name, prediction=prediction)
    assert read_again(Settings(schedule=schedule)) == Settings(schedule=schedule)
    asked = replace(Settings(schedule=schedule), denoiser=Recipe(prediction=prediction))
    assert read_again(asked) == asked


def test_what_is_rare_is_read_as_it_was_written():
    settings = Settings(
        schedule=Schedule(300, time_feature=TimeEmbedding(8, "cos-sin"), beta_end=0.05),
        denoiser=PlainRecipe(steps=9, activation="relu", linear_input=True, clip_norm=1.0),
        classifier=ClassicRecipe(3, (4, 5), decay=PlateauDecay(0.1, 2), optimizer="adam"),
        sampling_steps=20, method="edm", s_churn=3.0,
    )  # fmt: skip
    again = read_again(settings)
    assert again == settings
    assert type(again.denoiser) is PlainRecipe


def test_what_a_run_writes_of_its_data_is_passed_over():
    record = record_of(dataset("moons"), None, Settings.of_recipe("small"))
    assert Settings.from_record(record) == Settings.of_recipe("small")
    assert record.keys() - Settings().record().keys() == {*OF_RUN}


def test_a_part_of_a_record_changes_a_recipe():
    found = Settings.from_record({
        "recipe": "states", "seed": 3, "schedule": {"sigma_max": 20}, "s_noise": "none",
        "denoiser": {"lr": 1, "hidden_layers": "64x3", "clip_norm": 2, "t_density": "logit-normal"},
    })  # fmt: skip
    own = Settings.of_recipe("states", 3)
    denoiser = replace(
        own.denoiser, lr=1.0, hidden_layers=(64, 64, 64), clip_norm=2.0, p_mean=None, p_std=None,
        t_density="logit-normal",
    )  # fmt: skip
    schedule = replace(own.schedule, sigma_max=20.0)
    assert found == replace(own, denoiser=denoiser, schedule=schedule, s_noise=None)
    other = Settings.from_record({"recipe": "states", "schedule": {"name": "cosine"}})
    assert other == replace(
        own, seed=0, schedule=Schedule(500, "cosine"), method="ddpm", sampling_steps=None,
        s_churn=None, s_noise=None,
    )  # fmt: skip
    flow = Settings.from_record({"schedule": {"prediction": "flow"}})
    assert flow.schedule == Schedule(500, "flow")


def test_a_recipe_that_is_not_named_is_known_by_its_length():
    made = Settings.from_record({"denoiser": {"epochs": 4}, "classifier": {"epochs": 5}})
    assert made.denoiser == ClassicRecipe(4)
    classic = Settings.of_recipe("classic-a")
    record = {"denoiser": {"epochs": 4, "decay": {"factor": 0.5}}}
    assert Settings.from_record(record, classic).denoiser.decay == StepDecay(2, 0.5)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"lrr": 1}, "lrr is no setting; did you mean 'denoiser.lr'?"),
        ({"beta_end": 0.1}, "beta_end is no setting; did you mean 'schedule.beta_end'?"),
        ({"n_sampels": 9}, "n_sampels is no setting; did you mean 'n_samples'?"),
        ({"denoiser": {"lrr": 1}}, "denoiser.lrr is no setting; did you mean 'lr'?"),
        ({"denoiser": {"zzz": 1}}, "denoiser.zzz is no setting; known are activation, "),
        ({"schedule": {"nam": "flow"}}, "schedule.nam is no setting; did you mean 'name'?"),
        ({"schedule": {"time_feature": {"dym": 3}}}, "time_feature.dym is no setting; did you"),
        ({"denoiser": {"lr": "fast"}}, "denoiser.lr must be a number, got 'fast'"),
        ({"denoiser": {"lr": "1e-3"}}, "denoiser.lr must be a number, got '1e-3'"),
        ({"denoiser": {"steps": 2.5}}, "denoiser.steps must be a whole number, got 2.5"),
        ({"denoiser": {"linear_input": 1}}, "denoiser.linear_input must be true or false, got 1"),
        ({"denoiser": {"hidden_layers": [8, "a"]}}, "hidden_layers must be widths like 64x3 or"),
        ({"denoiser": []}, "denoiser must be a table, got []"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"scale": "x"}, "scale must be a number or none, got 'x'"),
        ({"recipe": "smal"}, "did you mean 'small'?"),
        ({"denoiser": {"kind": "x"}}, "denoiser.kind must be one of plain, got 'x'"),
        ({"denoiser": {"lr": -1}}, "denoiser.lr must be positive and finite, got -1.0"),
        ({"classifier": {"activation": "rel"}}, "classifier.activation must be one of prelu"),
        ({"schedule": {"name": "cosin"}}, "schedule.name must be one of linear, cosine"),
        ({"recipe": "fast", "denoiser": {"epochs": 2}}, "denoiser.epochs must be left out with"),
        ({"denoiser": {"refresh": 2}}, "refresh must be left out unless the recipe is a classic"),
        (
            {"recipe": "classic-a", "denoiser": {"low_noise": 0.1}},
            "denoiser.low_noise must be left out with a classic recipe, which visits every",
        ),
        (
            {"recipe": "classic-a", "denoiser": {"decay": {"floor": 1.0, "every": 2}}},
            "denoiser.decay must hold the numbers of one rule, got floor, every",
        ),
        (
            {"recipe": "classic-a", "denoiser": {"decay": "stp"}},
            "denoiser.decay must be one of step, cosine, plateau, got 'stp'; did you mean 'step'?",
        ),
    ],
)
def test_what_is_wrong_is_named(record, message):
    with pytest.raises(UserError) as error:
        Settings.from_record(record)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("step", StepDecay()),
        ("step:every=3", StepDecay(3)),
        ("plateau:factor=0.1,patience=7", PlateauDecay(0.1, 7)),
        ({"floor": 1e-6}, CosineDecay(1e-6)),
        ({"patience": 7}, PlateauDecay(patience=7)),
        ({"factor": 0.5}, StepDecay(factor=0.5)),
    ],
)
def test_rules_by_which_a_rate_falls(given, rule):
    assert decay_from("decay", given, StepDecay()) == rule
    assert {type(decay_from("decay", name, StepDecay())) for name in DECAYS} == {
        StepDecay, CosineDecay, PlateauDecay,
    }  # fmt: skip


# Fields without an option: what a network predicts is said by the schedule, and a classifier
# predicts no noise and takes no class.
NO_OPTION = {("denoiser", "prediction")} | {
    ("classifier", name)
    for name in ("prediction", "weighting", "t_density", "p_mean", "p_std", "p_uncond",
                 "class_embedding")
}  # fmt: skip


@pytest.mark.parametrize("command", ["states", "train"])
def test_every_field_of_the_settings_has_an_option(command):
    recipes = {one.name for owner in (Recipe, ClassicRecipe) for one in fields(owner)}
    wanted = {("", one.name) for one in fields(Settings)} - {
        ("", part) for part in ("schedule", "denoiser", "classifier")
    }
    wanted |= {("schedule", one.name) for one in fields(Schedule)}
    wanted |= {(part, name) for part in ("denoiser", "classifier") for name in recipes}
    found = {field_of(param.name) for param in main.commands[command].params} - {None}
    assert found == wanted - NO_OPTION


@pytest.mark.parametrize("command", ["states", "train"])
def test_every_option_stands_under_a_heading(command):
    headings = [param.heading for param in main.commands[command].params]
    order = ["Run", "Data", "Process", "Network", "Training", "Classifier", "Sampling"]
    assert list(dict.fromkeys(headings)) == order
