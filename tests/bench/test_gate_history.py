"""The history of the gate: bars that only rise, segments, the trend, and simulated months."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from flashpoint.bench import gate, gate_months
from flashpoint.bench.__main__ import main
from flashpoint.bench.baseline import setup
from flashpoint.bench.gate_months import MONTHS, found_in, machine_with, simulated_month
from flashpoint.bench.gate_works import GateWork
from flashpoint.bench.machine import describe
from flashpoint.bench.nights import (
    History,
    Night,
    allowed_with,
    bar_of,
    missing,
    noise_of,
    read_nights,
)
from flashpoint.bench.timing import Timing
from flashpoint.bench.trend import draw, slowdowns, sparkline, summary

HERE = setup(torch.device("cpu"), small=False)
ONE, TWO = machine_with("driver 1"), machine_with("driver 2")


def timing(speedup, reference=100.0):
    return Timing(reference / speedup, reference, speedup, speedup * 0.995, speedup * 1.005, 40)


def night(day, speedup, reference=100.0, word="as before", machine=ONE, **other):
    return Night(
        datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day), HERE, machine, "",
        {"step": timing(speedup, reference)}, {"step": word}, **other,
    )  # fmt: skip


def test_a_bar_is_the_first_night_or_the_best_median_of_five():
    assert bar_of([2.0]) == 2.0
    assert bar_of([2.0, 2.1, 2.1, 1.0]) == 2.0
    assert bar_of([2.0, 2.2, 2.2, 2.2, 2.0]) == 2.2
    assert bar_of([2.0, 9.0, 9.0, 2.0, 2.0, 2.0]) == 2.0  # two lucky nights
    assert bar_of([2.0, 2.2, 2.2, 2.2, 2.0, 1.0, 1.0, 1.0, 1.0]) == 2.2  # it never falls


def test_the_order_of_the_files_does_not_matter():
    nights = [night(day, 2.0 - day / 10) for day in range(4)]
    assert History(nights[::-1], HERE, ONE).before["step"].speedup == 2.0


def test_invalid_nights_set_no_bar_and_are_reported():
    nights = [night(0, 2.0), *(night(day, 9.0, word="invalid") for day in (1, 2, 3))]
    history = History(nights, HERE, ONE)
    assert history.before["step"].speedup == 2.0
    assert history.notes == ["step had no valid measurement in the last 3 nights"]


def test_a_new_driver_starts_the_times_of_the_reference_anew_and_keeps_the_bar():
    nights = [night(0, 2.0), night(1, 2.0)]
    history = History(nights, HERE, TWO)
    assert not history.past["step"].same_machine
    assert history.before["step"].speedup == 2.0
    assert "the bars stay" in history.notes[0]
    nights.append(night(2, 1.9, reference=70.0, machine=TWO))
    history = History(nights, HERE, TWO)
    assert history.past["step"].same_machine
    assert (history.before["step"].speedup, history.before["step"].peer_us) == (2.0, 70.0)


def test_update_starts_the_times_of_the_reference_anew_on_the_same_machine():
    nights = [night(0, 2.0), night(1, 2.0, reference=70.0, update=True)]
    assert History(nights, HERE, ONE).before["step"].peer_us == 70.0
    assert not History(nights, HERE, ONE, update=True).past["step"].same_machine


def test_only_an_accepted_night_lowers_the_bar():
    nights = [night(0, 2.0), night(1, 1.8, word="slower"), night(2, 1.8, word="slower")]
    assert History(nights, HERE, ONE).before["step"].speedup == 2.0
    nights.append(night(3, 1.8, word="slower", accepted=("step",)))
    assert History(nights, HERE, ONE).before["step"].speedup == 1.8


def test_the_limit_is_four_deviations_from_night_to_night_between_3_and_10_percent():
    values = np.exp(np.random.default_rng(0).normal(0, 0.01, 4000))
    assert noise_of(values) == pytest.approx(0.01, rel=0.05)  # of a normal distribution
    assert noise_of(values * np.where(np.arange(4000) < 2000, 1, 0.8)) == pytest.approx(
        noise_of(values), rel=0.01
    )  # a step does not count
    assert noise_of([1.0, 2.0, 1.0, 2.0]) == 0.0  # too few nights
    assert [allowed_with(noise) for noise in (0.0, 0.0075, 0.015, 0.5)] == [
        1.03, 1.03, pytest.approx(1.06), 1.10
    ]  # fmt: skip


def test_a_work_that_differs_a_lot_is_named_with_its_limit():
    nights = [night(day, 2.0 * (1.0 + 0.02 * (day % 2))) for day in range(8)]
    history = History(nights, HERE, ONE)
    assert history.past["step"].allowed == pytest.approx(1.083, abs=1e-3)
    assert history.notes == [
        "step differs a lot from night to night: slower means by more than 8.3%"
    ]


def test_days_without_a_night_are_reported():
    assert missing([night(0, 2.0), night(1, 2.0)]) == missing([night(0, 2.0)]) == []
    assert missing([night(0, 2.0), night(6, 2.0)]) == ["the night before was 6 days ago"]


@pytest.mark.parametrize("key", HERE)
def test_nights_of_something_else_are_not_compared_and_are_counted(key):
    history = History([night(0, 2.0)], HERE | {key: "other"}, ONE)
    assert history.before == {}
    assert history.notes == [f"1 nights of {key} {HERE[key]} are not compared"]


def test_the_sparkline_shows_noise_flat_and_invalid_nights_as_x():
    assert sparkline([1.0, 0.97, None, 1.0], 1.0) == "█▁x█"
    assert sparkline([0.5, 1.0], 1.0) == "▁█"
    assert sparkline([None], 1.0) == "x"


@pytest.fixture
def quick(monkeypatch):
    """Replaces checks and measurements of the command; returns the timings of its works."""
    found = {"step": timing(2.0)}
    monkeypatch.setattr(gate, "check_correct", lambda *_: None)
    monkeypatch.setattr(gate, "states_problem", lambda: None)
    monkeypatch.setattr(gate, "works", lambda *_: [GateWork(name, None, None) for name in found])
    monkeypatch.setattr(gate, "measure", lambda todo, *_: {todo[0].name: found[todo[0].name]})
    return found


def run(folder, *options):
    arguments = ["gate", "--device", "cpu", "--history", str(folder), *map(str, options)]
    return CliRunner().invoke(main, arguments)


def test_each_night_adds_one_file_and_a_slow_drift_turns_red(quick, tmp_path):
    codes = []
    for _ in range(7):
        codes.append(run(tmp_path / "history").exit_code)
        quick["step"] = timing(quick["step"].speedup / 1.01)
    assert codes == [4, 0, 0, 0, 1, 1, 1]  # the interval is half a percent wide
    assert len(read_nights(tmp_path / "history")) == 7
    done = run(tmp_path / "history", "--accept-slower")
    assert done.exit_code == 0
    assert run(tmp_path / "history").exit_code == 0


def test_five_nights_show_what_one_alone_is_too_uncertain_for(quick, tmp_path):
    codes = [run(tmp_path).exit_code]
    slow = 2.0 / 1.05
    quick["step"] = Timing(100 / slow, 100.0, slow, slow * 0.95, slow * 1.05, 40)
    codes += [run(tmp_path).exit_code for _ in range(5)]
    assert codes == [4, 0, 0, 0, 1, 1]  # of the first five nights, the median is slower


def test_an_improvement_tightens_the_bar(quick, tmp_path):
    run(tmp_path)
    quick["step"] = timing(2.2)
    for _ in range(5):
        assert run(tmp_path).exit_code == 0
    quick["step"] = timing(2.0)
    assert run(tmp_path).exit_code == 1


def test_a_wrong_night_is_kept_and_hides_nothing(quick, tmp_path, monkeypatch):
    run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(gate, "check_correct", lambda *_: 1 / 0)
        done = run(tmp_path)
    assert done.exit_code == 5
    assert "gate: the works cannot be prepared: ZeroDivisionError: division by zero" in done.output
    quick["step"] = timing(1.8)
    assert run(tmp_path).exit_code == 1
    assert [len(one.timings) for one in read_nights(tmp_path)].count(0) == 1


def test_the_job_summary_shows_verdict_trend_and_chart(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert run(tmp_path / "history").exit_code == 4
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert text.startswith("## Nightly gate: first night, nothing was compared\n")
    quick["step"] = timing(1.8)
    assert run(tmp_path / "history", "--record", tmp_path / "record").exit_code == 1
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "## Nightly gate: slower: step" in text
    assert "| step | `█▁` | 2.000 | 1.800 |" in text
    assert re.search(r"```mermaid\nxychart-beta\n    title \"step\"\n.*line \[0.00, 11.11\]", text,
                     re.DOTALL)  # fmt: skip
    assert (tmp_path / "record/gate.png").read_bytes().startswith(b"\x89PNG")


def test_the_trend_holds_thirty_nights():
    nights = [night(day, 2.0) for day in range(40)]
    bars = History(nights, HERE, ONE).before
    text = summary("fine", [], [], nights, bars)
    assert "### The last 30 nights" in text
    assert "01-11" in text
    assert "01-10" not in text


@pytest.mark.usefixtures("whole_figures")
def test_the_figure_has_a_gap_at_an_invalid_night_and_marks_a_new_driver(tmp_path):
    nights = [night(0, 2.0), night(1, 9.0, word="invalid"), night(2, 1.8, machine=TWO)]
    bars = History(nights, HERE, ONE).before
    assert slowdowns(nights, bars) == {"step": [0.0, None, pytest.approx(1 / 9)]}
    draw(nights, bars, tmp_path / "gate.png")
    assert (tmp_path / "gate.png").stat().st_size > 10_000


def test_a_summary_that_cannot_be_written_is_one_line(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    done = run(tmp_path / "history")
    assert done.exit_code == 4
    assert "the job summary cannot be written: Is a directory" in done.output
    assert quick


PLANTED = [name for name, month in MONTHS.items() if month.since is not None]


@pytest.mark.parametrize(("planted", "latest"), [
    ("a step of 5%", 1), ("a drift of 1% a night", 5), ("a drift of 0.2% a night", 20),
    ("10% faster, lost again", 1), ("an invalid week that hides a step of 5%", 1),
    ("a new driver with a step of 5%", 1),
])  # fmt: skip
def test_what_is_planted_in_a_month_is_caught_in_time(planted, latest):
    months = {seed: simulated_month(MONTHS[planted], 0.005, seed) for seed in range(5)}
    found = found_in(planted, months)
    assert (found.caught, found.false_alarms) == (5, 0)
    assert found.nights <= latest


def test_every_planted_fault_is_tested():
    pages = Path(__file__).read_text()
    assert all(f'("{name}", ' in pages for name in PLANTED)


@pytest.mark.parametrize("planted", ["nothing", "a new driver, as fast"])
def test_a_month_in_which_nothing_is_planted_is_green_after_its_first_night(planted):
    months = {seed: simulated_month(MONTHS[planted], 0.005, seed) for seed in range(5)}
    found = found_in(planted, months)
    assert (found.caught, found.false_alarms, found.invalid) == (None, 0, 0)
    assert found.quiet_nights == 5 * 30 * 5
    words = {one.word for verdicts in months[0] for one in verdicts}
    assert words <= {"first night", "as before", "faster"}


def test_an_invalid_week_is_invalid_where_nothing_is_slower():
    verdicts = simulated_month(MONTHS["an invalid week that hides a step of 5%"], 0.005, 0)
    words = [{one.name: one.word for one in night} for night in verdicts]
    assert [night["training"] for night in words[12:19]] == ["invalid"] * 7
    assert [night["guided"] for night in words[14:]] == ["slower"] * 16
    assert {night["training"] for night in words[19:]} <= {"as before", "faster"}


def test_much_noise_gives_false_alarms_which_are_counted():
    found = found_in("nothing", {0: simulated_month(MONTHS["nothing"], 0.05, 0)})
    assert found.false_alarms > 0
    assert found.low < found.false_alarms / found.quiet_nights < found.high


def test_the_command_writes_a_line_for_each_kind_of_month(tmp_path, monkeypatch):
    monkeypatch.setattr(gate_months, "NIGHTS", 16)
    done = CliRunner().invoke(main, ["gate-months", "--months", "1", "--record", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert all(f"| {name} | 1 |" in done.output for name in MONTHS)
    stage = json.loads((tmp_path / "record.json").read_text())["stages"]["gate-months"]
    assert [one["planted"] for one in stage["results"]] == [*MONTHS]


def test_the_machine_of_today_is_the_same_as_itself():
    today = describe()
    clocks = "driver, clocks (now, maximum), power limit"
    nights = [night(0, 2.0, machine=today | {clocks: "580, 345 MHz, 1980 MHz, 700 W"})]
    for now, same in (
        ("580, 1980 MHz, 1980 MHz, 700 W", True), ("581, 345 MHz, 1980 MHz, 700 W", False),
        ("580, 345 MHz, 1980 MHz, 500 W", False),
    ):  # fmt: skip
        history = History(nights, HERE, today | {clocks: now})
        assert history.past["step"].same_machine is same
    assert not History(nights, HERE, nights[0].machine | {"torch": "9"}).past["step"].same_machine
