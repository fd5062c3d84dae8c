"""The benchmark of sweeps: what it times, and what it says."""

import json
from itertools import pairwise

import pytest
import torch
from click.testing import CliRunner

from flashpoint.bench import sweep_cost
from flashpoint.bench.sweep_cost import Result, Setting
from flashpoint.bench.timing import Timing
from flashpoint.diffusion import UserError

CPU = torch.device("cpu")
SMALL = Setting((8, 12), 16)


def test_the_products_are_those_of_a_training_step(monkeypatch):
    shapes, bmm = [], torch.bmm
    monkeypatch.setattr(
        torch, "bmm", lambda a, b, out: shapes.append((*a.shape, b.shape[2])) or bmm(a, b, out=out)
    )
    sweep_cost.products(SMALL, 3, CPU).run()
    widths = (3, 8, 12, 2)  # x, y and t in; the noise of both out
    expected = []
    for number, (width, out) in enumerate(pairwise(widths)):
        expected += [(3, 16, width, out), (3, width, 16, out)]
        expected += [(3, 16, out, width)] * (number > 0)
    assert shapes == expected


def test_a_step_is_one_of_all_models_in_the_chunks_of_a_sweep(monkeypatch):
    made, many = [], sweep_cost.ManyTrainer
    monkeypatch.setattr(
        sweep_cost, "ManyTrainer", lambda *a, **b: made.append(many(*a, **b)) or made[-1]
    )
    large = Setting((256, 256), 2048)  # of which a CPU's cache does not hold seven
    runner = sweep_cost.step(large, 7, CPU)
    assert [task.seed for trainer in made for task in trainer.tasks] == [*range(7)]
    assert len(made) > 1
    runner.run()
    assert all(trainer.step == runner.works for trainer in made)


def test_the_ratio_is_that_of_the_step_over_its_products():
    one = Result("64", 96, 50.0, Timing(50.0, 40.0, 0.8, 0.5, 1.0, 6))
    assert one.ratio == (1.25, 1.0, 2.0)
    assert "50 us a step, 40 us its products: 1.25 times as long, 95% 1.00 to 2.00" in one.line
    assert Result("64", 1, 50.0).line.split() == ["64,", "1", "model", "50", "us", "a", "step"]


def test_no_work_is_started_after_the_budget():
    found = sweep_cost.measure([SMALL, SMALL], [1, 2], CPU, rounds=2, budget=0.0)
    assert not list(found)


@pytest.mark.parametrize("text", ["0", "1,a", "", "1001"])
def test_numbers_of_models_that_are_none_are_one_line(text):
    with pytest.raises(UserError, match="models must be numbers from 1 to 1000"):
        sweep_cost.counts_of(text)


def test_the_command_records_every_number_of_models(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_cost, "SETTINGS", (SMALL,))
    options = ["--device", "cpu", "--models", "4,1", "--rounds", "2", "--record", str(tmp_path)]
    done = CliRunner().invoke(sweep_cost.main, options)
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "record.json").read_text())["stages"]["sweep"]["results"]
    assert [one["models"] for one in results] == [1, 4]
    assert results[0]["products"] is None
    assert results[1]["products"]["rounds"] == 2
    assert all(one["step_us"] > 0 for one in results)
    assert len(done.output.splitlines()) == 2
