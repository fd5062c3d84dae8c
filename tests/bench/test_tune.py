"""Candidates for the tile sizes."""

from dataclasses import replace

import pytest
import torch

from flashpoint.bench import tune
from flashpoint.bench.timing import Runner
from flashpoint.bench.tune import (
    CANDIDATES,
    CHAIN,
    TRAINING,
    WORKS,
    Candidate,
    TunedWork,
    in_place_of,
)
from flashpoint.kernels.mlp import config
from flashpoint.kernels.mlp import kernel as mlp
from flashpoint.kernels.sample_chain import kernel as sample_chain
from flashpoint.kernels.train_step import kernel as train_step

CPU = torch.device("cpu")


def in_use():
    """Returns the configurations of training and sampling on Hopper."""
    return (
        mlp.config_for("fp16", (9, 0), 2048, 1),
        train_step.config_for("fp16", (9, 0), 2048, 1),
        sample_chain.chain_config_for("fp16", (9, 0), 2048, 1, guided=False, classifier_free=False),
    )  # fmt: skip


@pytest.mark.parametrize("work", WORKS)
def test_kernels_use_a_candidate_and_then_again_the_shipped_one(work):
    before, shipped = in_use(), work.shipped(CPU)
    with in_place_of(shipped, {"stages": 7}):
        changed = in_use()
    assert changed[2 if work.name == CHAIN else 1] == replace(shipped, stages=7)
    assert in_use() == before


def test_candidates_differ_from_what_is_shipped(monkeypatch):
    assert TunedWork(TRAINING, 10).candidates(CPU) == list(CANDIDATES)
    chain = TunedWork(CHAIN, 10).candidates(CPU)
    assert chain
    assert not any("grad_in" in changes or "grad_warps" in changes for changes in chain)
    shipped = replace(TunedWork(TRAINING, 10).shipped(CPU), **CANDIDATES[0])
    monkeypatch.setattr(config, "config_for", lambda *_: shipped)
    assert CANDIDATES[0] not in TunedWork(TRAINING, 10).candidates(CPU)


@pytest.fixture(scope="module")
def bench():
    return tune.TuneBench(CPU)


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_a_wrong_candidate_has_no_time(bench, monkeypatch, error):
    monkeypatch.setattr(bench, "error", lambda *_: (error, 0.1))
    one = Candidate("work", {"out": 128})
    bench.measure(one, WORKS[0], 3, Runner(lambda: None))
    assert one.timing is None
    assert one.line.split() == f"out=128 no time, wrong: error {error:.1e}, allowed 0.1".split()


def test_a_candidate_without_room_is_named(bench, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of resource: shared memory\nmore")

    monkeypatch.setattr(bench, "error", fail)
    one = Candidate("work", {"stages": 9})
    bench.measure(one, WORKS[0], 3, Runner(lambda: None))
    assert one.line.endswith("no time, RuntimeError: out of resource: shared memory")


def test_a_right_candidate_is_timed_beside_the_shipped_one(bench, monkeypatch):
    monkeypatch.setattr(bench, "error", lambda *_: (0.0, 0.1))
    monkeypatch.setattr(bench, "runner", lambda *_: Runner(lambda: sum(range(100))))
    one = Candidate("work", {"out": 128})
    bench.measure(one, WORKS[0], 5, Runner(lambda: sum(range(10_000))))
    assert one.timing.speedup > 5


def test_checks_are_those_of_the_work(bench):
    for work in (TunedWork(TRAINING, 200), TunedWork(CHAIN, 200)):
        error, tolerance = bench.error(work, {"out": 128})
        assert error < 1e-4 <= tolerance
