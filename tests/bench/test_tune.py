"""The search for faster tile sizes, and the file that it writes."""

import json
import os
import signal
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial

import pytest
import torch

from flashpoint.bench import operations, tune
from flashpoint.bench.candidates import (
    CHUNKED,
    WORKS,
    Candidate,
    Compiler,
    chunks,
)
from flashpoint.bench.record import Record
from flashpoint.bench.timing import Runner, Timing, paired
from flashpoint.bench.tune import Search, TuneBench, crossed, tuned_file
from flashpoint.diffusion import UserError
from flashpoint.kernels import adamw_
from flashpoint.kernels.mlp import config

from ..kernels.processes import run_compiled

CPU, HOPPER = torch.device("cpu"), (9, 0)
STEP, MANY, MOST, FEW, MORE, CHAIN, FREE, GUIDED, ADAMW = WORKS


@pytest.mark.slow  # compiles
def test_a_dry_search_says_what_is_left_and_leaves_it_compiled(tmp_path):
    done = run_compiled(
        "-m", "flashpoint.bench", "tune", "--dry", "--only", "chain", "--most", "1",
        TRITON_CACHE_DIR=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["chain, 5,000 rows, chain: 1 of 1 candidates are left"]
    assert list(tmp_path.glob("*/chain_kernel.cubin"))  # where launches find it


def test_a_killed_process_does_not_end_the_search(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr("flashpoint.bench.candidates.compile_candidate", os.path.join)
    one = made(CHAIN, "chain", {"stages": 4})
    with Compiler(HOPPER, 1) as compiler:
        os.kill(compiler.pool.submit(os.getpid).result(), signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            compiler.pool.submit(os.getpid).result()
        compiler.submit([one])
        error = compiler.futures[one.tuned.case, one.config].exception()
    assert isinstance(error, TypeError)  # it was called, in a new process


def test_results_are_kept_after_an_interrupt(tmp_path):
    def coming():
        one = made(STEP, "training", {"stages": 4})
        one.unavailable = "spills"
        yield one
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Search(HOPPER, Record(tmp_path), 3, None).run(coming(), time.monotonic() + 60)
    results = json.loads((tmp_path / "record.json").read_text())["stages"]["tune"]["results"]
    assert [result["unavailable"] for result in results] == ["spills"]


@pytest.mark.parametrize("capability", [(8, 9), (12, 0)])
def test_code_of_other_gpus_cannot_be_judged(capability):
    with pytest.raises(UserError, match=r"a compute capability of 8.0, 9.0, 10.0, got"):
        tune.check_can_judge(capability)
    tune.check_can_judge(HOPPER)


def test_interpreted_kernels_are_not_tuned(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UserError, match="TRITON_INTERPRET must not be 1"):
        Compiler(HOPPER, 1)


def made(work, kernel, changes, speedup=None):
    one = Candidate(work, kernel, changes, replace(work.shipped(HOPPER), **changes))
    if speedup is not None:
        one.timing = Timing(1.0, speedup, speedup, speedup - 0.1, speedup + 0.1, 15)
    return one


class Ready(Compiler):
    """A compiler that finds nothing wrong and never finishes ``out=64``."""

    def __init__(self):
        self.futures = {}

    def submit(self, waiting):
        for one in waiting:
            future = self.futures[one.tuned.case, one.config] = Future()
            if one.changes != {"out": 64}:
                future.set_result("spills" if one.changes == {"stages": 2} else None)


def test_what_is_compiled_comes_first_and_what_comes_too_late_falls_out():
    waiting = [
        made(STEP, "training", changes) for changes in ({"out": 64}, {"stages": 2}, {"stages": 4})
    ]
    compiler = Ready()
    compiler.submit(waiting)
    found = [
        (one.changes, one.unavailable) for one in compiler.ready(waiting, time.monotonic() + 0.1)
    ]
    assert found == [
        ({"stages": 2}, "spills"), ({"stages": 4}, None), ({"out": 64}, "not compiled in time"),
    ]  # fmt: skip


def test_the_best_two_of_each_kernel_are_crossed():
    found = [
        made(STEP, "training", {"stages": 4}, 1.3),
        made(STEP, "training", {"stages": 2}, 1.5),
        made(STEP, "training", {"out": 128}, 1.2),
        made(STEP, "weight gradients", {"grad_rows": 32}, 1.2),
        made(STEP, "weight gradients", {"grad_rows": 128}, 1.05),  # not surely faster
        made(MANY, "training", {"stages": 2}, 1.5),
        made(CHAIN, "chain", {"stages": 2}, 1.5),
    ]
    assert [one.changes for one in crossed(found, WORKS)] == [
        {"stages": 2, "grad_rows": 32}, {"stages": 4, "grad_rows": 32},
    ]  # fmt: skip


def test_without_faster_candidates_the_file_says_what_ships(tmp_path, monkeypatch):
    shipped = {kernel: config.steps_of("fp16", HOPPER, kernel) for kernel in config.KERNELS}
    made = tuned_file([], HOPPER, "these timings")
    assert "these timings" not in json.dumps(made)
    (tmp_path / "sm_90.json").write_text(json.dumps(made))
    monkeypatch.setattr(config, "CONFIGS", tmp_path)
    config.steps_of.cache_clear()
    try:
        assert {kernel: config.steps_of("fp16", HOPPER, kernel) for kernel in shipped} == shipped
    finally:
        config.steps_of.cache_clear()


@pytest.fixture
def after(tmp_path, monkeypatch):
    """A function that ships candidates, and returns the configuration of each work then."""

    def ship(found):
        (tmp_path / "sm_90.json").write_text(json.dumps(tuned_file(found, HOPPER, "a GPU")))
        (tmp_path / "sm_80.json").write_text((config.CONFIGS / "sm_80.json").read_text())
        monkeypatch.setattr(config, "CONFIGS", tmp_path)
        config.steps_of.cache_clear()
        return {work: work.shipped(HOPPER) for work in WORKS}

    yield ship
    config.steps_of.cache_clear()


def test_the_file_makes_calls_use_the_fastest_candidates(after):
    before = {work: work.shipped(HOPPER) for work in WORKS}
    found = after([
        made(STEP, "training", {"stages": 4}, 1.3),
        made(STEP, "crossed", {"stages": 2, "grad_rows": 32}, 1.4),
        made(MOST, "training", {"rows": 64}, 1.5),
        made(CHAIN, "chain", {"stages": 2}, 1.05),  # not surely faster
        made(CHAIN, "chain", {"stages": 4}),
        made(FREE, "classifier-free chain", {"form": "hopper", "hopper_rows": 128}, 2.0),
        made(ADAMW, "AdamW", {"adamw_block": 256, "adamw_warps": 2}, 1.2),
    ])  # fmt: skip
    assert found == before | {
        STEP: replace(before[STEP], stages=2, grad_rows=32),
        MOST: replace(before[MOST], rows=64),
        FREE: replace(before[FREE], form="hopper", hopper_rows=128),
        ADAMW: replace(before[ADAMW], adamw_block=256, adamw_warps=2),
    }
    assert config.config_for("fp16", HOPPER, 2**20, 1).rows == 64


@pytest.mark.parametrize(
    ("hopper", "portable", "form"),
    [((2.0, 1.5), (1.3, 1.6), "hopper"), ((2.0, 0.9), (1.3, 1.6), "portable"),
     ((1.2, 1.2), (1.3, 1.6), "portable")],
)  # fmt: skip
def test_the_perceptron_has_the_same_form_for_all_rows(after, hopper, portable, form):
    shipped = {work: work.shipped(HOPPER) for work in (FEW, MORE)}
    found = [
        made(work, "drop-in", changes, speedups[place])
        for place, work in enumerate((FEW, MORE))
        for changes, speedups in (({"form": "hopper"}, hopper), ({"stages": 4}, portable))
    ]
    changes = {"form": "hopper"} if form == "hopper" else {"stages": 4}
    search = Search(HOPPER, Record(None), 3, None, found)
    lines = list(search.winners())
    assert sum("left out" in line for line in lines) == sum(
        (ours > theirs) != (form == "hopper") for ours, theirs in zip(hopper, portable, strict=True)
    )
    now = after(found)
    assert [now[work] for work in shipped] == [
        replace(config, **changes) for config in shipped.values()
    ]


def test_a_faster_number_of_chunk_rows_is_shown():
    one = replace(chunks(HOPPER)[1], timing=made(STEP, "training", {}, 1.2).timing)
    lines = list(Search(HOPPER, Record(None), 3, None, [one]).winners())
    assert lines == [f"{CHUNKED.title}: the fastest is", one.line]


def test_the_steps_of_the_perceptron_are_those_that_are_tuned():
    """Others would keep a form when it changes."""
    for capability in ((8, 0), HOPPER, (10, 0)):
        steps = config.steps_of("fp16", capability, "perceptron")
        assert {tiles for tiles, _ in steps} == {FEW.tiles, MORE.tiles}


@pytest.fixture(scope="module")
def bench():
    return TuneBench(CPU)


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_a_wrong_candidate_has_no_time(bench, monkeypatch, error):
    monkeypatch.setattr(bench, "error", lambda *_: (error, 0.1))
    monkeypatch.setattr(bench, "peer", lambda _: Runner(lambda: None))
    one = made(STEP, "training", {"out": 128})
    bench.measure(one, 3)
    assert one.timing is None
    assert one.line.split() == f"out=128 wrong: error {error:.1e}, allowed 0.1".split()


def test_a_wrong_shipped_configuration_ends_the_search(bench, monkeypatch):
    monkeypatch.setattr(bench, "error", lambda *_: (0.5, 0.1))
    with pytest.raises(UserError, match="training step, 2,048 rows: the shipped sizes are wrong"):
        bench.measure(made(STEP, "training", {"out": 128}), 3)


def test_a_candidate_without_room_is_named(bench, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of resource: shared memory\nmore")

    monkeypatch.setattr(bench, "peer", lambda _: Runner(lambda: None))
    monkeypatch.setattr(bench, "error", fail)
    one = made(STEP, "training", {"stages": 9})
    bench.measure(one, 3)
    assert one.line.endswith("RuntimeError: out of resource: shared memory")


def test_a_right_candidate_is_timed_beside_the_shipped_one(bench, monkeypatch):
    now = [0.0]

    def work(seconds):  # the clock is moved by the works alone, not by what else the machine does
        return Runner(lambda: now.append(now[-1] + seconds))

    monkeypatch.setattr(bench, "error", lambda *_: (0.0, 0.1))
    monkeypatch.setattr(bench, "peer", lambda _: work(10))
    monkeypatch.setattr(bench, "runner", lambda *_: work(2))
    monkeypatch.setattr(tune, "paired", partial(paired, clock=lambda: now[-1]))
    one = made(STEP, "training", {"out": 128})
    bench.measure(one, 5)
    assert one.timing.speedup == 5
    assert one.faster


def test_checks_are_those_of_the_work(bench):
    for work in (replace(one, rows=200) for one in (STEP, FEW, CHAIN, FREE, GUIDED, ADAMW)):
        error, tolerance = bench.error(work, replace(work.shipped(HOPPER), out=128))
        assert error < 1e-4 <= tolerance


@pytest.mark.parametrize("broken", ["grad", "betas", "shadow"])
def test_a_wrong_update_is_found(monkeypatch, broken):
    """A factor of 1.001 in the gradient, in a decay, or on the way to the kernels' weights."""

    def wrong(parameters, sums, state, shadow=None, **options):
        right = shadow is None  # the update in float64
        if broken == "grad" and not right:
            sums = sums * torch.linspace(1, 1.001, sums.shape[-1])
        if broken == "betas" and not right:
            options["betas"] = 0.9, 0.998
        adamw_(parameters, sums, state, shadow=shadow, **options)
        if broken == "shadow" and not right:
            shadow.packed.mul_(1.001)

    assert operations.optimiser_error(CPU) < 1e-5
    monkeypatch.setattr(operations, "adamw_", wrong)
    assert operations.optimiser_error(CPU) > 1e-4


def test_chunks_are_those_of_the_candidate(bench):
    one = chunks(HOPPER)[0]
    assert one.changes["chunk_rows"] == 8448
    ours = tune._Chunked(bench.problem, CPU, "fp32")
    ours.chunk_rows = one.changes["chunk_rows"]
    parts = ours.trainer(20_000, False).engine._chunks
    assert [rows for _, rows in parts] == [8448, 8448, 3104]


def test_results_are_written_as_they_come(bench, tmp_path, monkeypatch):
    speedups = iter((1.5, 1.05))

    def measure(one, _):
        one.timing = made(STEP, "training", {}, next(speedups)).timing

    monkeypatch.setattr(bench, "measure", measure)
    search = Search(HOPPER, Record(tmp_path), 3, bench)
    one, another = (made(STEP, "training", {"stages": n}) for n in (4, 2))
    search.run([one], time.monotonic() + 60)
    assert json.loads(search.path.read_text())["half"]["training"][0]["stages"] == 4
    search.run([another], time.monotonic() - 1)
    assert another.unavailable == "no time was left for it"
    results = json.loads((tmp_path / "record.json").read_text())["stages"]["tune"]["results"]
    assert [result["changes"] for result in results] == [{"stages": 4}, {"stages": 2}]
    assert next(search.winners()) == "training step, 2,048 rows: the fastest is"
    assert f"to ship: cp {search.path} kernels/configs/sm_90.json" in search.winners()
