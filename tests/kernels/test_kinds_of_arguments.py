"""Every argument of every operation: what is of a wrong kind is named in one line."""

import inspect
import re

import numpy as np
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
    decelerate,
    draw_prior,
    mlp,
    q_sample,
    q_sample_batch,
    reduce_grad,
    reverse_step,
    sample_chain,
    shadow_of,
    train_step,
    training_sums,
    workspace_of,
)

from .training import make_data, make_parameters

MODELS, ROWS, STEPS = 2, 5, 9
SHAPE = MLPShape((3, 8, 2))


def perceptron():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def arguments_of():
    """Returns each operation with right arguments, made anew because some are written to."""
    x, flat = torch.randn(MODELS, ROWS, 2), make_parameters(SHAPE, MODELS, "cpu")
    data = make_data("cpu", "denoiser", MODELS, steps=STEPS)
    forward_table, t = data.forward_table, torch.zeros(MODELS, ROWS, dtype=torch.int64)
    training = {"parameters": flat, "shape": SHAPE, "data": data}
    rows = {"batch_size": 9, "step": 1, "refresh": 2, "first_row": 0, "rows": 3}
    chain = {
        "table": torch.randn(MODELS, STEPS, 4), "time_features": data.time_features,
        "seed": 1, "guide": None, "condition": None, "first_row": 0, "keep_every": 2,
    }  # fmt: skip
    layers = [torch.randn(16, 3), torch.randn(2, 16)], [torch.randn(16), torch.randn(2)]
    return {
        q_sample: {"x_0": x, "forward_table": forward_table, "t": t, "eps": x},
        q_sample_batch: {
            "points": x, "forward_table": forward_table, "batch_size": 7, "seed": 3, "step": 2,
            "t_table": torch.arange(STEPS), "first_row": 0,
        },
        reverse_step: {
            "x_t": x, "eps": x, "coefficients": torch.ones(4), "z": None, "grad_log_p": x,
            "eps_uncond": None, "seed": 1, "step": 0, "first_row": 0,
        },
        draw_prior: {"rows": 5, "dim": 2, "seed": 1, "first_row": 0, "device": "cpu"},
        sample_chain: {"denoiser": Network(flat, SHAPE), "x_T": x, **chain, "precision": "fp16"},
        train_step: {**training, **rows, "seed": 4, "grad": None, "precision": "fp16"},
        workspace_of: {**training, "rows": 9, "precision": "fp16"},
        training_sums: {
            **training, **rows, "workspace": workspace_of(flat, SHAPE, data, 9),
            "seed": torch.tensor([1, 2]), "add": False,
        },
        reduce_grad: {"sums": torch.randn(2, 3, 10), "out": None},
        adamw_: {
            "parameters": flat, "grad": flat, "state": adamw_state(flat), "lr": 0.1, "step": 1,
            "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.01, "decoupled": True,
            "ema_decay": 0.9, "clip_norm": None, "squares": None, "shadow": None,
        },
        adamw_state: {"parameters": flat},
        shadow_of: {"parameters": flat, "shape": SHAPE, "precision": "fp16", "chunked": False},
        mlp: {
            "x": torch.randn(5, 3), "weights": layers[0], "biases": layers[1],
            "slope": torch.ones(1), "activation": "prelu", "negative_slope": 0.01,
            "linear_input": False, "residual": False, "precision": None, "backend": None,
        },
        MLPShape: {
            "widths": (3, 8, 2), "activation": "prelu", "slopes": 1, "negative_slope": 0.01,
            "bias": True, "linear_input": False, "residual": False,
        },
        FusedMLP: {
            "input_dim": 3, "output_dim": 2, "hidden_layers": (8,), "activation": "prelu",
            "bias": True, "linear_input": False, "precision": None, "device": None, "dtype": None,
        },
        FusedMLP.from_module: {"module": perceptron(), "precision": None},
        accelerate: {"model": perceptron(), "filter": None, "strict": False},
        decelerate: {"model": perceptron()},
    }  # fmt: skip


ARGUMENTS = [
    pytest.param(number, name, id=f"{function.__name__}-{name}")
    for number, (function, arguments) in enumerate(arguments_of().items())
    for name in arguments
]
# Of no kind that an argument may have.
STRANGE = {
    "complex": 1 + 2j, "bytes": b"x", "array": np.ones(3), "dict": {"a": 1}, "object": object(),
    "type": type, "range": range,
}  # fmt: skip
# Right for some arguments, wrong for others: if at all, they are refused in one line.
ODD = [
    None, "x", 2.5, float("nan"), True, -1, 0, 2**70, (), [1, 2], [torch.ones(3)], torch.ones(3),
    torch.ones(MODELS, ROWS, 2).double(), torch.zeros(MODELS, ROWS, 2, device="meta"),
    torch.zeros(MODELS, ROWS, dtype=torch.int32), torch.tensor(1.5), torch.tensor([1, 2]),
    nn.Linear(2, 2),
]  # fmt: skip


def call(number, name, value):
    function, arguments = list(arguments_of().items())[number]
    return function(**{**arguments, name: value})


