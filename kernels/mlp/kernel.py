"""Fused multi-layer perceptron in Triton: forward, backward and weight gradients of M networks.

Same contract as :mod:`.reference`, in four launches after the weights are packed:

1. :func:`forward_kernel`: a program takes 64 rows through all layers; a layer's activations go
   through a buffer that stays in cache, and the pre-activations to where the backward pass reads
   them.
2. :func:`backward_kernel`: the same backwards, down to the gradient of every pre-activation, of
   the slopes, and of x if asked.
3. :func:`weight_gradient_kernel`: dW_l = dz_l^T h_l, the rows split over programs.
4. :mod:`..reduce_grad`: sums the parts in a fixed order, so two runs give the same bits.

The activation is applied where it is written, not where it is read: every matrix product then takes
both operands from memory as they are. z is kept as well where the derivative needs it: the slope of
a PReLU may be negative, and then only the sign of z tells on which side of it a row was.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import capability_of, device_of, model_stride
from ..reduce_grad.kernel import add_up
from .config import OPERAND_DTYPES, PROGRAMS, TILE_ROWS, Config, config_for
from .device import gradient_scale, operand
from .layout import Layout, layout_of
from .shape import MLPParameters, MLPShape
from .tile import (
    backward_hidden,
    forward_hidden,
    last_layer,
    store_grad_x,
    store_grad_y,
    store_input,
)

_BLOCK = 1024  # elements of an element-wise program
# Arguments that change from call to call: no kernel is compiled anew for a value of 1 or of 16.
_VARYING = [
    "rows", "chunk", "tiles",
    "x_stride_model", "x_stride_row", "grad_y_stride_model", "grad_y_stride_row",
]  # fmt: skip
# Nor for where the caller's tensors start; only whether their columns are dense is compiled in.
_UNALIGNED = ["x_ptr", "x_stride_column", "grad_y_ptr", "grad_y_stride_column"]


@triton.jit
def pack_kernel(flat_ptr, packed_ptr, NET: tl.constexpr, BLOCK: tl.constexpr):
    """Copies each layer's weights into the packed buffer; grid (blocks, layers, M)."""
    LAYERS: tl.constexpr = NET.layers
    model = tl.program_id(2).to(tl.int64)
    flat = flat_ptr + model * NET.shape.num_parameters
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
        operand(weight, packed.dtype.element_ty, NET),
        mask=element < PADDED_IN * PADDED_OUT,
    )


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_UNALIGNED)
def forward_kernel(
    x_ptr, x_stride_model, x_stride_row, x_stride_column,
    flat_ptr, packed_ptr, acts_ptr, acts_rows, z_ptr, y_ptr, rows,
    NET: tl.constexpr, CONFIG: tl.constexpr, ROWS: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """y = MLP(x) for tiles of ROWS rows; grid (programs, M).

    With SAVE the activations of every row stay in their buffer, and the pre-activations in theirs
    if there is one; without, each program uses its own rows over and over.
    """
    LAYERS: tl.constexpr = NET.layers
    program = tl.program_id(0).to(tl.int64)
    model = tl.program_id(1).to(tl.int64)
    flat = flat_ptr + model * NET.shape.num_parameters
    packed = packed_ptr + model * NET.packed[LAYERS]
    for tile in tl.range(program, tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=1):
        first = tile * ROWS
        slot = first if SAVE else program * ROWS
        acts = acts_ptr + (model * acts_rows + slot) * NET.activation_columns
        z = z_ptr + (model * acts_rows + slot) * NET.z_columns if z_ptr is not None else None
        live = first + tl.arange(0, ROWS) < rows
        x = x_ptr + model * x_stride_model + first * x_stride_row
        store_input(x, x_stride_row, x_stride_column, live, acts, NET, ROWS)
        tl.debug_barrier()
        forward_hidden(acts, z, packed, flat, NET, CONFIG, ROWS)
        y = y_ptr + (model * rows + first) * NET.shape.widths[LAYERS]
        last_layer(acts, packed, flat, y, live, NET, CONFIG, ROWS)
        tl.debug_barrier()


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_UNALIGNED)
def backward_kernel(
    grad_y_ptr, grad_y_stride_model, grad_y_stride_row, grad_y_stride_column, abs_max_ptr,
    flat_ptr, packed_ptr, z_ptr, z_rows,
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
    program = tl.program_id(0).to(tl.int64)
    model = tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(rows, ROWS)
    flat = flat_ptr + model * NET.shape.num_parameters
    packed = packed_ptr + model * NET.packed[LAYERS]
    scale, inverse = gradient_scale(abs_max_ptr, model, NET)
    for tile in tl.range(program, tiles, tl.num_programs(0), num_stages=1):
        first = tile * ROWS
        slot = first if SAVE else program * ROWS
        z = z_ptr + (model * z_rows + first) * NET.z_columns
        grads = grads_ptr + (model * grads_rows + slot) * NET.gradient_columns
        live = first + tl.arange(0, ROWS) < rows
        grad_y = grad_y_ptr + model * grad_y_stride_model + first * grad_y_stride_row
        store_grad_y(grad_y, grad_y_stride_row, grad_y_stride_column, live, scale, grads, NET, ROWS)
        tl.debug_barrier()
        parts = slope_parts_ptr + model * (LAYERS - 1) * tiles + tile if SAVE else None
        backward_hidden(z, grads, packed, flat, parts, tiles, NET, CONFIG, ROWS)
        if NEED_X:
            grad_x = grad_x_ptr + (model * rows + first) * NET.shape.widths[0]
            store_grad_x(grads, packed, grad_x, live, inverse, NET, CONFIG, ROWS)
        tl.debug_barrier()


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
    acts_ptr, grads_ptr, buffer_rows, rows, tile_parts_ptr, tiles, parts_ptr, chunk,
    abs_max_ptr, factor,
    NET: tl.constexpr, CONFIG: tl.constexpr, LOSS: tl.constexpr, ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Parts [M, splits, P] of all gradients, from ``chunk`` rows each, times ``factor``.

    Grid (tasks, splits, M): first the tiles of the weights, then those of the biases, then what the
    tiles of rows have summed, [M, hidden layers, tiles]: the slopes. With LOSS both end with two
    more: the loss and the number of terms. With ADD the parts are added to what is there.
    """
    LAYERS: tl.constexpr = NET.layers
    TILES: tl.constexpr = weight_tiles(NET, CONFIG, LAYERS)
    BIASES: tl.constexpr = bias_tiles(NET, CONFIG, LAYERS)
    SIZE: tl.constexpr = NET.shape.num_parameters + (2 if LOSS else 0)
    SUMS: tl.constexpr = LAYERS - 1 + (2 if LOSS else 0)
    task = tl.program_id(0)
    split = tl.program_id(1)
    model = tl.program_id(2).to(tl.int64)
    parts = parts_ptr + (model * tl.num_programs(1) + split) * SIZE
    first = split * chunk
    count = tl.minimum(chunk, rows - first)
    acts = acts_ptr + (model * buffer_rows + first) * NET.activation_columns
    grads = grads_ptr + (model * buffer_rows + first) * NET.gradient_columns
    factor *= gradient_scale(abs_max_ptr, model, NET)[1]
    if task < TILES:
        _weight_gradient(acts, grads, count, parts, task, factor, NET, CONFIG, ADD)
    elif task < TILES + BIASES:
        _bias_gradient(grads, count, parts, task - TILES, factor, NET, CONFIG, ADD)
    else:
        # All tiles of rows are the first split's; there are few numbers to each.
        tile_parts = tile_parts_ptr + model * SUMS * tiles
        _tile_sums(tile_parts, tl.where(split == 0, tiles, 0), tiles, parts, factor, NET, LOSS, ADD,
                   BLOCK)  # fmt: skip


@triton.jit
def _weight_gradient(
    acts, grads, count, parts, task, factor, NET: tl.constexpr, CONFIG: tl.constexpr,
    ADD: tl.constexpr,
):  # fmt: skip
    """One tile of dW = dz^T h, summed over ``count`` rows."""
    LAYERS: tl.constexpr = NET.layers
    IN: tl.constexpr = CONFIG.grad_in
    OUT: tl.constexpr = CONFIG.grad_out
    tile, inputs, outputs, source, target = task, 0, 0, 0, 0
    padded_in, padded_out, flat_start = 0, 0, 0
    for candidate in tl.static_range(LAYERS):
        chosen = task >= weight_tiles(NET, CONFIG, candidate)
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
        NET, CONFIG,
    )  # fmt: skip
    pointers = parts + flat_start + column_out[None, :] * inputs + column_in[:, None]
    inside = (column_out < outputs)[None, :] & (column_in < inputs)[:, None]
    _store_part(pointers, acc * factor, inside, ADD)


@triton.jit
def _outer_product(
    source, target, count, column_in, column_out, padded_in, padded_out,
    NET: tl.constexpr, CONFIG: tl.constexpr,
):  # fmt: skip
    """h^T dz over ``count`` rows, fp32 [columns in, columns out]."""
    ROWS: tl.constexpr = CONFIG.grad_rows
    row = tl.arange(0, ROWS)[:, None]
    h_ptrs = source + row * NET.activation_columns + column_in[None, :]
    grad_ptrs = target + row * NET.gradient_columns + column_out[None, :]
    acc = tl.zeros((column_in.shape[0], column_out.shape[0]), tl.float32)
    for _ in tl.range(0, count, ROWS, num_stages=CONFIG.grad_stages):
        h = tl.load(h_ptrs, mask=(column_in < padded_in)[None, :], other=0.0)
        grad_z = tl.load(grad_ptrs, mask=(column_out < padded_out)[None, :], other=0.0)
        acc = tl.dot(tl.trans(h), grad_z, acc, input_precision=NET.input_precision)
        h_ptrs += ROWS * NET.activation_columns
        grad_ptrs += ROWS * NET.gradient_columns
    return acc


@triton.jit
def _bias_gradient(
    grads, count, parts, task, factor, NET: tl.constexpr, CONFIG: tl.constexpr, ADD: tl.constexpr
):
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
    total = tl.sum(acc, axis=0) * factor
    _store_part(parts + flat_start + column, total, column < outputs, ADD)


@triton.jit
def _tile_sums(
    tile_parts, count, tiles, parts, factor, NET: tl.constexpr, LOSS: tl.constexpr,
    ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of the first ``count`` tiles: the gradients of the slopes, the loss, the terms."""
    HIDDEN: tl.constexpr = NET.layers - 1
    SLOPES: tl.constexpr = NET.shape.slopes if NET.shape.activation == "prelu" else 0
    SHARED: tl.constexpr = NET.shape.activated_layers // NET.shape.slopes if SLOPES > 0 else 0
    FIRST: tl.constexpr = NET.shape.linear_input  # a linear input has no slope
    start = parts + NET.flat[NET.layers]
    for slope in tl.static_range(SLOPES):
        total = 0.0
        for layer in tl.static_range(SHARED):
            total += _sum(tile_parts + (FIRST + slope * SHARED + layer) * tiles, count, BLOCK)
        _store_part(start + slope, total * factor, None, ADD)
    if LOSS:
        for column in tl.static_range(2):
            total = _sum(tile_parts + (HIDDEN + column) * tiles, count, BLOCK)
            _store_part(start + SLOPES + column, total, None, ADD)


@triton.jit
def _sum(pointer, length, BLOCK: tl.constexpr):
    acc = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        element = start + tl.arange(0, BLOCK)
        acc += tl.load(pointer + element, mask=element < length, other=0.0)
    return tl.sum(acc)


@triton.jit
def _store_part(pointers, value, mask, ADD: tl.constexpr):
    if ADD:
        value += tl.load(pointers, mask=mask)
        tl.debug_barrier()  # all warps have read what one of them overwrites
    tl.store(pointers, value, mask=mask)


class Saved(NamedTuple):
    """What the backward pass needs of the forward pass; the tensors may be kept by autograd."""

    activations: Tensor  # [M, rows rounded up, columns]: the input and every h, operand dtype
    packed: Tensor  # [M, size], the padded weights, operand dtype
    flat: Tensor  # float32 [M, P]
    preactivations: Tensor | None = None  # [M, rows rounded up, columns]: every z, if kept


def forward(
    x: Tensor, parameters: MLPParameters, shape: MLPShape, precision: str, *, save: bool = True
) -> tuple[Tensor, Saved]:
    """y = MLP(x), the dtype of x, and what :func:`backward` needs.

    Args:
        x: float [M, B, in], any strides.
        parameters: of M networks.
        shape: their shape.
        precision: of the matrix products, one of :data:`.config.OPERAND_DTYPES`.
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
    programs = tiles if save else min(tiles, slots(models, x.device))
    acts = packed.new_empty((models, programs * TILE_ROWS, net.activation_columns))
    z = None
    if save and net.keeps_z:
        z = packed.new_empty((models, programs * TILE_ROWS, net.z_columns))
    y = x.new_empty((models, rows, shape.widths[-1]))
    if y.numel():
        with device_of(x):
            forward_kernel[programs, models](
                x, model_stride(x), *x.stride()[1:], flat, packed, acts, acts.shape[1], z, y, rows,
                net, config, TILE_ROWS, save, num_warps=config.warps,
            )  # fmt: skip
    return y, Saved(acts, packed, flat, z)


def pack(flat: Tensor, shape: MLPShape, precision: str) -> Tensor:
    """The weights of flat parameters [M, P] as the kernels multiply them, [M, size]."""
    net = layout_of(shape, precision)
    flat = flat.float().contiguous()
    models = len(flat)
    packed = flat.new_empty((models, net.packed[-1]), dtype=OPERAND_DTYPES[precision])
    if models:
        blocks = triton.cdiv(max(i * o for i, o in pairwise(net.padded)), _BLOCK)
        with device_of(flat):
            pack_kernel[blocks, net.layers, models](flat, packed, net, _BLOCK)
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
    z = saved.activations if saved.preactivations is None else saved.preactivations
    tiles = triton.cdiv(rows, TILE_ROWS)
    programs = tiles if need_weights else min(tiles, slots(models, grad_y.device))
    grads = saved.activations.new_empty((models, programs * TILE_ROWS, net.gradient_columns))
    slope_parts = flat.new_empty((models, net.layers - 1, tiles))
    grad_x = grad_y.new_empty((models, rows, shape.widths[0])) if need_x else None
    if not need_weights:
        grad = None
    elif grad is None:
        grad = torch.empty_like(flat)
    if rows and models:
        abs_max = _abs_max(grad_y) if precision == "fp16" else None
        with device_of(grad_y):
            backward_kernel[programs, models](
                grad_y, model_stride(grad_y), *grad_y.stride()[1:], abs_max, flat, saved.packed,
                z, z.shape[1], grads, grads.shape[1], slope_parts, grad_x, rows,
                net, config, TILE_ROWS, need_weights, need_x, num_warps=config.warps,
            )  # fmt: skip
            if grad is not None:
                splits, _ = split_rows(net, config, models, tiles * TILE_ROWS)
                parts = flat.new_empty((models, splits, shape.num_parameters))
                weight_gradients(
                    saved.activations, grads, slope_parts, parts, net, config, abs_max=abs_max
                )
                add_up(parts, grad)
    elif grad is not None:
        grad.zero_()
    return grad_x, None if grad is None else shape.unpack(grad)


def input_gradient(grad_y: Tensor, saved: Saved, shape: MLPShape, precision: str) -> Tensor:
    """Gradient of sum(grad_y * y) with respect to x alone, [M, B, in]."""
    grad_x, _ = backward(grad_y, saved, shape, precision, need_weights=False)
    assert grad_x is not None
    return grad_x


def weight_gradients(
    activations: Tensor,
    grads: Tensor,
    tile_parts: Tensor,
    parts: Tensor,
    net: Layout,
    config: Config,
    *,
    rows: int | None = None,
    abs_max: Tensor | None = None,
    factor: float = 1.0,
    loss: bool = False,
    add: bool = False,
) -> None:
    """Writes parts of the parameter gradients, whose sum they are, times ``factor``.

    Args:
        activations: what the forward pass saved of them.
        grads: gradients of all pre-activations and of y, [M, rows rounded up, columns].
        tile_parts: float32 [M, hidden layers, tiles], each tile's part of the slope gradients; with
            ``loss`` two more, of the loss and of the number of terms, which stay as they are.
        parts: float32 [M, S, P], with ``loss`` [M, S, P + 2]; S is that of :func:`split_rows`.
        net, config: layout and tile sizes.
        rows: how many rows of the buffers to sum, a multiple of ``TILE_ROWS``; None for all.
        abs_max: float32 [M], which grads were scaled by; None if they were not.
        factor: to multiply with.
        add: add to what ``parts`` holds.
    """
    models, buffer_rows, _ = grads.shape
    splits, chunk = split_rows(net, config, models, buffer_rows)
    rows = buffer_rows if rows is None else rows
    tasks = weight_tiles(net, config, net.layers) + bias_tiles(net, config, net.layers)
    tasks += loss or net.shape.activation == "prelu"
    weight_gradient_kernel[tasks, splits, models](
        activations, grads, buffer_rows, rows, tile_parts, tile_parts.shape[2], parts,
        chunk, abs_max, factor, net, config, loss, add, _BLOCK,
        num_warps=config.grad_warps,
    )  # fmt: skip


def split_rows(net: Layout, config: Config, models: int, rows: int) -> tuple[int, int]:
    """Into how many parts the sum over rows is split, and how many rows each has."""
    tiles = weight_tiles(net, config, net.layers) * models
    splits = max(1, min(PROGRAMS // tiles, rows // (4 * config.grad_rows)))
    chunk = triton.cdiv(triton.cdiv(rows, splits), config.grad_rows) * config.grad_rows
    return triton.cdiv(rows, chunk), chunk


def slots(models: int, device: torch.device) -> int:
    """How many programs of each model run at once when a program takes many tiles.

    A multiprocessor has room for one; a program too many would wait until all others are done.
    """
    programs = PROGRAMS
    if device.type == "cuda":
        programs = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, programs // models)


def _abs_max(grad_y: Tensor) -> Tensor:
    """Largest magnitude of each model's gradient, float32 [M], NaN if there is one."""
    return torch.linalg.vector_norm(grad_y, torch.inf, dim=(1, 2), dtype=torch.float32)
