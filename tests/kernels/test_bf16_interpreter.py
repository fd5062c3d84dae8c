"""Triton's interpreter multiplies bf16 wrongly: each operation that is asked for it refuses."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from flashpoint.kernels import (
    FusedMLP,
    MLPShape,
    Network,
    TrainingData,
    accelerate,
    adamw_,
    adamw_state,
    mlp,
    sample_chain,
    shadow_of,
    train_step,
    workspace_of,
)

from .training import make_forward_table

SHAPE = MLPShape((3, 16, 2))
REFUSAL = (
    r"^precision must be fp16, tf32, tf32x3 or fp32 in Triton's interpreter, which multiplies bf16 "
    r"wrongly, got 'bf16'$"
)


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def network(device, dtype=torch.float32):
    weights = [torch.randn(16, 3, device=device), torch.randn(2, 16, device=device)]
    slope = torch.full((1,), 0.25, device=device)
    return [weight.to(dtype) for weight in weights], None, slope.to(dtype)


def flat(device):
    return torch.randn(1, SHAPE.num_parameters, device=device)


def data(device):
    return TrainingData(
        torch.randn(1, 6, 2, device=device), make_forward_table(5, 1).to(device),
        torch.randn(1, 5, 1, device=device), None, torch.tensor([6], device=device),
        torch.arange(5, device=device)[None],
    )  # fmt: skip


def run_mlp(device, **options):
    return mlp(torch.randn(9, 3, device=device), *network(device), **options)


def run_half_mlp(device, **options):
    x = torch.randn(9, 3, device=device, dtype=torch.bfloat16)
    return mlp(x, *network(device, torch.bfloat16), **options)


def run_autocast(device, **options):
    with torch.autocast(device.type, torch.bfloat16):
        return run_mlp(device, **options)


def run_chain(device, **options):
    x_T = torch.randn(1, 4, 2, device=device)
    table, features = torch.ones(1, 5, 4, device=device), torch.ones(1, 5, 1, device=device)
    return sample_chain(Network(flat(device), SHAPE), x_T, table, features, seed=0, **options)


def run_train_step(device, **options):
    return train_step(flat(device), SHAPE, data(device), batch_size=4, seed=0, step=0, **options)


def run_workspace(device, **options):
    return workspace_of(flat(device), SHAPE, data(device), 4, **options)


def run_adamw(device, precision, backend):
    parameters = flat(device)
    shadow = shadow_of(parameters, SHAPE, precision)
    adamw_(
        parameters, parameters.clone(), adamw_state(parameters), lr=0.1, step=1, shadow=shadow,
        backend=backend,
    )  # fmt: skip


OPERATIONS = [
    *(partial(run, precision="bf16") for run in (run_mlp, run_chain, run_train_step)),
    *(partial(run, precision="bf16") for run in (run_workspace, run_adamw)),
    run_half_mlp,
    run_autocast,
]
NAMES = ["mlp", "sample_chain", "train_step", "workspace_of", "adamw_", "half", "autocast"]


@pytest.mark.parametrize("run", OPERATIONS, ids=NAMES)
def test_it_is_refused_where_the_kernels_were_asked_for(device, run):
    with pytest.raises(ValueError, match=REFUSAL):
        run(device, backend="triton")


@pytest.mark.parametrize("run", OPERATIONS, ids=NAMES)
def test_the_reference_runs_where_nobody_asked_for_kernels(device, run):
    run(device, backend=None)


def modules():
    sequential = nn.Sequential(nn.Linear(3, 16), nn.PReLU(), nn.Linear(16, 2))
    accelerate(sequential)
    return [sequential, FusedMLP(3, 2, (16,), precision="bf16")]


@pytest.mark.parametrize("number", [0, 1], ids=["accelerate", "FusedMLP"])
@pytest.mark.usefixtures("on_device")
def test_layers_run_one_by_one(number, fused_calls):
    model = modules()[number].bfloat16()
    plain = copy.deepcopy(model if number == 0 else model.model)
    plain.__class__ = nn.Sequential
    x = torch.randn(9, 3).bfloat16()
    for _ in range(2):  # the second time what was read is remembered
        assert torch.equal(model(x), plain(x))
    assert not fused_calls


@pytest.mark.parametrize("word", ["1", "true", "ON", "yes", "Y"])
def test_every_word_that_turns_the_interpreter_on_is_known(device, monkeypatch, word):
    monkeypatch.setenv("TRITON_INTERPRET", word)
    with pytest.raises(ValueError, match=REFUSAL):
        run_mlp(device, precision="bf16", backend="triton")