def test_the_right_arguments_are_right():
    for function, arguments in arguments_of().items():
        function(**arguments)


def test_every_argument_is_tried():
    for function, arguments in arguments_of().items():
        missing = {*inspect.signature(function).parameters} - {*arguments}
        assert missing <= {"backend", "self"}, function


@pytest.mark.parametrize(("number", "name"), ARGUMENTS)
@pytest.mark.parametrize("value", STRANGE.values(), ids=STRANGE)
def test_what_has_no_business_here_is_named(number, name, value):
    if name == "filter" and callable(value):
        return
    with pytest.raises(TypeError, match=rf"^{name}(\[\d\])? must be .*, got .+$") as caught:
        call(number, name, value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("number", "name"), ARGUMENTS)
def test_any_error_is_one_line_that_names_an_argument(number, name):
    names = (*list(arguments_of().values())[number], *TrainingData._fields)
    for value in ODD:
        if name == "filter" and callable(value):
            continue
        try:
            call(number, name, value)
        except (TypeError, ValueError) as error:
            message = str(error)
            assert message.startswith(names), value
            assert "\n" not in message, value


@pytest.mark.parametrize(
    ("function", "changes", "message"),
    [
        (q_sample, {"x_0": "cloud"}, "x_0 must be a tensor, got 'cloud'"),
        (q_sample_batch, {"batch_size": 2.5}, "batch_size must be an integer, got 2.5"),
        (q_sample_batch, {"batch_size": True}, "batch_size must be an integer, got True"),
        (reverse_step, {"seed": "a"}, "seed must be an integer or a tensor or None, got 'a'"),
        (adamw_, {"betas": (0.9,)}, "betas must be a tuple of 2 numbers, got builtins.tuple"),
        (adamw_, {"betas": (0.9, "b")}, r"betas[1] must be a number, got 'b'"),
        (mlp, {"weights": torch.tensor(1.0)}, "weights must be a sequence of tensors, "),
        (mlp, {"weights": [torch.ones(2, 3), None]}, "weights[1] must be a tensor, got None"),
        (train_step, {"data": None}, "data must be TrainingData, got None"),
        (sample_chain, {"denoiser": Network(None, SHAPE)}, "denoiser.parameters must be a"),
        (FusedMLP, {"hidden_layers": 8}, "hidden_layers must be a sequence of integers, got 8"),
        (FusedMLP, {"hidden_layers": "88"}, "hidden_layers must be a sequence of"),
        (FusedMLP, {"input_dim": 2.0}, "input_dim must be an integer, got 2.0"),
        (accelerate, {"model": None}, "model must be an nn.Module, got None"),
        (accelerate, {"model": nn.Linear}, "model must be an nn.Module, got torch."),
        (accelerate, {"filter": "rest"}, "filter must be a function or None, got 'rest'"),
        (accelerate, {"strict": 1}, "strict must be True or False, got 1"),
    ],
)  # fmt: skip
def test_the_line_says_what_is_allowed_and_what_was_given(function, changes, message):
    with pytest.raises(TypeError, match=rf"^{re.escape(message)}"):
        function(**{**arguments_of()[function], **changes})


@pytest.mark.parametrize(
    ("function", "changes", "message"),
    [
        (q_sample_batch, {"first_row": -1}, "first_row must be an integer of at least 0, got -1"),
        (q_sample_batch, {"step": 2**32}, "step must be less than 4294967296, got 4294967296"),
        (reverse_step, {"seed": -1, "z": torch.ones(MODELS, ROWS, 2)}, "seed must be an"),
        (reverse_step, {"first_row": -1}, "first_row must be an integer of at least 0, got -1"),
        (draw_prior, {"rows": -1}, "rows must be an integer of at least 0, got -1"),
        (draw_prior, {"device": "gpu"}, "device must be one that PyTorch has here, got 'gpu'"),
        (sample_chain, {"first_row": -1}, "first_row must be an integer of at least 0, got -1"),
        (training_sums, {"refresh": 0}, "refresh must be an integer of at least 1, got 0"),
        (training_sums, {"rows": -1}, "rows must be an integer of at least 0, got -1"),
        (adamw_state, {"parameters": torch.ones(3)}, "parameters must be [M, P], got [3]"),
        (mlp, {"negative_slope": float("nan")}, "negative_slope must be finite, got nan"),
        (FusedMLP, {"output_dim": 0}, "output_dim must be an integer of at least 1, got 0"),
        (FusedMLP, {"device": "gpu"}, "device must be one that PyTorch has here, got 'gpu'"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_named(function, changes, message):
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}"):
        function(**{**arguments_of()[function], **changes})


def test_noise_in_another_dtype_does_not_change_that_of_the_points():
    arguments = arguments_of()[q_sample]
    x_t = q_sample(**{**arguments, "eps": arguments["eps"].double()})
    assert x_t.dtype == torch.float32
    torch.testing.assert_close(x_t, q_sample(**arguments))


def test_widths_may_be_a_list():
    shape = MLPShape([3, 8, 2])
    assert shape == SHAPE
    assert hash(shape) == hash(SHAPE)
