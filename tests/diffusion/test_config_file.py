"""``--config``: the settings of a run from a file; options win, and a run is done again from it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flashpoint.diffusion import RECIPES, Schedule, UserError
from flashpoint.diffusion.commands.config_file import merged, read_config
from flashpoint.diffusion.commands.settings import settings_of
from flashpoint.diffusion.report import _held_out_and_initial
from flashpoint.diffusion.run_folder import RunFolder
from flashpoint.diffusion.settings import Settings

from .helpers import flashpoint

pytestmark = pytest.mark.usefixtures("few_points")

TOML = """
data = "moons"
recipe = "small"
n_samples = 20
real_draws = 2
validate_every = 3
[schedule]
num_steps = 10
name = "cosine"
[denoiser]
steps = 4
hidden_layers = [8, 8]
batch_size = 32
[classifier]
steps = 2
hidden_layers = [8]
"""


def described(tmp_path, text, *, suffix=".toml", data="moons", recipe=None, quick=False, **given):
    path = tmp_path / f"file{suffix}"
    path.write_text(text)
    return settings_of(read_config(path), quick=quick, data=data, recipe=recipe, **given)


def test_a_file_changes_a_recipe_and_options_win(tmp_path):
    found = described(
        tmp_path, TOML, lr=0.5, classifier_lr=0.25, timesteps=20, samples=9, seed=3,
        hidden_layers="16x2", batch_size=7, classifier_steps=5, clip_norm="none",
    )  # fmt: skip
    denoiser, classifier = RECIPES["small"]
    assert found == Settings(
        3,
        Schedule(20, "cosine"),
        replace(denoiser, steps=4, hidden_layers=(16, 16), batch_size=7, lr=0.5),
        replace(classifier, steps=5, hidden_layers=(8,), batch_size=7, lr=0.25),
        n_samples=9,
        real_draws=2,
        validate_every=3,
    )
    other = described(tmp_path, TOML, recipe="long")
    assert other.classifier == replace(RECIPES["long"][1], steps=2, hidden_layers=(8,))


def test_without_a_recipe_it_is_that_of_the_data(tmp_path):
    text = "[denoiser]\nlr = 0.5\n"
    own = Settings.of_recipe("states")
    expected = replace(own, denoiser=replace(own.denoiser, lr=0.5))
    assert described(tmp_path, text, data="states") == expected
    assert described(tmp_path, text).denoiser == replace(RECIPES["fast"][0], lr=0.5)
    flow = described(tmp_path, f"{text}[schedule]\nname = 'flow'\n", data="states")
    assert flow.denoiser == replace(RECIPES["fast"][0], lr=0.5)
    assert flow.method == "ddpm"


def test_a_quick_run_is_short_whatever_the_file_says(tmp_path):
    text = "n_samples = 9\n[denoiser]\nsteps = 9\nlr = 0.5\n"
    found = described(tmp_path, text, quick=True, data="states", classifier_steps=3)
    own = Settings.of_recipe("states", quick=True)
    assert found == replace(
        own,
        denoiser=replace(own.denoiser, lr=0.5),
        classifier=replace(own.classifier, steps=3),
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_record_of_a_run_is_its_settings(tmp_path, name):
    settings = Settings.of_recipe(name, 5)
    content = json.dumps({"points": 9, "data": "moons", **settings.record()})
    assert described(tmp_path, content, suffix=".json", data="states") == settings
    with pytest.raises(UserError, match="--recipe must be left out with the"):
        described(tmp_path, content, suffix=".json", recipe="long")
    unit = "epochs" if "epochs" in settings.record()["denoiser"] else "steps"
    longer = described(tmp_path, content, suffix=".json", **{unit: 7})
    assert getattr(longer.denoiser, unit) == 7
    with pytest.raises(
        UserError, match=r"^--(steps is not for a|epochs is for the) classic recipe"
    ):
        described(
            tmp_path, content, suffix=".json", **{"steps" if unit == "epochs" else "epochs": 7}
        )


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("lrr = 1", {}, "file PATH: lrr is no setting; did you mean 'denoiser.lr'?"),
        ("[denoiser]\nlr = 'x'", {}, "file PATH: denoiser.lr must be a number, got 'x'"),
        ("[denoiser]\nlr = -1", {}, "file PATH: denoiser.lr must be positive and finite, got -1.0"),
        ("[denoiser]\nlr = -1", {"lr": -2.0}, "lr must be positive and finite, got -2.0"),
        ("[denoiser]\nlr = 1", {"classifier_lr": -2.0}, "classifier_lr must be positive and"),
        ("[schedule]\nname = 'x'", {}, "file PATH: schedule.name must be one of linear"),
        ("seed = 1", {"timesteps": 10, "schedule": "x"}, "schedule must be one of linear"),
        ("n_samples = 1", {}, "file PATH: n_samples must be at least 2, got 1"),
        ("seed = 1", {"samples": 1}, "n_samples must be at least 2, got 1"),
        ("seed = 1", {"hidden_layers": "8,a"}, "hidden_layers must be widths like 64,128,128"),
        ("seed = 1", {"epochs": 2}, "--epochs is for the classic recipes; the others take --steps"),
        ("recipe = 'classic-a'", {"classifier_steps": 2}, "--steps is not for a classic recipe"),
        ("recipe = 'classic-a'", {"quick": True}, "--quick is for the recipes fast and states"),
        ("= 1", {}, "file PATH is no TOML: "),
    ],
)
def test_what_is_wrong_is_one_line_that_names_its_place(tmp_path, text, given, message):
    with pytest.raises(UserError) as error:
        described(tmp_path, text, **given)
    assert str(error.value).startswith(message.replace("PATH", str(tmp_path / "file.toml")))


def test_files_that_are_none_of_settings(tmp_path):
    (tmp_path / "run.yaml").write_text("a: 1")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "bad.toml").write_text("data = 3")
    (tmp_path / "source.toml").write_text("[source]\nname = 'moons'\nclass = 2")
    for name, message in (
        ("run.yaml", "--config must be a file .toml or .json, got"),
        ("none.toml", "none.toml cannot be read: it does not exist"),
        ("list.json", "must hold a JSON object, got list"),
        ("bad.toml", "data must be a name or a path, got 3"),
        ("source.toml", "says of its data what this version does not know"),
    ):
        result = flashpoint("train", "--config", tmp_path / name, "--out", tmp_path / "run")
        assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
        assert message in result.output
    assert not (tmp_path / "run").exists()


def test_records_are_merged_table_by_table():
    record = {"a": 1, "t": {"x": 1, "y": 2}, "s": 3}
    assert merged(record, {"t": {"y": 5}, "s": {"z": 1}}) == {
        "a": 1, "t": {"x": 1, "y": 5}, "s": {"z": 1},
    }  # fmt: skip
    assert record["t"] == {"x": 1, "y": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with points, and a run of them that a file describes."""
    place = tmp_path_factory.mktemp("config")
    rng = np.random.default_rng(0)
    np.savez(place / "own.npz", data=rng.normal(size=(80, 2)), labels=np.arange(80) % 2)
    (place / "run.toml").write_text(
        TOML.replace('data = "moons"', "")
        + f"[source]\nname = '{place / 'own.npz'}'\nvalidation_fraction = 0.25\n"
    )
    result = run(place, "run.toml", "first", "--test-fraction", 0.25)
    assert result.exit_code == 0, result.output
    return place


