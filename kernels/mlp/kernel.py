"""Fused multi-layer perceptron in Triton: forward, backward and weight gradients of M networks.

Same contract as :mod:`.reference`, in four launches after the weights are packed:

1. :func:`forward_kernel`: a program takes 64 rows through all layers; a layer's pre-activations go
   through a buffer that stays in cache and that the backward pass reads.
2. :func:`backward_kernel`: the same backwards, down to the gradient of every pre-activation, of
   the slopes, and of x if asked.
3. :func:`weight_gradient_kernel`: dW_l = dz_l^T h_l, the rows split over programs.
4. :func:`reduce_kernel`: sums the parts in a fixed order, so two runs give the same bits.

Activations are recomputed from z, because the slope of a PReLU may be negative: the sign of z
decides which side of it a row was on.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import capability_of, device_of
from .config import OPERAND_DTYPES, PROGRAMS, TILE_ROWS, Config, config_for
from .device import (
    activate,
    activate_backward,
    divisor,
    gradient_scale,
    linear,
    rounded,
    slope_of,
)
from .layout import Layout, layout_of
from .shape import MLPParameters, MLPShape

_BLOCK = 1024  # elements of an element-wise program
# Arguments that change from call to call: no kernel is compiled anew for a value of 1 or of 16.
_VARYING = ["rows", "chunk", "splits", "tiles"]


@triton.jit
def pack_kernel(flat_ptr, packed_ptr, flat_stride, NET: tl.constexpr, BLOCK: tl.constexpr):
    """Copies each layer's weights into the packed buffer; grid (blocks, layers, M)."""
    LAYERS: tl.constexpr = NET.layers
    model = tl.program_id(2).to(tl.int64)
    flat = flat_ptr + model * flat_stride
    packed = packed_ptr + model * NET.packed[LAYERS]
    for layer in tl.static_range(LAYERS):
        if tl.program_id(1) == layer:
            _pack_layer(flat, packed, NET, layer, BLOCK)


@triton.jit
def _pack_layer(flat, packed, NET: tl.constexpr, LAYER: tl.constexpr, BLOCK: tl.constexpr):
    IN: tl.constexpr = NET.shape.widths[LAYER]
    OUT: tl.constexpr = NET.shape.widths[LAYER + 1]
    PADDED_IN: tl.constexpr = NET.padded[LAYER]
    PADDED_OUT: tl.constexpr = NET.padded[LAYER + 1]
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = element // PADDED_IN, element % PADDED_IN
    if LAYER == 0 and NET.split:  # the rest of an input meets the weight of its rounded part
        column = tl.where(column < 2 * IN, column % IN, column)
    weight = tl.load(
        flat + NET.flat[LAYER] + row * IN + column, mask=(row < OUT) & (column < IN), other=0.0
    )
    tl.store(
        packed + NET.packed[LAYER] + element,
        weight.to(packed.dtype.element_ty),
        mask=element < PADDED_IN * PADDED_OUT,
    )


