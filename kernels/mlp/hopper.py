"""Device functions for Hopper GPUs that take a tile of rows through a network in registers.

The accumulators of a layer become, activated and rounded, the left operand of the next one: on a
tensor core of Hopper both have the same numbers in the same registers of the same threads (PTX ISA,
wgmma register fragments). No activation goes through memory, and no barrier of threads is needed.

Weights come in chunks (:mod:`.chunks`) through a ring of buffers in shared memory. Its copies run
ahead of the products, across layers and steps, so that tensor cores do not wait for them.

Names in these functions, besides those of :mod:`.tile`:

* NET: :class:`~.chunks.ChunkLayout` of the networks;
* ``y``: tuple of the accumulators of a layer's parts, fp32 [ROWS, part], before the activation;
* ``biases``, ``slopes``: fp32 pointers to the model's biases, with their padding, and slopes;
* ``stream``: where chunks come from, a :class:`Stream`;
* ``number``: the number of a chunk since the start of the kernel.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..gluon import (
    TensorDescriptor,
    copy_in,
    fence,
    gl,
    jit,
    mbarrier,
    multiply,
    wait_for_products,
)
from .activation_kernel import activate, slope_of


class Stream(NamedTuple):
    """The chunks of one model, in the order in which a program multiplies them.

    Chunk ``number`` lies in buffer ``number % RING``.
    """

    descriptor: Any  # of the weights of all models as [rows, part], in blocks of [part, part]
    row: Any  # of the model's first chunk
    chunks: Any  # number of chunks after which the first one comes again
    last: Any  # number of chunks that the program takes in all
    ring: Any  # buffers in shared memory, [RING, part, part]
    full: Any  # mbarrier of each buffer, [RING, 1]


@triton.constexpr_function
def accumulators(columns, rows):
    """Returns the layout of a product's sums in registers, [rows, columns]."""
    return gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[rows // 16, 1], instr_shape=[16, columns, 16]
    )


@triton.constexpr_function
def left_operand(columns, rows):
    """Returns the layout of the left operand of such a product."""
    return gl.DotOperandLayout(0, accumulators(columns, rows), 2)


