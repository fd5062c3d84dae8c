"""The works that users wait for: one line for each, without a time if it is wrong."""

import json
import re

import pytest
from click.testing import CliRunner

from flashpoint.bench import works
from flashpoint.bench.race import Referee
from flashpoint.bench.timing import Timing


def run(*options):
    return CliRunner().invoke(works.main, ["--device", "cpu", "--small", *options])


def test_a_line_of_each_work_with_both_times(tmp_path):
    done = run("--only", "training", "--only", "drop-in", "--rounds", "3", "--record", tmp_path)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "training step, 200 rows", "drop-in forward and backward, 200 rows",
    ]  # fmt: skip
    for line in lines:
        assert re.search(
            r": [\d.e+]+ m?u?s, eager PyTorch [\d.e+]+ m?u?s \(fp32\): [\d.]+ times", line
        )
    results = json.loads((tmp_path / "record.json").read_text())["stages"]["works"]["results"]
    for one in results:
        assert one["timing"]["ours_us"] > 0
        assert one["error"] < 1e-4


@pytest.mark.parametrize("until", works.UNTIL)
def test_what_is_wrong_has_no_time(until, monkeypatch, tmp_path):
    def error(referee, name, precision, check):  # noqa: ARG001
        return 0.5 if name == "ours" else 0.0

    monkeypatch.setattr(Referee, "_error", error)
    done = run("--only", "training", "--until", until, "--record", tmp_path)
    assert done.exit_code == 1
    assert done.output == (
        "training step, 200 rows: no time, wrong: error 5.0e-01, allowed 0.0001\n"
    )
    (one,) = json.loads((tmp_path / "record.json").read_text())["stages"]["works"]["results"]
    assert one["timing"] is None


def test_eager_pytorch_uses_each_precision_however_long_it_takes(monkeypatch):
    tried, compete = [], works.compete

    def competing(workload, name, precision, referee, floor):
        tried.append((name, precision))
        return compete(workload, name, "fp32", referee, floor)

    speedups = iter((6.8, 5.5))
    monkeypatch.setattr(works, "compete", competing)
    monkeypatch.setattr(works, "_PRECISIONS", {"cpu": ("fp32", "tf32")})
    monkeypatch.setattr(
        works, "paired", lambda *_: Timing(1e5, 1e5 * (best := next(speedups)), best, 5.0, 7.0, 6)
    )
    done = run("--only", "training")
    assert tried == [("ours", "fp32"), ("eager", "fp32"), ("eager", "tf32")]
    assert "550 ms (tf32): 5.50 times" in done.output


@pytest.mark.parametrize("until", ["checked", "run"])
def test_not_timed_when_not_asked_to(until):
    done = run("--only", "training", "--until", until)
    assert done.exit_code == 0
    assert re.fullmatch(r"training step, 200 rows: right, error \d\.\de-\d\d\n", done.output)


def test_one_that_fails_does_not_end_the_others(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("does not compile\nat all")

    monkeypatch.setattr(works.operations, "perceptron", broken)
    done = run("--only", "training", "--only", "drop-in", "--until", "checked")
    assert done.exit_code == 1
    first, second = done.output.splitlines()
    assert "right" in first
    assert second.endswith("no time, RuntimeError: does not compile")


def test_none_starts_after_the_budget():
    done = run("--until", "checked", "--budget", "0")
    assert done.exit_code == 0
    assert done.output.splitlines()[1:] == [
        "the budget of 0 s is spent; what is left is not measured"
    ]
