"""Names of classes in what is made from a run, and in what is read of it again."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

import flashpoint.diffusion as fd
from flashpoint.diffusion import Points, UserError, report
from flashpoint.diffusion.commands import classify
from flashpoint.diffusion.experiment import Run, Settings
from flashpoint.diffusion.saved_run import SavedRun

from .helpers import flashpoint

pytestmark = pytest.mark.usefixtures("few_points")

NAMES = ("Setosa", "Versicolor", "Virginica")
CPU = torch.device("cpu")
SMALL = ("--steps", 4, "--classifier-steps", 2, "--batch-size", 32, "--hidden-layers", "8,8",
         "--timesteps", 10, "--schedule", "cosine", "--device", "cpu")  # fmt: skip


def write(path, names):
    """Writes 60 points in three classes, apart from each other, with these names."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("length", "width", "species"))
        rows.writerows((*rng.normal(size=2) + 10 * (k % 3), names[k % 3]) for k in range(60))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A file of named points, and a conditional run on it."""
    folder = tmp_path_factory.mktemp("template")
    write(folder / "flowers.csv", NAMES)
    result = flashpoint("train", *SMALL, "--data", folder / "flowers.csv", "--labels", "species",
                        "--p-uncond", 0.2, "--out", folder / "run")  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def here(template, tmp_path, monkeypatch):
    """A copy of the template as the working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "run/config.json"
    config.write_text(config.read_text().replace(str(template), str(tmp_path)))
    return tmp_path


def labels_in(path):
    with path.open() as file:
        return {row["label"] for row in csv.DictReader(file)}


def ends(*arguments):
    """Returns the line with which a command refuses its arguments."""
    result = flashpoint(*arguments)
    assert result.exit_code == 2, result.output
    return result.output.splitlines()[-1]


def test_a_run_and_its_exports_sample_a_class_by_name(here):
    draw = ("--samples", 3, "--device", "cpu")
    assert flashpoint("sample", "run", "--label", "VIRGINICA", *draw).exit_code == 0
    assert (here / "run/outputs/samples_2.pt").exists()
    result = flashpoint("export", "run", "--out", here)
    assert result.exit_code == 0, result.output
    assert fd.load(here / "denoiser.safetensors").class_names == NAMES
    for source in ("run", "run/checkpoints/denoiser.pt", "denoiser.safetensors"):
        result = flashpoint("sample", source, "--label", "setosa", *draw, "--out", "a.csv")
        assert result.exit_code == 0, result.output
        assert labels_in(here / "a.csv") == {"Setosa"}
        assert ends("sample", source, "--label", "vir") == (
            "error: --label must be one of Setosa, Versicolor, Virginica, got 'vir'; did you mean "
            "'Virginica'?"
        )


def test_a_loaded_model_takes_a_name_for_each_sample(here):
    model, options = fd.load(here / "run"), {"seed": 1, "device": CPU}
    want = model.sample(3, label=torch.tensor([2, 0, 2]), **options).x
    names = ["virginica", "Setosa", "virginica"]
    for label in (names, tuple(names), np.array(names), ["virginica", 0, "2"]):
        assert torch.equal(model.sample(3, label=label, **options).x, want)
    with pytest.raises(UserError, match="must be one of Setosa, Versicolor, Virginica, got 'rose'"):
        model.sample(2, label=["Setosa", "rose"])


def test_a_file_that_moved_is_classified_by_names(here):
    (here / "flowers.csv").rename(here / "moved.csv")
    result = flashpoint("classify", "run", "--data", "moved.csv", "--noises", 1, "--device", "cpu")
    assert result.exit_code == 0, result.output
    *_, first, second, third = result.output.splitlines()
    for name, line in zip(NAMES, (first, second, third), strict=True):
        assert line.startswith(f"  {name:10} ")
        assert " of 4" in line


def test_each_class_with_those_that_its_points_are_taken_for():
    points = Points(torch.zeros(8, 1), torch.arange(8) % 4, ("Ohio", "New York", "Utah", "Iowa"))
    labels = torch.tensor([2, 0, 0, 0, 0, 1, 1])
    found = torch.tensor([2, 0, 2, 1, 2, 1, 0])
    assert classify._by_class(found, labels, points) == [
        "Ohio     0.2500 of 4: Utah 2, New York 1",
        "New York 0.5000 of 2: Ohio 1",
        "Utah     1.0000 of 1",
    ]


