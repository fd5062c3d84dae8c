"""The studies: a toy grid end to end, resumed; the catalogue; what was published."""

import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from flashpoint.diffusion import Schedule, UserError, emd
from flashpoint.diffusion.schedules import given_schedule
from flashpoint.diffusion.studies import (
    STUDIES,
    Grid,
    Study,
    StudyRun,
    Variant,
    classic,
    report,
    write_page,
    write_report,
)
from flashpoint.diffusion.studies.lessons import LESSONS, REMARKS
from flashpoint.diffusion.studies.protocols import (
    BY_CLASS,
    IMAGES,
    OUTLINES,
    TEST_SPLIT,
    WHOLE,
    Estimate,
    measure,
    perfect,
)
from flashpoint.diffusion.studies.runner import data_of
from flashpoint.diffusion.studies.store import Store, _written
from flashpoint.diffusion.training import PlainRecipe, Recipe

from .helpers import flashpoint


def _toy_variant(T, **changes):
    recipe = PlainRecipe(hidden_layers=(8,), steps=30, batch_size=32, activation="relu")
    return Variant(Schedule(T, time_feature="sinusoidal"), replace(recipe, **changes))


TOY = Study(
    name="toy",
    title="A toy",
    varied="T",
    grids=(
        Grid(
            "toy grid",
            ("moons", "blobs"),
            {"3": _toy_variant(3), "4": _toy_variant(4)},
            protocol=replace(WHOLE, samples=60),
            published={"EMD": {"moons": (1.0, None), "blobs": (1e4,)}},
        ),
        Grid("surface", ("sin_5_5",), {"3": _toy_variant(3)}, replace(TEST_SPLIT, samples=60)),
    ),
    quick_rows=("moons",),
    quick_columns=("3",),
    quick_factor=10,
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    run = StudyRun(TOY, folder, device="cpu", say=str)
    results = run.run()
    write_report(run, results)
    return folder, run, results


def test_a_study_leaves_every_number_and_figure(done):
    folder, run, results = done
    assert json.loads((folder / "toy/results.json").read_text()) == json.loads(json.dumps(results))
    assert [cell["column"] for cell in results["grids"][0]["cells"]] == ["3", "4", "3", "4"]
    for name in ("plot", "samples", "samples_1"):
        assert (folder / f"toy/{name}.png").read_bytes().startswith(b"\x89PNG")
    for cell in TOY.cells():
        (samples,) = run.store.samples(cell)
        assert samples.shape == (60, 3 if cell.data == "sin_5_5" else 2)
        assert samples.isfinite().all()


def test_the_table_shows_ours_published_and_perfect(done):
    folder, _, results = done
    lines = (folder / "toy/table.md").read_text().splitlines()
    moons, blobs = results["grids"][0]["cells"][0], results["grids"][0]["cells"][2]
    line = next(line for line in lines if line.startswith("| moons |"))
    value, sd = moons["scores"]["EMD"]["value"], moons["scores"]["EMD"]["sd"]
    perfect_emd = results["grids"][0]["perfect"]["moons"]["EMD"]
    assert f"| {value:.1f} ± {sd:.1f} (1) ✗ |" in line
    assert line.endswith(f"| {perfect_emd['value']:.1f} ± {perfect_emd['sd']:.1f} |")
    assert report.is_worse(results["grids"][0], moons, "EMD")
    assert not report.is_worse(results["grids"][0], blobs, "EMD")


def test_what_is_done_is_not_done_again(done):
    folder, run, results = done
    made = {
        file: file.stat().st_mtime_ns
        for part in ("cells", "models")
        for file in (folder / part).iterdir()
    }
    assert len(made) == 5 * 2 + 5 * 2
    lost = max(folder.glob("cells/*.json"))
    content = lost.read_text()
    lost.unlink()
    again = StudyRun(TOY, folder, device="cpu", say=str).run()
    changed = {file for file, time in made.items() if file.stat().st_mtime_ns != time}
    assert changed == {lost, lost.with_suffix(".pt")}
    assert lost.read_text() == content
    assert again == results
    other_seed = StudyRun(TOY, folder, seed=1, device="cpu", say=str)
    for cell in TOY.cells():
        assert run.store.has_cell(cell)
        assert not other_seed.store.has_cell(cell)
        assert not other_seed.store.has_model(cell.model)


def test_a_study_that_was_not_finished_shows_what_is_done(done, tmp_path):
    folder = shutil.copytree(done[0], tmp_path / "copy")
    run = StudyRun(TOY, folder, device="cpu", say=str)
    lost = [cell for cell in TOY.cells() if cell.column == "4" or cell.data == "sin_5_5"]
    for cell in lost:
        run.store._cell_file(cell).unlink()
    results = run.results()
    write_report(run, results)
    assert len(results["grids"][0]["cells"]) == 2
    text = (folder / "toy/table.md").read_text()
    assert text.count("| not run |") == 5  # EMD and kernel NLL of two cells, EMD of one


def test_models_train_together_as_they_do_alone(done, tmp_path):
    grid = replace(TOY.grids[0], rows=("moons",))
    run = StudyRun(replace(TOY, grids=(grid,)), tmp_path, device="cpu", together=2, say=str)
    assert [len(models) for models in run.groups(list(run.study.cells()))] == [2]
    run.run()
    for cell in run.study.cells():
        (ours,), (alone,) = run.store.samples(cell), done[1].store.samples(cell)
        torch.testing.assert_close(ours, alone, rtol=1e-3, atol=1e-3)


def test_page(done, tmp_path):
    folder, _, _ = done
    page = tmp_path / "studies.md"
    write_page((TOY, replace(TOY, name="other", title="Another")), folder, page)
    text = page.read_text()
    assert "## A toy\n" in text
    assert "| moons |" in text
    assert (tmp_path / "studies/toy.png").is_file()
    assert text.split("## Another")[1].strip().endswith("Not run yet.")


def test_a_reward_asks_for_a_class(tmp_path):
    variant = replace(_toy_variant(4), temperature=0, posterior_draws=2)
    protocol = replace(BY_CLASS, samples=40)
    grids = (Grid("reward", ("moons",), {"0": variant}, protocol),)
    run = StudyRun(replace(TOY, grids=grids), tmp_path, device="cpu", say=str)
    run.run()
    (cell,) = run.study.cells()
    assert cell.model == replace(cell, variant=_toy_variant(4)).model
    samples = run.store.samples(cell)
    assert [x.shape for x in samples] == [(40, 2)] * 2
    assert run.store.scores(cell)["accuracy"]["value"] > 0.6  # whatever the model has learned


def _guided_cell(column, emd, accuracy, published):
    return {
        "data": "moons",
        "column": column,
        "scores": {"EMD": {"value": emd, "sd": 1.0}, "accuracy": {"value": accuracy, "sd": 0.0}},
        "published": dict(zip(("EMD", "accuracy"), published, strict=True)),
    }


def test_halves_of_data_stand_in_where_none_can_be_drawn():
    points = data_of("digits", False)
    scores = perfect(points, IMAGES)
    assert list(scores) == ["EMD"]
    emds = [
        emd(points.data[order[:898]], points.data[order[898:]])
        for order in (torch.randperm(len(points)) for _ in range(5))
    ]
    assert scores["EMD"].value == pytest.approx(sum(emds) / 5, rel=0.02)


def test_emds_are_compared_at_equal_accuracy():
    grid = {
        "title": "guided",
        "rows": ["moons"],
        "columns": ["0", "1", "2"],
        "perfect": {"moons": {"EMD": {"value": 17.0, "sd": 1.0},
                              "accuracy": {"value": 1.0, "sd": 0.0}}},
        "cells": [
            _guided_cell("0", 18.0, 0.90, (None, None)),
            _guided_cell("1", 24.0, 0.97, (30.0, 0.97)),
            _guided_cell("2", 40.0, 0.996, (20.0, 0.99)),
        ],
    }  # fmt: skip
    _, one, two = grid["cells"]
    assert report.at_published_accuracy(grid, one)["column"] == "1"
    assert report.at_published_accuracy(grid, two)["column"] == "2"
    text = report.table({"grids": [grid]})
    assert "| moons | 0.97 | 30 | 24.0 ± 1.0 | 1 | 17.0 ± 1.0 |" in text
    assert "| moons | 0.99 | 20 | 40.0 ± 1.0 ✗ | 2 | 17.0 ± 1.0 |" in text
    two["published"]["accuracy"] = 1.01
    assert report.at_published_accuracy(grid, two) is None
    assert "| not reached |" in report.table({"grids": [grid]})


def test_accuracy_counts_samples_that_look_like_their_class():
    moons = data_of("moons", False)
    points = replace(moons, data=moons.data[:1000], labels=moons.labels[:1000])
    own = [points.of_class(label)[:300] for label in range(2)]
    protocol = replace(BY_CLASS, samples=300, size=20)
    assert measure(own, points, protocol)["accuracy"].value > 0.99
    assert measure(own[::-1], points, protocol)["accuracy"].value < 0.01


def test_perfect_samples_reach_the_known_floors():
    points = data_of("moons", False)
    scores = perfect(points, WHOLE)
    assert scores["EMD"].value == pytest.approx(27.9, abs=3 * 2.8 / 10**0.5)
    assert scores["kernel NLL"].value == pytest.approx(0.949, abs=0.02)
    # Samples that collapsed onto one point are far from it.
    collapsed = measure([points.data[:1].expand(500, 2)], points, WHOLE)
    assert collapsed["EMD"].value > 5 * scores["EMD"].value


def test_samples_of_outlines_are_measured_as_to_how_sharp_they_are():
    points, protocol = data_of("states", False), replace(OUTLINES, size=20)
    x = points.redraw(1000, 3)[0]
    own = measure([x], points, protocol)
    blurred = measure([x + 0.1 * torch.randn_like(x)], points, protocol)
    assert list(own) == ["EMD", "kernel NLL", "KDE NLL", "distance to the data"]
    distances = torch.cdist(x.double(), points.data.double()).min(dim=1).values
    assert own["distance to the data"].value == pytest.approx(distances.median().item(), rel=1e-4)
    assert blurred["distance to the data"].value > 1.5 * own["distance to the data"].value
    assert list(measure([x], points, replace(WHOLE, size=20))) == ["EMD", "kernel NLL"]


def test_a_study_may_show_another_metric(done, tmp_path):
    results = {**done[2], "grids": done[2]["grids"][:1], "shown": "kernel NLL"}
    figure = report.plot(results, tmp_path / "plot.png")
    assert figure.axes[0].get_ylabel() == "kernel NLL"
    (found, *_) = figure.axes[0].containers[0].lines[0].get_ydata()
    assert found == results["grids"][0]["cells"][0]["scores"]["kernel NLL"]["value"]


def test_standardised_data_and_its_new_draws_have_unit_scale():
    points = data_of("helix", True)
    torch.testing.assert_close(points.data.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(points.data.std(0), torch.ones(3), atol=1e-3, rtol=0)
    fresh = points.redraw(20_000, 5)[0]
    torch.testing.assert_close(fresh.std(0), torch.ones(3), atol=0.03, rtol=0)


def test_an_epoch_visits_as_many_points_as_there_are():
    variant = classic(10, epochs=100)
    assert variant.recipe_for(8000).steps == 12_500
    assert variant.shortened(5).recipe_for(8000).steps == 2500
    recipe = variant.recipe_for(8000)
    assert recipe.hidden_layers == (128,) * 6
    assert (recipe.activation, recipe.linear_input, recipe.optimizer) == ("relu", True, "adam")
    assert {recipe.learning_rate(step, 0, ()) for step in (0, 5000, 12_499)} == {1e-3}


def test_every_study_has_its_lesson():
    assert list(LESSONS) == list(STUDIES)
    assert set(REMARKS) <= set(STUDIES)


@pytest.mark.parametrize("study", STUDIES.values(), ids=str)
def test_every_study_has_a_quick_form_and_fitting_tables(study):
    assert list(study.quick().cells())
    whole = {grid.title: grid for grid in study.grids}
    for grid in study.quick().grids:
        full = whole[grid.title.split("; training cut to 1/")[0]]
        for metric in full.published:
            for cell in grid.cells():
                at = metric, cell.data, cell.column
                assert grid.published_at(*at) == full.published_at(*at)
    for grid in study.grids:
        for rows in grid.published.values():
            assert set(rows) == set(grid.rows)
            assert all(len(row) <= len(grid.columns) for row in rows.values())


@pytest.mark.parametrize(
    ("study", "metric", "data", "column", "number"),
    [
        ("timesteps", "EMD", "moons", "100", 27.40),
        ("timesteps", "EMD", "helix", "10", 56.00),
        ("timesteps", "EMD", "manycircles", "500", 30.34),
        ("timesteps", "kernel NLL", "blobs", "200", 0.01),
        ("betas", "EMD", "blobs", "1e-05 to 0.002", 62.98),
        ("betas", "EMD", "helix", "1e-05 to 0.2", 58.72),
        ("schedules", "EMD", "sin_5_5", "scaled linear", 123.0),
        ("schedules", "EMD", "helix", "cosine", 144.3),
        ("epochs", "EMD", "helix", "1000", 87.5),
        ("epochs", "EMD", "sin_5_5", "2000", None),
        ("guidance", "EMD", "moons", "0.25", 27.2),
        ("guidance", "EMD", "helix", "4", 97.2),
        ("guidance", "accuracy", "manycircles", "0.5", 0.96),
        ("guidance", "accuracy", "moons", "0", None),
        ("reward", "EMD", "moons", "0.2", 36.4),
        ("reward", "accuracy", "helix", "0.2", 0.926),
        ("reward", "accuracy", "helix", "1", None),
        ("complexity", "EMD", "sin_5_5", "64, 128, 128", 93.2),
    ],
)
def test_published_numbers_stand_beside_the_cell_they_belong_to(
    study, metric, data, column, number
):
    assert STUDIES[study].grids[0].published_at(metric, data, column) == number


def test_a_study_runs_on_other_data(tmp_path):
    file = tmp_path / "mine.csv"
    torch.manual_seed(0)
    np.savetxt(file, torch.randn(80, 2).numpy(), delimiter=",")
    study = replace(TOY, grids=TOY.grids[:1]).on(str(file))
    results = StudyRun(study, tmp_path, device="cpu", say=str).run()
    assert {cell["data"] for cell in results["grids"][0]["cells"]} == {str(file)}
    assert results["grids"][0]["cells"][0]["published"]["EMD"] is None
    with pytest.raises(UserError, match="mine: the study compares with new points"):
        StudyRun(TOY.on(str(file)), tmp_path, device="cpu", say=str)
    with pytest.raises(UserError, match="mine: the study draws samples by class"):
        StudyRun(STUDIES["guidance"].on(str(file)), tmp_path, device="cpu", say=str)


def test_wrong_input_is_one_line():
    for arguments, words in (
        (["timesteps", "--data", "moon"], "data must be one of"),
        (["timestep"], "NAME must be one of timesteps"),
        ([], "NAME must be one of timesteps"),
        (["timesteps", "--together", "0"], "together must be at least 1"),
        (["timesteps", "--seed", "-1"], "seed must be from 0 to 2**63 - 1, got -1"),
    ):
        result = flashpoint("study", *arguments)
        assert result.exit_code == 2
        assert words in result.output
        assert len(result.output.strip().splitlines()) == 1


def test_work_in_an_existing_folder_is_found(tmp_path):
    """Names of files that were written before classes and fields had other names and orders."""
    store = Store(tmp_path, seed=3)
    (cell, *_) = STUDIES["timesteps"].cells()
    assert store._model_file(cell.model).name == "moons-8c0ae1415738.pt"
    assert store._cell_file(cell).name == "moons-f18f69ed7927.json"
    assert store._perfect_file(cell.data, cell.protocol).name == "moons-f976f5ed2e10.json"
    *_, cell = STUDIES["digits"].cells()
    recipe = replace(cell.variant.recipe, t_density="uniform")
    variant = replace(cell.variant, schedule=given_schedule(200), recipe=recipe)  # as it was then
    cell = replace(cell, variant=variant)
    assert store._model_file(cell.model).name == "digits-68931943882e.pt"
    assert store._cell_file(cell).name == "digits-182042dc4fe7.json"


def test_files_of_one_name_and_changed_files_share_no_work(tmp_path):
    store = Store(tmp_path / "store", seed=3)
    (cell, *_) = STUDIES["timesteps"].cells()
    cells = []
    for number, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "points.npy", np.full((9, 2), number))
        cells.append(replace(cell, data=str(tmp_path / folder / "points.npy")))
    store.save_cell(cells[0], [torch.zeros(3, 2)], {"EMD": Estimate(1.0, 0.1)})
    assert store.has_cell(cells[0])
    assert not store.has_cell(cells[1])
    np.save(cells[0].data, np.full((9, 2), 7))
    assert not store.has_cell(cells[0])


def test_a_field_added_to_a_recipe_counts_where_it_is_not_its_default():
    @dataclass(frozen=True)
    class Extended(Recipe):
        momentum: float = 0.9

    plain = _written(Recipe()).replace("Recipe(", "Extended(")
    assert _written(Extended()) == plain
    assert _written(Extended(momentum=0.5)) == plain[:-1] + ", momentum=0.5)"