def run(place, config, out, *more, command="states"):
    return flashpoint(command, "--config", place / config, "--out", place / out, "--device", "cpu",
                      *more)  # fmt: skip


def test_the_config_of_a_run_makes_the_same_run(folder):
    result = run(folder, "first/config.json", "again")
    assert result.exit_code == 0, result.output
    names = ["config.json", "outputs/uncond_gen_samples.pt", "outputs/cond_gen_samples_1.pt",
             "checkpoints/denoiser.pt", "checkpoints/classifier.pt"]  # fmt: skip
    for name in names:
        assert (folder / "again" / name).read_bytes() == (folder / "first" / name).read_bytes()


def test_what_is_held_out_is_remembered_and_its_loss_written_down(folder):
    config = json.loads((folder / "first/config.json").read_text())
    assert config["points"] == 44  # of 80, without 20 to test and 16 to validate with
    assert config["source"]["test_fraction"] == config["source"]["validation_fraction"] == 0.25
    record = json.loads((folder / "first/metrics.json").read_text())["validation_losses"]
    steps = {name: [entry["step"] for entry in entries] for name, entries in record.items()}
    assert steps == {"denoiser": [3, 4], "classifier": [2]}
    assert all(entry["loss"] > 0 for entries in record.values() for entry in entries)
    state = torch.load(folder / "first/checkpoints/training.pt", weights_only=True)
    assert dict(state["validation_losses"])["denoiser"][0] == (3, record["denoiser"][0]["loss"])
    # a command on the run takes the points that it was trained on
    assert flashpoint("interpolate", folder / "first", "--pairs", 2).exit_code == 0


