"""Residual layers, h + act(W h + b), against PyTorch's own autograd in float64."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from flashpoint.kernels import MLPShape, Network, mlp, sample_chain, workspace_of
from flashpoint.kernels.mlp import kernel as portable
from flashpoint.kernels.mlp import launches, operator, reference
from flashpoint.kernels.train_step import TrainingData

from .networks import PRECISIONS, check, make_batch, make_network, relative_error, run

ACTIVATIONS = {
    "prelu": nn.PReLU, "leaky_relu": nn.LeakyReLU, "relu": nn.ReLU, "silu": nn.SiLU,
    "gelu": nn.GELU, "tanh": nn.Tanh, "none": nn.Identity,
}  # fmt: skip


class Plain(nn.Module):
    """A residual network in modules of PyTorch, written without this package."""

    def __init__(self, widths, activation, bias=True, linear_input=False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=bias) for i, o in pairwise(widths))
        self.act = ACTIVATIONS[activation]()
        self.linear_input = linear_input

    def forward(self, x):
        first, *blocks, last = self.layers
        h = first(x) if self.linear_input else self.act(first(x))
        for layer in blocks:
            h = h + self.act(layer(h))
        return last(h)

    def arguments(self, activation):
        biases = [layer.bias for layer in self.layers]
        return {
            "weights": [layer.weight for layer in self.layers],
            "biases": None if biases[0] is None else biases,
            "slope": self.act.weight if activation == "prelu" else None,
            "activation": activation,
            "linear_input": self.linear_input,
            "residual": True,
        }


def double_results(model, x, grad_y):
    """Returns y and the gradients of x and of all parameters, in float64."""
    model = model.double()
    x = x.detach().double().requires_grad_()
    y = model(x)
    return y.detach(), *torch.autograd.grad(y, [x, *model.parameters()], grad_y.double())


def rows_of(kind, rows, width):
    """Returns x [rows, width] in memory of a kind."""
    if kind == "strided":
        return torch.randn(width, rows + 3).T[1 : rows + 1]
    if kind == "expanded":
        return torch.randn(1, width).expand(rows, width)
    return torch.randn(rows, width)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(
    ("rows", "kind"),
    [(0, "dense"), (1, "dense"), (63, "strided"), (65, "dense"), (65, "strided"), (65, "expanded")],
)
@pytest.mark.usefixtures("poisoned")
def test_any_rows_like_modules_in_float64(device, rows, kind, backend):
    torch.manual_seed(0)
    model = Plain((5, 24, 24, 24, 3), "gelu")
    x, grad_y = rows_of(kind, rows, 5), torch.randn(rows, 3)
    expected = double_results(copy.deepcopy(model), x, grad_y)
    model, x = model.to(device), x.to(device).requires_grad_()
    y = mlp(x, **model.arguments("gelu"), precision="fp32", backend=backend)
    found = torch.autograd.grad(y, [x, *model.parameters()], grad_y.to(device))
    for ours, theirs in zip((y, *found), expected, strict=True):
        assert relative_error(ours, theirs.to(device)) <= 1e-5


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.usefixtures("poisoned")
def test_activations_and_precisions(device, activation, precision):
    shape = MLPShape((3, 24, 24, 24, 2), activation, residual=True)
    flat = make_network(shape, device=device)
    check(flat, shape, *make_batch(shape, 65, device=device), precision)


@pytest.mark.parametrize(
    ("widths", "options"),
    [
        ((3, 7, 2), {"activation": "relu"}),  # no layer is residual
        ((3, 2), {"activation": "relu"}),
        ((16, 16, 16, 16), {"activation": "silu", "bias": False}),  # the first layer is not
        ((3, 20, 20, 20, 2), {"slopes": 3}),
        ((3, 20, 20, 20, 2), {"slopes": 2, "linear_input": True}),
        ((3, 16, 16, 2), {"activation": "relu", "linear_input": True}),
        ((3, 130, 130, 130, 2), {"activation": "tanh"}),
        ((70, 32, 32, 32, 2), {"activation": "gelu"}),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.usefixtures("poisoned")
def test_widths(device, widths, options, precision):
    shape = MLPShape(widths, residual=True, **options)
    flat = make_network(shape, device=device)
    check(flat, shape, *make_batch(shape, 65, device=device), precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.usefixtures("poisoned")
def test_models_are_independent(device, precision):
    shape = MLPShape((3, 40, 40, 40, 2), "gelu", residual=True)
    flat = make_network(shape, models=3, device=device)
    x, grad_y = make_batch(shape, 100, models=3, device=device)
    together = run(flat, shape, x, grad_y, precision)
    for model in range(3):
        one = slice(model, model + 1)
        alone = run(flat[one], shape, x[one], grad_y[one], precision)
        for ours, all_models in zip(alone, together, strict=True):
            assert relative_error(all_models[one], ours) <= 1e-6


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.usefixtures("poisoned")
def test_passes_that_keep_no_rows_agree(device, precision, monkeypatch):
    """Without weight gradients a program uses its own rows over and over."""
    monkeypatch.setattr(portable, "slots", lambda *_: 1)
    shape = MLPShape((3, 20, 20, 20, 2), "gelu", residual=True)
    flat = make_network(shape, device=device)
    x, grad_y = make_batch(shape, 130, device=device)
    y, grad_x, _ = run(flat, shape, x, grad_y, precision)
    free, _ = portable.forward_flat(x, flat, shape, precision, save=False)
    _, saved = portable.forward_flat(x, flat, shape, precision)
    alone, _ = portable.backward(grad_y, saved, shape, precision, need_weights=False)
    assert torch.equal(free, y)
    assert torch.equal(alone, grad_x)


def test_two_runs_give_the_same_bits(device):
    shape = MLPShape((3, 20, 20, 20, 2), "gelu", residual=True)
    flat = make_network(shape, device=device)
    batch = make_batch(shape, 130, device=device)
    for first, second in zip(*(run(flat, shape, *batch, "fp16") for _ in range(2)), strict=True):
        assert torch.equal(first, second)


def test_derivatives_of_the_reference_and_of_the_operators():
    shape = MLPShape((3, 4, 4, 4, 2), "tanh", residual=True)
    flat = make_network(shape).double()
    layers = [each.requires_grad_() for each in (*shape.unpack(flat)[0], *shape.unpack(flat)[1])]
    x = torch.randn(1, 5, 3, dtype=torch.float64, requires_grad=True)

    def output(x, *layers):
        parameters = operator.parameters_of(layers, shape)
        return operator.mlp(x, parameters, shape, None)

    assert gradcheck(output, (x, *layers), fast_mode=True)
    assert gradgradcheck(output, (x, *layers), fast_mode=True)
    y, inputs, z = reference.forward(x, shape.unpack(flat), shape)
    torch.testing.assert_close(y, reference.mlp(x, shape.unpack(flat), shape))
    grad_y = torch.randn_like(y)
    (expected,) = torch.autograd.grad(reference.mlp(x, shape.unpack(flat), shape), x, grad_y)
    found = reference.input_gradient(
        grad_y, [each.detach() for each in z], shape.unpack(flat), shape
    )
    torch.testing.assert_close(found, expected)
    assert len(inputs) == 4


@pytest.mark.parametrize("precision", [None, "fp16"])
def test_compiled_operators_agree_with_eager_calls(device, precision):
    torch.manual_seed(0)
    model = Plain((3, 16, 16, 16, 2), "gelu").to(device)
    backend = "torch" if precision is None else "triton"

    def step(x):
        return mlp(x, **model.arguments("gelu"), precision=precision, backend=backend)

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        x = torch.linspace(-1, 1, 15, device=device).view(5, 3).requires_grad_()
        y = function(x)
        results.append([y, *torch.autograd.grad(y.sum(), [x, *model.parameters()])])
    torch.testing.assert_close(*results)


def test_the_portable_kernels_run_on_every_gpu(device):
    """The form for Hopper GPUs has no residual layers."""
    shape = MLPShape((3, 128, 128, 128, 2), "relu", residual=True)
    assert launches._form(shape, "fp16", device) == "portable"


def test_what_is_refused():
    with pytest.raises(
        ValueError, match="residual must be False unless all hidden layers have one"
    ):
        MLPShape((3, 8, 16, 2), residual=True)
    with pytest.raises(TypeError, match="residual must be True or False"):
        MLPShape((3, 8, 8, 2), residual=1)
    x, weights = torch.ones(4, 3), [torch.ones(8, 3), torch.ones(9, 8), torch.ones(2, 9)]
    with pytest.raises(
        ValueError, match="residual must be False unless all hidden layers have one"
    ):
        mlp(x, weights, activation="relu", residual=True)


def test_operations_without_residual_layers_refuse_them():
    shape = MLPShape((3, 8, 8, 2), residual=True)
    flat = make_network(shape)
    data = TrainingData(
        points=torch.ones(1, 4, 2), labels=None, n_points=torch.tensor([4]),
        forward_table=torch.ones(1, 3, 5), t_table=torch.zeros(1, 3, dtype=torch.int64),
        time_features=torch.ones(1, 3, 1),
    )  # fmt: skip
    message = "must have no residual layers, which only mlp computes"
    with pytest.raises(ValueError, match=f"^shape {message}"):
        workspace_of(flat, shape, data, 4)
    table, features = torch.ones(1, 3, 4), torch.ones(1, 3, 1)
    with pytest.raises(ValueError, match=f"^denoiser.shape {message}"):
        sample_chain(Network(flat, shape), torch.ones(1, 4, 2), table, features, seed=0)
