"""Device functions for Hopper GPUs that take a tile of rows through wide networks.

Registers do not hold the sums of all parts of a layer of more than 256 columns. A part leaves them
here as soon as it is complete, activated and rounded, and the next layer reads all its parts as
left operands before its first product. A thread reads only what it has written itself.

* A chain writes activations to ``stash``, [parts, ROWS * part] in shared memory. A layer writes
  over its own input, which is in registers by then.
* A training step writes activations and gradients where its weight gradients need them anyway.

Names in these functions, besides those of :mod:`.hopper` and :mod:`.hopper_rows`:

* ``h``, ``d``: tuples of left operands [ROWS, part], the parts of a layer's input and those of the
  gradient of z after it;
* ``w_first``, ``w_last``: the first layer, [parts, part, 2 * points], and the last one,
  [parts, outputs, part], in shared memory.
"""

import triton

from ..gluon import gl, jit, multiply, wait_for_products
from .activation_kernel import slope_of
from .hopper import (
    accumulators,
    activated,
    bias_of,
    left_operand,
    part_of_first_layer,
    points_operand,
    ready,
    refill,
    zeros,
)
from .hopper_rows import (
    before_activation,
    coordinates,
    first_part,
    from_bias,
    kept,
    last_bias,
    load_part,
    load_z,
    slope_after,
    store_slope_part,
)


@jit
def products(h, sums, stream, number, BACK: gl.constexpr):
    """Returns sums with the products of operands and the next chunks; the last one may go on.

    While a product goes on, the buffer of the one before it is filled again.

    Args:
        h: the operands.
        sums: fp32 [ROWS, part], from which the sums start.
        BACK: True for the chunks of the way back.
    """
    PARTS: gl.constexpr = len(h)
    for part in gl.static_range(PARTS):
        w = ready(stream, number + part)
        if not BACK:
            w = w.permute((1, 0))
        sums = multiply(h[part], w, sums, is_async=True)
        if part > 0:
            sums = wait_for_products(num_outstanding=1, deps=(sums,))
            refill(stream, number + part - 1)
    return sums


@jit
def ended(sums, stream, number):
    """Returns sums when their last product, that with chunk ``number``, has ended."""
    sums = wait_for_products(num_outstanding=0, deps=(sums,))
    refill(stream, number)
    return sums


@triton.constexpr_function
def stash_fragments(columns, rows):
    """Returns the layout of a part in a stash: 16 bytes are what a thread gives to one wgmma.

    In another order they would have to be moved before each product.
    """
    warps, steps = rows // 16, columns // 16
    registers = [[1], [2], [4], *([256 * warps << i] for i in range(steps.bit_length() - 1))]
    return gl.DistributedLinearLayout(
        reg_bases=registers, lane_bases=[[8 << i] for i in range(5)],
        warp_bases=[[256 << i] for i in range(warps.bit_length() - 1)], block_bases=[],
        shape=[rows * columns],
    )  # fmt: skip


@jit
def open_stash(DTYPE: gl.constexpr, ROWS: gl.constexpr, NET: gl.constexpr):
    """Returns a stash, without contents."""
    PARTS: gl.constexpr = NET.stashed // NET.part
    return gl.allocate_shared_memory(
        DTYPE, [PARTS, ROWS * NET.part], gl.SwizzledSharedLayout(1, 1, 1, [0])
    )


