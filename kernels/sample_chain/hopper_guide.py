"""Device functions for Hopper GPUs that compute the gradient of a guide in registers.

The gradient is that of log p(label | x_t) with respect to x_t, by a classifier. If the activation
is linear on both sides of 0, only the signs of the pre-activations are kept, one bit each, in
shared memory. If not, they are kept themselves, as operands, in memory. A thread has the same
columns of z and of its gradient: it reads only what it has written, so no barrier is needed. The
last hidden layer is never whole, see :class:`~..mlp.chunks.GuideLayout`.

Names in these functions, besides those of :mod:`..mlp.hopper`:

* NET: :class:`~..mlp.chunks.GuideLayout` of the classifiers;
* ``kept``: what is kept of the pre-activations. Signs are int32 [parts and slices, ROWS, 4] in
  shared memory; word (row, i) has a bit for each column that thread i of the four that share a row
  holds. If NET.keeps_z, it is a pointer to the program's z, operand dtype [ROWS, z_columns], with
  columns in fragment order (:mod:`..mlp.layout`);
* ``place``: the number of a part or slice among those of all hidden layers;
* ``w_first``: the first layer in shared memory, [out, 2 * points];
* ``w_last``: the last one, [slices, classes, slice].
"""

import triton

from ..gluon import gl, jit, multiply, wait_for_products
from ..mlp.activation_kernel import activate_backward, slope_of
from ..mlp.arithmetic import UNIT_SCALE, softmax
from ..mlp.chunks import SLICE
from ..mlp.hopper import (
    accumulators,
    activated,
    bias_of,
    first_layer,
    hidden_layer,
    left_operand,
    ready,
    refill,
    resident,
    resident_parts,
    zeros,
)
from ..mlp.hopper_rows import coordinates, first_part, load_part, store_part

_SLICE = gl.constexpr(SLICE)