def test_reports_tell_what_was_held_out_and_where_weights_came_from(folder):
    config = json.loads((folder / "first/config.json").read_text())
    part = "0.25 of the points held out"
    rows = [("validation fraction", part), ("test fraction", part)]
    assert _held_out_and_initial(config) == rows
    init = {"init": {"path": "/a"}}
    assert _held_out_and_initial(config | init) == [*rows, ("initial weights", "/a")]
    assert _held_out_and_initial({"source": None}) == []
    history = RunFolder(folder / "first").history()
    assert [step for step, _ in history.validation_losses["denoiser"]] == [3, 4]


def test_another_seed_draws_other_points_to_hold_out(folder):
    """The data are as they were, though the points to train on are others."""
    assert run(folder, "first/config.json", "seed", "--seed", 1, command="train").exit_code == 0
    first, other = (json.loads((folder / f"{name}/config.json").read_text())
                    for name in ("first", "seed"))  # fmt: skip
    assert other["points"] == first["points"]
    assert other["digest"] != first["digest"]


def test_weights_of_other_units_take_the_data_of_a_file(folder):
    """The points in other units are others, and none that have changed."""
    rng = np.random.default_rng(2)
    np.savez(folder / "wide.npz", data=9 * rng.normal(size=(80, 2)), labels=np.arange(80) % 2)
    wide = run(folder, "run.toml", "wide", "--data", folder / "wide.npz", command="train")
    assert wide.exit_code == 0, wide.output
    tuned = run(folder, "first/config.json", "in its units", "--init", folder / "wide",
                command="train")  # fmt: skip
    assert tuned.exit_code == 0, tuned.output


def test_data_and_what_is_held_out_of_them_may_stand_apart(tmp_path):
    def data_of(text):
        (tmp_path / "run.toml").write_text(text)
        return read_config(tmp_path / "run.toml").data()

    apart = data_of("data = 'moons'\n[source]\ntest_fraction = 0.5\n")
    assert apart == data_of("[source]\nname = 'moons'\ntest_fraction = 0.5\n")
    assert (apart.choice.name, apart.test_fraction) == ("moons", 0.5)


