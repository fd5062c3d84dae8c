"""The weights as operands of the matrix products: rounded to their precision and padded."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cuda import device_of
from .arithmetic import operand
from .config import OPERAND_DTYPES
from .layout import Layout, layout_of
from .shape import MLPShape

_BLOCK = 1024  # weights that a program writes


@triton.jit
def operand_kernel(layers_ptr, flat_ptr, weights_ptr, NET: tl.constexpr, BLOCK: tl.constexpr):
    """Writes the operand weights of all layers; grid (blocks, layers, M).

    The parameters are read from one flat buffer, or layer by layer, from wherever they lie. In the
    second case they are also copied to the flat buffer, from which other kernels read biases and
    slopes.

    Args:
        layers_ptr: tuple of float [M, out, in] weights, then [M, out] biases, then [M, slopes]
            slopes in one tensor or several, all contiguous; None to read the flat parameters.
        flat_ptr: float32 [M, P], flat parameters; written if there are ``layers_ptr``.
        weights_ptr: [M, size], the operand weights, operand dtype; written.
        NET: :class:`~.layout.Layout` of the networks.
        BLOCK: weights that a program writes.
    """
    LAYERS: tl.constexpr = NET.layers
    FIRST_SLOPES: tl.constexpr = LAYERS * (2 if NET.shape.bias else 1)
    block = tl.program_id(0)
    model = tl.program_id(2).to(tl.int64)
    flat = flat_ptr + model * NET.shape.num_parameters
    weights = weights_ptr + model * NET.weights[LAYERS]
    for layer in tl.static_range(LAYERS):
        if tl.program_id(1) == layer:
            target = flat + NET.flat[layer]
            if layers_ptr is None:
                _write_layer(target, weights, None, block, NET, layer, BLOCK)
            else:
                IN: tl.constexpr = NET.shape.widths[layer]
                OUT: tl.constexpr = NET.shape.widths[layer + 1]
                source = layers_ptr[layer] + model * (OUT * IN)
                _write_layer(source, weights, target, block, NET, layer, BLOCK)
                if NET.shape.bias:
                    source = layers_ptr[LAYERS + layer] + model * OUT
                    _copy(source, target + OUT * IN, block, OUT, BLOCK)
    if layers_ptr is not None and NET.shape.activation == "prelu":
        SLOPES: tl.constexpr = NET.shape.slopes // (len(layers_ptr) - FIRST_SLOPES)  # of a tensor
        if tl.program_id(1) == 0:
            for i in tl.static_range(len(layers_ptr) - FIRST_SLOPES):
                source = layers_ptr[FIRST_SLOPES + i] + model * SLOPES
                _copy(source, flat + NET.flat[LAYERS] + i * SLOPES, block, SLOPES, BLOCK)


@triton.jit
def _write_layer(
    source, weights, copy, block, NET: tl.constexpr, LAYER: tl.constexpr, BLOCK: tl.constexpr
):
    """Writes a block of a layer's operand weights, given its weights [out, in].

    Unless ``copy`` is None, they are written there too, as they are.
    """
    IN: tl.constexpr = NET.shape.widths[LAYER]
    OUT: tl.constexpr = NET.shape.widths[LAYER + 1]
    PADDED_IN: tl.constexpr = NET.padded[LAYER]
    PADDED_OUT: tl.constexpr = NET.padded[LAYER + 1]
    element = block * BLOCK + tl.arange(0, BLOCK)
    row, column = element // PADDED_IN, element % PADDED_IN
    inside = (row < OUT) & (column < IN)
    place = row * IN + column
    if LAYER == 0 and NET.split:  # the rest of an input meets the weight of its rounded part
        column = tl.where(column < 2 * IN, column % IN, column)
    weight = tl.load(source + row * IN + column, mask=(row < OUT) & (column < IN), other=0.0)
    weight = weight.to(tl.float32)
    tl.store(
        weights + NET.weights[LAYER] + element,
        operand(weight, weights.dtype.element_ty, NET),
        mask=element < PADDED_IN * PADDED_OUT,
    )
    if copy is not None:
        tl.store(copy + place, weight, mask=inside)


@triton.jit
def _copy(source, target, block, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Writes a block of SIZE elements as float32."""
    if block * BLOCK < SIZE:
        element = block * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(source + element, mask=element < SIZE, other=0.0)
        tl.store(target + element, value.to(tl.float32), mask=element < SIZE)


def operand_weights(flat: Tensor, shape: MLPShape, precision: str) -> Tensor:
    """Returns the weights as the matrix products read them, [M, size], operand dtype.

    Args:
        flat: float [M, P], flat parameters.
        shape: shape of the networks.
        precision: precision of the matrix products, one of :data:`.config.OPERAND_DTYPES`.
    """
    flat = flat.float().contiguous()
    return _launch(None, flat, layout_of(shape, precision))


def operands_of_layers(
    layers: tuple[Tensor, ...], net: Layout, models: int
) -> tuple[Tensor, Tensor]:
    """Returns the operand weights of layers, read where they lie, and their flat copy [M, P].

    Args:
        layers: weights, then biases if there are any, then slopes of PReLU in one tensor or
            several; as in :class:`.shape.MLPParameters`, where an axis M of 1 may be left out.
        net: layout of the networks.
        models: M.
    """
    if not all(map(Tensor.is_contiguous, layers)):
        layers = tuple(map(Tensor.contiguous, layers))
    flat = layers[0].new_empty((models, net.shape.num_parameters), dtype=torch.float32)
    return _launch(layers, flat, net), flat


def _launch(layers: tuple[Tensor, ...] | None, flat: Tensor, net: Layout) -> Tensor:
    models = flat.shape[0]
    weights = flat.new_empty((models, net.weights[-1]), dtype=OPERAND_DTYPES[net.precision])
    if models:
        blocks = -(-net.largest_layer // _BLOCK)
        with device_of(flat):
            operand_kernel[blocks, net.layers, models](
                layers_ptr=layers, flat_ptr=flat, weights_ptr=weights, NET=net, BLOCK=_BLOCK
            )
    return weights
