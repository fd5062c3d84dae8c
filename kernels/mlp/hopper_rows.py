"""Device functions for Hopper GPUs that take a tile of rows through a network and back.

Activations stay in registers. The weight gradients need those of all rows, and the gradients of all
pre-activations. They leave the registers in fragment order (:mod:`.layout`): 16 bytes of each
thread side by side. A thread reads only pre-activations that it has written itself, so no barrier
is needed.

Names in these functions, besides those of :mod:`.hopper`:

* NET: :class:`~.chunks.TrainingLayout` of the networks;
* ``tile``: the tile's rows in memory, a :class:`TileRows`;
* ``w_first``, ``w_last``: the first and the last layer in shared memory,
  [parts * part, 2 * points] and [parts * outputs, part].
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..gluon import gl, jit, multiply, wait_for_products
from .activation_kernel import activate, activate_backward, slope_of
from .hopper import accumulators, left_operand, ready, start_copy, zeros


class TileRows(NamedTuple):
    """Pointers to a tile's first row in the buffers of :class:`~.layout.Layout`.

    Those that a pass does not use, or that nobody reads after it, are None.
    """

    acts: Any
    z: Any  # the activations, if they tell the derivative
    grads: Any
    parts: Any  # fp32, a number for each warp; the next hidden layer has its own after ``stride``
    stride: Any


@triton.constexpr_function
def lag_of(net):
    """Returns how many chunks later the output part of a chunk is surely complete."""
    return max(net.parts)


@jit
def release_last(stream, number, NET: gl.constexpr):
    """Refills a buffer that is surely free, while the product with chunk ``number`` goes on."""
    RING: gl.constexpr = stream.ring.shape[0]
    LAG: gl.constexpr = lag_of(NET)
    gl.static_assert(RING > LAG, "no buffer is free before all are in use")
    start_copy(stream, gl.where(number < LAG, stream.last, number - LAG + RING))


@triton.constexpr_function
def first_part(net, layer):
    """Returns the number of a layer's first part among those of all hidden layers."""
    return sum(net.parts[:layer])


@jit
def resident_biases(flat, NET: gl.constexpr, WARPS: gl.constexpr):
    """Returns the biases of all parts of hidden layers in shared memory, fp32 [parts, columns].

    Each thread has a column of its own; otherwise several threads would write the same one.
    """
    HIDDEN: gl.constexpr = NET.net.layers - 1
    PARTS: gl.constexpr = first_part(NET, HIDDEN)
    biases = gl.allocate_shared_memory(
        gl.float32, [PARTS, NET.bias_columns], gl.SwizzledSharedLayout(1, 1, 1, [0])
    )
    for layer in gl.static_range(HIDDEN):
        store_biases(biases, flat, layer, NET, WARPS)
    return biases


@jit
def store_biases(biases, flat, LAYER: gl.constexpr, NET: gl.constexpr, WARPS: gl.constexpr):
    """Writes the biases of a hidden layer."""
    IN: gl.constexpr = NET.net.shape.widths[LAYER]
    OUT: gl.constexpr = NET.net.shape.widths[LAYER + 1]
    PARTS: gl.constexpr = NET.parts[LAYER]
    if NET.net.shape.bias:
        column = gl.arange(0, NET.bias_columns, layout=gl.BlockedLayout([1], [32], [WARPS], [0]))
        for part in gl.static_range(PARTS):
            place = part * NET.part + column
            pointers = flat + (NET.net.flat[LAYER] + IN * OUT) + place
            bias = gl.load(pointers, mask=(column < NET.part) & (place < OUT), other=0.0)
            biases.index(first_part(NET, LAYER) + part).store(bias)


@jit
def from_bias(biases, number, ROWS: gl.constexpr, NET: gl.constexpr):
    """Returns a part's sums of products before the first one."""
    sums = zeros(NET.part, ROWS)
    if NET.net.shape.bias:
        row = biases.index(number).slice(0, NET.part)
        bias = row.load(gl.SliceLayout(0, accumulators(NET.part, ROWS)))
        sums, _ = gl.broadcast(gl.expand_dims(bias, 0), sums)
    return sums


