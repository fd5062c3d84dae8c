"""Reading a multi-layer perceptron out of an ``nn.Sequential``, and running it fused.

An ``nn.Sequential`` can change at any time: layers are replaced, hooked, parametrised. So it is
read at every call, which costs less than calling its layers one by one.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .mlp import mlp

ACTIVATIONS = {
    nn.PReLU: "prelu",
    nn.LeakyReLU: "leaky_relu",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Tanh: "tanh",
}
_PLAIN_TENSORS = (Tensor, nn.Parameter)


class Layers(NamedTuple):
    """The arguments of :func:`~flashpoint.kernels.mlp`, but for the slopes not yet joined."""

    weights: list[Tensor]
    biases: list[Tensor] | None
    slopes: list[Tensor]  # [1] for each hidden layer, PReLU only
    activation: str
    negative_slope: float


def run_layers(layers: nn.Sequential, x: Tensor, precision: str | None = None) -> Tensor:
    """``layers(x)``: fused if that is possible now, else one by one."""
    if not _worth_fusing(x) or isinstance(network := read_layers(layers), str):
        return nn.Sequential.forward(layers, x)
    weights, biases, slopes, activation, negative_slope = network
    shared = all(slope is slopes[0] for slope in slopes)
    return mlp(
        x,
        weights,
        biases,
        (slopes[0] if shared else torch.cat(slopes)) if slopes else None,
        activation=activation,
        negative_slope=negative_slope,
        precision=precision,
    )


def _worth_fusing(x: Tensor) -> bool:
    """Elsewhere than on a GPU the layers themselves are fastest."""
    return x.is_cuda and type(x) in _PLAIN_TENSORS


def read_layers(layers: nn.Sequential) -> Layers | str:
    """The perceptron that the layers are, or in a few words why they cannot be run fused."""
    children = list(layers)
    for position, child in enumerate(children):
        problem = _problem(child, linear=position % 2 == 0)
        if problem:
            return f"layer {position} ({type(child).__name__}) {problem}"
    if len(children) % 2 == 0:
        return "the last layer is no Linear layer" if children else "there are no layers"
    linears, activations = children[0::2], children[1::2]
    if len({linear.bias is None for linear in linears}) > 1:
        return "some layers have a bias and some have none"
    if len({_kind(activation) for activation in activations}) > 1:
        return "the activations differ"
    if torch.nn.modules.module._has_any_global_hook():
        return "there are global hooks"
    activation, negative_slope = _kind(activations[0]) if activations else ("none", 0.0)
    return Layers(
        [linear.weight for linear in linears],
        None if linears[0].bias is None else [linear.bias for linear in linears],
        [each.weight for each in activations] if activation == "prelu" else [],
        activation,
        negative_slope,
    )


def has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _problem(layer: nn.Module, linear: bool) -> str | None:
    """Why a layer cannot be fused, if so."""
    kind = type(layer)
    if is_parametrized(layer):
        return "has parametrizations"
    if linear and kind is not nn.Linear:
        return "stands where a Linear layer is needed"
    if not linear and kind not in ACTIVATIONS:
        return "stands where an activation is needed"
    if has_hooks(layer):
        return "has hooks"
    if "forward" in layer.__dict__:
        return "has a forward of its own"
    if any(
        type(tensor) not in _PLAIN_TENSORS
        for tensor in layer._parameters.values()
        if tensor is not None
    ):
        return "has parameters of a tensor subclass"
    if kind is nn.PReLU and layer.num_parameters != 1:
        return "has a slope for each column"
    if kind is nn.GELU and layer.approximate != "none":
        return "is an approximation"
    return None


def _kind(activation: nn.Module) -> tuple[str, float]:
    """Name and fixed slope."""
    return ACTIVATIONS[type(activation)], getattr(activation, "negative_slope", 0.0)
