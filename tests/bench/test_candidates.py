"""Candidates for the tile sizes of kernels."""

from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
import triton

from flashpoint.bench.candidates import (
    TUNED,
    WORKS,
    candidates,
    forms_of,
    queue,
    too_large,
)
from flashpoint.kernels.adamw import kernel as adamw
from flashpoint.kernels.mlp import config
from flashpoint.kernels.mlp import kernel as mlp
from flashpoint.kernels.sample_chain import kernel as sample_chain
from flashpoint.kernels.train_step import kernel as train_step

from ..kernels.processes import run_compiled

CPU, HOPPER = torch.device("cpu"), (9, 0)
STEP, MANY, MOST, FEW, MORE, CHAIN, FREE, GUIDED, ADAMW = WORKS


def in_launches():
    """Returns the configurations of training, the perceptron, chains and AdamW on Hopper."""
    chain = partial(sample_chain.chain_config_for, "fp16", HOPPER, 2048, 1)
    return (
        train_step.config_for("fp16", HOPPER, 2048, 1),
        mlp.config_for("fp16", HOPPER, 2048, 1, "perceptron"),
        chain(guided=False, classifier_free=False),
        chain(guided=False, classifier_free=True),
        chain(guided=True, classifier_free=False),
        adamw.config_for("fp16", HOPPER, 0, 1, "adamw"),
    )


@pytest.mark.parametrize("work", WORKS)
def test_kernels_use_a_candidate_and_then_again_the_shipped_one(work):
    before, candidate = in_launches(), replace(work.shipped(HOPPER), stages=7)
    with config.in_use(work.kernel, candidate):
        changed_ones = in_launches()
    uses = ("training", "perceptron", "chain", "classifier-free chain", "guided chain", "adamw")
    expected = [
        candidate if used == work.kernel else old for used, old in zip(uses, before, strict=True)
    ]
    assert list(changed_ones) == expected
    assert in_launches() == before


@pytest.mark.parametrize("tuned", TUNED.values(), ids=TUNED)
def test_candidates_are_all_other_sizes_and_small_changes_come_first(tuned):
    shipped = config.config_for("fp16", HOPPER, 2048, 1, tuned.kernel)
    changes_of = candidates(tuned, shipped, ("portable",))
    found = [replace(shipped, **changes) for changes in changes_of]
    number = torch.tensor([len(values) for values in tuned.sizes.values()]).prod()
    assert len(set(found)) == len(found) == number - 1
    assert shipped not in found
    possible = [one for one in changes_of if not too_large(tuned, replace(shipped, **one))]
    assert possible == changes_of[: len(possible)]
    assert [len(one) for one in possible] == sorted(len(one) for one in possible)


@pytest.mark.parametrize(
    "name", ["training", "drop-in", "chain", "classifier-free chain", "guided chain"]
)
def test_kernels_have_candidates_in_the_form_for_hopper(name, monkeypatch):
    tuned = TUNED[name]
    forms = forms_of(tuned, HOPPER)
    shipped = config.config_for("fp16", HOPPER, 2048, 1, tuned.kernel)
    found = [one for one in candidates(tuned, shipped, forms) if one.get("form") == "hopper"]
    assert [one.get("hopper_rows", 64) for one in found] == [64] * 3 + [128] * 3
    assert [one.get("hopper_ring", 6) for one in found] == [6, 5, 4] * 2
    chosen = replace(shipped, form="hopper", hopper_ring=4)
    back = candidates(tuned, chosen, forms)
    assert {"form": "portable"} in back
    assert {"hopper_ring": 6} in back
    assert len(back) == len(candidates(tuned, shipped, forms))
    assert forms_of(tuned, (10, 0)) == forms_of(TUNED["AdamW"], HOPPER) == ("portable",)
    monkeypatch.setattr(triton, "__version__", "3.10.0")
    assert forms_of(tuned, HOPPER) == ("portable",)


def test_weight_gradients_leave_the_form_of_a_training_step_alone():
    tuned, step = TUNED["weight gradients"], replace(STEP.shipped(HOPPER), form="hopper")
    found = candidates(tuned, step, forms_of(tuned, HOPPER))
    assert found
    assert all("form" not in changes for changes in found)
    wrong = replace(step, grad_rows=128)
    assert too_large(tuned, wrong) == "tiles of 64 rows are not multiples of grad_rows=128"
    assert too_large(TUNED["training"], wrong) is not None
    assert too_large(TUNED["training"], replace(wrong, hopper_rows=128)) is None


