"""Reads a multi-layer perceptron out of consecutive modules.

Linear layers alternate with one kind of activation; a residual block stands for one of each.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ._blocks import Block, block_of, expression_of
from ._dispatch import problem_of
from .mlp import PLAIN_TENSORS, MLPShape, gap_of_dtype
from .mlp.activation import TABLE
from .mlp.layout import gap_of

_ACTIVATION_NAMES = {
    activation.module: name for name, activation in TABLE.items() if activation.module is not None
}
Part = tuple[int, int]  # start and stop of consecutive layers
_PARAMETERS = {nn.Linear: ("weight", "bias"), nn.PReLU: ("weight",)}


class Layers(NamedTuple):
    """The arguments of :func:`~flashpoint.kernels.mlp`, with the slopes not yet joined."""

    weights: list[Tensor]
    biases: list[Tensor] | None
    slopes: list[Tensor]  # [1] for each activation or for all of them, PReLU only
    activation: str
    negative_slope: float
    linear_input: bool  # True if a second Linear layer follows the first
    residual: bool  # True if all hidden layers but the first are residual blocks


def children_of(layers: nn.Sequential, part: Part | None) -> list[Any]:
    """Returns the layers, or those of a part."""
    children = list(layers._modules.values())
    return children if part is None else children[slice(*part)]


def read_layers(layers: nn.Sequential) -> Layers | str:
    """Returns the perceptron that the layers form, or the reason why they cannot run fused."""
    return read_children(children_of(layers, None))


def read_children(children: list[Any]) -> Layers | str:
    """Returns the perceptron that consecutive layers form, or why they cannot run fused."""
    blocks = [as_block(child) for child in children]
    flat = opened(children, blocks)
    linear_input = len(flat) > 3 and all(type(child) is nn.Linear for child in flat[:2])
    first = 2 if linear_input else 1  # position of the first activation
    linears, activations = by_kind(flat, first)
    distinct = list(dict.fromkeys(activations))
    problem = _problem_of_blocks(children, blocks) or _problem_of_layers(
        flat, _names(blocks), first, shared=len(distinct) == 1
    )
    if problem is not None:
        return problem
    if (len(flat) - first) % 2 == 1:
        return "the last layer is no Linear layer" if flat else "there are no layers"
    misplaced = _problem_of_places(blocks, len(linears) - 1)
    if misplaced is not None:
        return misplaced
    if len({kind_of(activation) for activation in distinct}) > 1:
        return "the activations differ"
    weights, biases, slopes = tensors_of(linears, activations)
    without = sum(bias is None for bias in biases)
    if without not in (0, len(biases)):
        return "some layers have a bias and some have none"
    if torch.nn.modules.module._has_any_global_hook():
        return "there are global hooks"
    for before, weight in pairwise(weights):
        if _is_matrix(before) and _is_matrix(weight) and weight.shape[1] != before.shape[0]:
            return f"a layer of {weight.shape[1]} inputs follows one of {before.shape[0]} outputs"
    activation, negative_slope = kind_of(activations[0]) if activations else ("none", 0.0)
    if linear_input and not TABLE[activation].piecewise_linear:
        return f"no activation follows the first layer, as it must with {activation}"
    return Layers(
        weights, None if without else biases, slopes, activation, negative_slope, linear_input,
        residual=any(blocks),
    )  # fmt: skip


def _names(blocks: list[Block | None]) -> list[str]:
    """Returns the names of layers and of those inside blocks, as in a state_dict."""
    names = []
    for position, block in enumerate(blocks):
        if block is None:
            names.append(f"{position}")
        else:
            names += [f"{position}.{block.linear}", f"{position}.{block.activation}"]
    return names


def _problem_of_blocks(children: list[Any], blocks: list[Block | None]) -> str | None:
    """Returns why the residual blocks among layers cannot be fused, None if they can."""
    for position, (child, block) in enumerate(zip(children, blocks, strict=True)):
        if block is None:
            continue
        problem = _problem_of_call(child) or _problem_inside(*opened([child], [block]))
        if problem is not None:
            return f"layer {position} ({type(child).__name__}) {problem}"
    return None


def _problem_of_places(blocks: list[Block | None], hidden: int) -> str | None:
    """Returns which residual block is at a place where the kernels have none, None if none is.

    Args:
        blocks: what each layer is.
        hidden: number of hidden layers.
    """
    count = sum(block is not None for block in blocks)
    if count and blocks[0] is not None:
        return "a residual block comes first, where a Linear layer is needed"
    if count not in (0, hidden - 1):
        return "some hidden layers are residual and some are not"
    return None


def _problem_inside(linear: nn.Module | None, activation: nn.Module | None) -> str | None:
    """Returns why the two modules of a residual block cannot be fused, None if they can."""
    if not isinstance(linear, nn.Linear):
        return f"has a {type(linear).__name__} where a Linear layer is needed"
    if type(activation) not in _ACTIVATION_NAMES:
        return f"has a {type(activation).__name__} where an activation is needed"
    weight = linear._parameters.get("weight")
    if weight is not None and _is_matrix(weight) and weight.shape[0] != weight.shape[1]:
        return f"maps {weight.shape[1]} inputs to {weight.shape[0]} outputs"
    return None


def _problem_of_layers(flat: list[Any], names: list[str], first: int, shared: bool) -> str | None:
    """Returns which of the layers cannot be fused and why, None if all can."""
    for position, child in enumerate(flat):
        linear = position < first or (position - first) % 2 == 1
        if not linear and position > first and shared:
            continue  # the shared activation once more
        problem = _problem(child, linear)
        if problem is not None:
            return f"layer {names[position]} ({type(child).__name__}) {problem}"
    return None


def described(network: Layers) -> str:
    """Returns the widths, the activation and the number of residual blocks in words."""
    weights = network.weights
    widths = [weights[0].shape[-1:], *(weight.shape[:1] for weight in weights)]
    blocks = len(weights) - 2
    return ", ".join((
        "-".join(str(*width) for width in widths),
        network.activation,
        *(["linear input"] if network.linear_input else []),
        *([f"{blocks} residual block{'s' * (blocks > 1)}"] if network.residual else []),
    ))  # fmt: skip


def runs_of(children: list[Any]) -> list[Part]:
    """Returns the parts of layers that form perceptrons with a hidden layer, longest first chosen.

    The parts are in the order of the layers and do not overlap.
    """
    count = len(children)
    for length in range(count, 2, -1):
        for start in range(count - length + 1):
            stop = start + length
            if not type(children[start]) is type(children[stop - 1]) is nn.Linear:
                continue
            network = read_children(children[start:stop])
            if isinstance(network, str) or len(network.weights) == 1 or never_fused(network):
                continue
            after = [(stop + a, stop + b) for a, b in runs_of(children[stop:])]
            return [*runs_of(children[:start]), (start, stop), *after]
    return []


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
    return MLPShape(widths, network.activation, residual=network.residual)


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
        place = f"stands where {'a Linear layer' if linear else 'an activation'} is needed"
        return f"{place}{_computes(layer)}"
    problem = _problem_of_call(layer)
    if problem is not None:
        return problem
    for name in _PARAMETERS.get(kind, ()):
        if name not in layer._parameters:
            return f"has its {name} elsewhere"  # as in replicas of nn.DataParallel
    for parameter in layer._parameters.values():
        if parameter is not None and type(parameter) not in PLAIN_TENSORS:
            return "has parameters of a tensor subclass"
    return None if linear else TABLE[_ACTIVATION_NAMES[kind]].difference(layer)


def _problem_of_call(layer: nn.Module) -> str | None:
    """Returns why a call of a layer may do more than its class says, None if it does not."""
    if has_hooks(layer):
        return "has hooks"
    return "has a forward of its own" if "forward" in layer.__dict__ else None


def _computes(layer: nn.Module | None) -> str:
    """Returns what a module with Linear layers inside computes, in words, if it can be told."""
    if layer is None or not any(type(child) is nn.Linear for child in layer._modules.values()):
        return ""
    found = expression_of(type(layer))
    return "" if found is None else f": it computes {found}, not x + act(linear(x))"


def is_kind(activation: nn.Module, kind: tuple[str, float] | None) -> bool:
    """Returns True if an activation, of a class that can be fused, is of a kind."""
    return kind_of(activation) == kind and TABLE[kind[0]].difference(activation) is None


def kind_of(activation: nn.Module) -> tuple[str, float]:
    """Returns the name and the fixed slope of an activation."""
    slope = activation.negative_slope if type(activation) is nn.LeakyReLU else 0.0
    return _ACTIVATION_NAMES[type(activation)], slope


def as_block(child: Any) -> Block | None:
    """Returns how a layer is a residual block, None if it is another layer."""
    kind = type(child)
    return None if kind is nn.Linear or kind in _ACTIVATION_NAMES else block_of(kind)


def opened(children: list[Any], blocks: list[Block | None]) -> list[Any]:
    """Returns layers with the Linear layer and the activation of each block in its place."""
    flat: list[Any] = []
    for child, block in zip(children, blocks, strict=True):
        if block is None:
            flat.append(child)
        else:
            flat += [child._modules.get(block.linear), child._modules.get(block.activation)]
    return flat


def by_kind(children: list, first: int) -> tuple[list, list]:
    """Returns the Linear layers and the activations, the first of which has a position."""
    return children[:first] + children[first + 1 :: 2], children[first::2]


def tensors_of(linears: list, activations: list) -> tuple[list, list, list]:
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
