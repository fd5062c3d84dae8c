"""The table of activations: each entry against PyTorch's module, and against its own flags."""

import pytest
import torch
from torch import nn

from flashpoint.kernels.mlp import MLPShape
from flashpoint.kernels.mlp import kernel as mlp
from flashpoint.kernels.mlp.activation import TABLE

from .networks import make_batch, make_network

SLOPES = {"prelu": torch.full((1, 1, 1), 0.3, dtype=torch.float64), "leaky_relu": 0.3}
each_activation = pytest.mark.parametrize("name", TABLE)


def module_of(name):
    if name == "none":
        return nn.Identity()
    module = TABLE[name].module().double()
    if name == "prelu":
        nn.init.constant_(module.weight, 0.3)
    elif name == "leaky_relu":
        module.negative_slope = 0.3
    return module


def backward(name, grad_h, z):
    """Returns the gradient of z, and that of the slope or None."""
    return TABLE[name].backward(grad_h.clone(), z, SLOPES.get(name))


@each_activation
def test_values_and_gradients_are_those_of_the_module(name):
    z = torch.randn(1, 50, 7, dtype=torch.float64, requires_grad=True)
    grad_h, module = torch.randn_like(z), module_of(name)
    expected = module(z)
    h = TABLE[name].function(z.detach(), SLOPES.get(name))
    torch.testing.assert_close(h, expected.detach())
    grad_z, grad_slope = backward(name, grad_h, z.detach())
    leaves = [z, *module.parameters()]
    expected_z, *expected_slope = torch.autograd.grad(expected, leaves, grad_h)
    torch.testing.assert_close(grad_z, expected_z)
    assert (grad_slope is None) == (name != "prelu")
    if grad_slope is not None:
        torch.testing.assert_close(grad_slope, *expected_slope)


@each_activation
def test_a_piecewise_linear_activation_grows_with_its_input(name):
    z = torch.randn(1, 50, 7, dtype=torch.float64)
    h, larger = (TABLE[name].function(scale * z, SLOPES.get(name)) for scale in (1, 2))
    assert torch.allclose(larger, 2 * h) == TABLE[name].piecewise_linear


@pytest.mark.parametrize("name", [name for name in TABLE if not TABLE[name].reads_z])
def test_outputs_tell_the_derivative_of_what_does_not_read_z(name):
    z = torch.randn(1, 50, 7, dtype=torch.float64)
    h, grad_h = TABLE[name].function(z, SLOPES.get(name)), torch.randn_like(z)
    assert torch.equal(backward(name, grad_h, h)[0], backward(name, grad_h, z)[0])


def messages(error):
    """Yields the messages of an error and of its causes."""
    while error is not None:
        yield str(error)
        error = error.__cause__


@pytest.mark.parametrize("without", ["activate", "activate_backward"])
def test_a_kernel_without_a_branch_for_an_activation_does_not_compile(device, monkeypatch, without):
    monkeypatch.setitem(TABLE, "unheard of", TABLE["none"])
    known, unheard_of = (MLPShape((3, 16, 16, 2), name) for name in ("none", "unheard of"))
    flat = make_network(known, device=device)
    x, grad_y = make_batch(known, 5, device=device)
    _, saved = mlp.forward_flat(x, flat, known, "fp32")
    launches = {
        "activate": lambda: mlp.forward_flat(x, flat, unheard_of, "fp32"),
        "activate_backward": lambda: mlp.backward(grad_y, saved, unheard_of, "fp32"),
    }
    with pytest.raises(Exception) as caught:  # noqa: PT011
        launches[without]()
    assert any(f"{without}() has no branch" in message for message in messages(caught.value))