@jit
def put(stash, part, y, slope, NET: gl.constexpr):
    """Writes act(y) of a part."""
    ROWS: gl.constexpr = y.shape[0]
    COLUMNS: gl.constexpr = y.shape[1]
    h = activated(y, slope, COLUMNS, stash.dtype, NET)
    h = h.reshape([ROWS // 16, 2, 8, COLUMNS // 16, 2, 4, 2])  # [warp, 8, row, step, 8, column, 2]
    h = h.permute((3, 0, 2, 5, 4, 1, 6)).reshape([ROWS * COLUMNS])
    stash.index(part).store(
        gl.convert_layout(h, stash_fragments(COLUMNS, ROWS), assert_trivial=True)
    )


@jit
def taken(stash, part, COLUMNS: gl.constexpr, ROWS: gl.constexpr):
    """Returns a part as left operand of a product of COLUMNS."""
    PART: gl.constexpr = stash.shape[1] // ROWS
    h = stash.index(part).load(stash_fragments(PART, ROWS))
    h = h.reshape([PART // 16, ROWS // 16, 8, 4, 2, 2, 2])
    h = h.permute((1, 5, 2, 0, 4, 3, 6)).reshape([ROWS, PART])
    return gl.convert_layout(h, left_operand(COLUMNS, ROWS), assert_trivial=True)


@jit
def evaluate(
    x, bias, row_bias, biases, slopes, w_first, w_last, stash, stream, number, NET: gl.constexpr
):  # fmt: skip
    """Returns the output of the network at x_t, and the number of the next chunk."""
    PORTABLE: gl.constexpr = NET.net
    LAST: gl.constexpr = NET.net.layers - 1
    FIRST_PARTS: gl.constexpr = NET.parts[0]
    LAST_PARTS: gl.constexpr = NET.parts[LAST - 1]
    RUNS: gl.constexpr = len(NET.net.run_starts)
    slope = slope_of(slopes, 0, PORTABLE)
    a = points_operand(x, w_first.dtype, NET)
    for part in range(FIRST_PARTS):
        y = part_of_first_layer(a, bias, row_bias, w_first.index(part), part, NET)
        put(stash, part, y, slope, NET)
    for run in gl.static_range(RUNS):
        number = hidden_run(biases, slopes, stash, stream, number, run, NET)
    sums = bias_of(biases + NET.bias_starts[LAST], 0, NET.points, x.shape[0])
    for part in gl.static_range(LAST_PARTS):
        w = w_last.index(part).permute((1, 0))
        sums = multiply(taken(stash, part, NET.points, x.shape[0]), w, sums, is_async=True)
    return wait_for_products(num_outstanding=0, deps=(sums,)), number


@jit
def hidden_run(biases, slopes, stash, stream, number, RUN: gl.constexpr, NET: gl.constexpr):
    """Takes the stash through a run of equal layers, and returns the number of the next chunk."""
    FIRST: gl.constexpr = NET.net.run_starts[RUN]
    LENGTH: gl.constexpr = NET.net.run_lengths[RUN]
    for i in range(LENGTH):
        number = hidden_layer(biases, slopes, stash, stream, number, i, FIRST, NET)
    return number


@jit
def hidden_layer(
    biases, slopes, stash, stream, number, i, FIRST: gl.constexpr, NET: gl.constexpr
):  # fmt: skip
    """Puts the activations after layer FIRST + ``i`` of a run in place of those before it.

    Returns the number of the next chunk.
    """
    PORTABLE: gl.constexpr = NET.net
    IN: gl.constexpr = NET.parts[FIRST - 1]
    OUT: gl.constexpr = NET.parts[FIRST]
    ROWS: gl.constexpr = stash.shape[1] // NET.part
    slope = slope_of(slopes, FIRST + i, PORTABLE)
    bias = biases + (NET.bias_starts[FIRST] + i * NET.outputs[FIRST])
    h = ()
    for part in gl.static_range(IN):
        h += (taken(stash, part, NET.part, ROWS),)
    for to in range(OUT):
        sums = products(h, bias_of(bias, to, NET.part, ROWS), stream, number + to * IN, BACK=False)
        put(stash, to, ended(sums, stream, number + to * IN + IN - 1), slope, NET)
    return number + IN * OUT


@jit
def operands(
    pointer, STRIDE: gl.constexpr, PARTS: gl.constexpr, ROWS: gl.constexpr, NET: gl.constexpr
):
    """Returns parts of hidden features in memory as left operands."""
    LAYOUT: gl.constexpr = left_operand(NET.part, ROWS)
    h = ()
    for part in gl.static_range(PARTS):
        value = load_part(pointer + part * NET.part, STRIDE, NET.part, ROWS)
        h += (gl.convert_layout(value, LAYOUT, assert_trivial=True),)
    return h


@jit
def forward(x, flat, biases, w_first, w_last, stream, number, tile, NET: gl.constexpr):
    """Returns the output, fp32 [ROWS, outputs], and the number of the next chunk."""
    LAST: gl.constexpr = NET.rows.layers - 1
    OUTPUTS: gl.constexpr = NET.rows.padded[LAST + 1]
    FIRST_PARTS: gl.constexpr = NET.parts[0]
    LAST_PARTS: gl.constexpr = NET.parts[LAST - 1]
    RUNS: gl.constexpr = len(NET.rows.run_starts)
    ROWS: gl.constexpr = x.shape[0]
    DTYPE: gl.constexpr = w_first.dtype
    LAYOUT: gl.constexpr = left_operand(OUTPUTS, ROWS)
    slope = slope_after(flat, 0, NET)
    for part in range(FIRST_PARTS):
        w = w_first.index(part).permute((1, 0))
        sums = multiply(x, w, from_bias(biases, part, ROWS, NET))
        kept(sums, slope, NET.rows.columns[1] + part * NET.part, tile, NET.part, DTYPE, NET)
    for run in gl.static_range(RUNS):
        number = forward_run(stream, number, flat, biases, tile, run, ROWS, NET)
    sums = last_bias(flat, ROWS, NET)
    for part in gl.static_range(LAST_PARTS):
        column = NET.rows.columns[LAST] + part * NET.part
        h = load_part(tile.acts + column, NET.rows.activation_columns, NET.part, ROWS)
        w = w_last.index(part).permute((1, 0))
        h = gl.convert_layout(h, LAYOUT, assert_trivial=True)
        sums = multiply(h, w, sums, is_async=True)
    return wait_for_products(num_outstanding=0, deps=(sums,)), number


@jit
def forward_run(
    stream, number, flat, biases, tile, RUN: gl.constexpr, ROWS: gl.constexpr, NET: gl.constexpr
):
    """Takes the tile through a run of equal layers, and returns the number of the next chunk."""
    FIRST: gl.constexpr = NET.rows.run_starts[RUN]
    LENGTH: gl.constexpr = NET.rows.run_lengths[RUN]
    for i in range(LENGTH):
        number = forward_layer(stream, number, flat, biases, i, tile, FIRST, ROWS, NET)
    return number


@jit
def forward_layer(
    stream, number, flat, biases, i, tile, FIRST: gl.constexpr, ROWS: gl.constexpr,
    NET: gl.constexpr,
):  # fmt: skip
    """Writes the activations after layer FIRST + ``i`` of a run, given those before it.

    Returns the number of the next chunk.
    """
    IN: gl.constexpr = NET.parts[FIRST - 1]
    OUT: gl.constexpr = NET.parts[FIRST]
    DTYPE: gl.constexpr = stream.ring.dtype
    slope = slope_after(flat, FIRST + i, NET)
    before = NET.rows.columns[FIRST] + i * NET.rows.padded[FIRST]
    column = before + NET.rows.padded[FIRST]
    h = operands(tile.acts + before, NET.rows.activation_columns, IN, ROWS, NET)
    for to in range(OUT):
        bias = from_bias(biases, first_part(NET, FIRST) + i * OUT + to, ROWS, NET)
        sums = products(h, bias, stream, number + to * IN, BACK=False)
        sums = ended(sums, stream, number + to * IN + IN - 1)
        kept(sums, slope, column + to * NET.part, tile, NET.part, DTYPE, NET)
    return number + IN * OUT


@jit
def backward(grad_y, flat, w_first, w_last, stream, number, tile, NET: gl.constexpr):
    """Does what :func:`.hopper_network.backward` does."""
    LAST: gl.constexpr = NET.rows.layers - 1
    PARTS: gl.constexpr = NET.parts[LAST - 1]
    RUNS: gl.constexpr = len(NET.rows.run_starts)
    ROWS: gl.constexpr = grad_y.shape[0]
    slope = slope_after(flat, LAST - 1, NET)
    of_slope = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, accumulators(NET.part, ROWS)))
    for part in range(PARTS):
        grad_h = multiply(grad_y, w_last.index(part), zeros(NET.part, ROWS))
        column = NET.rows.columns[LAST] + part * NET.part
        z = load_z(column, tile, ROWS, NET)
        _, of_part = before_activation(grad_h, z, slope, column, tile, NET.part, w_last.dtype, NET)
        of_slope += of_part
    store_slope_part(of_slope, LAST - 1, tile, NET)
    for r in gl.static_range(RUNS):
        number = backward_run(stream, number, flat, tile, RUNS - 1 - r, ROWS, NET)
    sums = zeros(2 * NET.points, ROWS)
    if w_first is not None:
        FIRST_PARTS: gl.constexpr = NET.parts[0]
        d = operands(tile.grads, NET.rows.gradient_columns, FIRST_PARTS, ROWS, NET)
        for part in gl.static_range(FIRST_PARTS):
            d_part = gl.convert_layout(
                d[part], left_operand(2 * NET.points, ROWS), assert_trivial=True
            )
            sums = multiply(d_part, w_first.index(part), sums, is_async=True)
        sums = wait_for_products(num_outstanding=0, deps=(sums,))
    return coordinates(sums, NET), number


@jit
def backward_run(
    stream, number, flat, tile, RUN: gl.constexpr, ROWS: gl.constexpr, NET: gl.constexpr
):
    """Takes the tile back through a run of layers, and returns the number of the next chunk."""
    FIRST: gl.constexpr = NET.rows.run_starts[RUN]
    LENGTH: gl.constexpr = NET.rows.run_lengths[RUN]
    for i in range(LENGTH):
        number = backward_layer(stream, number, flat, LENGTH - 1 - i, tile, FIRST, ROWS, NET)
    return number


@jit
def backward_layer(
    stream, number, flat, i, tile, FIRST: gl.constexpr, ROWS: gl.constexpr, NET: gl.constexpr
):
    """Writes the gradients of z before layer FIRST + ``i`` of a run, given those of z after it.

    Returns the number of the next chunk.
    """
    OUT: gl.constexpr = NET.parts[FIRST]
    IN: gl.constexpr = NET.parts[FIRST - 1]
    DTYPE: gl.constexpr = stream.ring.dtype
    slope = slope_after(flat, FIRST - 1 + i, NET)
    column = NET.rows.columns[FIRST] + i * NET.rows.padded[FIRST]
    after = column + NET.rows.padded[FIRST] - NET.rows.columns[1]
    d = operands(tile.grads + after, NET.rows.gradient_columns, OUT, ROWS, NET)
    of_slope = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, accumulators(NET.part, ROWS)))
    for to in range(IN):
        grad_h = products(d, zeros(NET.part, ROWS), stream, number + to * OUT, BACK=True)
        place = column + to * NET.part
        z = load_z(place, tile, ROWS, NET)  # under the last product
        grad_h = ended(grad_h, stream, number + to * OUT + OUT - 1)
        _, of_part = before_activation(grad_h, z, slope, place, tile, NET.part, DTYPE, NET)
        of_slope += of_part
    store_slope_part(of_slope, FIRST - 1 + i, tile, NET)
    return number + IN * OUT