def test_classes_with_other_names_are_refused(here):
    write(here / "flowers.csv", ("Setosa", "Versicolor", "Xeric"))
    message = "class 2 is 'Virginica' in run run and 'Xeric' in the data; name the classes as they "
    assert message in ends("classify", "run")
    again = ("train", *SMALL, "--data", "flowers.csv", "--labels", "species", "--p-uncond", 0.2)
    assert f"{message}were, or another --out" in ends(*again, "--out", "run", "--resume")
    write(here / "flowers.csv", NAMES)
    assert flashpoint(*again, "--out", "run", "--resume").exit_code == 0
    assert fd.load(here / "run").class_names == NAMES


def test_an_older_run_has_numbers(here):
    config = json.loads((here / "run/config.json").read_text())
    del config["class_names"]
    (here / "run/config.json").write_text(json.dumps(config))
    draw = ("sample", "run", "--samples", 3, "--device", "cpu", "--out", "a.csv")
    result = flashpoint(*draw, "--label", 2)
    assert result.exit_code == 0, result.output
    assert labels_in(here / "a.csv") == {"2"}
    assert "label must be a number: classes have no names, got 'Setosa'" in ends(
        *draw, "--label", "Setosa"
    )


def test_a_single_class_by_name_with_some_held_out(here):
    result = flashpoint("train", *SMALL, "--data", "flowers.csv", "--labels", "species", "--out",
                        "one", "--only-class", "versicolor", "--test-fraction", 0.2)  # fmt: skip
    assert result.exit_code == 0, result.output
    config = json.loads((here / "one/config.json").read_text())
    assert (config["data"], config["points"], config["class_names"]) == ("flowers_1", 16, [])


def test_the_report_names_the_classes(here):
    points = fd.load_points(here / "flowers.csv", "species", standardise=True, say=lambda _: None)
    run = SavedRun(here / "run", points, CPU, 0)
    assert ("classes", "Setosa, Versicolor, Virginica") in report._about(run)[0].rows


def test_metrics_of_a_class_that_is_called_unconditional(tmp_path):
    data = torch.arange(60.0).reshape(30, 2) % 7
    points = Points(data, torch.arange(30) % 2, ("unconditional", "a|b"))
    run = Run(points, Settings(real_draws=2), tmp_path, device=CPU, say=lambda _: None)
    run.measure({None: data, **{label: points.of_class(label) for label in range(2)}})
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert list(metrics) == ["unconditional", "class unconditional", "a|b"]
    assert metrics["unconditional"]["purity"] is None


@pytest.mark.parametrize("names", [NAMES, (3, 1, 2), (0, 1, 2)])
def test_halves_of_a_data_set_keep_its_classes(here, names):
    write(here / "flowers.csv", names)
    arguments = ("data", "flowers.csv", "--labels", "species", "--out", "a.png")
    result = flashpoint(*arguments, "--test-fraction", 0.5)
    assert result.exit_code == 0, result.output
    whole = fd.load_points(here / "flowers.csv", "species", say=lambda _: None)
    for part in ("train", "test"):
        half = fd.load_points(here / f"a_{part}.pt", say=lambda _: None)
        assert half.class_names == whole.class_names
        nearest = torch.cdist(half.data, whole.data).argmin(dim=1)
        assert torch.equal(whole.labels[nearest], half.labels)


def test_a_denoiser_without_its_classifier_is_told_apart(here):
    result = flashpoint("train", *SMALL, "--data", "flowers.csv", "--labels", "species", "--out",
                        "guided")  # fmt: skip
    assert result.exit_code == 0, result.output
    flashpoint("export", "guided", "--out", "exported")
    message = "error: --label needs the classifier, and {} holds the denoiser alone: give {}"
    for file, folder in (
        ("guided/checkpoints/denoiser.pt", "guided"),
        ("exported/denoiser.safetensors", "exported"),
    ):
        assert ends("sample", file, "--label", "Setosa") == message.format(file, folder)
    draw = ("sample", "exported", "--label", "setosa", "--samples", 3, "--device", "cpu")
    assert flashpoint(*draw, "--out", "a.csv").exit_code == 0
    assert labels_in(here / "a.csv") == {"Setosa"}


def test_a_file_of_samples_that_is_missing_is_named_before_a_class(here):
    missing = here / "run/outputs/none.pt"
    assert ends("evaluate", missing, "--label", "Setosa") == (
        f"error: file {missing} cannot be read: it does not exist"
    )
