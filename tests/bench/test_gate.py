"""The nightly gate checks answers first, and says slower, invalid or incomparable of each work."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from flashpoint.bench import gate
from flashpoint.bench.__main__ import main
from flashpoint.bench.baseline import Baseline, setup
from flashpoint.bench.gate_works import GateWork
from flashpoint.bench.timing import Timing
from flashpoint.bench.verdict import Status, Verdict, compare, judge, status_of

CPU = torch.device("cpu")
HERE = setup(CPU, small=False)


def timing(speedup, width=0.01, reference=100.0):
    return Timing(reference / speedup, reference, speedup, speedup * (1 - width),
                  speedup * (1 + width), 40)  # fmt: skip


BEFORE = timing(2.0)
NAN = timing(math.nan)


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
def test_a_reference_that_moved_makes_the_work_invalid(moved, invalid):
    now = timing(2.0, reference=100.0 * moved)
    assert Verdict("step", now, BEFORE).invalid is invalid


BAD = {
    "NaN": NAN,
    "infinite": timing(math.inf),
    "zero": Timing(100.0, 100.0, 0.0, 0.0, 0.0, 40),
    "negative": timing(-1.0),
    "no time": Timing(0.0, 100.0, 1.0, 0.9, 1.1, 40),
    "no rounds": Timing(100.0, 100.0, 1.0, 0.9, 1.1, 0),
    "turned": Timing(100.0, 100.0, 1.0, 1.1, 0.9, 40),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_number_that_is_no_measurement_is_never_as_before(bad):
    for now, before in ((bad, BEFORE), (BEFORE, bad), (bad, None)):
        (one,) = compare({"step": now}, {} if before is None else {"step": before})
        assert one.word == "invalid"
        assert status_of([one]) is Status.INVALID


def night(*measured):
    """Judges a night in which one work has these timings, one after the other."""
    nights, asked = iter(measured), []

    def measure(names):
        asked.append([*names])
        return {name: next(nights) for name in names}

    return judge(["step"], {"step": BEFORE}, {}, measure), asked


SLOW, AS_BEFORE, MOVED = timing(1.8), timing(2.0), timing(2.0, reference=120.0)


@pytest.mark.parametrize(
    ("measured", "word"),
    [
        ([AS_BEFORE], "as before"),
        ([SLOW, AS_BEFORE], "as before"),
        ([SLOW, SLOW], "slower"),
        ([MOVED, AS_BEFORE], "as before"),
        ([MOVED, MOVED], "invalid"),
        ([MOVED, SLOW, SLOW], "slower"),
        ([SLOW, MOVED, AS_BEFORE], "as before"),
        ([NAN, NAN], "invalid"),
    ],
)
def test_an_alarm_needs_two_measurements(measured, word):
    (verdict,), asked = night(*measured)
    assert verdict.word == word
    assert asked == [["step"]] * len(measured)


@pytest.fixture
def quick(monkeypatch):
    """Replaces checks and measurements of the command; returns the timings of its works."""
    found = {"step": BEFORE}
    monkeypatch.setattr(gate, "check_correct", lambda *_: None)
    monkeypatch.setattr(gate, "states_problem", lambda: None)
    monkeypatch.setattr(gate, "works", lambda *_: [GateWork(name, None, None) for name in found])

    def measure(todo, *_):
        if isinstance(found[todo[0].name], Exception):
            raise found[todo[0].name]
        return {todo[0].name: found[todo[0].name]}

    monkeypatch.setattr(gate, "measure", measure)
    return found


def run(tmp_path, *options):
    arguments = ["gate", "--device", "cpu", "--baseline", str(tmp_path / "base.json"), *options]
    return CliRunner().invoke(main, arguments)


def bars(tmp_path):
    return Baseline.read(tmp_path / "base.json", HERE, update=False).before


def test_the_first_night_is_written_and_is_not_green(quick, tmp_path):
    done = run(tmp_path)
    assert done.exit_code == Status.FIRST == 4
    assert done.output.splitlines()[-1] == (
        "gate: first night, nothing was compared; wrote base.json"
    )
    assert bars(tmp_path) == quick
    done = run(tmp_path)
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "gate: as fast as before")


def test_a_first_night_of_nonsense_is_not_written(quick, tmp_path):
    quick["step"] = NAN
    for options in ((), ("--update",)):
        assert run(tmp_path, *options).exit_code == 3
        assert not (tmp_path / "base.json").exists()


def test_slower_exits_1_with_a_table_and_only_accept_slower_accepts_it(quick, tmp_path):
    assert run(tmp_path, "--update").exit_code == 0
    quick["step"] = timing(1.8)
    done = run(tmp_path, "--record", str(tmp_path))
    assert done.exit_code == 1
    assert "| step | 55.6 | 100.0 | +11.1% | +10.0% | +0.0% | **slower** |" in done.output
    stage = json.loads((tmp_path / "record.json").read_text())["stages"]["gate"]
    assert (stage["verdict"], stage["status"]) == ("slower: step", 1)
    assert run(tmp_path, "--update").exit_code == 1
    assert bars(tmp_path) == {"step": BEFORE}
    done = run(tmp_path, "--accept-slower")
    assert (done.exit_code, "slower ones are accepted" in done.output) == (0, True)
    assert bars(tmp_path) == quick
    assert run(tmp_path).exit_code == 0


def test_update_takes_the_times_of_a_new_driver_but_never_lowers_a_bar(quick, tmp_path):
    run(tmp_path, "--update")
    quick["step"] = timing(1.96, reference=70.0)  # 2% slower, beside a faster reference
    assert run(tmp_path).exit_code == 3
    assert run(tmp_path, "--update").exit_code == 0
    assert bars(tmp_path)["step"].speedup == 2.0
    assert bars(tmp_path)["step"].peer_us == 70.0
    quick["step"] = timing(2.2, reference=70.0)
    assert "faster: step" in run(tmp_path).output
    assert run(tmp_path, "--update").exit_code == 0
    assert bars(tmp_path)["step"].speedup == 2.2


def test_an_invalid_work_hides_no_slower_one(quick, tmp_path):
    quick["other"] = BEFORE
    run(tmp_path, "--update")
    quick["other"] = MOVED
    done = run(tmp_path)
    assert (done.exit_code, done.output.splitlines()[-1]) == (3, "gate: invalid: other")
    quick["step"] = SLOW
    done = run(tmp_path)
    assert (done.exit_code, done.output.splitlines()[-1]) == (
        1, "gate: slower: step. invalid: other"
    )  # fmt: skip


def test_a_work_that_breaks_hides_no_other_and_is_no_slower_one(quick, tmp_path):
    quick["other"] = BEFORE
    run(tmp_path, "--update")
    quick["other"] = RuntimeError("no such kernel\nat line 1")
    done = run(tmp_path)
    last = done.output.splitlines()[-1]
    assert done.exit_code == Status.BROKEN == 5
    assert last == "gate: as fast as before. broken: other (RuntimeError: no such kernel)"
    quick["step"] = SLOW
    assert run(tmp_path).exit_code == 1


def test_the_baseline_of_another_version_is_replaced_only_by_update(quick, tmp_path):
    run(tmp_path, "--update")
    content = json.loads((tmp_path / "base.json").read_text()) | {"reference work": "0"}
    (tmp_path / "base.json").write_text(json.dumps(content))
    assert run(tmp_path).exit_code == 2
    done = run(tmp_path, "--update")
    assert done.exit_code == 0
    assert "gate: nothing was compared: baseline " in done.output
    assert bars(tmp_path) == quick


def test_a_work_that_is_gone_is_named(quick, tmp_path):
    quick["other"] = BEFORE
    run(tmp_path, "--update")
    del quick["other"]
    done = run(tmp_path)
    assert (done.exit_code, "gate: other is no longer measured" in done.output) == (0, True)


def test_a_new_work_is_compared_with_nothing_once(quick, tmp_path):
    run(tmp_path, "--update")
    quick["new"] = timing(3.0)
    done = run(tmp_path)
    assert done.exit_code == 4
    assert done.output.splitlines()[-1] == "gate: first night: new; wrote base.json"
    assert run(tmp_path).exit_code == 0
    assert bars(tmp_path) == quick


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "options",
    [("--small",), ("--extra-rows", "0.2"), ("--small", "--update")],
)
def test_a_test_of_the_gate_never_touches_the_real_baseline(tmp_path, monkeypatch, options):
    monkeypatch.setattr(gate, "BASELINES", tmp_path)
    done = CliRunner().invoke(main, ["gate", "--device", "cpu", *options])
    assert done.exit_code == 2
    assert f"error: {options[0]} needs --baseline or --history" in done.output
    assert not [*tmp_path.iterdir()]


def test_planted_work_is_never_written(quick, tmp_path):
    done = run(tmp_path, "--extra-rows", "0.2")
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    run(tmp_path, "--update")
    quick["new"] = BEFORE
    assert run(tmp_path, "--extra-rows", "0.2").exit_code == 4
    assert bars(tmp_path).keys() == {"step"}


def test_what_is_wrong_is_not_timed(monkeypatch, tmp_path):
    def measure(*_):
        raise AssertionError("it was timed")

    monkeypatch.setattr(gate, "errors", lambda *_: [("training", 1e-9), ("guided", math.nan)])
    monkeypatch.setattr(gate, "measure", measure)
    done = run(tmp_path)
    assert done.exit_code == 5
    assert done.output == (
        "gate: guided is wrong (error nan, allowed 0.0001); nothing is timed\n"
    )  # fmt: skip
    assert not (tmp_path / "base.json").exists()


def test_the_page_names_every_exit_status():
    page = (Path(__file__).parents[2] / "docs/gate.md").read_text(encoding="utf-8")
    named = {int(status) for status in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert named == {*Status, 2, 130, 143}
    assert all(f" {int(status)}: " in gate.__doc__.replace("\n", " ") for status in named)
