"""The weights as operands of the matrix products: rounded to their precision and padded."""

from itertools import pairwise

import triton
import triton.language as tl
from torch import Tensor

from ..cuda import device_of
from .arithmetic import operand
from .config import OPERAND_DTYPES
from .layout import layout_of
from .shape import MLPShape

_BLOCK = 1024  # weights that a program writes


@triton.jit
def operand_kernel(flat_ptr, weights_ptr, NET: tl.constexpr, BLOCK: tl.constexpr):
    """Writes the operand weights of all layers; grid (blocks, layers, M).

    Args:
        flat_ptr: float32 [M, P], flat parameters.
        weights_ptr: [M, size], the operand weights, operand dtype; written.
        NET: :class:`~.layout.Layout` of the networks.
        BLOCK: weights that a program writes.
    """
    LAYERS: tl.constexpr = NET.layers
    model = tl.program_id(2).to(tl.int64)
    flat = flat_ptr + model * NET.shape.num_parameters
    weights = weights_ptr + model * NET.weights[LAYERS]
    for layer in tl.static_range(LAYERS):
        if tl.program_id(1) == layer:
            _write_layer(flat, weights, NET, layer, BLOCK)


@triton.jit
def _write_layer(flat, weights, NET: tl.constexpr, LAYER: tl.constexpr, BLOCK: tl.constexpr):
    IN: tl.constexpr = NET.shape.widths[LAYER]
    OUT: tl.constexpr = NET.shape.widths[LAYER + 1]
    PADDED_IN: tl.constexpr = NET.padded[LAYER]
    PADDED_OUT: tl.constexpr = NET.padded[LAYER + 1]
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = element // PADDED_IN, element % PADDED_IN
    if LAYER == 0 and NET.split:  # the rest of an input meets the weight of its rounded part
        column = tl.where(column < 2 * IN, column % IN, column)
    weight = tl.load(
        flat + NET.flat[LAYER] + row * IN + column, mask=(row < OUT) & (column < IN), other=0.0
    )
    tl.store(
        weights + NET.weights[LAYER] + element,
        operand(weight, weights.dtype.element_ty, NET),
        mask=element < PADDED_IN * PADDED_OUT,
    )


def operand_weights(flat: Tensor, shape: MLPShape, precision: str) -> Tensor:
    """Returns the weights as the matrix products read them, [M, size], operand dtype.

    Args:
        flat: float [M, P], flat parameters.
        shape: shape of the networks.
        precision: precision of the matrix products, one of :data:`.config.OPERAND_DTYPES`.
    """
    net = layout_of(shape, precision)
    flat = flat.float().contiguous()
    models = len(flat)
    weights = flat.new_empty((models, net.weights[-1]), dtype=OPERAND_DTYPES[precision])
    if models:
        blocks = triton.cdiv(max(i * o for i, o in pairwise(net.padded)), _BLOCK)
        with device_of(flat):
            operand_kernel[blocks, net.layers, models](
                flat_ptr=flat, weights_ptr=weights, NET=net, BLOCK=_BLOCK
            )
    return weights
