"""In the race every peer does the same work, and a wrong peer is not timed."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from itertools import product

import pytest
import torch
from click.testing import CliRunner

from flashpoint.bench import peers, race
from flashpoint.bench.__main__ import main
from flashpoint.bench.costs import Rates
from flashpoint.bench.machine import describe, other_processes
from flashpoint.bench.peers.eager import Eager
from flashpoint.bench.peers.ours import Ours
from flashpoint.bench.problem import states_problem
from flashpoint.bench.race import Race, Referee, compete
from flashpoint.bench.record import Record
from flashpoint.bench.timing import Runner
from flashpoint.bench.workloads import Workloads

from .. import warm_python

CPU = torch.device("cpu")
CHECKS = ("training", "classifier", "sampling", "guided")
NAMES = ("ours", "eager", "states script")


@pytest.fixture(scope="module")
def problem():
    return states_problem()


@pytest.fixture
def referee(problem, monkeypatch):
    monkeypatch.setattr(race, "_CHECK_ROWS", 60)
    monkeypatch.setattr(race, "_CHECK_STEPS", 5)
    return Referee(problem, CPU)


# JAX takes seconds to compile each.
JAX = [("jax", "training"), ("jax", "guided")] if find_spec("jax") else []


@pytest.mark.parametrize(("name", "check"), [*product(NAMES, CHECKS), *JAX])
def test_ours_and_peers_get_what_float64_gets(referee, name, check):
    assert referee.error(name, "fp32", check) <= race.TOLERANCE["fp32"]


def test_half_precision_is_within_its_tolerance_but_not_within_that_of_fp32(referee):
    error = referee.error("eager", "half", "sampling")
    assert race.TOLERANCE["fp32"] < error <= race.TOLERANCE["half"]


def test_the_compiled_peer_runs_compiled_pieces(problem, monkeypatch):
    made = []
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: made.append(options) or function
    )
    peer = peers.PEERS["compile reduce-overhead"](problem, CPU, "fp32")
    assert [options["mode"] for options in made] == ["reduce-overhead"] * 3
    batches = Ours(problem, CPU, "fp32").first_batches(60, 2, classify=False)
    chain, x_T = problem.chain(3, "ddim", guided=False), torch.randn(60, 2)
    eager = Eager(problem, CPU, "fp32")
    torch.testing.assert_close(peer.end_of(chain, x_T, None), eager.end_of(chain, x_T, None))
    assert peer.losses(batches, False) == eager.losses(batches, False)


class WrongUpdate(Eager):
    """A peer whose loss is right, but which does not learn."""

    def losses(self, batches, classify):
        return [self.loss(self.here(batch), classify).item() for batch in batches]

    def training(self, *_):
        raise AssertionError("it was made ready to be timed")


def test_a_wrong_peer_gets_no_number(problem, referee, monkeypatch):
    monkeypatch.setitem(peers.PEERS, "wrong", WrongUpdate)
    workload = next(iter(Workloads(problem, 1e12, 1.0)))
    entry, runner = compete(workload, "wrong", "fp32", referee, 0.0)
    assert runner is None
    assert entry.timing is None
    assert entry.unavailable.startswith("wrong: error")


def test_a_peer_that_is_not_installed_is_named(problem, referee, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.delitem(sys.modules, "flashpoint.bench.peers.jax_scan", raising=False)
    entry, runner = compete(next(iter(Workloads(problem, 1e12, 1.0))), "jax", "fp32", referee, 0.0)
    assert runner is None
    assert entry.unavailable.startswith("ModuleNotFoundError: import of jax halted")


@pytest.mark.parametrize("guided", [False, True])
def test_every_chain_runs_on_ours_and_on_peers(problem, guided):
    works = Workloads(problem, 1e9, 1e-3)  # a device so slow that all is cut to 4 steps
    for make in (Ours, Eager, peers.StatesScript):
        runner = works.chain(guided, 20).prepare(make(problem, CPU, "fp32"))
        assert runner.run().shape == ((100 if guided else 20), 2)


def test_long_works_are_cut_and_say_so(problem):
    works = Workloads(problem, 1e10, 2.0)
    titles = [work.title for work in works]
    assert titles[0] == "training step, 10,000 rows"
    assert titles[2].startswith("sampling, 5,000 rows (cut to ")
    assert len(works.left_out) == 2
    assert works.left_out[-1].startswith("training step, 1,000,000 rows: would take about 119 s")
    assert all(work.steps == work.full_steps for work in Workloads(problem, 1e15, 60.0))


def test_the_race_is_recorded_with_its_paired_ratio(problem, referee, tmp_path):
    rates = Rates({"fp32": 1e15}, 1e15, 1e15)  # faster than any CPU, so that a floor is one
    one = Race(CPU, Record(tmp_path), 3, 1.0, float("inf"), ("eager",), rates)
    works = Workloads(problem, 1e15, 60.0)
    one.one(next(works.steps((256,))), referee)
    one.save([])
    stage = json.loads((tmp_path / "record.json").read_text())["stages"]["race"]
    ours, eager = stage["results"]
    assert ours["us"] == eager["timing"]["ours_us"] > ours["floor_us"] > 0
    assert eager["timing"]["low"] <= eager["timing"]["speedup"] <= eager["timing"]["high"]
    assert eager["timing"]["rounds"] == 3
    # Another race into the same record adds its peers to those that are there.
    other = Race(CPU, Record(tmp_path), 3, 1.0, float("inf"), ("states script",), rates)
    other.one(next(works.steps((256,))), referee)
    other.save([])
    stage = json.loads((tmp_path / "record.json").read_text())["stages"]["race"]
    assert [one["peer"] for one in stage["results"]] == ["eager", "ours", "states script"]
    assert stage["results"][0] == eager


def test_wrong_options_are_one_line(monkeypatch):
    done = CliRunner().invoke(main, ["race", "--device", "cpu", "--peers", "eager,tensorflow"])
    assert done.exit_code == 2
    assert done.output.startswith("error: --peers must be one of eager, graph, ")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    done = CliRunner().invoke(main, ["race", "--device", "cuda"])
    assert done.exit_code == 2
    assert done.output == "error: device cuda does not exist, this machine has 0 CUDA devices\n"


def test_another_process_on_the_gpu_is_named(monkeypatch):
    monkeypatch.setattr("flashpoint.bench.machine.choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr("flashpoint.bench.machine.other_processes", lambda: ["4711"])
    done = CliRunner().invoke(main, ["race"])
    assert done.exit_code == 2
    assert done.output.startswith("error: device cuda is in use by process 4711, ")
    assert done.output.count("\n") == 1


def test_an_epoch_of_ours_never_runs_out_of_steps(problem, monkeypatch):
    done = []

    class Short:
        """Returns a trainer that ends in the midst of its third epoch."""

        def __init__(self, *_, **__):
            self.step, self.total_steps = 0, 5

        def run(self, steps):
            done.append(min(steps, self.total_steps - self.step))
            self.step += done[-1]

    monkeypatch.setattr("flashpoint.bench.peers.ours.Trainer", Short)
    runner = Ours(problem, CPU, "fp32").epoch(10, 2)
    for _ in range(4):
        runner.run()
    assert done == [2, 2, 2, 2]


def test_memory_counts_from_before_the_work_is_made_ready(monkeypatch):
    held, peak = [5 * 2**20], []  # what others hold; the highest there was
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: peak.append(held[0]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: held[0])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: max(peak))
    monkeypatch.setattr(race, "seconds", lambda *_: peak.append(6 * 2**20))

    def captured(wait=None):
        peak.append(9 * 2**20)
        return Runner(None, 1, wait)

    assert race.made_ready(captured, torch.device("cuda")) == (Runner(None), 4.0)
    assert race.made_ready(lambda: captured(print), torch.device("cuda"))[1] is None  # JAX
    assert race.made_ready(captured, CPU)[1] is None


def test_ours_alone_is_timed_warm(problem, referee, tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(race, "warm_up", lambda runner, _: runs.append(runner) or 3.0)
    one = Race(CPU, Record(tmp_path), 3, 1.0, float("inf"), (), Rates({"fp32": 1e11}, 1e10, 1e10))
    one.one(next(Workloads(problem, 1e15, 60.0).steps((256,))), referee)
    (entry,) = one.entries
    assert entry.us == 3e6 / runs[0].works


def test_the_commit_is_that_of_the_code_from_wherever_it_runs(tmp_path, monkeypatch):
    here = describe()["commit"]
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    monkeypatch.chdir(tmp_path)
    assert describe()["commit"] == here


def test_this_process_is_no_other(monkeypatch):
    listed = f"{os.getpid()}\n4711\n[N/A]"
    monkeypatch.setattr("flashpoint.bench.machine._output", lambda *_: listed)
    assert other_processes() == ["4711"]


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
)
def test_an_interrupt_is_one_line_and_leaves_a_whole_record(tmp_path, number, code, word):
    with warm_python.Popen([
        "-m", "flashpoint.bench", "race", "--device", "cpu", "--peers", "eager",
        "--record", tmp_path,
    ]) as one:  # fmt: skip
        assert one.stdout.readline().startswith("training step, ")  # a slow CPU leaves some out
        one.send_signal(number)
        _, printed = one.communicate(timeout=300)
    assert one.returncode == code
    assert printed == f"\n{word}; a record, if one was asked for, holds the results until then\n"
    assert "race" in json.loads((tmp_path / "record.json").read_text())["stages"]
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]