@triton.constexpr_function
def pairs(points, rows):
    """Returns the layout of the pairs of columns [rows, points / 2] of such sums."""
    registers = [[8, 0], *([0, 4 << i] for i in range((points // 8).bit_length() - 1))]
    lanes = [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]]
    warps = [[16 << i, 0] for i in range((rows // 16).bit_length() - 1)]
    return gl.DistributedLinearLayout(
        reg_bases=registers, lane_bases=lanes, warp_bases=warps, block_bases=[],
        shape=[rows, points // 2],
    )  # fmt: skip


@triton.constexpr_function
def swizzled(shape, dtype):
    """Returns the layout in shared memory of a right operand of a product."""
    return gl.NVMMASharedLayout.get_default_for(shape, dtype)


@jit
def zeros(COLUMNS: gl.constexpr, ROWS: gl.constexpr):
    """Returns sums of a product that are 0."""
    return gl.full([ROWS, COLUMNS], 0.0, gl.float32, accumulators(COLUMNS, ROWS))


@jit
def resident(pointer, OUT: gl.constexpr, IN: gl.constexpr, WARPS: gl.constexpr):
    """Returns operand weights [OUT, IN] in shared memory, where they stay."""
    DTYPE: gl.constexpr = pointer.dtype.element_ty
    weights = block_of(pointer, OUT, IN, WARPS)
    return gl.allocate_shared_memory(DTYPE, [OUT, IN], swizzled([OUT, IN], DTYPE), weights)


@jit
def block_of(pointer, OUT: gl.constexpr, IN: gl.constexpr, WARPS: gl.constexpr):
    """Returns operand weights [OUT, IN] that are contiguous in memory."""
    ACROSS: gl.constexpr = min(32, IN // 8)
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [32 // ACROSS, ACROSS], [WARPS, 1], [1, 0])
    row = gl.expand_dims(gl.arange(0, OUT, layout=gl.SliceLayout(1, LAYOUT)), 1)
    column = gl.expand_dims(gl.arange(0, IN, layout=gl.SliceLayout(0, LAYOUT)), 0)
    return gl.load(pointer + row * IN + column)


@jit
def resident_parts(
    pointer, PARTS: gl.constexpr, OUT: gl.constexpr, IN: gl.constexpr, WARPS: gl.constexpr
):
    """Returns operand weights [PARTS, OUT, IN] in shared memory, where they stay."""
    DTYPE: gl.constexpr = pointer.dtype.element_ty
    weights = gl.allocate_shared_memory(DTYPE, [PARTS, OUT, IN], swizzled([OUT, IN], DTYPE))
    for part in gl.static_range(PARTS):
        weights.index(part).store(block_of(pointer + part * (OUT * IN), OUT, IN, WARPS))
    return weights


@jit
def open_stream(
    descriptor, row, CHUNKS: gl.constexpr, last, PART: gl.constexpr, RING: gl.constexpr
):
    """Returns a :class:`Stream` of RING buffers; its first copies are under way."""
    DTYPE: gl.constexpr = descriptor.dtype
    ring = gl.allocate_shared_memory(DTYPE, [RING, PART, PART], swizzled([PART, PART], DTYPE))
    full = gl.allocate_shared_memory(gl.int64, [RING, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(RING):
        mbarrier.init(full.index(slot), count=1)
    fence()
    stream = Stream(descriptor, row, gl.to_tensor(CHUNKS), last, ring, full)
    for slot in gl.static_range(RING):
        start_copy(stream, slot)
    return stream


@jit
def start_copy(stream, number):
    """Starts the copy of a chunk into its buffer, if there is such a chunk."""
    PART: gl.constexpr = stream.ring.shape[1]
    slot = number % stream.ring.shape[0]
    exists = number < stream.last
    mbarrier.expect(stream.full.index(slot), PART * PART * 2, pred=exists)
    row = stream.row + number % stream.chunks * PART
    copy_in(
        stream.descriptor, [row, 0], stream.full.index(slot), stream.ring.index(slot), pred=exists
    )


@jit
def refill(stream, number):
    """Puts the next chunk into the buffer of one that no product reads any more."""
    start_copy(stream, number + stream.ring.shape[0])


@jit
def ready(stream, number):
    """Returns a chunk [out, in] as soon as its copy has arrived."""
    RING: gl.constexpr = stream.ring.shape[0]
    slot = number % RING
    mbarrier.wait(stream.full.index(slot), (number // RING) & 1)
    return stream.ring.index(slot)


@jit
def activated(y, slope, COLUMNS: gl.constexpr, DTYPE: gl.constexpr, NET: gl.constexpr):
    """Returns act(y) of a part in the same registers, as left operand of a product of COLUMNS."""
    OPERAND: gl.constexpr = left_operand(COLUMNS, y.shape[0])
    PORTABLE: gl.constexpr = NET.net
    h = activate(y, slope, PORTABLE).to(DTYPE)
    return gl.convert_layout(h, OPERAND, assert_trivial=True)


@jit
def points_operand(x, DTYPE: gl.constexpr, NET: gl.constexpr):
    """Returns x_t [ROWS, points] as left operand: the rounded coordinates and the rest of each."""
    OPERAND: gl.constexpr = left_operand(NET.part, x.shape[0])
    high = x.to(DTYPE)
    rest = (x - high.to(gl.float32)).to(DTYPE)
    both = gl.join(high, rest).permute((0, 2, 1)).reshape([x.shape[0], 2 * NET.points])
    return gl.convert_layout(both, OPERAND, assert_trivial=True)


@jit
def load_tile(pointer, stride_row, stride_column, live, WIDTH: gl.constexpr, COLUMNS: gl.constexpr):
    """Returns the first WIDTH columns of a tile, fp32 [ROWS, COLUMNS]; all other numbers are 0.

    Args:
        live: bool [ROWS], False for rows of zeros.
    """
    ROWS: gl.constexpr = live.shape[0]
    LAYOUT: gl.constexpr = accumulators(COLUMNS, ROWS)
    row = gl.expand_dims(gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT)), 1)
    column = gl.expand_dims(gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT)), 0)
    pointers = pointer + row * stride_row + column.to(gl.int64) * stride_column
    inside = gl.expand_dims(live, 1) & (column < WIDTH)
    return gl.load(pointers, mask=inside, other=0.0).to(gl.float32)


@jit
def store_tile(pointer, value, live, WIDTH: gl.constexpr):
    """Writes the first WIDTH columns of the live rows of a tile, which are contiguous."""
    LAYOUT: gl.constexpr = accumulators(value.shape[1], value.shape[0])
    row = gl.expand_dims(gl.arange(0, value.shape[0], layout=gl.SliceLayout(1, LAYOUT)), 1)
    column = gl.expand_dims(gl.arange(0, value.shape[1], layout=gl.SliceLayout(0, LAYOUT)), 0)
    inside = gl.expand_dims(live, 1) & (column < WIDTH)
    gl.store(pointer + row * WIDTH + column, value.to(pointer.dtype.element_ty), mask=inside)


@jit
def store_columns(pointer, value, STRIDE: gl.constexpr, LAYOUT: gl.constexpr):
    """Writes columns of a tile that are in their natural order."""
    row = gl.arange(0, value.shape[0], layout=gl.SliceLayout(1, LAYOUT))
    column = gl.arange(0, value.shape[1], layout=gl.SliceLayout(0, LAYOUT))
    gl.store(pointer + gl.expand_dims(row * STRIDE, 1) + gl.expand_dims(column, 0), value)


@jit
def bias_of(biases, part, COLUMNS: gl.constexpr, ROWS: gl.constexpr):
    """Returns a part of a bias, from which the sums of a product start, fp32 [ROWS, COLUMNS]."""
    LAYOUT: gl.constexpr = accumulators(COLUMNS, ROWS)
    column = part * COLUMNS + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT))
    sums, _ = gl.broadcast(gl.expand_dims(gl.load(biases + column), 0), zeros(COLUMNS, ROWS))
    return sums


@jit
def first_layer(x, bias, row_bias, w_first, NET: gl.constexpr):
    """Returns the accumulators of the first layer.

    Args:
        x: fp32 [ROWS, points].
        bias: pointer to what all inputs but x_t contribute, fp32 [parts * part].
        row_bias: pointers fp32 [ROWS] to what a row's own inputs contribute besides; or None.
        w_first: the layer's weights in shared memory, [out, 2 * points].
    """
    PARTS: gl.constexpr = NET.parts[0]
    a = points_operand(x, w_first.dtype, NET)
    y = ()
    for part in gl.static_range(PARTS):
        w = w_first.slice(part * NET.part, NET.part)
        y += (part_of_first_layer(a, bias, row_bias, w, part, NET),)
    return y


@jit
def part_of_first_layer(a, bias, row_bias, w, part, NET: gl.constexpr):
    """Returns the accumulators of a part of the first layer.

    Args:
        a: x_t as left operand.
        bias, row_bias: as in :func:`first_layer`.
        w: the weights of this part, [part, 2 * points].
        part: its number.
    """
    ROWS: gl.constexpr = a.shape[0]
    ACROSS: gl.constexpr = gl.SliceLayout(0, accumulators(NET.part, ROWS))
    sums = bias_of(bias, part, NET.part, ROWS)
    if row_bias is not None:
        column = part * NET.part + gl.arange(0, NET.part, layout=ACROSS)
        sums += gl.load(gl.expand_dims(row_bias, 1) + gl.expand_dims(column, 0))
    return multiply(a, w.permute((1, 0)), sums)


@jit
def hidden_layer(y, biases, slopes, stream, number, i, FIRST: gl.constexpr, NET: gl.constexpr):
    """Returns the accumulators of layer FIRST + ``i`` of a run, given those before it."""
    PORTABLE: gl.constexpr = NET.net
    IN: gl.constexpr = NET.parts[FIRST - 1]
    OUT: gl.constexpr = NET.parts[FIRST]
    DTYPE: gl.constexpr = stream.ring.dtype
    slope = slope_of(slopes, FIRST - 1 + i, PORTABLE)
    bias = biases + (NET.bias_starts[FIRST] + i * NET.outputs[FIRST])
    h = ()
    sums = ()
    if NET.net.exponential:  # it needs the registers that a product would have
        for part in gl.static_range(IN):
            h += (activated(y[part], slope, NET.part, DTYPE, NET),)
    for to in gl.static_range(OUT):
        for part in gl.static_range(IN):
            if to == 0 and not NET.net.exponential:  # the second part under a product
                h += (activated(y[part], slope, NET.part, DTYPE, NET),)
            if part == 0:
                acc = bias_of(bias, to, NET.part, y[0].shape[0])
            w = ready(stream, number + (to * IN + part)).permute((1, 0))
            acc = multiply(h[part], w, acc, is_async=True)
        acc = wait_for_products(num_outstanding=0, deps=(acc,))
        for part in gl.static_range(IN):
            refill(stream, number + (to * IN + part))
        sums += (acc,)
    return sums


@jit
def last_layer(y, biases, slopes, w_last, NET: gl.constexpr):
    """Returns the output of the network, fp32 [ROWS, points]; columns from its width on are 0.

    Args:
        w_last: the layer's weights in shared memory, [parts * points, part].
    """
    LAST: gl.constexpr = NET.net.layers - 1
    PARTS: gl.constexpr = NET.parts[LAST - 1]
    ROWS: gl.constexpr = y[0].shape[0]
    PORTABLE: gl.constexpr = NET.net
    slope = slope_of(slopes, LAST - 1, PORTABLE)
    sums = bias_of(biases + NET.bias_starts[LAST], 0, NET.points, ROWS)
    for part in gl.static_range(PARTS):
        h = activated(y[part], slope, NET.points, w_last.dtype, NET)
        w = w_last.slice(part * NET.points, NET.points).permute((1, 0))
        sums = multiply(h, w, sums, is_async=True)
    return wait_for_products(num_outstanding=0, deps=(sums,))


@jit
def evaluate(
    x, bias, row_bias, biases, slopes, w_first, w_last, stream, number, NET: gl.constexpr
):  # fmt: skip
    """Returns the output of the network at x_t, and the number of the next chunk."""
    RUNS: gl.constexpr = len(NET.net.run_starts)
    y = first_layer(x, bias, row_bias, w_first, NET)
    for run in gl.static_range(RUNS):
        y, number = hidden_run(y, biases, slopes, stream, number, run, NET)
    return last_layer(y, biases, slopes, w_last, NET), number


@jit
def hidden_run(y, biases, slopes, stream, number, RUN: gl.constexpr, NET: gl.constexpr):
    """Returns the accumulators after a run of equal layers, and the number of the next chunk."""
    FIRST: gl.constexpr = NET.net.run_starts[RUN]
    LENGTH: gl.constexpr = NET.net.run_lengths[RUN]
    CHUNKS: gl.constexpr = NET.parts[FIRST - 1] * NET.parts[FIRST]
    if LENGTH == 1:  # the number of parts may change
        y = hidden_layer(y, biases, slopes, stream, number, 0, FIRST, NET)
    else:
        for i in range(LENGTH):
            y = hidden_layer(y, biases, slopes, stream, number + i * CHUNKS, i, FIRST, NET)
    return y, number + LENGTH * CHUNKS


def chunk_descriptor(weights: Tensor, part: int) -> TensorDescriptor:
    """Returns the descriptor of :class:`Stream` for operand weights [M, size]."""
    dtype = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}[weights.dtype]
    layout = gl.NVMMASharedLayout.get_default_for([part, part], dtype)
    return TensorDescriptor.from_tensor(weights.view(-1, part), [part, part], layout)
