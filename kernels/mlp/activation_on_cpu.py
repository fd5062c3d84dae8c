"""The activations of one network on a CPU, in one pass over memory each, in TorchScript."""

import torch
from torch import Tensor


def activate(z: Tensor, slope: float, activation: str, out: Tensor) -> Tensor:
    """Returns act(z) in ``out``, which may be z, or z itself if there is no activation."""
    if activation == "prelu" or activation == "leaky_relu":
        return torch.ops.aten.leaky_relu(z, slope, out=out)
    if activation == "relu":
        return torch.clamp_min(z, 0, out=out)
    if activation == "silu":
        return torch.ops.aten.silu(z, out=out)
    if activation == "gelu":
        return torch.ops.aten.gelu(z, out=out)
    if activation == "tanh":
        return torch.tanh(z, out=out)
    assert activation == "none"
    return z


def activate_backward_(
    grad_h: Tensor, z: Tensor, h: Tensor, slope: float, activation: str
) -> Tensor:
    """Turns the gradient of h into that of z in place and returns it, given h = act(z).

    Of an activation that is piecewise linear h will do in place of z, if the slope is positive.
    """
    if activation == "prelu" or activation == "leaky_relu":
        return torch.ops.aten.leaky_relu_backward(grad_h, z, slope, False, grad_input=grad_h)
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad_h, z, 0, grad_input=grad_h)
    if activation == "silu":
        return torch.ops.aten.silu_backward(grad_h, z, grad_input=grad_h)
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(grad_h, z, grad_input=grad_h)
    if activation == "tanh":
        return torch.ops.aten.tanh_backward(grad_h, h, grad_input=grad_h)
    assert activation == "none"
    return grad_h
