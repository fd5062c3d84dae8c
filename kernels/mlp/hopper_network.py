"""Device functions for Hopper GPUs that take a tile of rows through a network of any width.

Narrow networks stay in registers (:mod:`.hopper`, :mod:`.hopper_rows`); wide ones leave them part
by part (:mod:`.hopper_wide`). The arguments have the names of those modules, but ``w_first`` and
``w_last`` stand for the first and the last layer in shared memory in the form that fits.
"""

from ..gluon import gl, jit
from . import hopper, hopper_rows, hopper_wide


@jit
def open_network(
    flat_ptr, weights_ptr, chunks_desc, tiles, FIRST: gl.constexpr, CHUNKS: gl.constexpr,
    NET: gl.constexpr, RING: gl.constexpr,
):  # fmt: skip
    """Returns what a program of a kernel that takes every so many tiles needs of its model.

    That is its flat parameters, its operand weights, the number of tiles that the program takes,
    and the stream of CHUNKS of its chunks for each of them, from number FIRST on.

    Args:
        flat_ptr: float32 [M, P], flat parameters.
        weights_ptr: operand dtype [M, size], weights as :class:`~.chunks.TrainingLayout` says.
        chunks_desc: descriptor of all of them as [rows, part] in blocks of a chunk.
        tiles: number of tiles.
    """
    PART: gl.constexpr = NET.part
    SIZE: gl.constexpr = NET.starts[len(NET.pieces)]
    model = gl.program_id(1).to(gl.int64)
    turns = gl.cdiv(tiles - gl.program_id(0), gl.num_programs(0))
    row = gl.program_id(1) * (SIZE // PART) + (NET.starts[1] // PART + FIRST * PART)
    stream = hopper.open_stream(chunks_desc, row, CHUNKS, turns * CHUNKS, PART, RING)
    flat = flat_ptr + model * NET.rows.shape.num_parameters
    return flat, weights_ptr + model * SIZE, turns, stream


@jit
def resident_layer(
    pointer, PARTS: gl.constexpr, OUT: gl.constexpr, IN: gl.constexpr, NET: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """Returns parts [OUT, IN] of a layer in shared memory, where they stay."""
    if NET.wide:
        return hopper.resident_parts(pointer, PARTS, OUT, IN, WARPS)
    else:
        return hopper.resident(pointer, PARTS * OUT, IN, WARPS)


@jit
def resident_first(weights, NET: gl.constexpr, WARPS: gl.constexpr):
    """Returns the first layer in shared memory."""
    return resident_layer(weights, NET.parts[0], NET.part, 2 * NET.points, NET, WARPS)


@jit
def resident_last(weights, NET: gl.constexpr, WARPS: gl.constexpr):
    """Returns the last layer in shared memory."""
    LAST: gl.constexpr = len(NET.pieces) - 1
    PARTS: gl.constexpr = NET.pieces[LAST].across
    HEIGHT: gl.constexpr = NET.pieces[LAST].height
    return resident_layer(weights + NET.starts[LAST], PARTS, HEIGHT, NET.part, NET, WARPS)


@jit
def evaluate(
    x, bias, row_bias, biases, slopes, w_first, w_last, stash, stream, number, NET: gl.constexpr
):  # fmt: skip
    """Returns the output at x_t, and the number of the next chunk.

    Args:
        stash: where a wide network keeps its activations; None for a narrow one.
    """
    if NET.wide:
        return hopper_wide.evaluate(
            x, bias, row_bias, biases, slopes, w_first, w_last, stash, stream, number, NET
        )
    else:
        return hopper.evaluate(
            x, bias, row_bias, biases, slopes, w_first, w_last, stream, number, NET
        )


@jit
def forward(x, flat, biases, w_first, w_last, stream, number, tile, NET: gl.constexpr):
    """Returns the output, fp32 [ROWS, outputs], and the number of the next chunk."""
    if NET.wide:
        return hopper_wide.forward(x, flat, biases, w_first, w_last, stream, number, tile, NET)
    else:
        return hopper_rows.forward(x, flat, biases, w_first, w_last, stream, number, tile, NET)


@jit
def backward(grad_y, flat, w_first, w_last, stream, number, tile, NET: gl.constexpr):
    """Writes the gradients of all hidden pre-activations.

    Returns the gradient of the input, fp32 [ROWS, points], and the number of the next chunk.

    Args:
        grad_y: gradient of the output, [ROWS, outputs], as left operand.
        w_first: None if the gradient of the input is not wanted; zeros are returned.
    """
    if NET.wide:
        return hopper_wide.backward(grad_y, flat, w_first, w_last, stream, number, tile, NET)
    else:
        return hopper_rows.backward(grad_y, flat, w_first, w_last, stream, number, tile, NET)
