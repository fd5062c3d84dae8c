"""The table of a sweep: means over seeds, the best model, and files that hold every number."""

import csv
import math
from statistics import mean, stdev

import pytest

from flashpoint.diffusion import UserError
from flashpoint.diffusion.metrics import Score
from flashpoint.diffusion.sweeps.results import SweepResult, SweepTable, mean_of

FACTORS = {"lr": (1e-3, 3e-3), "hidden": ((8, 8), (16,)), "steps": (100,), "seed": (0, 1, 2)}
REAL = {"mean_score": (1.0, 0.5, 1.5, 100), "sliced_wasserstein": (0.02, 0.0, 0.04, 100)}


def scores(**values):
    return {name: Score(value, *REAL[name]) for name, value in values.items()}


def result(number, values, failed="", **metrics):
    return SweepResult(number, values, scores(**metrics), 1.5, 100, failed)


def table(value_of=lambda number: 1 + number / 10, factors=FACTORS):
    """A table whose models score what a function of their number says."""
    combinations = [{}]
    for name, values in factors.items():
        combinations = [{**one, name: value} for one in combinations for value in values]
    results = [
        result(number, values, mean_score=value_of(number), sliced_wasserstein=0.01 + 0.01 * number)
        for number, values in enumerate(combinations)
    ]
    return SweepTable("moons", factors, results)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_is_the_list_of_its_models_in_order():
    one = table()
    shuffled = SweepTable(one.data, one.factors, one.results[::-1])
    assert [*shuffled] == one.results == shuffled[:]
    assert len(shuffled) == 12
    assert shuffled[3].number == 3
    assert one.metrics == ["mean_score", "sliced_wasserstein"]
    assert one.varied == ["lr", "hidden"]


def test_the_interval_of_a_mean_is_that_of_student():
    found = mean_of([1.0, 2.0, 4.0])
    # 4.30265 is Student's 97.5% quantile with two degrees of freedom.
    assert found.value == pytest.approx(7 / 3)
    assert found.half_width == pytest.approx(4.30265 * stdev([1, 2, 4]) / math.sqrt(3), rel=1e-5)
    assert mean_of([3.0]) == (3.0, None, 1)


def test_a_row_of_the_table_is_the_mean_over_seeds_beside_real_data():
    one = table()
    lines = one.to_markdown().splitlines()
    assert lines[0] == "moons: 12 models, steps=100"
    header, _, *rows, real = lines[2:9]
    assert cells(header)[:3] == ["lr", "hidden", "models"]
    assert [cells(row)[:3] for row in rows] == [
        ["0.001", "8x2", "3"], ["0.001", "16", "3"], ["0.003", "8x2", "3"], ["0.003", "16", "3"],
    ]  # fmt: skip
    # Of 1.3, 1.4 and 1.5 all are inside the band, of 1.6, 1.7 and 1.8 none.
    half = mean_of([1.3, 1.4, 1.5]).half_width
    assert cells(rows[1])[3] == f"1.4 ± {half:.2g}"
    assert cells(rows[2])[3] == f"1.7 ± {half:.2g} ✗ 3/3"
    assert cells(real) == ["real data", "", "", "1 (0.5 to 1.5)", "0.02 (0 to 0.04)"]


def test_bands_that_differ_stand_beside_each_value():
    values = {"lr": 1e-3}
    other = {"mean_score": Score(2.0, 3.0, 2.5, 3.5, 100)}
    results = [
        result(0, values, mean_score=1.0), SweepResult(1, {"lr": 1e-2}, other, 0.0, 1),
    ]  # fmt: skip
    text = SweepTable("moons", {"lr": (1e-3, 1e-2)}, results).to_markdown()
    assert "| 0.001 | 1 | 1 (real 1, 0.5 to 1.5) |" in text
    assert "| 0.01 | 1 | 2 (real 3, 2.5 to 3.5) ✗ |" in text


def test_a_model_without_metrics_says_why():
    results = [
        result(0, {"lr": 1e-3}, mean_score=1.0),
        result(1, {"lr": 9.0}, failed="the loss is not finite from step 3 on"),
    ]
    one = SweepTable("moons", {"lr": (1e-3, 9.0)}, results)
    text = one.to_markdown()
    assert "| 9 | 1 | not defined |" in text
    assert "Model 1 (lr=9): the loss is not finite from step 3 on." in text
    assert one.best("mean_score").number == 0
    assert one.to_csv().splitlines()[2].startswith("1,9,,,,,,")


def test_a_sweep_without_factors_has_one_row():
    results = [result(0, {"lr": 1e-3}, mean_score=1)]
    lines = SweepTable("moons", {"lr": (1e-3,)}, results).to_markdown().splitlines()
    assert lines[2:6] == [
        "| models | mean_score |", "| --- | --- |", "| 1 | 1 |", "| real data | 1 (0.5 to 1.5) |",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("found", "best"),
    [
        ([0.1, 0.6, 0.95, 1.2], 2),  # the nearest to the 1.0 of real data, not the lowest
        ([0.0, 0.3, 9.0, 1.49], 3),  # the one inside the band
        ([0.0, 0.3, 9.0, 1.6], 3),  # none inside: the nearest
    ],
)
def test_the_best_model_is_the_nearest_to_real_data(found, best):
    results = [result(k, {"seed": k}, mean_score=value) for k, value in enumerate(found)]
    assert SweepTable("moons", {"seed": (0, 1, 2, 3)}, results).best("mean_score").number == best


def test_the_best_model_is_near_on_the_scale_of_the_metric():
    # 0.011 is nearer to 0.02 than 0.032 is, but not in ratio, on whose scale the metric is normal.
    found = [(0, 0.011), (1, 0.032)]
    results = [result(k, {"seed": k}, sliced_wasserstein=value) for k, value in found]
    one = SweepTable("moons", {"seed": (0, 1)}, results)
    assert one.best("sliced_wasserstein").number == 1


def test_a_metric_that_no_model_has_is_one_line():
    with pytest.raises(UserError, match=r"metric must be one of mean_score, .*did you mean"):
        table().best("mean_scor")
    failed = SweepTable("moons", {"lr": (9.0,)}, [result(0, {"lr": 9.0}, failed="diverged")])
    with pytest.raises(UserError, match="no model has any metric"):
        failed.best("emd")


def test_the_files_hold_every_number(tmp_path):
    one = table()
    one.write(tmp_path)
    assert SweepTable.read(tmp_path) == one
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["number"]) for row in rows] == list(range(12))
    assert [row["hidden"] for row in rows[:4]] == ["8x2"] * 3 + ["16"]
    assert rows[5]["mean_score"] == "1.5"
    assert (rows[5]["mean_score_real"], rows[5]["mean_score_low"]) == ("1.0", "0.5")
    assert [row["mean_score_passed"] for row in rows[4:8]] == ["true", "true", "false", "false"]
    assert (tmp_path / "table.md").read_text() == one.to_markdown()
    assert mean(float(row["seconds"]) for row in rows) == 1.5


def test_each_column_of_the_csv_has_its_own_name():
    """A sweep over steps has the key of that name and the number of steps that were trained."""
    header, *_ = csv.reader(table().to_csv().splitlines())
    assert "steps" in header
    assert len(set(header)) == len(header)


@pytest.mark.parametrize("content", ["{}", '{"data": "a", "factors": {}, "models": [{}]}', "[]"])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"results\.json"):
        SweepTable.read(tmp_path)