def test_data_that_have_changed_since_are_refused(folder, tmp_path):
    content = json.loads((folder / "first/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"digest": "0"}))
    result = flashpoint("train", "--config", tmp_path / "config.json", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "have changed since it was written; name them with --data" in result.output
    tuned = flashpoint("train", "--config", tmp_path / "config.json", "--out", tmp_path / "run",
                       "--init", folder / "first", "--seed", 3)  # fmt: skip
    assert "have changed since it was written; name them with --data" in tuned.output
    older = {name: value for name, value in content.items() if name not in ("source", "digest")}
    (tmp_path / "config.json").write_text(json.dumps(older | {"data": "own"}))
    result = flashpoint("train", "--config", tmp_path / "config.json", "--out", tmp_path / "run")
    assert "does not say where its data are: give --data" in result.output


def test_a_wrong_fraction_is_named(folder):
    for fraction, message in (
        (2, "--validation-fraction must be between 0 and 1, got 2"),
        (0.001, "error: --validation-fraction 0.001 leaves one side without points of"),
    ):
        result = run(folder, "run.toml", "none", "--validation-fraction", fraction, command="train")
        assert result.exit_code == 2
        assert message in result.output.splitlines()[-1]


def test_a_run_goes_on_for_longer(folder):
    def steps_of(network):
        path = folder / "longer/checkpoints/training.pt"
        return torch.load(path, weights_only=True)[network]["step"]

    resume = ("--resume",)
    assert run(folder, "first/config.json", "longer", command="train").exit_code == 0
    result = run(folder, "run.toml", "longer", "--test-fraction", 0.25, "--steps", 7, *resume)
    assert result.exit_code == 0, result.output
    assert "the denoiser goes on to 7 steps in place of 4: from step 4 on its" in result.output
    assert "the classifier goes on" not in result.output
    assert (steps_of("denoiser"), steps_of("classifier")) == (7, 2)
    config = folder / "longer/config.json"
    assert json.loads(config.read_text())["denoiser"]["steps"] == 7
    before = config.read_bytes()
    for option, value, message in (
        ("--steps", 6, "error: --steps must be at least the 7 that are done, got 6\n"),
        ("--classifier-steps", 1, "error: --classifier-steps must be at least the 2 that are done"),
        ("--lr", 0.5, "was made with other settings (denoiser.lr 0.005, now 0.5)"),
    ):
        result = run(folder, config, "longer", option, value, *resume, command="train")
        assert result.exit_code == 2
        assert message in result.output.splitlines()[-1] + "\n"
        assert config.read_bytes() == before
    more = run(folder, config, "longer", "--classifier-steps", 3, *resume, command="train")
    assert "the classifier goes on to 3 steps in place of 2" in more.output
    assert steps_of("classifier") == 3


def test_a_classic_run_goes_on_for_more_epochs(folder):
    options = ("--recipe", "classic-a", "--timesteps", 3, "--schedule", "cosine", "--data",
               folder / "own.npz", "--out", folder / "classic", "--hidden-layers", 4,
               "--classifier-hidden-layers", 4, "--classifier-epochs", 1, "--device", "cpu",
               "--batch-size", 100, "--decay", "step:every=1", "--refresh", 1)  # fmt: skip
    assert flashpoint("train", *options, "--epochs", 2).exit_code == 0
    result = flashpoint("train", *options, "--epochs", 3, "--resume")
    assert result.exit_code == 0, result.output
    assert "the denoiser goes on to 3 epochs in place of 2: from step 6 on" in result.output
    less = flashpoint("train", *options, "--epochs", 2, "--resume")
    assert "error: --epochs must be at least the 3 that are done, got 2" in less.output


def test_a_run_starts_from_the_weights_of_another(folder, monkeypatch):
    monkeypatch.chdir(folder)
    rng = np.random.default_rng(1)
    np.savez("new.npz", data=5 + rng.normal(size=(60, 2)), labels=np.arange(60) % 2)
    options = ("--data", "new.npz", "--init", "first")
    result = run(Path(), "first/config.json", "tuned", *options, command="train")
    assert result.exit_code == 0, result.output
    assert "the data are mapped as those of first were" in result.output
    assert "starts anew" not in result.output
    config, first = (json.loads(Path(f"{name}/config.json").read_text())
                     for name in ("tuned", "first"))  # fmt: skip
    assert config["standardisation"] == first["standardisation"]
    assert config["init"]["path"] == str(folder / "first")
    again = run(Path(), "tuned/config.json", "tuned again", command="train")
    assert again.exit_code == 0, again.output
    for name in ("config.json", "checkpoints/denoiser.pt"):
        assert Path("tuned", name).read_bytes() == Path("tuned again", name).read_bytes()
    other = run(Path(), "first/config.json", "tuned", "--resume", "--data", "new.npz",
                command="train")  # fmt: skip
    assert other.exit_code == 2
    for wrong, message in (
        (("--hidden-layers", "9"), "must be of the shape of the recipe, 3-9-2 with prelu, got 3-8"),
        (("--prediction", "v"), "a model that predicts eps, got one for v"),
        (("--no-standardise",), "--no-standardise must be left out with --init first"),
        (("--data", "digits"), "digits must have dimension 2, got 64"),
        (("--init", "none"), "none does not exist"),
    ):
        result = run(Path(), "first/config.json", "wrong", *options, *wrong, command="train")
        assert (result.exit_code, message in result.output) == (2, True), result.output
    same = run(Path(), "first/config.json", "first", *options, "--overwrite", command="train")
    assert "--init must be another run than that of --out, got first" in same.output
    for record, message in (({"digest": "0"}, "have changed since"), ({"path": 3}, "init must be")):
        Path("config.json").write_text(json.dumps(config | {"init": config["init"] | record}))
        result = run(Path(), "config.json", "wrong", command="train")
        assert (result.exit_code, message in result.output) == (2, True), result.output
    kept = run(Path(), "first/config.json", "other classes", *options, "--labels", "none",
               command="train")  # fmt: skip
    assert kept.exit_code == 0, kept.output


def test_a_classifier_of_other_classes_starts_anew(folder):
    first = run(folder, "run.toml", "moons", "--data", "moons", "--validation-fraction", 0.5,
                command="train")  # fmt: skip
    assert first.exit_code == 0, first.output
    result = run(folder, "run.toml", "tuned moons", "--data", "blobs", "--init", folder / "moons",
                 command="train")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "the classifier starts anew, not from that of" in result.output
    assert "its classes are upper, lower, those of the data" in result.output
