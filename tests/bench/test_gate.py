"""The nightly gate checks answers first, and calls nights slower, invalid or incomparable."""

import json

import pytest
import torch
from click.testing import CliRunner

from flashpoint.bench import gate, gate_selftest
from flashpoint.bench.__main__ import main
from flashpoint.bench.gate import GateWork, Verdict, judge, read_baseline, write_baseline
from flashpoint.bench.gate_selftest import summarise
from flashpoint.bench.timing import Timing

CPU = torch.device("cpu")


def timing(speedup, width=0.01, reference=100.0):
    return Timing(reference / speedup, reference, speedup, speedup * (1 - width),
                  speedup * (1 + width), 40)  # fmt: skip


BEFORE = timing(2.0)


@pytest.mark.parametrize(
    ("now", "slower"),
    [
        (timing(2.0), False),
        (timing(2.0 / 1.05), True),  # 5% slower, known to 1%
        (timing(2.0 / 1.05, width=0.03), False),  # 5% slower, but it may be 2%
        (timing(2.0 / 1.03), False),
        (timing(2.5), False),
    ],
)
def test_slower_is_more_than_3_percent_at_the_bound_of_the_interval(now, slower):
    assert Verdict("step", now, BEFORE).slower is slower


@pytest.mark.parametrize(("moved", "invalid"), [(0.88, True), (0.95, False), (1.12, True)])
def test_a_reference_that_moved_makes_the_night_invalid(moved, invalid):
    now = timing(2.0, reference=100.0 * moved)
    assert Verdict("step", now, BEFORE).invalid is invalid


def night(*measured):
    """Judges a night in which one work has these timings, one after the other."""
    nights, asked = iter(measured), []

    def measure(todo):
        asked.append([work.name for work in todo])
        return {work.name: next(nights) for work in todo}

    return judge([GateWork("step", None, None)], {"step": BEFORE}, measure), asked


def test_what_seems_slower_is_measured_once_more():
    (verdict,), asked = night(timing(1.8), timing(2.0))
    assert not verdict.slower
    (verdict,), asked = night(timing(1.8), timing(1.8))
    assert verdict.slower
    assert asked == [["step"], ["step"]]
    _, asked = night(timing(2.0))
    assert len(asked) == 1


@pytest.fixture
def quick(monkeypatch):
    """Replaces checks and measurements of the command; returns a function that sets them."""
    found = {"step": BEFORE}
    monkeypatch.setattr(gate, "check_correct", lambda *_: None)
    monkeypatch.setattr(gate, "states_problem", lambda: None)
    monkeypatch.setattr(gate, "works", lambda *_: [GateWork("step", None, None)])
    monkeypatch.setattr(gate, "measure", lambda *_: dict(found))
    return found


def run(tmp_path, *options):
    arguments = ["gate", "--device", "cpu", "--baseline", str(tmp_path / "base.json"), *options]
    return CliRunner().invoke(main, arguments)


def test_without_a_baseline_it_writes_one_and_passes(quick, tmp_path):
    done = run(tmp_path)
    assert (done.exit_code, done.output) == (
        0, "gate: no baseline of this device yet; wrote base.json\n",
    )  # fmt: skip
    assert read_baseline(tmp_path / "base.json", CPU) == quick
    assert run(tmp_path).exit_code == 0


def test_slower_exits_1_with_a_table_and_update_accepts_it(quick, tmp_path):
    run(tmp_path, "--update")
    quick["step"] = timing(1.8)
    done = run(tmp_path, "--record", str(tmp_path))
    assert done.exit_code == 1
    assert "| step | 55.6 | 100.0 | +11.1% | +10.0% | +0.0% | **slower** |" in done.output
    stage = json.loads((tmp_path / "record.json").read_text())["stages"]["gate"]
    assert stage["verdict"] == "slower than the baseline"
    assert run(tmp_path, "--update").exit_code == 0
    assert run(tmp_path).exit_code == 0


