"""Reads a multi-layer perceptron out of an ``nn.Sequential`` and runs it fused.

An ``nn.Sequential`` can change at any time: layers are replaced, hooked, parametrised. So it is
read at every call, which costs less than calling its layers one by one.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ._dispatch import log_once, onlooker, problem_of
from .mlp import (
    PLAIN_TENSORS,
    Arguments,
    MLPShape,
    autocast_dtype_of,
    faster_in_pytorch,
    gap_of_arguments,
    gap_of_dtype,
    read_arguments,
    run_kernels,
)
from .mlp.activation import TABLE
from .mlp.layout import gap_of

_ACTIVATION_NAMES = {
    activation.module: name for name, activation in TABLE.items() if activation.module is not None
}


class Layers(NamedTuple):
    """The arguments of :func:`~flashpoint.kernels.mlp`, with the slopes not yet joined."""

    weights: list[Tensor]
    biases: list[Tensor] | None
    slopes: list[Tensor]  # [1] for each activation or for all of them, PReLU only
    activation: str
    negative_slope: float
    linear_input: bool  # True if a second Linear layer follows the first


def run_layers(layers: nn.Sequential, x: Tensor, precision: str | None = None) -> Tensor:
    """Returns ``layers(x)``, computed fused if that is possible now, else layer by layer."""
    arguments = _arguments(layers, x, precision)
    if arguments is None:
        return nn.Sequential.forward(layers, x)
    return run_kernels(arguments, precision)


def _arguments(layers: nn.Sequential, x: Tensor, precision: str | None) -> Arguments | None:
    """Returns the arguments for the kernels, None if the layers themselves have to run."""
    if not _worth_fusing(x) or onlooker() is not None:
        return None
    dtype = autocast_dtype_of(x) or x.dtype
    gap = faster_in_pytorch(dtype) if precision is None else None
    if gap is None:
        network = read_layers(layers)
        if isinstance(network, str):
            return None
        try:
            arguments = read_arguments(x, *network)
        except (TypeError, ValueError):
            return None  # the layers raise PyTorch's own error
        gap = problem_of(x.device) or gap_of_arguments(arguments)
        if gap is None:
            return arguments
    log_once(f"plain PyTorch instead of Triton kernels: {gap}")
    return None


def _worth_fusing(x: Tensor) -> bool:
    """Returns True on a GPU; on other devices the layers themselves are fastest."""
    return type(x) in PLAIN_TENSORS and x.is_cuda


def read_layers(layers: nn.Sequential) -> Layers | str:
    """Returns the perceptron that the layers form, or the reason why they cannot run fused."""
    children: list[Any] = list(layers._modules.values())
    linear_input = len(children) > 3 and all(type(child) is nn.Linear for child in children[:2])
    first = 2 if linear_input else 1  # position of the first activation
    linears, activations = children[:first] + children[first + 1 :: 2], children[first::2]
    distinct = list(dict.fromkeys(activations))
    for position, child in enumerate(children):
        linear = position < first or (position - first) % 2 == 1
        if not linear and position > first and len(distinct) == 1:
            continue  # the shared activation once more
        problem = _problem(child, linear)
        if problem is not None:
            return f"layer {position} ({type(child).__name__}) {problem}"
    if (len(children) - first) % 2 == 1:
        return "the last layer is no Linear layer" if children else "there are no layers"
    # Parameters are read as nn.Module keeps them: asking the module takes ten times as long.
    biases = [linear._parameters["bias"] for linear in linears]
    without = sum(bias is None for bias in biases)
    if without not in (0, len(biases)):
        return "some layers have a bias and some have none"
    if len({_kind(activation) for activation in distinct}) > 1:
        return "the activations differ"
    if torch.nn.modules.module._has_any_global_hook():
        return "there are global hooks"
    activation, negative_slope = _kind(activations[0]) if activations else ("none", 0.0)
    if linear_input and not TABLE[activation].piecewise_linear:
        return f"no activation follows the first layer, as it must with {activation}"
    slopes = [each._parameters["weight"] for each in activations] if activation == "prelu" else []
    return Layers(
        [linear._parameters["weight"] for linear in linears],
        None if without else biases,
        slopes[:1] if all(slope is slopes[0] for slope in slopes) else slopes,
        activation,
        negative_slope,
        linear_input,
    )


def never_fused(network: Layers) -> str | None:
    """Returns why no call of a network can run fused, None if calls can."""
    return gap_of(_shape(network), torch.float32) if _is_whole(network) else None


def not_yet_fused(network: Layers) -> str | None:
    """Returns why a network cannot run fused until its parameters are moved or converted, if so."""
    if not _is_whole(network):
        return "a weight without elements"
    weight = network.weights[0]
    gap = gap_of_dtype(weight.dtype) or gap_of(_shape(network), weight.dtype)
    return gap or (problem_of(weight.device) if weight.is_cuda else None)


def when_fused(network: Layers) -> str | None:
    """Returns the settings in which a network runs fused, None for all settings.

    :func:`.faster_in_pytorch` is the reason.
    """
    if network.weights[0].dtype != torch.float32:
        return None
    return "under autocast and, without gradients, in tf32; else float32 is faster layer by layer"


def _is_whole(network: Layers) -> bool:
    """Returns True if all weights have elements: sharding over ranks leaves some without."""
    return all(len(weight.shape) == 2 and 0 not in weight.shape for weight in network.weights)


def _shape(network: Layers) -> MLPShape:
    weights = network.weights
    widths = (weights[0].shape[-1], *(weight.shape[-2] for weight in weights))
    return MLPShape(widths, network.activation)


def has_hooks(module: nn.Module) -> bool:
    """Returns True if a module has hooks that its call would run."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _problem(layer: nn.Module, linear: bool) -> str | None:
    """Returns why a layer cannot be fused, None if it can."""
    kind = type(layer)
    if (linear and kind is not nn.Linear) or (not linear and kind not in _ACTIVATION_NAMES):
        if is_parametrized(layer):  # which gives the layer a class of its own
            return "has parametrizations"
        return f"stands where {'a Linear layer' if linear else 'an activation'} is needed"
    if has_hooks(layer):
        return "has hooks"
    if "forward" in layer.__dict__:
        return "has a forward of its own"
    if kind in (nn.Linear, nn.PReLU) and "weight" not in layer._parameters:
        return "has its weight elsewhere"  # as in replicas of nn.DataParallel
    for parameter in layer._parameters.values():
        if parameter is not None and type(parameter) not in PLAIN_TENSORS:
            return "has parameters of a tensor subclass"
    return None if linear else TABLE[_ACTIVATION_NAMES[kind]].difference(layer)


def _kind(activation: nn.Module) -> tuple[str, float]:
    """Returns the name and the fixed slope of an activation."""
    slope = activation.negative_slope if type(activation) is nn.LeakyReLU else 0.0
    return _ACTIVATION_NAMES[type(activation)], slope
