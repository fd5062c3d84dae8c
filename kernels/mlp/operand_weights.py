"""The weights as operands of the matrix products: rounded to their precision, padded, in pieces."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cuda import device_of
from .arithmetic import operand
from .chunks import ChunkLayout
from .config import OPERAND_DTYPES
from .layout import Layout, layout_of
from .shape import MLPShape

_BLOCK = 1024  # weights that a program writes


@triton.constexpr_function
def comes_first(net, number):
    """Returns True if no piece before this one has weights of the same layer."""
    return net.pieces[number].layer not in [piece.layer for piece in net.pieces[:number]]


@triton.jit
def operand_kernel(layers_ptr, flat_ptr, weights_ptr, NET: tl.constexpr, BLOCK: tl.constexpr):
    """Writes the operand weights of all pieces; grid (blocks, pieces, M).

    The parameters are read from one flat buffer, or layer by layer, from wherever they lie. In the
    second case they are also copied to the flat buffer, from which other kernels read biases and
    slopes.

    Args:
        layers_ptr: tuple of float [M, out, in] weights, then [M, out] biases, then [M, slopes]
            slopes in one tensor or several, all contiguous; None to read the flat parameters.
        flat_ptr: float32 [M, P], flat parameters; written if there are ``layers_ptr``.
        weights_ptr: [M, size], the operand weights, operand dtype; written.
        NET: :class:`~.layout.Layout` or :class:`~.chunks.ChunkLayout` of the networks.
        BLOCK: weights that a program writes.
    """
    LAYERS: tl.constexpr = NET.net.layers
    PIECES: tl.constexpr = len(NET.pieces)
    FIRST_SLOPES: tl.constexpr = LAYERS * (2 if NET.net.shape.bias else 1)
    block = tl.program_id(0)
    model = tl.program_id(2).to(tl.int64)
    flat = flat_ptr + model * NET.net.shape.num_parameters
    weights = weights_ptr + model * NET.starts[PIECES]
    for piece in tl.static_range(PIECES):
        if tl.program_id(1) == piece:
            LAYER: tl.constexpr = NET.pieces[piece].layer
            target = flat + NET.net.flat[LAYER]
            if layers_ptr is None:
                _write_piece(target, weights, None, block, NET, piece, BLOCK)
            else:
                IN: tl.constexpr = NET.net.shape.widths[LAYER]
                OUT: tl.constexpr = NET.net.shape.widths[LAYER + 1]
                FIRST: tl.constexpr = comes_first(NET, piece)
                source = layers_ptr[LAYER] + model * (OUT * IN)
                copy = target if FIRST else None
                _write_piece(source, weights, copy, block, NET, piece, BLOCK)
                if FIRST and NET.net.shape.bias:
                    source = layers_ptr[LAYERS + LAYER] + model * OUT
                    _copy(source, target + OUT * IN, block, OUT, BLOCK)
    if layers_ptr is not None and NET.net.shape.activation == "prelu":
        # The slopes of each tensor.
        SLOPES: tl.constexpr = NET.net.shape.slopes // (len(layers_ptr) - FIRST_SLOPES)
        if tl.program_id(1) == 0:
            for i in tl.static_range(len(layers_ptr) - FIRST_SLOPES):
                source = layers_ptr[FIRST_SLOPES + i] + model * SLOPES
                _copy(source, flat + NET.net.flat[LAYERS] + i * SLOPES, block, SLOPES, BLOCK)


@triton.jit
def _write_piece(
    source, weights, copy, block, NET: tl.constexpr, NUMBER: tl.constexpr, BLOCK: tl.constexpr
):
    """Writes some operand weights of a piece, given the weights [out, in] of its layer.

    Unless ``copy`` is None, they are written there too, as they are.
    """
    PIECE: tl.constexpr = NET.pieces[NUMBER]
    LAYOUT: tl.constexpr = NET.net
    OUT: tl.constexpr = NET.net.shape.widths[PIECE.layer + 1]
    IN: tl.constexpr = NET.net.shape.widths[PIECE.layer]
    USED: tl.constexpr = NET.dim if PIECE.layer == 0 else IN
    element = block * BLOCK + tl.arange(0, BLOCK)
    row, column = _place(element, PIECE)
    read = column
    if PIECE.layer == 0 and NET.rest is not None:
        # The rest of an input meets the weight of its rounded part.
        read = tl.where(column < NET.rest, column, column - NET.rest)
    real = (row < OUT) & (read < USED)
    weight = tl.load(source + row * IN + read, mask=real, other=0.0).to(tl.float32)
    tl.store(
        weights + NET.starts[NUMBER] + element,
        operand(weight, weights.dtype.element_ty, LAYOUT),
        mask=element < PIECE.size,
    )
    if copy is not None:
        tl.store(copy + row * IN + column, weight, mask=(row < OUT) & (column < USED))


@triton.jit
def _place(element, PIECE: tl.constexpr):
    """Returns the output and the input, rows and columns of a layer, of elements of a piece."""
    SIZE: tl.constexpr = PIECE.height * PIECE.width
    if PIECE.size == SIZE:
        return element // PIECE.width, element % PIECE.width
    block, place = element // SIZE, element % SIZE
    if PIECE.by_input:
        down, across = block % PIECE.down, block // PIECE.down
    else:
        down, across = block // PIECE.across, block % PIECE.across
    row = down * PIECE.height + place // PIECE.width
    return row, across * PIECE.width + place % PIECE.width


@triton.jit
def _copy(source, target, block, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Writes a block of SIZE elements as float32."""
    if block * BLOCK < SIZE:
        element = block * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(source + element, mask=element < SIZE, other=0.0)
        tl.store(target + element, value.to(tl.float32), mask=element < SIZE)


def operand_weights(flat: Tensor, shape: MLPShape, precision: str) -> Tensor:
    """Returns the weights as the portable kernels read them, [M, size], operand dtype.

    Args:
        flat: float [M, P], flat parameters.
        shape: shape of the networks.
        precision: precision of the matrix products, one of :data:`.config.OPERAND_DTYPES`.
    """
    return operands_of(flat.float().contiguous(), layout_of(shape, precision))


def operands_of(flat: Tensor, net: Layout | ChunkLayout) -> Tensor:
    """Returns the weights as matrix products read them, [M, size], operand dtype.

    Args:
        flat: float32 [M, P], flat parameters, contiguous.
        net: layout of the networks.
    """
    return _launch(None, flat, net)


def operands_of_layers(
    layers: tuple[Tensor, ...], net: Layout | ChunkLayout, models: int
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
    flat = layers[0].new_empty((models, net.net.shape.num_parameters), dtype=torch.float32)
    return _launch(layers, flat, net), flat


def _launch(layers: tuple[Tensor, ...] | None, flat: Tensor, net: Layout | ChunkLayout) -> Tensor:
    models = flat.shape[0]
    weights = flat.new_empty((models, net.starts[-1]), dtype=OPERAND_DTYPES[net.net.precision])
    if models:
        with device_of(flat):
            operand_kernel[-(-net.largest_piece // _BLOCK), len(net.pieces), models](
                layers_ptr=layers, flat_ptr=flat, weights_ptr=weights, NET=net, BLOCK=_BLOCK
            )
    return weights
