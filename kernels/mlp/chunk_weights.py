"""The weights as chunks that stream through shared memory; their layout is that of :mod:`.chunks`."""

import torch
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
    LAST: tl.constexpr = NET.net.layers - 1
    model = tl.program_id(2).to(tl.int64)
    flat = flat_ptr + model * NET.net.shape.num_parameters
    weights = weights_ptr + model * NET.size
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for layer in tl.static_range(LAST + 1):
        if tl.program_id(1) == layer:
            if layer == 0:
                row, column = element // (2 * NET.points), element % NET.points
                start, stop = NET.first_layer, NET.last_layer
                # The weights of the other inputs are in no product.
                real = column < NET.dim
            elif layer == LAST:
                PART: tl.constexpr = NET.part * NET.points
                row = element % PART // NET.part
                column = element // PART * NET.part + element % NET.part
                start, stop = NET.last_layer, NET.size
                real = column < NET.net.shape.widths[layer]
            else:
                CHUNK: tl.constexpr = NET.part * NET.part
                chunk = element // CHUNK
                row = chunk // NET.parts[layer - 1] * NET.part + element % CHUNK // NET.part
                column = chunk % NET.parts[layer - 1] * NET.part + element % NET.part
                start, stop = NET.starts[layer - 1] * CHUNK, NET.starts[layer] * CHUNK
                real = column < NET.net.shape.widths[layer]
            real &= row < NET.net.shape.widths[layer + 1]
            place = NET.net.flat[layer] + row * NET.net.shape.widths[layer] + column
            weight = tl.load(flat + place, mask=real, other=0.0)
            weight = operand(weight, weights.dtype.element_ty, NET.net)
            tl.store(weights + start + element, weight, mask=element < stop - start)


def chunk_weights(flat: Tensor, net: ChunkLayout) -> Tensor:
    """Returns the operand weights of networks, [M, NET.size], operand dtype.

    Args:
        flat: float32 [M, P], flat parameters, contiguous.
        net: layout of the networks.
    """
    models = flat.shape[0]
    weights = flat.new_empty((models, net.size), dtype=OPERAND_DTYPES[net.net.precision])
    largest = max(net.part**2 * max(a * b for a, b in zip(net.parts, net.parts[1:], strict=False)), 
                  net.parts[0] * net.part * 2 * net.points, net.parts[-1] * net.part * net.points)
    with device_of(flat):
        chunk_kernel[-(-largest // _BLOCK), net.net.layers, models](
            flat_ptr=flat, weights_ptr=weights, NET=net, BLOCK=_BLOCK
        )
    return weights
