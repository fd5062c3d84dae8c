"""The works of the gate run at toy size, and their answers are checked against float64."""

import pytest
import torch
from click.testing import CliRunner

from flashpoint.bench import gate_selftest, gate_works
from flashpoint.bench.__main__ import main
from flashpoint.bench.gate_selftest import summarise
from flashpoint.bench.problem import states_problem
from flashpoint.bench.race import TOLERANCE

CPU = torch.device("cpu")
NAMES = (
    "training step, 40 rows",
    "sampling, 20 rows, 2 steps",
    "guided sampling, 20 rows, 2 steps",
    "classifier-free sampling, 20 rows, 2 steps",
    "training step of 2 networks, 20 rows each",
)


@pytest.fixture(scope="module")
def problem():
    return states_problem()


def test_every_work_and_its_reference_run_and_extra_rows_reach_ours(problem, monkeypatch):
    monkeypatch.setattr("flashpoint.bench.timing.LONG_RUN", 0.01)
    works = {work.name: work for work in gate_works.works(problem, CPU, 0.5, small=True)}
    assert tuple(works) == NAMES
    for name in NAMES[1:4]:
        assert works[name].reference().run().shape == (20, 2)
        assert works[name].ours().run().shape[-2:] == (30, 2)
    assert works[NAMES[0]].reference().run().isfinite()
    found = gate_works.measure([*works.values()], 3, CPU, 1.0)
    assert all(timing.sound and timing.rounds == 3 for timing in found.values())


def test_every_kind_of_work_is_checked_against_float64(problem):
    found = dict(gate_works.errors(problem, CPU))
    assert [*found] == ["training", "sampling", "guided", "classifier-free", "training of many"]
    assert all(0 < error < TOLERANCE["fp32"] for error in found.values())


def test_networks_that_are_trained_together_and_wrong_are_found(problem, monkeypatch):
    class Wrong(gate_works.Ours):
        def many_trainer(self, models, rows):
            trainer = super().many_trainer(models, rows)
            (group,) = trainer._groups
            with torch.no_grad():
                group.engine.parameters[1].mul_(1.01)  # of one network alone
            return trainer

    monkeypatch.setattr(gate_works, "Ours", Wrong)
    assert gate_works.error_of_many(problem, CPU) > 10 * TOLERANCE["fp32"]


def test_detection_rates_leave_invalid_nights_out():
    found = summarise(0.05, [1, 1, 0, 3])
    assert (found.runs, found.alarms, found.invalid) == (3, 2, 1)
    assert found.low == pytest.approx(0.0943, abs=1e-4)  # Clopper-Pearson of 2 of 3
    assert found.high == pytest.approx(0.9916, abs=1e-4)


def test_the_self_test_counts_what_the_gate_says(monkeypatch, tmp_path):
    said = {"0.0": 0, "0.05": 3, "0.2": 1}

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
    assert "0% more rows: 0 alarms of 3" in done.output
    assert "5% more rows: 0 alarms of 0, 95% 0.0% to 100.0%; 2 invalid nights" in done.output
    assert "20% more rows: 2 alarms of 2" in done.output


@pytest.mark.slow  # starts the gate
def test_a_gate_that_breaks_ends_the_self_test(tmp_path):
    with pytest.raises(
        RuntimeError, match=r"^gate ended with 2: error: baseline .* cannot be read"
    ):
        gate_selftest.gate("--device", "cpu", "--baseline", str(tmp_path))
