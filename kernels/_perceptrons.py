"""Runs the multi-layer perceptron that an ``nn.Sequential`` is fused, or those among its layers.

An ``nn.Sequential`` can change at any time: layers are replaced, hooked, parametrised. So every
call looks at all that the reading depends on, and reads anew if something is not as it was. The
tensors themselves are never remembered: each call takes those that the layers hold now.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ._blocks import Block
from ._dispatch import gap_of_precision, log_once, onlooker, problem_of
from ._reading import (
    Part,
    as_block,
    by_kind,
    children_of,
    is_kind,
    kind_of,
    opened,
    read_children,
    tensors_of,
)
from .mlp import (
    PLAIN_TENSORS,
    Arguments,
    autocast_dtype_of,
    faster_in_pytorch,
    gap_of_arguments,
    precision_of,
    read_arguments,
    run_kernels,
)


def run_layers(layers: nn.Sequential, x: Tensor, precision: str | None = None) -> Tensor:
    """Returns ``layers(x)``, computed fused if that is possible now, else layer by layer."""
    arguments = _arguments(layers, None, x, precision)
    if arguments is None:
        return nn.Sequential.forward(layers, x)
    return run_kernels(arguments, precision)


def run_parts(layers: nn.Sequential, parts: Sequence[Part], x: Tensor) -> Tensor:
    """Returns ``layers(x)``, with some parts computed fused if that is possible now."""
    done = 0
    children = list(layers._modules.values())
    for part in parts:
        for child in children[done : part[0]]:
            x = child(x)
        arguments = _arguments(layers, part, x, None)
        if arguments is None:
            for child in children[slice(*part)]:
                x = child(x)
        else:
            x = run_kernels(arguments, None)
        done = part[1]
    for child in children[done:]:
        x = child(x)
    return x


def _arguments(
    layers: nn.Sequential, part: Part | None, x: Tensor, precision: str | None
) -> Arguments | None:
    """Returns the arguments for the kernels, None if the layers themselves have to run."""
    if not _worth_fusing(x) or onlooker() is not None:
        return None
    autocast_dtype = autocast_dtype_of(x)
    gap = faster_in_pytorch(autocast_dtype or x.dtype) if precision is None else None
    if gap is None:
        # Compiled code has guards of its own, and a class with an equality may have no hash.
        if torch.compiler.is_compiling() or type(layers).__hash__ is None:
            read = _read(children_of(layers, part), x)
        else:
            read = _remembered(layers, part, x, autocast_dtype)
        if not isinstance(read, str):
            wrong = gap_of_precision(precision_of(read, precision))
            if wrong is None:
                return read
            read = wrong
        gap = read
    if gap:
        log_once(f"plain PyTorch instead of Triton kernels: {gap}")
    return None


def _read(children: list[Any], x: Tensor) -> Arguments | str:
    """Returns the arguments for the kernels, or the reason why the layers have to run.

    The reason is empty if a user knows it: he changed the layers, or PyTorch will raise an error.
    """
    network = read_children(children)
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
    blocks: list[Block | None] | None  # what each layer is; None if none is a residual block
    settings: list[tuple]  # class and hooks of each layer, those inside blocks too; no hooks
    activation: tuple[str, float] | None
    first: int  # position of the first activation
    tensors: list[tuple]  # class, dtype, device, shape and layout of each tensor
    arguments: tuple  # all of Arguments but the tensors


_readings: WeakKeyDictionary[nn.Sequential, dict[Part | None, _Reading]] = WeakKeyDictionary()


def _remembered(
    layers: nn.Sequential, part: Part | None, x: Tensor, autocast_dtype: torch.dtype | None
) -> Arguments | str:
    """Returns what :func:`_read` does, without reading again what has not changed."""
    call = (x.dtype, x.device, x.shape[-1:], x.layout, autocast_dtype)
    readings = _readings.get(layers)
    reading = None if readings is None else readings.get(part)
    children = children_of(layers, part)
    if reading is not None and reading.call == call:
        tensors = _unchanged_tensors(children, reading)
        if tensors is not None:
            return Arguments(x, tensors, *reading.arguments)
    read = _read(children, x)
    if not isinstance(read, str):
        _readings.setdefault(layers, {})[part] = _reading_of(children, call, read)
    return read


def _reading_of(children: list[Any], call: tuple, arguments: Arguments) -> _Reading:
    """Returns the reading of layers that were just read successfully."""
    blocks = [as_block(child) for child in children] if arguments.shape.residual else None
    flat = children if blocks is None else opened(children, blocks)
    first = 2 if arguments.shape.linear_input else 1
    activations = flat[first::2]
    return _Reading(
        call,
        blocks,
        [(type(child), {}, {}, {}, {}) for child in _seen(children, flat, blocks)],
        kind_of(activations[0]) if activations else None,
        first,
        [_TENSOR(tensor) for tensor in arguments.layers],
        arguments[2:],
    )


def _unchanged_tensors(children: list[Any], reading: _Reading) -> tuple[Tensor, ...] | None:
    """Returns the tensors of layers that are as they were when they were read, else None."""
    flat = children
    if reading.blocks is not None:
        if [*map(as_block, children)] != reading.blocks:
            return None
        flat = opened(children, reading.blocks)
    seen = _seen(children, flat, reading.blocks)
    if (
        [*map(_SETTINGS, seen)] != reading.settings
        or any(["forward" in child.__dict__ for child in seen])  # noqa: C419
        or torch.nn.modules.module._has_any_global_hook()
    ):
        return None
    linears, activations = by_kind(flat, reading.first)
    for activation in dict.fromkeys(activations):
        if not is_kind(activation, reading.activation):
            return None
    try:
        weights, biases, slopes = tensors_of(linears, activations)
    except KeyError:
        return None
    biases = [bias for bias in biases if bias is not None]
    if len(biases) not in (0, len(weights)):
        return None
    tensors = (*weights, *biases, *slopes)
    return tensors if [*map(_TENSOR, tensors)] == reading.tensors else None


def _seen(children: list[Any], flat: list[Any], blocks: list[Block | None] | None) -> list[Any]:
    """Returns all modules that a reading depends on: layers, and those inside blocks."""
    return children if blocks is None else children + flat


def _worth_fusing(x: Tensor) -> bool:
    """Returns True on a GPU; on other devices the layers themselves are fastest."""
    return type(x) in PLAIN_TENSORS and x.is_cuda
