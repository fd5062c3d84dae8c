"""Networks and batches for tests of the perceptron's kernels, and their comparison with float64."""

import pytest
import torch

from flashpoint.bench.kinks import off_kinks
from flashpoint.kernels.mlp import kernel as mlp
from flashpoint.kernels.mlp import reference

SMALL = (3, 32, 32, 2)
# Largest error of outputs, weight gradients and input gradients, relative to float64. The gradient
# with respect to a row's input jumps wherever rounding moves a z across zero.
TOLERANCE = {
    "fp32": (1e-5, 1e-5, 1e-5),
    "tf32x3": (1e-5, 1e-5, 1e-5),
    "tf32": (2e-3, 2e-2, 1e-1),
    "fp16": (2e-3, 2e-2, 1e-1),
    "bf16": (2e-2, 5e-2, 3e-1),
}
# The interpreter multiplies bf16 matrices wrongly.
PRECISIONS = ("fp32", "tf32x3", "fp16", "tf32", pytest.param("bf16", marks=pytest.mark.gpu))


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    difference = (actual.double() - expected.double()).norm()
    return (difference / expected.double().norm().clamp_min(1e-300)).item() if difference else 0.0


def make_network(shape, models=1, slope=None, device="cpu", seed=0):
    """Returns flat parameters [M, P], initialised like PyTorch's, with slopes from -0.5 to 0.5."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.rand(models, shape.num_parameters, generator=generator) * 2 - 1
    parameters = shape.unpack(flat)
    for weight in parameters.weights:
        weight *= weight.shape[2] ** -0.5
    if parameters.slope is not None:
        parameters.slope.mul_(0.5) if slope is None else parameters.slope.fill_(slope)
    return flat.to(device)


def make_batch(shape, rows, models=1, device="cpu", seed=1):
    """Returns x and a gradient of y that does not average out, like that of a loss."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(models, rows, shape.widths[0], generator=generator)
    grad_y = 1 + torch.randn(models, rows, shape.widths[-1], generator=generator)
    return x.to(device), grad_y.to(device)


def exact(flat, shape, x, grad_y):
    """Returns y, grad_x and the flat gradient, by autograd in float64."""
    x = x.double().requires_grad_()
    flat = flat.double().requires_grad_()
    y = reference.mlp(x, shape.unpack(flat), shape)
    grads = torch.autograd.grad(y, [x, flat], grad_y.double(), materialize_grads=True)
    return y.detach(), *grads


def run(flat, shape, x, grad_y, precision):
    """Returns the same, computed by the kernels."""
    y, saved = mlp.forward_flat(x, flat, shape, precision)
    grad = torch.empty_like(flat)
    grad_x, _ = mlp.backward(grad_y, saved, shape, precision, grad=grad)
    return y, grad_x, grad


def check(flat, shape, x, grad_y, precision):
    if precision in ("fp32", "tf32x3"):
        x = off_kinks(flat, shape, x)
    y, grad_x, grad = run(flat, shape, x, grad_y, precision)
    expected_y, expected_grad_x, expected_grad = exact(flat, shape, x, grad_y)
    value, weight, point = TOLERANCE[precision]
    assert relative_error(y, expected_y) <= value
    assert relative_error(grad_x, expected_grad_x) <= point
    assert relative_error(grad, expected_grad) <= weight
    if precision == "fp32":
        for actual, expected in zip(
            tensors_of(shape.unpack(grad)), tensors_of(shape.unpack(expected_grad)), strict=True
        ):
            assert relative_error(actual, expected) <= weight


def tensors_of(parameters):
    weights, biases, slope = parameters
    return [*weights, *(biases or ()), *(() if slope is None else (slope,))]