@triton.constexpr_function
def quads(columns, rows):
    """Returns the layout of accumulators as [rows, columns / 8, 4, 2]: the four threads of a row.

    Each of these holds pairs of columns, eight apart.
    """
    registers = [[0, 0, 0, 1], [8, 0, 0, 0]]
    registers += [[0, 1 << i, 0, 0] for i in range((columns // 8).bit_length() - 1)]
    lanes = [[0, 0, 1, 0], [0, 0, 2, 0], [1, 0, 0, 0], [2, 0, 0, 0], [4, 0, 0, 0]]
    warps = [[16 << i, 0, 0, 0] for i in range((rows // 16).bit_length() - 1)]
    return gl.DistributedLinearLayout(
        reg_bases=registers, lane_bases=lanes, warp_bases=warps, block_bases=[],
        shape=[rows, columns // 8, 4, 2],
    )  # fmt: skip


@triton.constexpr_function
def words(columns, rows):
    """Returns the layout of the words of a part, [rows, 4]."""
    return gl.SliceLayout(1, gl.SliceLayout(3, quads(columns, rows)))


@jit
def bit_of_column(COLUMNS: gl.constexpr, ROWS: gl.constexpr):
    """Returns the bit of each column in the word of its thread, int32 [1, columns / 8, 1, 2]."""
    QUADS: gl.constexpr = quads(COLUMNS, ROWS)
    LAST: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, QUADS)))
    eight = gl.arange(
        0, COLUMNS // 8, layout=gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, QUADS)))
    )
    eight = gl.expand_dims(gl.expand_dims(gl.expand_dims(eight, 0), 2), 3)
    second = gl.arange(0, 2, layout=LAST)
    second = gl.expand_dims(gl.expand_dims(gl.expand_dims(second, 0), 1), 2)
    shift = 2 * eight + second
    return (shift * 0 + 1) << shift


@jit
def keep_signs(z, word):
    """Writes which z of a part are positive.

    Args:
        z: fp32 [ROWS, columns].
        word: int32 [ROWS, 4] in shared memory.
    """
    ROWS: gl.constexpr = z.shape[0]
    COLUMNS: gl.constexpr = z.shape[1]
    z = gl.convert_layout(
        z.reshape([ROWS, COLUMNS // 8, 4, 2]), quads(COLUMNS, ROWS), assert_trivial=True
    )
    bits = gl.where(z > 0, bit_of_column(COLUMNS, ROWS), 0)
    word.store(gl.sum(gl.sum(bits, 3), 1))


@jit
def before_sign(grad, word, slope, NET: gl.constexpr):
    """Returns the gradient of z, fp32 [ROWS, columns], given that of act(z) and its signs.

    Args:
        grad: fp32 [ROWS, columns].
        word: what :func:`keep_signs` has written for z.
    """
    ROWS: gl.constexpr = grad.shape[0]
    WIDTH: gl.constexpr = grad.shape[1]
    PORTABLE: gl.constexpr = NET.net
    QUADS: gl.constexpr = quads(WIDTH, ROWS)
    bits = gl.expand_dims(gl.expand_dims(word.load(words(WIDTH, ROWS)), 1), 3)
    positive = (bits & bit_of_column(WIDTH, ROWS)) != 0
    grad = gl.convert_layout(grad.reshape(QUADS.shape), QUADS, assert_trivial=True)
    # Any numbers of these signs have its derivative.
    return activate_backward(grad, gl.where(positive, 1.0, -1.0), slope, PORTABLE)


@jit
def column_of(place, COLUMNS: gl.constexpr, NET: gl.constexpr):
    """Returns the first column of a part or slice in the rows of z."""
    # Before the slices are parts, which are twice as wide.
    BEFORE: gl.constexpr = 0 if NET.part == COLUMNS else first_part(NET, len(NET.parts))
    return (place + BEFORE) * COLUMNS


@jit
def keep(z, kept, place, NET: gl.constexpr):
    """Keeps what the way back needs of z.

    Args:
        z: fp32 [ROWS, columns].
    """
    if NET.keeps_z:
        pointer = kept + column_of(place, z.shape[1], NET)
        store_part(pointer, z.to(kept.dtype.element_ty), NET.z_columns)
    else:
        keep_signs(z, kept.index(place))


@jit
def before_activation(
    grad, kept, place, slope, COLUMNS: gl.constexpr, DTYPE: gl.constexpr, NET: gl.constexpr
):
    """Returns the gradient of z, given that of act(z), as left operand of a product of COLUMNS.

    Args:
        grad: fp32 [ROWS, columns].
    """
    ROWS: gl.constexpr = grad.shape[0]
    WIDTH: gl.constexpr = grad.shape[1]
    PORTABLE: gl.constexpr = NET.net
    if NET.keeps_z:
        z = load_part(kept + column_of(place, WIDTH, NET), NET.z_columns, WIDTH, ROWS)
        grad = activate_backward(grad, z.to(gl.float32), slope, PORTABLE)
    else:
        grad = before_sign(grad, kept.index(place), slope, NET)
    return gl.convert_layout(
        grad.to(DTYPE).reshape([ROWS, WIDTH]), left_operand(COLUMNS, ROWS), assert_trivial=True
    )


@jit
def open_guide(
    flat_ptr, weights_ptr, biases_ptr, z_ptr, model, ROWS: gl.constexpr, NET: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """Returns a model's ``biases``, ``slopes``, ``w_first``, ``w_last`` and ``kept``.

    Args:
        flat_ptr, weights_ptr, biases_ptr, z_ptr: the guide's in :func:`.hopper.chain_kernel`.
    """
    LAYERS: gl.constexpr = NET.net.layers
    PIECES: gl.constexpr = len(NET.pieces)
    biases = biases_ptr + model * NET.bias_starts[LAYERS]
    slopes = flat_ptr + model * NET.net.shape.num_parameters + NET.net.flat[LAYERS]
    weights = weights_ptr + model * NET.starts[PIECES]
    w_first = resident(weights, NET.parts[0] * NET.part, 2 * NET.points, WARPS)
    w_last = resident_parts(
        weights + NET.starts[PIECES - 1], NET.slices, NET.classes, _SLICE, WARPS
    )
    if NET.keeps_z:
        slot = model * gl.num_programs(0) + gl.program_id(0)
        kept = z_ptr + slot * (ROWS * NET.z_columns)
    else:
        kept = gl.allocate_shared_memory(
            gl.int32, [NET.signs, ROWS, 4], gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
        )
    return biases, slopes, w_first, w_last, kept


@jit
def label_gradient(
    x, bias, label, biases, slopes, w_first, w_last, kept, stream, number, NET: gl.constexpr
):  # fmt: skip
    """Returns the gradient of log p(label | x_t) and the number of the next chunk.

    Args:
        x: fp32 [ROWS, points], like the gradient, whose columns from the dimension on are 0.
        bias: pointer to what all inputs but x_t contribute to the first layer.
        label: int64 [ROWS], the classes.
    """
    LAYERS: gl.constexpr = len(NET.parts)
    RUNS: gl.constexpr = len(NET.run_starts)
    y = first_layer(x, bias, None, w_first, NET)
    for run in gl.static_range(RUNS):
        y, number = forward_run(y, biases, slopes, kept, stream, number, run, NET)
    keep_layer(y, kept, 0, LAYERS - 1, NET)
    logits = forward_slices(y, biases, slopes, w_last, kept, stream, number, NET)
    number += NET.chunks_of_slices
    grad = logits_gradient(logits, label, w_last.dtype, NET)
    y = backward_slices(grad, slopes, w_last, kept, stream, number, NET)
    number += NET.chunks_of_slices
    for r in gl.static_range(RUNS):
        y, number = backward_run(y, slopes, kept, stream, number, RUNS - 1 - r, NET)
    return input_gradient(y, slopes, w_first, kept, NET), number


@jit
def forward_run(y, biases, slopes, kept, stream, number, RUN: gl.constexpr, NET: gl.constexpr):
    """Returns the accumulators after a run of equal layers, and the number of the next chunk."""
    FIRST: gl.constexpr = NET.run_starts[RUN]
    LENGTH: gl.constexpr = NET.run_lengths[RUN]
    CHUNKS: gl.constexpr = NET.parts[FIRST - 1] * NET.parts[FIRST]
    if LENGTH == 1:  # the number of parts may change
        keep_layer(y, kept, 0, FIRST - 1, NET)
        y = hidden_layer(y, biases, slopes, stream, number, 0, FIRST, NET)
    else:
        for i in range(LENGTH):
            keep_layer(y, kept, i, FIRST - 1, NET)
            y = hidden_layer(y, biases, slopes, stream, number + i * CHUNKS, i, FIRST, NET)
    return y, number + LENGTH * CHUNKS


@jit
def keep_layer(y, kept, i, FIRST: gl.constexpr, NET: gl.constexpr):
    """Keeps what the way back needs of the pre-activations of hidden layer FIRST + ``i``."""
    PARTS: gl.constexpr = NET.parts[FIRST]
    for part in gl.static_range(PARTS):
        keep(y[part], kept, first_part(NET, FIRST) + i * PARTS + part, NET)


@jit
def forward_slices(y, biases, slopes, w_last, kept, stream, number, NET: gl.constexpr):
    """Returns the logits, fp32 [ROWS, classes], through the last hidden layer."""
    PORTABLE: gl.constexpr = NET.net
    LAST: gl.constexpr = NET.net.layers - 1
    PARTS: gl.constexpr = NET.parts[LAST - 2]
    SLICES: gl.constexpr = NET.slices_of_chunk
    ROWS: gl.constexpr = y[0].shape[0]
    DTYPE: gl.constexpr = w_last.dtype
    h = ()
    for part in gl.static_range(PARTS):
        slope = slope_of(slopes, LAST - 2, PORTABLE)
        h += (activated(y[part], slope, _SLICE, DTYPE, NET),)
    slope = slope_of(slopes, LAST - 1, PORTABLE)
    logits = bias_of(biases + NET.bias_starts[LAST], 0, NET.classes, ROWS)
    for chunk in range(NET.chunks_of_slices):
        w = ready(stream, number + chunk)
        for i in gl.static_range(SLICES):
            piece = chunk * SLICES + i
            z = bias_of(biases + NET.bias_starts[LAST - 1], piece, _SLICE, ROWS)
            for part in gl.static_range(PARTS):
                block = w.slice((i * PARTS + part) * _SLICE, _SLICE)
                z = multiply(h[part], block.permute((1, 0)), z, is_async=True)
            z = wait_for_products(num_outstanding=0, deps=(z,))
            if i == SLICES - 1:
                refill(stream, number + chunk)
            keep(z, kept, first_part(NET, LAST - 1) + piece, NET)
            h_last = activated(z, slope, NET.classes, DTYPE, NET)
            logits = multiply(h_last, w_last.index(piece).permute((1, 0)), logits)
    return logits


@jit
def logits_gradient(logits, label, DTYPE: gl.constexpr, NET: gl.constexpr):
    """Returns the gradient of log softmax(logits)[label], times UNIT_SCALE, as left operand."""
    ROWS: gl.constexpr = logits.shape[0]
    CLASSES: gl.constexpr = NET.net.shape.widths[NET.net.layers]
    LAYOUT: gl.constexpr = accumulators(NET.classes, ROWS)
    column = gl.arange(0, NET.classes, layout=gl.SliceLayout(0, LAYOUT))
    p, _ = softmax(logits, column, CLASSES)
    chosen = gl.expand_dims(column, 0) == gl.expand_dims(label, 1)
    grad = gl.where(chosen, UNIT_SCALE, 0.0) - UNIT_SCALE * p
    return gl.convert_layout(grad.to(DTYPE), left_operand(_SLICE, ROWS), assert_trivial=True)


@jit
def backward_slices(grad, slopes, w_last, kept, stream, number, NET: gl.constexpr):
    """Returns the gradient of h before the last hidden layer, given that of the logits."""
    PORTABLE: gl.constexpr = NET.net
    LAST: gl.constexpr = NET.net.layers - 1
    PARTS: gl.constexpr = NET.parts[LAST - 2]
    SLICES: gl.constexpr = NET.slices_of_chunk
    ROWS: gl.constexpr = grad.shape[0]
    slope = slope_of(slopes, LAST - 1, PORTABLE)
    y = ()
    for _ in gl.static_range(PARTS):
        y += (zeros(NET.part, ROWS),)
    for chunk in range(NET.chunks_of_slices):
        w = ready(stream, number + chunk)
        for i in gl.static_range(SLICES):
            piece = chunk * SLICES + i
            grad_h = multiply(grad, w_last.index(piece), zeros(_SLICE, ROWS), use_acc=False)
            place = first_part(NET, LAST - 1) + piece
            d = before_activation(grad_h, kept, place, slope, NET.part, w_last.dtype, NET)
            sums = ()
            for part in gl.static_range(PARTS):
                block = w.slice((i * PARTS + part) * _SLICE, _SLICE)
                sums += (multiply(d, block, y[part], is_async=True),)
            y = finished(sums, PARTS)
        refill(stream, number + chunk)
    return y


@jit
def finished(sums, PARTS: gl.constexpr):
    """Returns the sums of products when all of these have ended."""
    if PARTS == 1:
        sums = (wait_for_products(num_outstanding=0, deps=sums),)
    else:
        sums = wait_for_products(num_outstanding=0, deps=sums)
    return sums


@jit
def backward_run(y, slopes, kept, stream, number, RUN: gl.constexpr, NET: gl.constexpr):
    """Returns the gradient of h before a run of equal layers, and the number of the next chunk."""
    FIRST: gl.constexpr = NET.run_starts[RUN]
    LENGTH: gl.constexpr = NET.run_lengths[RUN]
    CHUNKS: gl.constexpr = NET.parts[FIRST - 1] * NET.parts[FIRST]
    if LENGTH == 1:  # the number of parts may change
        y = backward_layer(y, slopes, kept, stream, number, 0, FIRST, NET)
    else:
        for i in range(LENGTH):
            y = backward_layer(
                y, slopes, kept, stream, number + i * CHUNKS, LENGTH - 1 - i, FIRST, NET
            )
    return y, number + LENGTH * CHUNKS


@jit
def backward_layer(y, slopes, kept, stream, number, i, FIRST: gl.constexpr, NET: gl.constexpr):
    """Returns the gradient of h before layer FIRST + ``i`` of a run, given that of h after it."""
    PORTABLE: gl.constexpr = NET.net
    OUT: gl.constexpr = NET.parts[FIRST]
    IN: gl.constexpr = NET.parts[FIRST - 1]
    ROWS: gl.constexpr = y[0].shape[0]
    DTYPE: gl.constexpr = stream.ring.dtype
    slope = slope_of(slopes, FIRST + i, PORTABLE)
    place = first_part(NET, FIRST) + i * OUT
    d = ()
    sums = ()
    for to in gl.static_range(IN):
        for part in gl.static_range(OUT):
            if to == 0:
                d += (before_activation(y[part], kept, place + part, slope, NET.part, DTYPE, NET),)
            if part == 0:
                acc = zeros(NET.part, ROWS)
            w = ready(stream, number + (to * OUT + part))
            acc = multiply(d[part], w, acc, is_async=True)
        acc = wait_for_products(num_outstanding=0, deps=(acc,))
        for part in gl.static_range(OUT):
            refill(stream, number + (to * OUT + part))
        sums += (acc,)
    return sums


@jit
def input_gradient(y, slopes, w_first, kept, NET: gl.constexpr):
    """Returns the gradient of x_t, fp32 [ROWS, points], given that of h after the first layer."""
    PORTABLE: gl.constexpr = NET.net
    PARTS: gl.constexpr = NET.parts[0]
    ROWS: gl.constexpr = y[0].shape[0]
    slope = slope_of(slopes, 0, PORTABLE)
    sums = zeros(2 * NET.points, ROWS)
    for part in gl.static_range(PARTS):
        d = before_activation(y[part], kept, part, slope, 2 * NET.points, w_first.dtype, NET)
        sums = multiply(d, w_first.slice(part * NET.part, NET.part), sums, is_async=True)
    sums = wait_for_products(num_outstanding=0, deps=(sums,))
    return coordinates(sums, NET) * (1 / UNIT_SCALE)
