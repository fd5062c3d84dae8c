"""The weights as chunks that stream through shared memory; their layout is that of :mod:`.chunks`."""

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
    """Writes the operand weights of all pieces; grid (blocks, pieces, M).

    Args:
        flat_ptr: float32 [M, P], flat parameters.
        weights_ptr: operand dtype [M, size]; written.
        NET: :class:`~.chunks.ChunkLayout` of the networks.
        BLOCK: weights that a program writes.
    """
    PIECES: tl.constexpr = len(NET.pieces)
    model = tl.program_id(2).to(tl.int64)
    flat = flat_ptr + model * NET.net.shape.num_parameters
    weights = weights_ptr + model * NET.starts[PIECES]
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for piece in tl.static_range(PIECES):
        if tl.program_id(1) == piece:
            _write_piece(flat, weights + NET.starts[piece], element, piece, NET)


@triton.jit
def _write_piece(flat, weights, element, NUMBER: tl.constexpr, NET: tl.constexpr):
    """Writes some elements of a piece."""
    PIECE: tl.constexpr = NET.pieces[NUMBER]
    LAYOUT: tl.constexpr = NET.net
    IN: tl.constexpr = NET.net.shape.widths[PIECE.layer]
    OUT: tl.constexpr = NET.net.shape.widths[PIECE.layer + 1]
    block, place = element // (PIECE.height * PIECE.width), element % (PIECE.height * PIECE.width)
    if PIECE.by_input:
        down, across = block % PIECE.down, block // PIECE.down
    else:
        down, across = block // PIECE.across, block % PIECE.across
    row = down * PIECE.height + place // PIECE.width
    column = across * PIECE.width + place % PIECE.width
    real = row < OUT
    if PIECE.layer == 0:  # the rest of a coordinate meets the weight of its rounded part
        column %= NET.points
        real &= column < NET.dim
    else:
        real &= column < IN
    weight = tl.load(flat + NET.net.flat[PIECE.layer] + row * IN + column, mask=real, other=0.0)
    weight = operand(weight, weights.dtype.element_ty, LAYOUT)
    tl.store(weights + element, weight, mask=element < PIECE.size)


def chunk_weights(flat: Tensor, net: ChunkLayout) -> Tensor:
    """Returns the operand weights of networks, [M, size], operand dtype.

    Args:
        flat: float32 [M, P], flat parameters, contiguous.
        net: layout of the networks.
    """
    models = flat.shape[0]
    weights = flat.new_empty((models, net.starts[-1]), dtype=OPERAND_DTYPES[net.net.precision])
    largest = max(piece.size for piece in net.pieces)
    with device_of(flat):
        chunk_kernel[-(-largest // _BLOCK), len(net.pieces), models](
            flat_ptr=flat, weights_ptr=weights, NET=net, BLOCK=_BLOCK
        )
    return weights
