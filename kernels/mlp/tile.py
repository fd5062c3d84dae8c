"""Device functions that take one tile of rows through a network, forwards and backwards.

A tile has its own rows of the activation and gradient buffers. After one function has written
there, the next may read only after a barrier. Names in these functions:

* ``acts``, ``z``, ``grads``: the tile's first row in the activations, the pre-activations and the
  gradients of :class:`~.layout.Layout`, which is ``NET``;
* ``weights``, ``flat``: the model's operand weights and flat fp32 parameters;
* ``live``: bool [ROWS], true for the rows that exist;
* FIRST and i: the first layer of a run of equal layers, and a layer's position in it.
"""

import triton
import triton.language as tl

from .activation_kernel import activate, activate_backward, slope_of
from .arithmetic import divisor, linear, operand


@triton.constexpr_function
def columns_at_once(net, config):
    """Returns how many columns of a hidden layer, or of its gradient, are computed at once.

    With more than 128 columns of 64 rows exponentials spill.
    """
    return min(config.out, 128 * 64 // config.rows) if net.exponential else config.out


@triton.jit
def store_input(x, stride_row, stride_column, live, acts, NET: tl.constexpr, ROWS: tl.constexpr):
    """Writes a tile of x as an operand: the rounded values, the rest of each, and zeros."""
    WIDTH: tl.constexpr = NET.shape.widths[0]
    PADDED: tl.constexpr = NET.padded[0]
    CHUNK: tl.constexpr = divisor(PADDED, 64)
    row = tl.arange(0, ROWS)[:, None]
    for start in tl.range(0, PADDED, CHUNK, num_stages=1):
        column = start + tl.arange(0, CHUNK)[None, :]
        source = tl.where(NET.split & (column >= WIDTH), column - WIDTH, column)
        pointers = x + row * stride_row + source.to(tl.int64) * stride_column
        value = tl.load(pointers, mask=live[:, None] & (source < WIDTH), other=0.0).to(tl.float32)
        if NET.split:
            high = operand(value, acts.dtype.element_ty, NET).to(tl.float32)
            value = tl.where(column < WIDTH, high, value - high)
        value = operand(value, acts.dtype.element_ty, NET)
        tl.store(acts + row * NET.activation_columns + column, value)


@triton.jit
def forward_hidden(
    acts, z, weights, flat, NET: tl.constexpr, CONFIG: tl.constexpr, ROWS: tl.constexpr
):
    """Writes all hidden activations of a tile, with a barrier after each layer.

    The pre-activations go to ``z``, unless it is None.
    """
    RUNS: tl.constexpr = len(NET.run_starts)
    if NET.layers > 1:
        _hidden_layer(acts, z, weights, flat, 0, 0, NET, CONFIG, ROWS)
        tl.debug_barrier()
    for run in tl.static_range(RUNS):
        for i in tl.range(0, NET.run_lengths[run], num_stages=1):
            _hidden_layer(acts, z, weights, flat, i, NET.run_starts[run], NET, CONFIG, ROWS)
            tl.debug_barrier()


@triton.jit
def _hidden_layer(
    acts, z, weights, flat, i, FIRST: tl.constexpr, NET: tl.constexpr, CONFIG: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Writes the output of hidden layer FIRST + i for a tile."""
    PADDED: tl.constexpr = NET.padded[FIRST + 1]
    CHUNK: tl.constexpr = divisor(PADDED, columns_at_once(NET, CONFIG))
    place = NET.columns[FIRST + 1] + i * PADDED
    row = tl.arange(0, ROWS)[:, None]
    for start in tl.range(0, PADDED, CHUNK, num_stages=1):
        column = start + tl.arange(0, CHUNK)
        slope = slope_of(flat + NET.flat[NET.layers], FIRST + i, NET)
        value = layer_columns(acts, weights, flat, i, column, FIRST, NET, CONFIG, ROWS)
        if z is not None:
            pointers = z + NET.z_start + place + row * NET.z_columns + column[None, :]
            tl.store(pointers, value.to(z.dtype.element_ty))
        h = activate(value, slope, NET)
        if NET.shape.residual and FIRST > 0:  # the layer is as wide as the one before it
            pointers = acts + (place - PADDED) + row * NET.activation_columns + column[None, :]
            h += tl.load(pointers).to(tl.float32)
        h = operand(h, acts.dtype.element_ty, NET)
        tl.store(acts + place + row * NET.activation_columns + column[None, :], h)


@triton.jit
def last_layer(
    acts, weights, flat, y, live, NET: tl.constexpr, CONFIG: tl.constexpr, ROWS: tl.constexpr
):
    """Writes the output of a tile."""
    LAST: tl.constexpr = NET.layers - 1
    WIDTH: tl.constexpr = NET.shape.widths[LAST + 1]
    PADDED: tl.constexpr = NET.padded[LAST + 1]
    CHUNK: tl.constexpr = divisor(PADDED, CONFIG.out)
    row = tl.arange(0, ROWS)[:, None]
    for start in tl.range(0, PADDED, CHUNK, num_stages=1):
        column = start + tl.arange(0, CHUNK)
        z = layer_columns(acts, weights, flat, 0, column, LAST, NET, CONFIG, ROWS)
        tl.store(
            y + row * WIDTH + column[None, :],
            z.to(y.dtype.element_ty),
            mask=live[:, None] & (column < WIDTH)[None, :],
        )


@triton.jit
def layer_columns(
    acts, weights, flat, i, column, FIRST: tl.constexpr, NET: tl.constexpr, CONFIG: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Returns h W^T + b of layer FIRST + i for a tile of rows and some columns, fp32."""
    IN: tl.constexpr = NET.shape.widths[FIRST]
    OUT: tl.constexpr = NET.shape.widths[FIRST + 1]
    PADDED_IN: tl.constexpr = NET.padded[FIRST]
    PADDED_OUT: tl.constexpr = NET.padded[FIRST + 1]
    REDUCE: tl.constexpr = divisor(PADDED_IN, CONFIG.reduce)
    row = tl.arange(0, ROWS)[:, None]
    k = tl.arange(0, REDUCE)
    source = acts + NET.columns[FIRST] + i * PADDED_IN
    w = weights + NET.weights[FIRST] + i * (PADDED_IN * PADDED_OUT)
    if NET.shape.bias:  # loaded while the first operands are on their way
        pointers = flat + NET.flat[FIRST] + i * (IN * OUT + OUT) + IN * OUT + column
        bias = tl.load(pointers, mask=column < OUT, other=0.0)
        acc = tl.broadcast_to(bias[None, :], (ROWS, column.shape[0]))
    else:
        acc = tl.zeros((ROWS, column.shape[0]), tl.float32)
    return linear(
        source + row * NET.activation_columns + k[None, :],
        w + column[None, :] * PADDED_IN + k[:, None],
        acc, PADDED_IN, 1, NET, CONFIG,
    )  # fmt: skip


@triton.jit
def store_grad_y(
    grad_y, stride_row, stride_column, live, scale, grads, NET: tl.constexpr, ROWS: tl.constexpr
):
    """Writes a tile of grad_y times ``scale``, and zeros in the padding."""
    LAYERS: tl.constexpr = NET.layers
    WIDTH: tl.constexpr = NET.shape.widths[LAYERS]
    PADDED: tl.constexpr = NET.padded[LAYERS]
    CHUNK: tl.constexpr = divisor(PADDED, 64)
    target = grads + NET.columns[LAYERS] - NET.columns[1]
    row = tl.arange(0, ROWS)[:, None]
    for start in tl.range(0, PADDED, CHUNK, num_stages=1):
        column = start + tl.arange(0, CHUNK)[None, :]
        pointers = grad_y + row * stride_row + column.to(tl.int64) * stride_column
        value = tl.load(pointers, mask=live[:, None] & (column < WIDTH), other=0.0)
        value = operand(value.to(tl.float32) * scale, grads.dtype.element_ty, NET)
        tl.store(target + row * NET.gradient_columns + column, value)


@triton.jit
def backward_hidden(
    z, grads, weights, flat, parts, tiles, NET: tl.constexpr, CONFIG: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of all hidden pre-activations of a tile, given that of y.

    Where ``NET.keeps_z`` is false, ``z`` is the tile's rows of the activations. The tile's parts of
    the slope gradients go to ``parts``, ``tiles`` elements apart, unless it is None. There is a
    barrier after each layer.
    """
    LAYERS: tl.constexpr = NET.layers
    RUNS: tl.constexpr = len(NET.run_starts)
    if LAYERS > 1:
        part = _layer_backward(z, grads, weights, flat, 0, LAYERS - 1, NET, CONFIG, ROWS)
        _store_slope_part(part, parts, (LAYERS - 2) * tiles, NET)
        tl.debug_barrier()
    for r in tl.static_range(RUNS):
        _run_backward(z, grads, weights, flat, parts, tiles, RUNS - 1 - r, NET, CONFIG, ROWS)


@triton.jit
def _run_backward(
    z, grads, weights, flat, parts, tiles, RUN: tl.constexpr, NET: tl.constexpr,
    CONFIG: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Takes a tile back through a run of equal layers, from the last to the first."""
    FIRST: tl.constexpr = NET.run_starts[RUN]
    LENGTH: tl.constexpr = NET.run_lengths[RUN]
    for step in tl.range(0, LENGTH, num_stages=1):
        i = LENGTH - 1 - step
        part = _layer_backward(z, grads, weights, flat, i, FIRST, NET, CONFIG, ROWS)
        _store_slope_part(part, parts, (FIRST + i - 1) * tiles, NET)
        tl.debug_barrier()


@triton.jit
def _layer_backward(
    z, grads, weights, flat, i, FIRST: tl.constexpr, NET: tl.constexpr, CONFIG: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of z_l for l = FIRST + i - 1, the layer before FIRST + i, for a tile.

    Returns the tile's part of the gradient of the slope, the sum of grad_h z where z <= 0.
    """
    PADDED: tl.constexpr = NET.padded[FIRST]
    CHUNK: tl.constexpr = divisor(PADDED, columns_at_once(NET, CONFIG))
    row = tl.arange(0, ROWS)[:, None]
    source = z + NET.z_start + NET.columns[FIRST] + i * PADDED
    target = grads + (NET.columns[FIRST] - NET.columns[1]) + i * PADDED
    part = 0.0
    for start in tl.range(0, PADDED, CHUNK, num_stages=1):
        column = start + tl.arange(0, CHUNK)
        # Loaded while the first operands are on their way.
        value = tl.load(source + row * NET.z_columns + column[None, :])
        slope = slope_of(flat + NET.flat[NET.layers], FIRST + i - 1, NET)
        grad_h = layer_columns_backward(grads, weights, i, column, FIRST, NET, CONFIG, ROWS)
        if NET.shape.residual:
            stream = grads + NET.stream + row * NET.gradient_columns + column[None, :]
            if NET.layers - 1 > FIRST:
                grad_h += tl.load(stream + (FIRST + i + 1) % 2 * PADDED).to(tl.float32)
            rounded = operand(grad_h, grads.dtype.element_ty, NET)
            tl.store(stream + (FIRST + i) % 2 * PADDED, rounded)
        # The zero puts z into the layout of grad_h before anything else is done with it. Triton 3.6
        # would compare z in the layout of its load, and move the results through shared memory.
        value = value.to(tl.float32) + grad_h * 0.0
        if NET.shape.activation == "prelu":
            part += tl.sum(tl.minimum(value, 0.0, propagate_nan=tl.PropagateNan.ALL) * grad_h)
        grad_z = activate_backward(grad_h, value, slope, NET)
        pointers = target + row * NET.gradient_columns + column[None, :]
        tl.store(pointers, operand(grad_z, grads.dtype.element_ty, NET))
    return part


@triton.jit
def layer_columns_backward(
    grads, weights, i, column, FIRST: tl.constexpr, NET: tl.constexpr, CONFIG: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Returns grad_z W of layer FIRST + i for a tile of rows and some columns, fp32."""
    PADDED_IN: tl.constexpr = NET.padded[FIRST]
    PADDED_OUT: tl.constexpr = NET.padded[FIRST + 1]
    REDUCE: tl.constexpr = divisor(PADDED_OUT, CONFIG.reduce)
    row = tl.arange(0, ROWS)[:, None]
    k = tl.arange(0, REDUCE)
    source = grads + (NET.columns[FIRST + 1] - NET.columns[1]) + i * PADDED_OUT
    w = weights + NET.weights[FIRST] + i * (PADDED_IN * PADDED_OUT)
    return linear(
        source + row * NET.gradient_columns + k[None, :],
        w + k[:, None] * PADDED_IN + column[None, :],
        tl.zeros((ROWS, column.shape[0]), tl.float32), PADDED_OUT, PADDED_IN, NET, CONFIG,
    )  # fmt: skip


@triton.jit
def _store_slope_part(part, parts, offset, NET: tl.constexpr):
    if parts is not None and NET.shape.activation == "prelu":
        tl.store(parts + offset, part)


@triton.jit
def store_grad_x(
    grads, weights, grad_x, live, inverse, NET: tl.constexpr, CONFIG: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of a tile of x; both halves of a split input have the same gradient."""
    WIDTH: tl.constexpr = NET.shape.widths[0]
    CHUNK: tl.constexpr = divisor(NET.padded[0], CONFIG.out)
    row = tl.arange(0, ROWS)[:, None]
    for start in tl.range(0, WIDTH, CHUNK, num_stages=1):
        column = start + tl.arange(0, CHUNK)
        value = layer_columns_backward(grads, weights, 0, column, 0, NET, CONFIG, ROWS) * inverse
        tl.store(
            grad_x + row * WIDTH + column[None, :],
            value.to(grad_x.dtype.element_ty),
            mask=live[:, None] & (column < WIDTH)[None, :],
        )
