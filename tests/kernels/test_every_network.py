"""Networks of every width and activation at the size of a real batch, against plain PyTorch.

A kernel may be right for one network and wrong for another: tiles, loops and registers differ. A
mistake there may touch only some rows, so tests bound the largest error of all rows, not the norm.
"""

import pytest
import torch

from flashpoint.kernels import (
    ACTIVATIONS,
    Guide,
    MLPShape,
    Network,
    TrainingData,
    draw_prior,
    mlp,
    sample_chain,
    train_step,
)

from .networks import make_network, relative_error, tensors_of
from .training import make_forward_table

CLASSIFIER = MLPShape((3, 100, 200, 500, 5))
DENOISERS = [MLPShape((3, *[width] * 4, 2)) for width in (64, 128, 256, 512)]
OTHERS = [
    MLPShape((3, width, width, 2), activation)
    # The interpreter runs the first one.
    for activation in ("silu", *sorted({*ACTIVATIONS} - {"prelu", "none", "silu"}))
    for width in (128, 256, 512)
]
# The interpreter runs some rows of the smallest network; its products of bf16 are wrong. With fewer
# rows, a single one that rounding moves across the kink of a PReLU would decide a gradient.
ROWS = [150, pytest.param(5000, marks=pytest.mark.gpu)]
PRECISIONS = ["fp16", "tf32", pytest.param("bf16", marks=pytest.mark.gpu)]
# Largest error of any number, relative to the root mean square of all.
VALUE = {"fp16": 0.02, "tf32": 0.02, "bf16": 0.15}
# Error of a gradient, and of samples after a few steps, relative in the norm.
GRADIENT = {"fp16": 2e-2, "tf32": 2e-2, "bf16": 5e-2}


def name_of(shape):
    return f"{shape.activation}-{'-'.join(map(str, shape.widths))}"


def chosen(shapes):
    """Parametrizes a test over all shapes on a GPU, and over the first one without a GPU."""
    small, *others = shapes
    others = [pytest.param(shape, marks=pytest.mark.gpu) for shape in others]
    return pytest.mark.parametrize("shape", [small, *others], ids=name_of)


def parameters_of(shape, device):
    return make_network(shape, seed=1, device=device)


def make_data(device, labels=None, points=1000, steps=100):
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, labels, (1, points), generator=generator).to(device)
    return TrainingData(
        torch.randn(1, points, 2, generator=generator).to(device),
        make_forward_table(steps, 1).to(device),
        torch.linspace(-1, 1, steps, device=device).view(1, -1, 1),
        classes if labels > 1 else None,
        torch.tensor([points], device=device),
        torch.arange(steps, device=device)[None],
    )


def largest_error(actual, expected):
    """Returns the largest error relative to the root mean square, infinity for NaN."""
    error = (
        actual.double() - expected.double()
    ).abs().amax() / expected.double().square().mean().sqrt()
    return error.nan_to_num(torch.inf).item()


def parameter_errors(grad, expected, shape):
    """Returns the relative error of the gradient of each weight, bias and slope."""
    pairs = zip(tensors_of(shape.unpack(grad)), tensors_of(shape.unpack(expected)), strict=True)
    return [relative_error(one, other) for one, other in pairs]


@chosen([DENOISERS[0], CLASSIFIER, *DENOISERS[1:]])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.usefixtures("poisoned")
def test_forward_and_backward(device, shape, precision, rows):
    check_forward_and_backward(device, shape, precision, rows)


@chosen(OTHERS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.usefixtures("poisoned")
def test_other_activations(device, shape, rows):
    check_forward_and_backward(device, shape, "fp16", rows)


def check_forward_and_backward(device, shape, precision, rows):
    x = torch.randn(1, rows, 3, device=device)
    grad_y = 1 + torch.randn(1, rows, shape.widths[-1], device=device)
    results = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "torch")):
        flat = parameters_of(shape, device).to(dtype).requires_grad_()
        y = mlp(
            x.to(dtype), *shape.unpack(flat), activation=shape.activation,
            precision=precision, backend=backend,
        )  # fmt: skip
        results.append((y.detach(), *torch.autograd.grad(y, flat, grad_y.to(dtype))))
    (y, grad), (expected_y, expected_grad) = results
    assert largest_error(y, expected_y) <= VALUE[precision]
    assert max(parameter_errors(grad, expected_grad, shape)) <= GRADIENT[precision]


@chosen([DENOISERS[0], CLASSIFIER, *DENOISERS[1:]])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.usefixtures("poisoned")
def test_training(device, shape, precision, rows):
    data = make_data(device, labels=1 if shape.widths[-1] == 2 else shape.widths[-1])
    flat, options = (
        parameters_of(shape, device),
        {"batch_size": rows, "seed": 3, "step": 5},
    )
    loss, grad = train_step(flat, shape, data, precision=precision, backend="triton", **options)
    expected_loss, expected = train_step(flat, shape, data, backend="torch", **options)
    assert relative_error(loss, expected_loss) <= GRADIENT[precision] / 5
    assert max(parameter_errors(grad, expected, shape)) <= GRADIENT[precision]


@chosen(DENOISERS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.usefixtures("poisoned")
def test_sampling(device, shape, precision, guided, rows):
    judge = CLASSIFIER if rows > 1000 else MLPShape((3, 20, 40, 5))
    steps = 10
    table = torch.tensor([1.01, -0.1, 0.1, 0.5], device=device).expand(1, steps, 4)
    features = torch.linspace(1, -1, steps, device=device).view(1, -1, 1)
    labels = torch.arange(rows, device=device)[None] % 5
    x_T = draw_prior(rows, 2, seed=1, device=device)
    samples, expected = (
        sample_chain(
            Network(parameters_of(shape, device), shape), x_T, table, features, seed=2,
            guide=Guide(Network(parameters_of(judge, device), judge), labels) if guided else None,
            precision=precision, backend=backend,
        )[0]
        for backend in ("triton", "torch")
    )  # fmt: skip
    assert largest_error(samples, expected) <= VALUE[precision]