def test_an_invalid_night_exits_2(quick, tmp_path):
    run(tmp_path, "--update")
    quick["step"] = timing(1.8, reference=120.0)
    assert run(tmp_path).exit_code == 2


@pytest.mark.parametrize(
    ("name", "value"), [("device", "nvidia-b200"), ("suite", 0), ("reference work", "0")]
)
def test_a_baseline_of_something_else_is_refused_in_one_line(quick, tmp_path, name, value):
    path = tmp_path / "base.json"
    write_baseline(path, quick, CPU)
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    done = run(tmp_path)
    assert done.exit_code == 2
    assert done.output.startswith(f"error: baseline base.json was made with {name} {value}, here")
    assert done.output.count("\n") == 1


@pytest.mark.usefixtures("quick")
def test_a_baseline_without_tonights_works_is_refused_in_one_line(tmp_path):
    write_baseline(tmp_path / "base.json", {"another step": BEFORE}, CPU)
    done = run(tmp_path)
    assert done.exit_code == 2
    assert done.output == ("error: baseline base.json lacks step; gate --update writes a new one\n")


def test_a_damaged_baseline_is_refused_in_one_line(tmp_path):
    (tmp_path / "base.json").write_text("{")
    done = run(tmp_path)
    assert done.exit_code == 2
    assert done.output.startswith("error: baseline base.json cannot be read")


def test_what_is_wrong_is_not_timed(monkeypatch, tmp_path):
    class Wrong:
        def __init__(self, *_):
            pass

        def error(self, *_):
            return 0.5

    def measure(*_):
        raise AssertionError("it was timed")

    monkeypatch.setattr(gate, "Referee", Wrong)
    monkeypatch.setattr(gate, "measure", measure)
    done = run(tmp_path)
    assert done.exit_code == 1
    assert done.output.startswith("gate: training is wrong (error 5.0e-01")
    assert not (tmp_path / "base.json").exists()


def test_the_reference_work_runs_and_extra_rows_reach_ours(monkeypatch):
    monkeypatch.setattr("flashpoint.bench.timing.LONG_RUN", 0.01)
    training, sampling = gate.works(gate.states_problem(), CPU, extra_rows=0.5, small=True)
    assert training.reference().run().isfinite()
    assert sampling.reference().run().shape == (20, 2)
    assert sampling.ours().run().shape == (30, 2)
    found = gate.measure([training], 3, CPU)
    assert found["training step, 40 rows"].rounds == 3


def test_detection_rates_leave_invalid_nights_out():
    found = summarise(0.05, [1, 1, 0, 2])
    assert (found.runs, found.alarms, found.invalid) == (3, 2, 1)
    assert found.low == pytest.approx(0.0943, abs=1e-4)  # Clopper-Pearson of 2 of 3
    assert found.high == pytest.approx(0.9916, abs=1e-4)


def test_the_self_test_counts_what_the_gate_says(monkeypatch, tmp_path):
    said = {"0.0": 0, "0.05": 2, "0.2": 1}

    def said_by(*arguments):
        if "--update" in arguments:
            return 0
        return said[arguments[arguments.index("--extra-rows") + 1]]

    monkeypatch.setattr("flashpoint.bench.gate_selftest.gate", said_by)
    done = CliRunner().invoke(main, [
        "gate-selftest", "--device", "cpu", "--repeats", "3", "--planted-repeats", "2",
        "--record", str(tmp_path),
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    stage = json.loads((tmp_path / "record.json").read_text())["stages"]["gate-selftest"]
    counts = [(one["runs"], one["alarms"], one["invalid"]) for one in stage["results"]]
    assert counts == [(3, 0, 0), (0, 0, 2), (2, 2, 0)]


def test_a_gate_that_breaks_ends_the_self_test(tmp_path):
    with pytest.raises(
        RuntimeError, match=r"^gate ended with 2: error: baseline .* cannot be read"
    ):
        gate_selftest.gate("--device", "cpu", "--baseline", str(tmp_path))
