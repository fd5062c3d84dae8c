"""The weights as chunks that stream through shared memory; their layout is that of :mod:`.chunks`."""

from itertools import pairwise

import triton
import triton.language as tl
from torch import Tensor

from ..cuda import device_of
from .arithmetic import operand
from .chunks import ChunkLayout
from .config import OPERAND_DTYPES

_BLOCK = 1024  # weights that a program writes


@triton.jit
def chunk_kernel(flat_ptr, weights_ptr, NET: tl.constexpr, BLOCK: tl.constexpr):
    """Writes the operand weights of all layers; grid (blocks, layers, M).

    Args:
        flat_ptr: float32 [M, P], flat parameters.
        weights_ptr: operand dtype [M, NET.size]; written.
        NET: :class:`~.chunks.ChunkLayout` of the networks.
        BLOCK: weights that a program writes.
    """
    LAYERS: tl.constexpr = NET.net.layers
    model = tl.program_id(2).to(tl.int64)
    flat = flat_ptr + model * NET.net.shape.num_parameters
    weights = weights_ptr + model * NET.size
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for layer in tl.static_range(LAYERS):
        if tl.program_id(1) == layer:
            _write_layer(flat, weights, element, layer, NET)


@triton.jit
def _write_layer(flat, weights, element, LAYER: tl.constexpr, NET: tl.constexpr):
    """Writes some elements of a layer's operand weights."""
    LAYOUT: tl.constexpr = NET.net
    IN: tl.constexpr = NET.net.shape.widths[LAYER]
    OUT: tl.constexpr = NET.net.shape.widths[LAYER + 1]
    START: tl.constexpr = NET.starts[LAYER]
    SIZE: tl.constexpr = NET.starts[LAYER + 1] - START
    HEIGHT: tl.constexpr = NET.blocks[LAYER][0]
    WIDTH: tl.constexpr = NET.blocks[LAYER][1]
    ACROSS: tl.constexpr = NET.parts[LAYER - 1] if LAYER > 0 else 1  # parts of the input
    block, place = element // (HEIGHT * WIDTH), element % (HEIGHT * WIDTH)
    row = block // ACROSS * HEIGHT + place // WIDTH
    column = block % ACROSS * WIDTH + place % WIDTH
    real = row < OUT
    if LAYER == 0:  # the rest of a coordinate meets the weight of its rounded part
        column %= NET.points
        real &= column < NET.dim
    else:
        real &= column < IN
    weight = tl.load(flat + NET.net.flat[LAYER] + row * IN + column, mask=real, other=0.0)
    weight = operand(weight, weights.dtype.element_ty, LAYOUT)
    tl.store(weights + START + element, weight, mask=element < SIZE)


def chunk_weights(flat: Tensor, net: ChunkLayout) -> Tensor:
    """Returns the operand weights of networks, [M, NET.size], operand dtype.

    Args:
        flat: float32 [M, P], flat parameters, contiguous.
        net: layout of the networks.
    """
    models = flat.shape[0]
    weights = flat.new_empty((models, net.size), dtype=OPERAND_DTYPES[net.net.precision])
    largest = max(stop - start for start, stop in pairwise(net.starts))
    with device_of(flat):
        chunk_kernel[-(-largest // _BLOCK), net.net.layers, models](
            flat_ptr=flat, weights_ptr=weights, NET=net, BLOCK=_BLOCK
        )
    return weights
