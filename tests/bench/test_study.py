"""Thirty models train at once, and bad samples leave no time."""

import json

import pytest
from click.testing import CliRunner

from flashpoint.bench import study
from flashpoint.bench.__main__ import main
from flashpoint.diffusion.studies import protocols


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch):
    """Fewer draws behind each score than a study takes."""
    monkeypatch.setattr(protocols, "_REPEATS", 2)


def test_all_published_models_are_trained():
    cells = list(study.published_models().cells())
    assert len(cells) == len({cell.model for cell in cells}) == 30
    assert {cell.variant.epochs for cell in cells} == {100}


def test_the_time_of_a_toy(tmp_path):
    done = CliRunner().invoke(
        main, ["study", "--small", "--device", "cpu", "--record", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    (found,) = json.loads((tmp_path / "record.json").read_text())["stages"]["study"]["results"]
    assert found["models"] == [2]
    assert found["seconds"][0] > 0
    assert found["cold_start_seconds"] > 0
    assert done.stdout.startswith("2 models: ")


def test_bad_samples_have_no_time(tmp_path, monkeypatch):
    published = study.published_models
    monkeypatch.setattr(study, "published_models", lambda _: published(small=True))
    done = CliRunner().invoke(main, ["study", "--device", "cpu", "--record", str(tmp_path)])
    assert done.exit_code == 1
    assert "no number: moons, T = " in done.output
    entry = json.loads((tmp_path / "record.json").read_text())["stages"]["study"]
    assert "results" not in entry


@pytest.mark.parametrize(("emd", "lines"), [(49.9, 0), (50.1, 1), (float("nan"), 1)])
def test_an_emd_far_above_the_published_one_is_wrong(emd, lines):
    cell = {
        "data": "moons", "column": "10", "scores": {"EMD": {"value": emd}},
        "published": {"EMD": 40.0},
    }  # fmt: skip
    assert len(study.wrong({"grids": [{"cells": [cell]}]})) == lines