@triton.constexpr_function
def fragments(columns, rows):
    """Returns the layout of columns in fragment order: 8 of them, or 16 bytes, after the other."""
    registers = [[0, 1], [0, 2], [0, 4], [8, 0]]
    registers += [[0, 32 << i] for i in range((columns // 32).bit_length() - 1)]
    lanes = [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]]
    warps = [[16 << i, 0] for i in range((rows // 16).bit_length() - 1)]
    return gl.DistributedLinearLayout(
        reg_bases=registers, lane_bases=lanes, warp_bases=warps, block_bases=[],
        shape=[rows, columns],
    )  # fmt: skip


@triton.constexpr_function
def rows_of_warps(rows):
    """Returns the layout of numbers of rows as [warps, 16]."""
    warps = [[1 << i, 0] for i in range((rows // 16).bit_length() - 1)]
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 8]], lane_bases=[[0, 0], [0, 0], [0, 1], [0, 2], [0, 4]],
        warp_bases=warps, block_bases=[], shape=[rows // 16, 16],
    )  # fmt: skip


@jit
def store_sums(pointer, value):
    """Writes the sums of each warp's rows, fp32 [ROWS / 16], without a barrier."""
    ROWS: gl.constexpr = value.shape[0]
    LAYOUT: gl.constexpr = rows_of_warps(ROWS)
    value = gl.convert_layout(value.reshape([ROWS // 16, 16]), LAYOUT, assert_trivial=True)
    warp = gl.arange(0, ROWS // 16, layout=gl.SliceLayout(1, LAYOUT))
    gl.store(pointer + warp, gl.sum(value, 1))


@jit
def reordered(x):
    """Returns the columns of a part in fragment order, or those in fragment order by feature."""
    ROWS: gl.constexpr = x.shape[0]
    COLUMNS: gl.constexpr = x.shape[1]
    x = x.reshape([ROWS, COLUMNS // 32, 4, 4, 2]).permute((0, 1, 3, 2, 4))
    return x.reshape([ROWS, COLUMNS])


@jit
def places(STRIDE: gl.constexpr, COLUMNS: gl.constexpr, ROWS: gl.constexpr):
    """Returns the place of each number of a part, in fragment order, behind the first one."""
    LAYOUT: gl.constexpr = fragments(COLUMNS, ROWS)
    row = gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    column = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT))
    return gl.expand_dims(row * STRIDE, 1) + gl.expand_dims(column, 0)


@jit
def store_part(pointer, value, STRIDE: gl.constexpr):
    """Writes a part [ROWS, part] of hidden features."""
    LAYOUT: gl.constexpr = fragments(value.shape[1], value.shape[0])
    value = gl.convert_layout(reordered(value), LAYOUT)
    gl.store(pointer + places(STRIDE, value.shape[1], value.shape[0]), value)


@jit
def load_part(pointer, STRIDE: gl.constexpr, COLUMNS: gl.constexpr, ROWS: gl.constexpr):
    """Returns a part of hidden features, in the layout of sums."""
    value = gl.load(pointer + places(STRIDE, COLUMNS, ROWS))
    return gl.convert_layout(reordered(value), accumulators(COLUMNS, ROWS))


@jit
def kept(y, slope, column, tile, COLUMNS: gl.constexpr, DTYPE: gl.constexpr, NET: gl.constexpr):
    """Writes a part of a hidden layer, and returns it as left operand of a product of COLUMNS.

    Args:
        y: fp32 [ROWS, part], before the activation.
        column: the part's first column in the activations.
    """
    ROWS: gl.constexpr = y.shape[0]
    LAYOUT: gl.constexpr = NET.rows
    if NET.rows.keeps_z and tile.z is not None:
        store_part(tile.z + NET.rows.z_start + column, y.to(DTYPE), NET.rows.z_columns)
    h = activate(y, slope, LAYOUT).to(DTYPE)
    if tile.acts is not None:
        store_part(tile.acts + column, h, NET.rows.activation_columns)
    return gl.convert_layout(h, left_operand(COLUMNS, ROWS), assert_trivial=True)


@jit
def slope_after(flat, hidden_layer, NET: gl.constexpr):
    """Returns the slope for z < 0 after a hidden layer."""
    LAYOUT: gl.constexpr = NET.rows
    return slope_of(flat + NET.rows.flat[NET.rows.layers], hidden_layer, LAYOUT)


@jit
def last_bias(flat, ROWS: gl.constexpr, NET: gl.constexpr):
    """Returns the bias of the last layer, from which its sums start, fp32 [ROWS, outputs]."""
    LAST: gl.constexpr = NET.rows.layers - 1
    WIDTH: gl.constexpr = NET.rows.shape.widths[LAST + 1]
    OUTPUTS: gl.constexpr = NET.rows.padded[LAST + 1]
    sums = zeros(OUTPUTS, ROWS)
    if NET.rows.shape.bias:
        start = flat + (NET.rows.flat[LAST] + NET.rows.shape.widths[LAST] * WIDTH)
        column = gl.arange(0, OUTPUTS, layout=gl.SliceLayout(0, accumulators(OUTPUTS, ROWS)))
        bias = gl.load(start + column, mask=column < WIDTH, other=0.0)
        sums, _ = gl.broadcast(gl.expand_dims(bias, 0), sums)
    return sums


@jit
def first_layer(x, biases, w_first, NET: gl.constexpr):
    """Returns the accumulators of the first layer, given its input as left operand."""
    PARTS: gl.constexpr = NET.parts[0]
    y = ()
    for part in gl.static_range(PARTS):
        start = from_bias(biases, part, x.shape[0], NET)
        w = w_first.slice(part * NET.part, NET.part).permute((1, 0))
        y += (multiply(x, w, start),)
    return y


@jit
def forward_layer(y, stream, number, flat, biases, i, tile, FIRST: gl.constexpr, NET: gl.constexpr):
    """Returns the accumulators of layer FIRST + ``i`` of a run, given those before it."""
    IN: gl.constexpr = NET.parts[FIRST - 1]
    OUT: gl.constexpr = NET.parts[FIRST]
    DTYPE: gl.constexpr = stream.ring.dtype
    slope = slope_after(flat, FIRST - 1 + i, NET)
    column = NET.rows.columns[FIRST] + i * NET.rows.padded[FIRST]
    h = ()
    sums = ()
    if NET.net.exponential:  # it needs the registers that a product would have
        for part in gl.static_range(IN):
            h += (kept(y[part], slope, column + part * NET.part, tile, NET.part, DTYPE, NET),)
    for to in gl.static_range(OUT):
        for part in gl.static_range(IN):
            if to == 0 and not NET.net.exponential:  # the second part under a product
                h += (kept(y[part], slope, column + part * NET.part, tile, NET.part, DTYPE, NET),)
            if part == 0:
                acc = from_bias(biases, first_part(NET, FIRST) + i * OUT + to, y[0].shape[0], NET)
            chunk = number + (to * IN + part)
            w = ready(stream, chunk).permute((1, 0))
            acc = multiply(h[part], w, acc, is_async=True)
            release_last(stream, chunk, NET)
        acc = wait_for_products(num_outstanding=0, deps=(acc,))
        sums += (acc,)
    return sums


@jit
def forward(x, flat, biases, w_first, w_last, stream, number, tile, NET: gl.constexpr):
    """Returns the output, fp32 [ROWS, outputs], and the number of the next chunk."""
    LAST: gl.constexpr = NET.rows.layers - 1
    OUTPUTS: gl.constexpr = NET.rows.padded[LAST + 1]
    PARTS: gl.constexpr = NET.parts[LAST - 1]
    RUNS: gl.constexpr = len(NET.rows.run_starts)
    y = first_layer(x, biases, w_first, NET)
    for run in gl.static_range(RUNS):
        y, number = forward_run(y, stream, number, flat, biases, tile, run, NET)
    slope = slope_after(flat, LAST - 1, NET)
    sums = last_bias(flat, x.shape[0], NET)
    for part in gl.static_range(PARTS):
        column = NET.rows.columns[LAST] + part * NET.part
        h = kept(y[part], slope, column, tile, OUTPUTS, w_last.dtype, NET)
        w = w_last.slice(part * OUTPUTS, OUTPUTS).permute((1, 0))
        sums = multiply(h, w, sums, is_async=True)
    return wait_for_products(num_outstanding=0, deps=(sums,)), number


@jit
def forward_run(y, stream, number, flat, biases, tile, RUN: gl.constexpr, NET: gl.constexpr):
    """Returns the accumulators after a run of equal layers, and the number of the next chunk."""
    FIRST: gl.constexpr = NET.rows.run_starts[RUN]
    LENGTH: gl.constexpr = NET.rows.run_lengths[RUN]
    CHUNKS: gl.constexpr = NET.parts[FIRST - 1] * NET.parts[FIRST]
    if LENGTH == 1:  # the number of parts may change
        y = forward_layer(y, stream, number, flat, biases, 0, tile, FIRST, NET)
    else:
        for i in range(LENGTH):
            y = forward_layer(y, stream, number + i * CHUNKS, flat, biases, i, tile, FIRST, NET)
    return y, number + LENGTH * CHUNKS


@triton.jit
def slope_terms(z, grad_h):
    """Returns what each number of a tile contributes to the gradient of the slope."""
    # Two numbers at once, while they are half as long.
    low = tl.minimum(z, tl.cast(0.0, z.dtype), propagate_nan=tl.PropagateNan.ALL)
    return low.to(tl.float32) * grad_h


@jit
def load_z(column, tile, ROWS: gl.constexpr, NET: gl.constexpr):
    """Returns a part of z, or of the activations if they tell the derivative."""
    return load_part(tile.z + NET.rows.z_start + column, NET.rows.z_columns, NET.part, ROWS)


@jit
def before_activation(
    grad_h, z, slope, column, tile, COLUMNS: gl.constexpr, DTYPE: gl.constexpr, NET: gl.constexpr
):  # fmt: skip
    """Writes the gradient of a part of z, and returns it as left operand of a product of COLUMNS.

    Also returns the part of each row of the slope's gradient, fp32 [ROWS].

    Args:
        grad_h: fp32 [ROWS, part], gradient of act(z).
        z: what :func:`load_z` returns for this part.
        column: the part's first column in the activations.
    """
    ROWS: gl.constexpr = grad_h.shape[0]
    LAYOUT: gl.constexpr = NET.rows
    of_slope = gl.sum(slope_terms(z, grad_h), 1)
    grad_z = activate_backward(grad_h, z.to(gl.float32), slope, LAYOUT).to(DTYPE)
    if tile.grads is not None:
        store_part(tile.grads - NET.rows.columns[1] + column, grad_z, NET.rows.gradient_columns)
    return gl.convert_layout(grad_z, left_operand(COLUMNS, ROWS), assert_trivial=True), of_slope


@jit
def store_slope_part(of_slope, hidden_layer, tile, NET: gl.constexpr):
    """Writes the tile's part of the gradient of the slope after a hidden layer."""
    if NET.net.shape.activation == "prelu" and tile.parts is not None:
        store_sums(tile.parts + hidden_layer * tile.stride, of_slope)


@jit
def backward_layer(y, stream, number, flat, i, tile, FIRST: gl.constexpr, NET: gl.constexpr):
    """Returns the gradient of h before layer FIRST + ``i`` of a run, given that of h after it."""
    OUT: gl.constexpr = NET.parts[FIRST]
    IN: gl.constexpr = NET.parts[FIRST - 1]
    ROWS: gl.constexpr = y[0].shape[0]
    DTYPE: gl.constexpr = stream.ring.dtype
    slope = slope_after(flat, FIRST + i, NET)
    column = NET.rows.columns[FIRST + 1] + i * NET.rows.padded[FIRST + 1]
    d = ()
    sums = ()
    of_slope = 0.0
    for to in gl.static_range(IN):
        for part in gl.static_range(OUT):
            if to == 0:
                place = column + part * NET.part
                z = load_z(place, tile, ROWS, NET)
                grad_z, of_part = before_activation(
                    y[part], z, slope, place, tile, NET.part, DTYPE, NET
                )
                d += (grad_z,)
                of_slope = of_part + of_slope
            if part == 0:
                acc = zeros(NET.part, ROWS)
            chunk = number + (to * OUT + part)
            w = ready(stream, chunk)
            acc = multiply(d[part], w, acc, is_async=True)
            release_last(stream, chunk, NET)
        acc = wait_for_products(num_outstanding=0, deps=(acc,))
        sums += (acc,)
    store_slope_part(of_slope, FIRST + i, tile, NET)
    return sums


@jit
def backward_run(y, stream, number, flat, tile, RUN: gl.constexpr, NET: gl.constexpr):
    """Returns the gradient of h before a run of equal layers, and the number of the next chunk."""
    FIRST: gl.constexpr = NET.rows.run_starts[RUN]
    LENGTH: gl.constexpr = NET.rows.run_lengths[RUN]
    CHUNKS: gl.constexpr = NET.parts[FIRST - 1] * NET.parts[FIRST]
    if LENGTH == 1:  # the number of parts may change
        y = backward_layer(y, stream, number, flat, 0, tile, FIRST, NET)
    else:
        for i in range(LENGTH):
            y = backward_layer(
                y, stream, number + i * CHUNKS, flat, LENGTH - 1 - i, tile, FIRST, NET
            )
    return y, number + LENGTH * CHUNKS


@jit
def backward(grad_y, flat, w_first, w_last, stream, number, tile, NET: gl.constexpr):
    """Does what :func:`.hopper_network.backward` does."""
    PARTS: gl.constexpr = NET.parts[NET.rows.layers - 2]
    FIRST_PARTS: gl.constexpr = NET.parts[0]
    RUNS: gl.constexpr = len(NET.rows.run_starts)
    OUTPUTS: gl.constexpr = NET.rows.padded[NET.rows.layers]
    ROWS: gl.constexpr = grad_y.shape[0]
    y = ()
    for part in gl.static_range(PARTS):
        w = w_last.slice(part * OUTPUTS, OUTPUTS)
        y += (multiply(grad_y, w, zeros(NET.part, ROWS)),)
    for r in gl.static_range(RUNS):
        y, number = backward_run(y, stream, number, flat, tile, RUNS - 1 - r, NET)
    slope = slope_after(flat, 0, NET)
    of_slope = 0.0
    sums = zeros(2 * NET.points, ROWS)
    for part in gl.static_range(FIRST_PARTS):
        column = NET.rows.columns[1] + part * NET.part
        z = load_z(column, tile, ROWS, NET)
        d, of_part = before_activation(
            y[part], z, slope, column, tile, 2 * NET.points, w_last.dtype, NET
        )
        of_slope = of_part + of_slope
        if w_first is not None:
            w = w_first.slice(part * NET.part, NET.part)
            sums = multiply(d, w, sums, is_async=True)
    store_slope_part(of_slope, 0, tile, NET)
    if w_first is not None:
        sums = wait_for_products(num_outstanding=0, deps=(sums,))
    return coordinates(sums, NET), number


@jit
def coordinates(grad, NET: gl.constexpr):
    """Returns the gradient of an input, given that of its rounded numbers and their rests.

    Both meet the same weights, so their gradients are the same.
    """
    grad, _ = grad.reshape([grad.shape[0], 2, NET.points]).permute((0, 2, 1)).split()
    return gl.convert_layout(grad, accumulators(NET.points, grad.shape[0]), assert_trivial=True)
