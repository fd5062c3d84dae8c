"""The record of data sets holds the numbers of the metrics, and bad samples are marked."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from flashpoint import diffusion as fd
from flashpoint.bench import datasets


@pytest.fixture
def small(monkeypatch):
    for name, value in {
        "SCHEDULE": fd.Schedule(10),
        "_REPEATS": 2, "_SAMPLES": 260, "_OF_CLASS": 250, "_REWARDED": 250, "_HELD_OUT": 300,
        "_CLASSIFIED": 10, "_REWARD_STEPS": 3, "_CANDIDATES": 3,
    }.items():  # fmt: skip
        monkeypatch.setattr(datasets, name, value)
    recipes = [
        replace(recipe, steps=5, hidden_layers=(8,), batch_size=64)
        for recipe in fd.RECIPES["small"]
    ]
    monkeypatch.setitem(fd.RECIPES, "small", tuple(recipes))


@pytest.mark.usefixtures("small")
def test_the_command_writes_each_set_and_the_tables(tmp_path):
    result = CliRunner().invoke(datasets.main, ["moons", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    moons = json.loads((tmp_path / "moons.json").read_text())
    assert not moons["unconditional"]["within two sd"]  # after five steps
    assert moons["classes"]["judge on held-out points"] == 1
    assert len(moons["classes"]["ways"]) == 4
    tables = (tmp_path / "tables.md").read_text()
    assert f"| moons | {moons['unconditional']['emd']:.1f} ✗ |" in tables
    assert CliRunner().invoke(datasets.main, ["suns", "--out", str(tmp_path)]).exit_code != 0


@pytest.mark.usefixtures("small")
def test_real_points_pass():
    bench = datasets.DatasetBench("blobs", 0, "cpu")
    found = bench.whole(bench.points.redraw(260, 77)[0])
    assert abs(found["emd"] - found["emd of real"]["mean"]) < 6
    assert found["kernel nll"] == pytest.approx(found["kernel nll of real"], abs=0.06)
    real = [bench.points.redraw(500, 78, label)[0] for label in range(2)]
    assert bench.accuracy(real) == pytest.approx(0.9, abs=0.1)
    assert torch.equal(bench.real(3, 5), bench.real(3, 5))
