"""The fused perceptron against float64: values, all gradients, any shape, any precision."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from flashpoint.bench.kinks import off_kinks
from flashpoint.kernels import mlp as fused_mlp
from flashpoint.kernels.mlp import ACTIVATIONS, MLPShape, reference
from flashpoint.kernels.mlp import kernel as mlp
from flashpoint.kernels.mlp.activation import TABLE

from .networks import (
    PRECISIONS,
    SMALL,
    TOLERANCE,
    check,
    exact,
    make_batch,
    make_network,
    relative_error,
    run,
    tensors_of,
)

SIZES = (0, 1, 63, 64, 65, 1000)


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.usefixtures("poisoned")
def test_every_batch_size(device, rows):
    shape = MLPShape(SMALL)
    flat = make_network(shape, device=device)
    check(flat, shape, *make_batch(shape, rows, device=device), "fp32")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.25, 1.7])
@pytest.mark.usefixtures("poisoned")
def test_slopes_of_either_sign(device, slope, precision):
    shape = MLPShape(SMALL)
    flat = make_network(shape, slope=slope, device=device)
    check(flat, shape, *make_batch(shape, 1000, device=device), precision)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.usefixtures("poisoned")
def test_activations(device, activation, precision):
    shape = MLPShape((3, 24, 24, 2), activation, negative_slope=0.2)
    flat = make_network(shape, device=device)
    check(flat, shape, *make_batch(shape, 300, device=device), precision)


@pytest.mark.parametrize("slope", [-0.3, 0.0, 1.5])
@pytest.mark.usefixtures("poisoned")
def test_fixed_slopes_of_either_sign(device, slope):
    """With a negative slope h does not tell the sign of z, so z is kept."""
    shape = MLPShape((3, 24, 24, 2), "leaky_relu", negative_slope=slope)
    flat = make_network(shape, device=device)
    check(flat, shape, *make_batch(shape, 300, device=device), "fp32")


@pytest.mark.parametrize(
    ("widths", "options"),
    [
        ((2, 3), {}),
        ((1, 1, 1), {}),
        ((3, 256, 256, 2), {}),
        ((3, 100, 200, 500, 5), {"slopes": 3}),
        ((16, 16, 16, 16, 16), {"slopes": 3, "bias": False}),
        ((65, 40, 7), {"activation": "silu"}),
        ((784, 33, 784), {"activation": "relu"}),
        ((20, 130, 300, 3), {"activation": "gelu", "bias": False}),
        ((3, 16, 16, 16, 2), {"activation": "relu", "linear_input": True}),
        ((3, 20, 30, 40, 2), {"slopes": 2, "linear_input": True}),
        ((3, 16, 2), {"linear_input": True}),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.usefixtures("poisoned")
def test_widths(device, widths, options, precision):
    shape = MLPShape(widths, **options)
    flat = make_network(shape, device=device)
    check(flat, shape, *make_batch(shape, 65, device=device), precision)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    widths=st.lists(st.integers(1, 70), min_size=2, max_size=6),
    rows=st.integers(0, 130),
    models=st.integers(1, 3),
    activation=st.sampled_from(ACTIVATIONS),
    shared=st.booleans(),
    bias=st.booleans(),
    linear_input=st.booleans(),
)
def test_any_network(device, widths, rows, models, activation, shared, bias, linear_input):
    linear_input &= TABLE[activation].piecewise_linear and len(widths) > 2
    slopes = 1 if shared else max(1, len(widths) - 2 - linear_input)
    shape = MLPShape(tuple(widths), activation, slopes, bias=bias, linear_input=linear_input)
    flat = make_network(shape, models, device=device)
    check(flat, shape, *make_batch(shape, rows, models, device=device), "fp32")


@pytest.mark.parametrize("wants_gradients", [True, False])
def test_no_models(device, wants_gradients):
    weights = [torch.ones(0, 8, 3, device=device), torch.ones(0, 2, 8, device=device)]
    x = torch.ones(0, 5, 3, device=device)
    for tensor in (x, *weights):
        tensor.requires_grad_(wants_gradients)
    y = fused_mlp(x, weights, activation="relu", precision="fp16", backend="triton")
    assert y.shape == (0, 5, 2)
    if wants_gradients:
        y.sum().backward()
        assert all(each.grad.shape == each.shape for each in (x, *weights))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.usefixtures("poisoned")
def test_models_are_independent(device, precision):
    shape = MLPShape((3, 40, 40, 40, 2), slopes=3)
    flat = make_network(shape, models=3, device=device)
    x, grad_y = make_batch(shape, 100, models=3, device=device)
    grad_y = grad_y * torch.tensor([1e-6, 1.0, 1e3], device=device)[:, None, None]
    together = run(flat, shape, x, grad_y, precision)
    for model in range(3):
        one = slice(model, model + 1)
        for alone, all_models in zip(
            run(flat[one], shape, x[one], grad_y[one], precision), together, strict=True
        ):
            assert relative_error(all_models[one], alone) <= 1e-6


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1.0, 1e4])
def test_gradient_scale(device, scale):
    """Gradients of any magnitude keep their accuracy in fp16."""
    shape = MLPShape(SMALL)
    flat = make_network(shape, device=device)
    x, grad_y = make_batch(shape, 500, device=device)
    check(flat, shape, x, grad_y * scale, "fp16")


@pytest.mark.parametrize(("rows", "widths"), [(1, SMALL), (65, SMALL), (260, (3, 16, 5))])
@pytest.mark.parametrize("layout", ["dense", "rows apart", "columns apart", "one row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.usefixtures("poisoned")
def test_programs_and_pytorch_measure_the_same_gradient(device, rows, widths, layout, dtype,
                                                        monkeypatch):  # fmt: skip
    shape = MLPShape(widths)
    flat = make_network(shape, models=2, device=device)
    x, grad_y = make_batch(shape, rows, models=2, device=device)
    # The largest number of a model is one of the last ones, that of the other one of the first.
    grad_y[0, -1, -1], grad_y[1, 0, 0] = -3e3, 2e4
    grad_y = grad_y.to(dtype)
    if layout == "rows apart":
        grad_y = torch.cat((grad_y, grad_y * torch.inf), dim=2)[..., : widths[-1]]
    elif layout == "columns apart":
        grad_y = grad_y.mT.contiguous().mT
    elif layout == "one row":
        grad_y = grad_y[:, -1:].expand(grad_y.shape)
    measured = run(flat, shape, x, grad_y, "fp16")
    monkeypatch.setattr(mlp, "_MEASURED", 0)
    for actual, expected in zip(measured, run(flat, shape, x, grad_y, "fp16"), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("rows", [2048, pytest.param(131_072, marks=pytest.mark.gpu)])
def test_gradient_of_a_mean(device, rows):
    shape = MLPShape(SMALL)
    flat = make_network(shape, device=device)
    x, target = make_batch(shape, rows, device=device)
    y = mlp.forward_flat(x, flat, shape, "fp16")[0]
    check(flat, shape, x, (y - target) * (2 / y.numel()), "fp16")


@pytest.mark.parametrize("measured", [0, 32_768])
@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan"), float("-inf")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_gradients_that_have_no_scale(device, value, measured, monkeypatch):
    monkeypatch.setattr(mlp, "_MEASURED", measured)
    shape = MLPShape(SMALL)
    flat = make_network(shape, device=device)
    x, grad_y = make_batch(shape, 70, device=device)
    grad_y = torch.zeros_like(grad_y)
    grad_y[0, 3, 1] = value
    _, grad_x, grad = run(flat, shape, x, grad_y, "fp16")
    if value == 0:
        assert not grad_x.any()
        assert not grad.any()
    else:
        assert not grad_x[0, 3].isfinite().all()
        assert not grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_overflow_reaches_the_output(device):
    shape = MLPShape((3, 16, 16, 2), "relu")
    flat = make_network(shape, device=device) * 300
    x, _ = make_batch(shape, 10, device=device)
    y, _ = mlp.forward_flat(x * 3000, flat, shape, "fp16")
    assert not y.isfinite().all()


@pytest.mark.parametrize("precision", ["fp16", "tf32", pytest.param("bf16", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("hidden", [(), (16,)])
def test_coordinates_keep_their_accuracy(device, hidden, precision):
    """Outputs differ as points do that half precision cannot tell apart."""
    shape = MLPShape((2, *hidden, 1), "none", bias=False)
    flat = torch.zeros(1, shape.num_parameters, device=device)
    weights = shape.unpack(flat).weights
    weights[0][0, 0] = torch.tensor([1.0, -1.0])  # y = x_0 - x_1
    if hidden:
        weights[1][0, 0, 0] = 1.0
    x = torch.tensor([[[1.0, 1.0], [1.0 + 2**-15, 1.0], [1.0, 1.0 + 2**-15]]], device=device)
    y, _ = mlp.forward_flat(x, flat, shape, precision)
    assert y[0, :, 0].tolist() == [0.0, 2**-15, -(2**-15)]


# Largest error of any number in y and in grad_x, relative to the root mean square of all.
LARGEST = {
    "fp32": (1e-5, 1e-4),
    "tf32x3": (1e-5, 1e-4),
    "fp16": (5e-3, 5e-2),
    "tf32": (5e-3, 5e-2),
    "bf16": (4e-2, 4e-1),
}


def row_errors(actual, expected):
    """Returns the largest error in each row, [M, B], relative to the root mean square of all."""
    error = (actual.double() - expected.double()).abs().amax(dim=-1)
    return (error / expected.double().square().mean().sqrt()).nan_to_num(torch.inf)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("widths", "activation", "rows"),
    [
        ((3, 32, 32, 2), "prelu", 1000),
        ((3, 32, 32, 2), "silu", 1000),
        pytest.param((3, 256, 256, 256, 256, 2), "prelu", 10_000, marks=pytest.mark.gpu),
        pytest.param((3, 100, 200, 500, 5), "prelu", 10_000, marks=pytest.mark.gpu),
        pytest.param((784, 512, 512, 784), "gelu", 2_000, marks=pytest.mark.gpu),
        pytest.param((3, 256, 256, 2), "silu", 1_000_007, marks=pytest.mark.gpu),
    ],
)
@pytest.mark.usefixtures("poisoned")
def test_large(device, widths, activation, rows, precision):
    """Every row and every parameter is right, and the same bits come out again.

    Programs hand activations on through memory, where a mistake may touch a few rows only.
    """
    shape = MLPShape(widths, activation)
    flat = make_network(shape, device=device)
    x, grad_y = make_batch(shape, rows, device=device)
    if precision in ("fp32", "tf32x3"):
        x = off_kinks(flat, shape, x)
    first, again = (run(flat, shape, x, grad_y, precision) for _ in range(2))
    assert all(map(torch.equal, first, again))
    unsaved, _ = mlp.forward_flat(x, flat, shape, precision, save=False)
    assert torch.equal(unsaved, first[0])

    y, grad_x, grad = first
    expected_y, expected_grad_x, expected_grad = exact(flat, shape, x, grad_y)
    value, point = LARGEST[precision]
    assert row_errors(y, expected_y).max() <= value
    errors = row_errors(grad_x, expected_grad_x)
    if activation != "prelu" or precision in ("fp32", "tf32x3"):
        assert errors.max() <= point
    else:
        assert relative_error(grad_x, expected_grad_x) <= TOLERANCE[precision][2]
    for actual, expected in zip(
        tensors_of(shape.unpack(grad)), tensors_of(shape.unpack(expected_grad)), strict=True
    ):
        assert relative_error(actual, expected) <= TOLERANCE[precision][1]


@pytest.mark.parametrize("rows", [1000, pytest.param(10_000, marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    ("widths", "activation"),
    [
        ((3, 64, 64, 2), "prelu"),
        ((3, 64, 64, 2), "gelu"),
        pytest.param((3, 256, 256, 256, 256, 2), "prelu", marks=pytest.mark.gpu),
        pytest.param((3, 512, 512, 2), "silu", marks=pytest.mark.gpu),
        pytest.param((784, 512, 512, 784), "relu", marks=pytest.mark.gpu),
    ],
)
def test_tf32x3_is_as_accurate_as_float32_of_pytorch(device, widths, activation, rows):
    """The error of y, grad_x and the flat gradient is at most twice that of PyTorch."""
    shape = MLPShape(widths, activation)
    flat = make_network(shape, device=device)
    x, grad_y = make_batch(shape, rows, device=device)
    x = off_kinks(flat, shape, x)
    leaves = [x.requires_grad_(), flat.requires_grad_()]
    plain_y = reference.mlp(x, shape.unpack(flat), shape)
    plain = [plain_y, *torch.autograd.grad(plain_y, leaves, grad_y, materialize_grads=True)]
    with torch.no_grad():
        ours = run(flat, shape, x, grad_y, "tf32x3")
    for actual, theirs, expected in zip(ours, plain, exact(flat, shape, x, grad_y), strict=True):
        limit = 2 * relative_error(theirs, expected) + torch.finfo(torch.float32).eps
        assert relative_error(actual, expected) <= limit
