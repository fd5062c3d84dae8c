"""The benchmark of operations checks before it times, and reports what did not run."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from click.testing import CliRunner

from flashpoint.bench import operations
from flashpoint.bench.operations import Comparison, lines, measure
from flashpoint.bench.timing import GRAPH_WORKS, Runner, Timing, paired

CPU = torch.device("cpu")


def comparison(error, peers):
    return Comparison(
        name="nothing", rows=1, precision="fp32", ours=lambda: sum(range(100)), peers=peers,
        error=lambda: error, tolerance=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("error", [1e-2, float("nan")])
def test_what_is_wrong_is_not_timed(error):
    def peer():
        raise AssertionError("a peer ran")

    result = measure(comparison(error, {"eager": peer}), 3, CPU)
    assert not result.correct
    assert not result.timings
    assert "WRONG" in "\n".join(lines(result))


def test_ours_that_fails_is_wrong_and_does_not_end_the_benchmark():
    def fail():
        raise RuntimeError("does not compile")

    broken = replace(comparison(0.0, {"eager": lambda: None}), error=fail)
    result = measure(broken, 2, CPU)
    assert not result.correct
    assert not result.timings
    assert result.unavailable == {"ours": "RuntimeError: does not compile"}


@pytest.mark.parametrize(
    ("seed", "operation"),
    [
        (155, partial(operations.perceptron, training=True)),
        (234, partial(operations.perceptron, training=True)),
        (58, operations.training_step),
        (130, operations.training_step),
    ],
)
def test_one_z_across_a_kink_does_not_make_an_operation_wrong(seed, operation):
    """With these seeds fp32 moved one z of 200 rows to the other side of zero, on one processor."""
    torch.manual_seed(seed)
    one = operation(CPU, 200, "fp32")
    assert one.error() <= 1e-6 < one.tolerance


def test_speed_is_a_paired_ratio_with_its_interval(monkeypatch):
    now, durations = [0.0], iter((10, 10, 12, 8, 9, 11, 10))  # two to warm up, five rounds

    def work(seconds):  # the clock is moved by the works alone, not by what else the machine does
        now[0] += seconds

    monkeypatch.setattr(operations, "paired", partial(paired, clock=lambda: now[0]))
    compared = comparison(0.0, {"eager": lambda: work(next(durations))})
    result = measure(replace(compared, ours=lambda: work(2)), 5, CPU)
    timing = result.timings["eager"]
    assert (timing.ours_us, timing.peer_us, timing.speedup) == (2e6, 10e6, 5.0)
    assert 4.0 <= timing.low < 5.0 < timing.high <= 6.0


def test_a_peer_that_fails_is_named_and_the_others_are_timed():
    def broken():
        raise ValueError("no compiler\nand more")

    result = measure(comparison(0.0, {"compiled": broken, "eager": lambda: None}), 2, CPU)
    assert result.unavailable == {"compiled": "ValueError: no compiler"}
    assert list(result.timings) == ["eager"]


def test_on_a_gpu_ours_runs_from_a_graph_and_eagerly_beside_eager_pytorch(monkeypatch):
    pairs = []

    def paired(ours, peer, rounds, device):  # noqa: ARG001
        pairs.append((ours.works, peer.works))
        return Timing(1.0, 2.0, 2.0, 2.0, 2.0, rounds)

    monkeypatch.setattr(operations, "from_graph", lambda work: Runner(work, GRAPH_WORKS))
    monkeypatch.setattr(operations, "paired", paired)
    peers = {"eager": lambda: None, "compiled": lambda: None}
    result = measure(comparison(0.0, peers), 5, torch.device("cuda"))
    assert dict(zip(result.timings, pairs, strict=True)) == {
        "eager": (GRAPH_WORKS, 1),
        "both eager": (1, 1),
        "graph": (GRAPH_WORKS, GRAPH_WORKS),
        "compiled": (GRAPH_WORKS, GRAPH_WORKS),
    }


def test_every_operation_is_correct_at_small_size(tmp_path):
    done = CliRunner().invoke(
        operations.main,
        ["--device", "cpu", "--small", "--rounds", "0", "--record", str(tmp_path)],
    )
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "record.json").read_text())["stages"]["operations"]["results"]
    assert {result["name"] for result in results} == {
        "train_step", "mlp forward and backward", "mlp forward", "q_sample_batch", "reverse_step",
    }  # fmt: skip
    assert all(result["correct"] for result in results)
