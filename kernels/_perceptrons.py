"""Reads a multi-layer perceptron out of an ``nn.Sequential`` and runs it fused.

An ``nn.Sequential`` can change at any time: layers are replaced, hooked, parametrised. So every
call looks at all that the reading depends on, and reads anew if something is not as it was. The
tensors themselves are never remembered: each call takes those that the layers hold now.
"""

from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ._dispatch import gap_of_precision, log_once, onlooker, problem_of
from .mlp import (
    PLAIN_TENSORS,
    Arguments,
    MLPShape,
    autocast_dtype_of,
    faster_in_pytorch,
    gap_of_arguments,
    gap_of_dtype,
    precision_of,
    read_arguments,
    run_kernels,
)
from .mlp.activation import TABLE
from .mlp.layout import gap_of

_ACTIVATION_NAMES = {
    activation.module: name for name, activation in TABLE.items() if activation.module is not None
}
_PARAMETERS = {nn.Linear: ("weight", "bias"), nn.PReLU: ("weight",)}


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
    autocast_dtype = autocast_dtype_of(x)
    gap = faster_in_pytorch(autocast_dtype or x.dtype) if precision is None else None
    if gap is None:
        # Compiled code has guards of its own, and a class with an equality may have no hash.
        if torch.compiler.is_compiling() or type(layers).__hash__ is None:
            read = _read(layers, x)
        else:
            read = _remembered(layers, x, autocast_dtype)
        if not isinstance(read, str):
            wrong = gap_of_precision(precision_of(read, precision))
            if wrong is None:
                return read
            read = wrong
        gap = read
    if gap:
        log_once(f"plain PyTorch instead of Triton kernels: {gap}")
    return None


def _read(layers: nn.Sequential, x: Tensor) -> Arguments | str:
    """Returns the arguments for the kernels, or the reason why the layers have to run.

    The reason is empty if a user knows it: he changed the layers, or PyTorch will raise an error.
    """
    network = read_layers(layers)
    if isinstance(network, str):
        return ""
    try:
        arguments = read_arguments(x, *network)
    except (TypeError, ValueError):
        return ""
    return problem_of(x.device) or gap_of_arguments(arguments) or arguments


# Remembered readings. They hold no tensor and no module, so they keep none of them alive.

_SETTINGS = attrgetter(
    "__class__", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
)
_TENSOR = attrgetter("__class__", "dtype", "device", "shape", "layout")


class _Reading(NamedTuple):
    """A perceptron that the kernels cover, and everything that this depends on."""

    call: tuple  # dtype, device, width and layout of x, and what autocast casts to
    settings: list[tuple]  # class and hooks of each layer; there are none
    activation: tuple[str, float] | None
    first: int  # position of the first activation
    tensors: list[tuple]  # class, dtype, device, shape and layout of each tensor
    arguments: tuple  # all of Arguments but the tensors


_readings: WeakKeyDictionary[nn.Sequential, _Reading] = WeakKeyDictionary()


def _remembered(
    layers: nn.Sequential, x: Tensor, autocast_dtype: torch.dtype | None
) -> Arguments | str:
    """Returns what :func:`_read` does, without reading again what has not changed."""
    call = (x.dtype, x.device, x.shape[-1:], x.layout, autocast_dtype)
    reading = _readings.get(layers)
    if reading is not None and reading.call == call:
        tensors = _unchanged_tensors(layers, reading)
        if tensors is not None:
            return Arguments(x, tensors, *reading.arguments)
    read = _read(layers, x)
    if not isinstance(read, str):
        _readings[layers] = _reading_of(layers, call, read)
    return read


def _reading_of(layers: nn.Sequential, call: tuple, arguments: Arguments) -> _Reading:
    """Returns the reading of layers that were just read successfully."""
    children = list(layers._modules.values())
    first = 2 if arguments.shape.linear_input else 1
    activations = children[first::2]
    return _Reading(
        call,
        [(type(child), {}, {}, {}, {}) for child in children],
        _kind(activations[0]) if activations else None,
        first,
        [_TENSOR(tensor) for tensor in arguments.layers],
        arguments[2:],
    )


def _unchanged_tensors(layers: nn.Sequential, reading: _Reading) -> tuple[Tensor, ...] | None:
    """Returns the tensors of layers that are as they were when they were read, else None."""
    children = list(layers._modules.values())
    if (
        [*map(_SETTINGS, children)] != reading.settings
        or any(["forward" in child.__dict__ for child in children])  # noqa: C419
        or torch.nn.modules.module._has_any_global_hook()
    ):
        return None
    linears, activations = _by_kind(children, reading.first)
    for activation in dict.fromkeys(activations):
        if not _is_kind(activation, reading.activation):
            return None
    try:
        weights, biases, slopes = _tensors_of(linears, activations)
    except KeyError:
        return None
    biases = [bias for bias in biases if bias is not None]
    if len(biases) not in (0, len(weights)):
        return None
    tensors = (*weights, *biases, *slopes)
    return tensors if [*map(_TENSOR, tensors)] == reading.tensors else None