def test_what_is_shipped_is_a_value_that_is_tried():
    for work in WORKS:
        sizes = asdict(work.shipped(HOPPER))
        for name in work.kernels:
            assert all(sizes[size] in values for size, values in TUNED[name].sizes.items())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"rows": 128}, "128 accumulators in each thread"),
        ({"reduce": 128, "stages": 4}, "320 KiB of shared memory"),
    ],
)
def test_sizes_that_cannot_be_fast(changes, why):
    assert too_large(TUNED["training"], replace(STEP.shipped(HOPPER), **changes)) == why


def test_the_first_candidates_are_one_of_each_kernel_at_each_work():
    waiting = queue(WORKS, HOPPER, tuple(TUNED), None)
    first = [(one.work, one.kernel) for one in waiting[:14]]
    assert first == [(work, name) for work in WORKS for name in work.kernels]
    assert [one.config.form for one in waiting[:14]].count("hopper") == 8
    few = queue(WORKS, HOPPER, ("chain",), 2)
    assert [one.kernel for one in few] == ["chain"] * 2
    assert all(one.config == replace(one.work.shipped(HOPPER), **one.changes) for one in waiting)


NARROW = """
from dataclasses import replace
from flashpoint.bench.candidates import TUNED, WORKS, compile_candidate
shipped = WORKS[5].shipped((9, 0))
print(compile_candidate(90, TUNED["chain"], replace(shipped, out=64)))
"""


@pytest.mark.slow  # compiles
def test_bad_code_is_found_without_a_gpu():
    done = run_compiled("-c", NARROW)
    assert "chain_kernel" in done.stdout, done.stderr
    assert "tensor cores" in done.stdout or "serialised" in done.stdout


TRAINER = """
from flashpoint.bench.peers.ours import Ours
from flashpoint.bench.problem import states_problem
from flashpoint.kernels.resources import MAIN, launches
from flashpoint.kernels.train_step.kernel import buffers_of, training_sums
from flashpoint.kernels.adamw import shadow_of
from flashpoint.kernels.reduce_grad.reference import empty_parts
import torch

engine = Ours(states_problem(), torch.device("cpu"), "half").trainer(2048, False).engine

def step():
    buffers, splits = buffers_of(engine.data, engine.shape, 1, 2048, "fp16")
    sums = empty_parts(engine.parameters, 1, splits, engine.shape.num_parameters + 2)
    shadow = shadow_of(engine.parameters, engine.shape, "fp16")
    training_sums(engine.parameters, engine.shape, engine.data, sums, shadow, buffers,
                  batch_size=2048, seed=engine.seeds, step=engine._step_numbers[0],
                  refresh=None, first_row=0, rows=2048, add=False)

kept = launches(90, {"": MAIN["train fp16"]})
for name, launch in launches(90, {"": step}).items():
    if name in (": train_kernel", ": weight_gradient_kernel"):
        print(launch == kept[name])
"""


def test_what_is_compiled_beforehand_is_what_training_launches():
    done = run_compiled("-c", TRAINER)
    assert done.stdout.split() == ["True", "True"], done.stderr


DROP_IN = """
import torch
from flashpoint.kernels import MLPShape
from flashpoint.kernels.mlp.eager import Call
from flashpoint.kernels.resources import CASES, launches

shape = MLPShape((3, 256, 256, 256, 256, 2))
weights, biases, slope = shape.unpack(torch.zeros(1, shape.num_parameters))
layers = [each[0].clone().requires_grad_() for each in (*weights, *biases, slope)]

def step(rows):
    y = Call(shape, "fp16", torch.float32, torch.float16)(torch.zeros(rows, 3), tuple(layers))
    torch.autograd.grad(y.float().sum(), layers)

kept = launches(90, {"": CASES["autocast fp16"]})
for rows in (2048, 10_000):
    found = launches(90, {"": lambda: step(rows)})
    print(*sorted(name.split()[-1] for name, launch in found.items() if launch == kept[name]))
"""


def test_what_is_compiled_beforehand_is_what_a_drop_in_launches():
    """Many rows take larger tiles, but in the same kernels as a candidate with these tiles."""
    done = run_compiled("-c", DROP_IN)
    few, many = done.stdout.splitlines()
    everything = (
        "backward_kernel forward_kernel operand_kernel reduce_kernel weight_gradient_kernel"
    )
    assert few == everything, done.stderr
    assert many == "operand_kernel reduce_kernel", done.stderr