@triton.jit(do_not_specialize=_VARYING)
def forward_kernel(
    x_ptr, x_stride_model, x_stride_row, x_stride_column,
    flat_ptr, flat_stride, packed_ptr, acts_ptr, acts_rows, y_ptr, rows,
    NET: tl.constexpr, CONFIG: tl.constexpr, ROWS: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """y = MLP(x) for tiles of ROWS rows; grid (programs, M).

    With SAVE the pre-activations of every row stay in the buffer; without, each program uses its
    own rows of it over and over.
    """
    LAYERS: tl.constexpr = NET.layers
    RUNS: tl.constexpr = len(NET.run_starts)
    OUT: tl.constexpr = NET.shape.widths[LAYERS]
    program = tl.program_id(0).to(tl.int64)
    model = tl.program_id(1).to(tl.int64)
    flat = flat_ptr + model * flat_stride
    packed = packed_ptr + model * NET.packed[LAYERS]
    for tile in tl.range(program, tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=1):
        first = tile * ROWS
        slot = first if SAVE else program * ROWS
        acts = acts_ptr + (model * acts_rows + slot) * NET.activation_columns
        live = first + tl.arange(0, ROWS) < rows
        x = x_ptr + model * x_stride_model + first * x_stride_row
        _store_input(x, x_stride_row, x_stride_column, live, acts, NET, ROWS)
        tl.debug_barrier()
        if LAYERS > 1:
            _hidden_layer(acts, packed, flat, 0, 0, NET, CONFIG, ROWS)
            tl.debug_barrier()
        for run in tl.static_range(RUNS):
            for i in tl.range(0, NET.run_lengths[run], num_stages=1):
                _hidden_layer(acts, packed, flat, i, NET.run_starts[run], NET, CONFIG, ROWS)
                tl.debug_barrier()
        y = y_ptr + (model * rows + first) * OUT
        _last_layer(acts, packed, flat, y, live, NET, CONFIG, ROWS)
        tl.debug_barrier()


@triton.jit
def _store_input(x, stride_row, stride_column, live, acts, NET: tl.constexpr, ROWS: tl.constexpr):
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
            high = rounded(value, acts.dtype.element_ty, NET)
            value = tl.where(column < WIDTH, high, value - high)
        tl.store(acts + row * NET.activation_columns + column, value.to(acts.dtype.element_ty))


@triton.jit
def _hidden_layer(
    acts, packed, flat, i, FIRST: tl.constexpr, NET: tl.constexpr, CONFIG: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Writes the pre-activations of hidden layer FIRST + i, the i-th of its run, for a tile."""
    PADDED: tl.constexpr = NET.padded[FIRST + 1]
    CHUNK: tl.constexpr = divisor(PADDED, CONFIG.out)
    target = acts + NET.columns[FIRST + 1] + i * PADDED
    row = tl.arange(0, ROWS)[:, None]
    for start in tl.range(0, PADDED, CHUNK, num_stages=1):
        column = start + tl.arange(0, CHUNK)
        z = _layer_columns(acts, packed, flat, i, column, FIRST, NET, CONFIG, ROWS)
        pointers = target + row * NET.activation_columns + column[None, :]
        tl.store(pointers, z.to(acts.dtype.element_ty))


@triton.jit
def _last_layer(
    acts, packed, flat, y, live, NET: tl.constexpr, CONFIG: tl.constexpr, ROWS: tl.constexpr
):
    """Writes the output of a tile."""
    LAST: tl.constexpr = NET.layers - 1
    WIDTH: tl.constexpr = NET.shape.widths[LAST + 1]
    PADDED: tl.constexpr = NET.padded[LAST + 1]
    CHUNK: tl.constexpr = divisor(PADDED, CONFIG.out)
    row = tl.arange(0, ROWS)[:, None]
    for start in tl.range(0, PADDED, CHUNK, num_stages=1):
        column = start + tl.arange(0, CHUNK)
        z = _layer_columns(acts, packed, flat, 0, column, LAST, NET, CONFIG, ROWS)
        tl.store(
            y + row * WIDTH + column[None, :],
            z.to(y.dtype.element_ty),
            mask=live[:, None] & (column < WIDTH)[None, :],
        )


@triton.jit
def _layer_columns(
    acts, packed, flat, i, column, FIRST: tl.constexpr, NET: tl.constexpr, CONFIG: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """act(z) W^T + b of layer FIRST + i for a tile of rows and some columns, fp32."""
    IN: tl.constexpr = NET.shape.widths[FIRST]
    OUT: tl.constexpr = NET.shape.widths[FIRST + 1]
    PADDED_IN: tl.constexpr = NET.padded[FIRST]
    PADDED_OUT: tl.constexpr = NET.padded[FIRST + 1]
    REDUCE: tl.constexpr = divisor(PADDED_IN, CONFIG.reduce)
    row = tl.arange(0, ROWS)[:, None]
    k = tl.arange(0, REDUCE)
    source = acts + NET.columns[FIRST] + i * PADDED_IN
    weight = packed + NET.packed[FIRST] + i * (PADDED_IN * PADDED_OUT)
    slope = slope_of(flat + NET.flat[NET.layers], FIRST + i - 1, NET) if FIRST > 0 else 0.0
    z = linear(
        source + row * NET.activation_columns + k[None, :],
        weight + column[None, :] * PADDED_IN + k[:, None],
        slope, PADDED_IN, 1, FIRST > 0, NET, CONFIG,
    )  # fmt: skip
    if NET.shape.bias:
        bias = flat + NET.flat[FIRST] + i * (IN * OUT + OUT) + IN * OUT + column
        z += tl.load(bias, mask=column < OUT, other=0.0)[None, :]
    return z


@triton.jit(do_not_specialize=_VARYING)
def backward_kernel(
    grad_y_ptr, grad_y_stride_model, grad_y_stride_row, grad_y_stride_column, abs_max_ptr,
    flat_ptr, flat_stride, packed_ptr, acts_ptr, acts_rows,
    grads_ptr, grads_rows, slope_parts_ptr, grad_x_ptr, rows,
    NET: tl.constexpr, CONFIG: tl.constexpr, ROWS: tl.constexpr,
    SAVE: tl.constexpr, NEED_X: tl.constexpr,
):  # fmt: skip
    """Gradients of sum(grad_y * y) for tiles of ROWS rows; grid (programs, M).

    With SAVE the gradients of all pre-activations, times the scale of grad_y, stay in their buffer
    and each tile's part of the slope gradients is written to [M, hidden layers, tiles]; without,
    each program uses its own rows over and over. With NEED_X grad_x is written, not scaled.
    """
    LAYERS: tl.constexpr = NET.layers
    RUNS: tl.constexpr = len(NET.run_starts)
    program = tl.program_id(0).to(tl.int64)
    model = tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(rows, ROWS)
    flat = flat_ptr + model * flat_stride
    packed = packed_ptr + model * NET.packed[LAYERS]
    scale, inverse = gradient_scale(abs_max_ptr + model, NET)
    for tile in tl.range(program, tiles, tl.num_programs(0), num_stages=1):
        first = tile * ROWS
        slot = first if SAVE else program * ROWS
        acts = acts_ptr + (model * acts_rows + first) * NET.activation_columns
        grads = grads_ptr + (model * grads_rows + slot) * NET.gradient_columns
        live = first + tl.arange(0, ROWS) < rows
        grad_y = grad_y_ptr + model * grad_y_stride_model + first * grad_y_stride_row
        _store_grad_y(
            grad_y, grad_y_stride_row, grad_y_stride_column, live, scale, grads, NET, ROWS
        )
        tl.debug_barrier()
        parts = slope_parts_ptr + model * (LAYERS - 1) * tiles + tile
        if LAYERS > 1:
            part = _layer_backward(acts, grads, packed, flat, 0, LAYERS - 1, NET, CONFIG, ROWS)
            _store_slope_part(part, parts + (LAYERS - 2) * tiles, NET, SAVE)
            tl.debug_barrier()
        for r in tl.static_range(RUNS):
            _run_backward(
                acts, grads, packed, flat, parts, tiles, RUNS - 1 - r, NET, CONFIG, ROWS, SAVE
            )
        if NEED_X:
            grad_x = grad_x_ptr + (model * rows + first) * NET.shape.widths[0]
            _store_grad_x(grads, packed, grad_x, live, inverse, NET, CONFIG, ROWS)
        tl.debug_barrier()


@triton.jit
def _store_grad_y(
    grad_y, stride_row, stride_column, live, scale, grads, NET: tl.constexpr, ROWS: tl.constexpr
):
    """Writes a tile of the scaled grad_y, its padding zero."""
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
        value = (value.to(tl.float32) * scale).to(grads.dtype.element_ty)
        tl.store(target + row * NET.gradient_columns + column, value)


@triton.jit
def _run_backward(
    acts, grads, packed, flat, parts, tiles, RUN: tl.constexpr, NET: tl.constexpr,
    CONFIG: tl.constexpr, ROWS: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Takes a tile back through a run of equal layers, the last one first."""
    FIRST: tl.constexpr = NET.run_starts[RUN]
    LENGTH: tl.constexpr = NET.run_lengths[RUN]
    for step in tl.range(0, LENGTH, num_stages=1):
        i = LENGTH - 1 - step
        part = _layer_backward(acts, grads, packed, flat, i, FIRST, NET, CONFIG, ROWS)
        _store_slope_part(part, parts + (FIRST + i - 1) * tiles, NET, SAVE)
        tl.debug_barrier()


@triton.jit
def _layer_backward(
    acts, grads, packed, flat, i, FIRST: tl.constexpr, NET: tl.constexpr, CONFIG: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the pre-activations that layer FIRST + i reads, for a tile.

    Returns the tile's part of the gradient of the slope, sum of grad_h z where z <= 0.
    """
    PADDED: tl.constexpr = NET.padded[FIRST]
    CHUNK: tl.constexpr = divisor(PADDED, CONFIG.out)
    row = tl.arange(0, ROWS)[:, None]
    source = acts + NET.columns[FIRST] + i * PADDED
    target = grads + (NET.columns[FIRST] - NET.columns[1]) + i * PADDED
    slope = slope_of(flat + NET.flat[NET.layers], FIRST + i - 1, NET)
    part = 0.0
    for start in tl.range(0, PADDED, CHUNK, num_stages=1):
        column = start + tl.arange(0, CHUNK)
        grad_h = _layer_columns_backward(grads, packed, i, column, FIRST, NET, CONFIG, ROWS)
        z = tl.load(source + row * NET.activation_columns + column[None, :]).to(tl.float32)
        if NET.shape.activation == "prelu":
            part += tl.sum(tl.where(z > 0, 0.0, grad_h * z))
        grad_z = activate_backward(grad_h, z, slope, NET)
        pointers = target + row * NET.gradient_columns + column[None, :]
        tl.store(pointers, grad_z.to(grads.dtype.element_ty))
    return part


@triton.jit
def _layer_columns_backward(
    grads, packed, i, column, FIRST: tl.constexpr, NET: tl.constexpr, CONFIG: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """grad_z W of layer FIRST + i for a tile of rows and some columns, fp32."""
    PADDED_IN: tl.constexpr = NET.padded[FIRST]
    PADDED_OUT: tl.constexpr = NET.padded[FIRST + 1]
    REDUCE: tl.constexpr = divisor(PADDED_OUT, CONFIG.reduce)
    row = tl.arange(0, ROWS)[:, None]
    k = tl.arange(0, REDUCE)
    source = grads + (NET.columns[FIRST + 1] - NET.columns[1]) + i * PADDED_OUT
    weight = packed + NET.packed[FIRST] + i * (PADDED_IN * PADDED_OUT)
    return linear(
        source + row * NET.gradient_columns + k[None, :],
        weight + k[:, None] * PADDED_IN + column[None, :],
        0.0, PADDED_OUT, PADDED_IN, False, NET, CONFIG,
    )  # fmt: skip


@triton.jit
def _store_slope_part(part, pointer, NET: tl.constexpr, SAVE: tl.constexpr):
    if SAVE and NET.shape.activation == "prelu":
        tl.store(pointer, part)


@triton.jit
def _store_grad_x(
    grads, packed, grad_x, live, inverse, NET: tl.constexpr, CONFIG: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of a tile of x; the second half of a split input is the same again."""
    WIDTH: tl.constexpr = NET.shape.widths[0]
    CHUNK: tl.constexpr = divisor(NET.padded[0], CONFIG.out)
    row = tl.arange(0, ROWS)[:, None]
    for start in tl.range(0, WIDTH, CHUNK, num_stages=1):
        column = start + tl.arange(0, CHUNK)
        value = _layer_columns_backward(grads, packed, 0, column, 0, NET, CONFIG, ROWS) * inverse
        tl.store(
            grad_x + row * WIDTH + column[None, :],
            value.to(grad_x.dtype.element_ty),
            mask=live[:, None] & (column < WIDTH)[None, :],
        )


@triton.constexpr_function
def weight_tiles(net, config, layer):
    """How many tiles the weight gradients of the layers before ``layer`` have."""
    return sum(
        -(-i // config.grad_in) * -(-o // config.grad_out)
        for i, o in zip(net.shape.widths[:layer], net.shape.widths[1 : layer + 1], strict=True)
    )


@triton.constexpr_function
def bias_tiles(net, config, layer):
    """How many tiles the bias gradients of the layers before ``layer`` have."""
    widths = net.shape.widths[1 : layer + 1] if net.shape.bias else ()
    return sum(-(-o // config.grad_out) for o in widths)


@triton.jit(do_not_specialize=_VARYING)
def weight_gradient_kernel(
    acts_ptr, grads_ptr, buffer_rows, flat_ptr, flat_stride, parts_ptr, chunk,
    NET: tl.constexpr, CONFIG: tl.constexpr,
):  # fmt: skip
    """Parts [M, splits, P] of all weight and bias gradients, from ``chunk`` rows each.

    Grid (tiles, splits, M): first the tiles of the weights, then those of the biases.
    """
    LAYERS: tl.constexpr = NET.layers
    TILES: tl.constexpr = weight_tiles(NET, CONFIG, LAYERS)
    task = tl.program_id(0)
    split = tl.program_id(1)
    model = tl.program_id(2).to(tl.int64)
    flat = flat_ptr + model * flat_stride
    parts = parts_ptr + (model * tl.num_programs(1) + split) * flat_stride
    first = split * chunk
    count = tl.minimum(chunk, buffer_rows - first)
    acts = acts_ptr + (model * buffer_rows + first) * NET.activation_columns
    grads = grads_ptr + (model * buffer_rows + first) * NET.gradient_columns
    if task < TILES:
        _weight_gradient(acts, grads, count, flat, parts, task, NET, CONFIG)
    else:
        _bias_gradient(grads, count, parts, task - TILES, NET, CONFIG)


@triton.jit
def _weight_gradient(
    acts, grads, count, flat, parts, task, NET: tl.constexpr, CONFIG: tl.constexpr
):
    """One tile of dW = dz^T h, summed over ``count`` rows."""
    LAYERS: tl.constexpr = NET.layers
    IN: tl.constexpr = CONFIG.grad_in
    OUT: tl.constexpr = CONFIG.grad_out
    layer, tile, inputs, outputs, source, target = 0, task, 0, 0, 0, 0
    padded_in, padded_out, flat_start = 0, 0, 0
    for candidate in tl.static_range(LAYERS):
        chosen = task >= weight_tiles(NET, CONFIG, candidate)
        layer = tl.where(chosen, candidate, layer)
        tile = tl.where(chosen, task - weight_tiles(NET, CONFIG, candidate), tile)
        inputs = tl.where(chosen, NET.shape.widths[candidate], inputs)
        outputs = tl.where(chosen, NET.shape.widths[candidate + 1], outputs)
        padded_in = tl.where(chosen, NET.padded[candidate], padded_in)
        padded_out = tl.where(chosen, NET.padded[candidate + 1], padded_out)
        source = tl.where(chosen, NET.columns[candidate], source)
        target = tl.where(chosen, NET.columns[candidate + 1] - NET.columns[1], target)
        flat_start = tl.where(chosen, NET.flat[candidate], flat_start)
    tiles_in = tl.cdiv(inputs, IN)
    column_in = (tile % tiles_in) * IN + tl.arange(0, IN)
    column_out = (tile // tiles_in) * OUT + tl.arange(0, OUT)
    acc = _outer_product(
        acts + tl.multiple_of(source, 16), grads + tl.multiple_of(target, 16), count,
        column_in, column_out, tl.multiple_of(padded_in, 16), tl.multiple_of(padded_out, 16),
        flat + NET.flat[LAYERS], layer, NET, CONFIG,
    )  # fmt: skip
    tl.store(
        parts + flat_start + column_out[None, :] * inputs + column_in[:, None],
        acc,
        mask=(column_out < outputs)[None, :] & (column_in < inputs)[:, None],
    )


@triton.jit
def _outer_product(
    source, target, count, column_in, column_out, padded_in, padded_out, slopes, layer,
    NET: tl.constexpr, CONFIG: tl.constexpr,
):  # fmt: skip
    """h^T dz over ``count`` rows, fp32 [columns in, columns out]."""
    ROWS: tl.constexpr = CONFIG.grad_rows
    HIDDEN: tl.constexpr = NET.layers > 1
    row = tl.arange(0, ROWS)[:, None]
    slope = slope_of(slopes, tl.maximum(layer - 1, 0), NET) if HIDDEN else 0.0
    z_ptrs = source + row * NET.activation_columns + column_in[None, :]
    grad_ptrs = target + row * NET.gradient_columns + column_out[None, :]
    acc = tl.zeros((column_in.shape[0], column_out.shape[0]), tl.float32)
    for _ in tl.range(0, count, ROWS, num_stages=CONFIG.grad_stages):
        z = tl.load(z_ptrs, mask=(column_in < padded_in)[None, :], other=0.0)
        grad_z = tl.load(grad_ptrs, mask=(column_out < padded_out)[None, :], other=0.0)
        if HIDDEN and NET.shape.activation != "none":
            h = activate(z, slope, NET).to(z.dtype)
            z = tl.where(layer > 0, h, z)
        acc = tl.dot(tl.trans(z), grad_z, acc, input_precision=NET.input_precision)
        z_ptrs += ROWS * NET.activation_columns
        grad_ptrs += ROWS * NET.gradient_columns
    return acc


@triton.jit
def _bias_gradient(grads, count, parts, task, NET: tl.constexpr, CONFIG: tl.constexpr):
    """One tile of db = sum of dz over ``count`` rows."""
    ROWS: tl.constexpr = CONFIG.grad_rows
    OUT: tl.constexpr = CONFIG.grad_out
    LAYERS: tl.constexpr = NET.layers
    tile, outputs, target, flat_start = task, 0, 0, 0
    for candidate in tl.static_range(LAYERS):
        chosen = task >= bias_tiles(NET, CONFIG, candidate)
        tile = tl.where(chosen, task - bias_tiles(NET, CONFIG, candidate), tile)
        outputs = tl.where(chosen, NET.shape.widths[candidate + 1], outputs)
        target = tl.where(chosen, NET.columns[candidate + 1] - NET.columns[1], target)
        start = NET.flat[candidate] + NET.shape.widths[candidate] * NET.shape.widths[candidate + 1]
        flat_start = tl.where(chosen, start, flat_start)
    column = tile * OUT + tl.arange(0, OUT)
    pointers = grads + target + tl.arange(0, ROWS)[:, None] * NET.gradient_columns + column[None, :]
    acc = tl.zeros((ROWS, OUT), tl.float32)
    for _ in tl.range(0, count, ROWS, num_stages=CONFIG.grad_stages):
        acc += tl.load(pointers, mask=(column < outputs)[None, :], other=0.0).to(tl.float32)
        pointers += ROWS * NET.gradient_columns
    tl.store(parts + flat_start + column, tl.sum(acc, axis=0), mask=column < outputs)


@triton.jit(do_not_specialize=_VARYING)
def reduce_kernel(
    parts_ptr, splits, slope_parts_ptr, tiles, abs_max_ptr, grad_ptr, grad_stride,
    NET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad [M, P] from the parts, in a fixed order; grid (blocks, M), the slopes in the last."""
    LAYERS: tl.constexpr = NET.layers
    SIZE: tl.constexpr = NET.flat[LAYERS]
    model = tl.program_id(1).to(tl.int64)
    grad = grad_ptr + model * grad_stride
    inverse = gradient_scale(abs_max_ptr + model, NET)[1]
    if tl.program_id(0) < tl.cdiv(SIZE, BLOCK):
        element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        parts = parts_ptr + model * splits * NET.shape.num_parameters + element
        acc = tl.zeros((BLOCK,), tl.float32)
        for _ in range(splits):
            acc += tl.load(parts, mask=element < SIZE, other=0.0)
            parts += NET.shape.num_parameters
        tl.store(grad + element, acc * inverse, mask=element < SIZE)
    elif NET.shape.activation == "prelu":
        length = tiles * (LAYERS - 1) // NET.shape.slopes
        for slope in tl.static_range(NET.shape.slopes):
            first = (model * NET.shape.slopes + slope) * length
            total = _sum(slope_parts_ptr + first, length, BLOCK)
            tl.store(grad + SIZE + slope, total * inverse)


@triton.jit
def _sum(pointer, length, BLOCK: tl.constexpr):
    acc = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        element = start + tl.arange(0, BLOCK)
        acc += tl.load(pointer + element, mask=element < length, other=0.0)
    return tl.sum(acc)


class Saved(NamedTuple):
    """What the backward pass needs of the forward pass; the tensors may be kept by autograd."""

    activations: Tensor  # [M, rows rounded up, columns]: the input and every z, operand dtype
    packed: Tensor  # [M, size], the padded weights, operand dtype
    flat: Tensor  # float32 [M, P]


def forward(
    x: Tensor, parameters: MLPParameters, shape: MLPShape, precision: str, *, save: bool = True
) -> tuple[Tensor, Saved]:
    """y = MLP(x), the dtype of x, and what :func:`backward` needs.

    Args:
        x: float [M, B, in], any strides.
        parameters: of M networks.
        shape: their shape.
        precision: of the matrix products, one of ``fp16``, ``bf16``, ``tf32`` and ``fp32``.
        save: False if no backward pass will follow; the buffer is then as small as the GPU.

    Returns:
        y [M, B, out] and the :class:`Saved` tensors.
    """
    return forward_flat(x, shape.pack(parameters), shape, precision, save=save)


def forward_flat(
    x: Tensor,
    flat: Tensor,
    shape: MLPShape,
    precision: str,
    *,
    packed: Tensor | None = None,
    save: bool = True,
) -> tuple[Tensor, Saved]:
    """:func:`forward` of flat parameters [M, P]; ``packed`` is what :func:`pack` made of them."""
    net = layout_of(shape, precision)
    config = config_for(precision, capability_of(x.device))
    models, rows, _ = x.shape
    flat = flat.float().contiguous()
    if packed is None:
        packed = pack(flat, shape, precision)
    tiles = triton.cdiv(rows, TILE_ROWS)
    programs = tiles if save else min(tiles, _slots(models))
    acts = packed.new_empty((models, programs * TILE_ROWS, net.activation_columns))
    y = x.new_empty((models, rows, shape.widths[-1]))
    if y.numel():
        with device_of(x):
            forward_kernel[programs, models](
                x, *x.stride(), flat, flat.stride(0), packed, acts, acts.shape[1], y, rows,
                net, config, TILE_ROWS, save, num_warps=config.warps,
            )  # fmt: skip
    return y, Saved(acts, packed, flat)


def pack(flat: Tensor, shape: MLPShape, precision: str) -> Tensor:
    """The weights of flat parameters [M, P] as the kernels multiply them, [M, size]."""
    net = layout_of(shape, precision)
    flat = flat.float().contiguous()
    models = len(flat)
    packed = flat.new_empty((models, net.packed[-1]), dtype=OPERAND_DTYPES[precision])
    if models:
        blocks = triton.cdiv(max(i * o for i, o in pairwise(net.padded)), _BLOCK)
        with device_of(flat):
            pack_kernel[blocks, net.layers, models](flat, packed, flat.stride(0), net, _BLOCK)
    return packed


def backward(
    grad_y: Tensor,
    saved: Saved,
    shape: MLPShape,
    precision: str,
    *,
    need_x: bool = True,
    need_weights: bool = True,
    grad: Tensor | None = None,
) -> tuple[Tensor | None, MLPParameters | None]:
    """Gradients of sum(grad_y * y) with respect to x and to all parameters.

    Args:
        grad_y: float [M, B, out], any strides.
        saved: what :func:`forward` returned with ``save=True``.
        shape, precision: as in :func:`forward`.
        need_x, need_weights: what to compute.
        grad: float32 [M, P] where the parameter gradients go, flat; None allocates it.

    Returns:
        grad_x [M, B, in] of the dtype of grad_y, and float32 gradients (views of one flat buffer);
        None for what is not needed.
    """
    net = layout_of(shape, precision)
    config = config_for(precision, capability_of(grad_y.device))
    models, rows, _ = grad_y.shape
    flat = saved.flat
    tiles = triton.cdiv(rows, TILE_ROWS)
    programs = tiles if need_weights else min(tiles, _slots(models))
    grads = saved.activations.new_empty((models, programs * TILE_ROWS, net.gradient_columns))
    slope_parts = flat.new_empty((models, net.layers - 1, tiles))
    grad_x = grad_y.new_empty((models, rows, shape.widths[0])) if need_x else None
    if need_weights and grad is None:
        grad = torch.empty_like(flat)
    if rows and models:
        abs_max = _abs_max(grad_y) if precision == "fp16" else flat
        with device_of(grad_y):
            backward_kernel[programs, models](
                grad_y, *grad_y.stride(), abs_max, flat, flat.stride(0), saved.packed,
                saved.activations, saved.activations.shape[1], grads, grads.shape[1], slope_parts,
                grad_x if need_x else flat, rows, net, config, TILE_ROWS, need_weights, need_x,
                num_warps=config.warps,
            )  # fmt: skip
            if need_weights:
                _weight_gradients(saved, grads, slope_parts, abs_max, grad, net, config)
    elif need_weights:
        grad.zero_()
    return grad_x, shape.unpack(grad) if need_weights else None


def input_gradient(grad_y: Tensor, saved: Saved, shape: MLPShape, precision: str) -> Tensor:
    """Gradient of sum(grad_y * y) with respect to x alone, [M, B, in]."""
    return backward(grad_y, saved, shape, precision, need_weights=False)[0]


def _weight_gradients(
    saved: Saved,
    grads: Tensor,
    slope_parts: Tensor,
    abs_max: Tensor,
    grad: Tensor,
    net: Layout,
    config: Config,
) -> None:
    """Writes grad [M, P] from the activations, the gradients of them and the slopes' parts."""
    models, rows, _ = grads.shape
    flat, size = saved.flat, net.shape.num_parameters
    tiles = weight_tiles(net, config, net.layers)
    splits, chunk = _split(rows, tiles * models, config)
    parts = flat.new_empty((models, splits, size))
    weight_gradient_kernel[tiles + bias_tiles(net, config, net.layers), splits, models](
        saved.activations, grads, rows, flat, flat.stride(0), parts, chunk, net, config,
        num_warps=config.grad_warps,
    )  # fmt: skip
    prelu = net.shape.activation == "prelu"
    reduce_kernel[triton.cdiv(net.flat[-1], _BLOCK) + prelu, models](
        parts, splits, slope_parts, slope_parts.shape[2], abs_max, grad, grad.stride(0), net, _BLOCK
    )


def _split(rows: int, tiles: int, config: Config) -> tuple[int, int]:
    """Into how many parts the sum over rows is split, and how many rows each has."""
    splits = max(1, min(PROGRAMS // tiles, rows // (4 * config.grad_rows)))
    chunk = triton.cdiv(triton.cdiv(rows, splits), config.grad_rows) * config.grad_rows
    return triton.cdiv(rows, chunk), chunk


def _slots(models: int) -> int:
    """How many programs of each model run at once when a program takes many tiles."""
    return max(1, triton.cdiv(PROGRAMS, models))


def _abs_max(grad_y: Tensor) -> Tensor:
    """Largest magnitude of each model's gradient, float32 [M], NaN if there is one."""
    return torch.linalg.vector_norm(grad_y, torch.inf, dim=(1, 2), dtype=torch.float32)