def _by_kind(children: list, first: int) -> tuple[list, list]:
    """Returns the Linear layers and the activations, the first of which has a position."""
    return children[:first] + children[first + 1 :: 2], children[first::2]


def _tensors_of(linears: list, activations: list) -> tuple[list, list, list]:
    """Returns weights, biases, and the slopes of PReLU, in one tensor if they are one."""
    # Parameters are read as nn.Module keeps them: asking the module takes ten times as long.
    slopes = []
    if activations and type(activations[0]) is nn.PReLU:
        slopes = [each._parameters["weight"] for each in activations]
        if all([slope is slopes[0] for slope in slopes]):  # noqa: C419
            slopes = slopes[:1]
    return (
        [linear._parameters["weight"] for linear in linears],
        [linear._parameters["bias"] for linear in linears],
        slopes,
    )


def _worth_fusing(x: Tensor) -> bool:
    """Returns True on a GPU; on other devices the layers themselves are fastest."""
    return type(x) in PLAIN_TENSORS and x.is_cuda


def read_layers(layers: nn.Sequential) -> Layers | str:
    """Returns the perceptron that the layers form, or the reason why they cannot run fused."""
    children: list[Any] = list(layers._modules.values())
    linear_input = len(children) > 3 and all(type(child) is nn.Linear for child in children[:2])
    first = 2 if linear_input else 1  # position of the first activation
    linears, activations = _by_kind(children, first)
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
    if len({_kind(activation) for activation in distinct}) > 1:
        return "the activations differ"
    weights, biases, slopes = _tensors_of(linears, activations)
    without = sum(bias is None for bias in biases)
    if without not in (0, len(biases)):
        return "some layers have a bias and some have none"
    if torch.nn.modules.module._has_any_global_hook():
        return "there are global hooks"
    for before, weight in pairwise(weights):
        if _is_matrix(before) and _is_matrix(weight) and weight.shape[1] != before.shape[0]:
            return f"a layer of {weight.shape[1]} inputs follows one of {before.shape[0]} outputs"
    activation, negative_slope = _kind(activations[0]) if activations else ("none", 0.0)
    if linear_input and not TABLE[activation].piecewise_linear:
        return f"no activation follows the first layer, as it must with {activation}"
    return Layers(
        weights, None if without else biases, slopes, activation, negative_slope, linear_input
    )


def never_fused(network: Layers) -> str | None:
    """Returns why no call of a network can run fused, None if calls can."""
    return gap_of(_shape(network), torch.float32) if _is_whole(network) else None


def not_yet_fused(network: Layers) -> str | None:
    """Returns why a network cannot run fused until its parameters are moved or converted, if so."""
    if not _is_whole(network):
        return "a weight that is no whole matrix"
    weight = network.weights[0]
    gap = gap_of_dtype(weight.dtype) or gap_of(_shape(network), weight.dtype)
    return gap or (problem_of(weight.device) if weight.is_cuda else None)


def when_fused(network: Layers) -> str | None:
    """Returns the settings in which a network runs fused, None for all settings.

    :func:`.faster_in_pytorch` is the reason.
    """
    weight = network.weights[0]
    if weight.dtype != torch.float32:
        return None if weight.is_cuda else "on a GPU"
    settings = (
        "under autocast and, without gradients, in tf32; else float32 is faster layer by layer"
    )
    return settings if weight.is_cuda else f"on a GPU, {settings}"


def _is_whole(network: Layers) -> bool:
    """Returns True if all weights are whole matrices."""
    return all(map(_is_matrix, network.weights))


def _is_matrix(weight: Tensor) -> bool:
    """Returns True if a weight is a matrix with elements: sharding over ranks leaves others."""
    return len(weight.shape) == 2 and 0 not in weight.shape


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
    for name in _PARAMETERS.get(kind, ()):
        if name not in layer._parameters:
            return f"has its {name} elsewhere"  # as in replicas of nn.DataParallel
    for parameter in layer._parameters.values():
        if parameter is not None and type(parameter) not in PLAIN_TENSORS:
            return "has parameters of a tensor subclass"
    return None if linear else TABLE[_ACTIVATION_NAMES[kind]].difference(layer)


def _is_kind(activation: nn.Module, kind: tuple[str, float] | None) -> bool:
    """Returns True if an activation, of a class that can be fused, is of a kind."""
    return _kind(activation) == kind and TABLE[kind[0]].difference(activation) is None


def _kind(activation: nn.Module) -> tuple[str, float]:
    """Returns the name and the fixed slope of an activation."""
    slope = activation.negative_slope if type(activation) is nn.LeakyReLU else 0.0
    return _ACTIVATION_NAMES[type(activation)], slope
