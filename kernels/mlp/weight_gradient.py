"""Weight gradients of the fused multi-layer perceptron in Triton, the rows split over programs."""

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import gradient_scale, sum_of
from .config import PROGRAMS, Config
from .layout import Layout

_BLOCK = 1024  # elements that are summed at once
# Arguments that change from call to call: no kernel is compiled anew for a value of 1 or of 16.
_VARYING = ["rows", "chunk", "tiles"]


@triton.constexpr_function
def weight_tiles(net, config, layer):
    """Returns the number of tiles of the weight gradients of all layers before ``layer``."""
    return sum(
        -(-i // config.grad_in) * -(-o // config.grad_out)
        for i, o in zip(net.shape.widths[:layer], net.shape.widths[1 : layer + 1], strict=True)
    )


@triton.constexpr_function
def bias_tiles(net, config, layer):
    """Returns the number of tiles of the bias gradients of all layers before ``layer``."""
    widths = net.shape.widths[1 : layer + 1] if net.shape.bias else ()
    return sum(-(-o // config.grad_out) for o in widths)


@triton.jit(do_not_specialize=_VARYING)
def weight_gradient_kernel(
    acts_ptr, grads_ptr, buffer_rows, rows, tile_parts_ptr, tiles, parts_ptr, chunk,
    abs_max_ptr, factor,
    NET: tl.constexpr, CONFIG: tl.constexpr, LOSS: tl.constexpr, ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes parts of the gradients of all parameters, summed over ``chunk`` rows each.

    The grid is (tasks, splits, M). The first tasks are tiles of the weights, the next ones tiles of
    the biases; the last one sums the slope gradients, and with LOSS the loss, over tiles of rows.

    Args:
        acts_ptr: [M, buffer_rows, columns], activations, operand dtype.
        grads_ptr: [M, buffer_rows, columns], gradients of all z_l and of y, operand dtype.
        buffer_rows: rows of both buffers for each model.
        rows: rows to sum, a multiple of the rows of a tile.
        tile_parts_ptr: float32 [M, hidden layers, tiles], slope gradients of each tile of rows;
            with LOSS [M, hidden layers + 2, tiles], then the loss and the number of its terms.
        tiles: number of tiles of rows.
        parts_ptr: float32 [M, splits, P], with LOSS [M, splits, P + 2]; written.
        chunk: rows of a part, a multiple of CONFIG.grad_rows.
        abs_max_ptr: float32 [M], by which the gradients were scaled; None if they were not.
        factor: multiplies all gradients, but neither the loss nor the number of its terms.
        NET: :class:`~.layout.Layout` of the networks.
        CONFIG: :class:`~.config.Config`, tile sizes.
        LOSS: True if the parts end with the loss and the number of its terms.
        ADD: True to add to the numbers in ``parts``, instead of overwriting them.
        BLOCK: tiles of rows that are summed at once.
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
        # The first split sums all tiles of rows: there are few numbers in each.
        tile_parts = tile_parts_ptr + model * SUMS * tiles
        _tile_sums(tile_parts, tl.where(split == 0, tiles, 0), tiles, parts, factor, NET, LOSS, ADD,
                   BLOCK)  # fmt: skip


@triton.jit
def _weight_gradient(
    acts, grads, count, parts, task, factor, NET: tl.constexpr, CONFIG: tl.constexpr,
    ADD: tl.constexpr,
):  # fmt: skip
    """Writes one tile of dW = dz^T h, summed over ``count`` rows."""
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
    """Returns h^T dz, summed over ``count`` rows, fp32 [columns in, columns out]."""
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
    """Writes one tile of db, the sum of dz over ``count`` rows."""
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
    """Writes sums over ``count`` tiles of rows: slope gradients, loss, number of its terms."""
    HIDDEN: tl.constexpr = NET.layers - 1
    SLOPES: tl.constexpr = NET.shape.slopes if NET.shape.activation == "prelu" else 0
    SHARED: tl.constexpr = NET.shape.activated_layers // NET.shape.slopes if SLOPES > 0 else 0
    FIRST: tl.constexpr = NET.shape.linear_input  # a linear input has no slope
    start = parts + NET.flat[NET.layers]
    for slope in tl.static_range(SLOPES):
        total = 0.0
        for layer in tl.static_range(SHARED):
            total += sum_of(tile_parts + (FIRST + slope * SHARED + layer) * tiles, count, BLOCK)
        _store_part(start + slope, total * factor, None, ADD)
    if LOSS:
        for column in tl.static_range(2):
            total = sum_of(tile_parts + (HIDDEN + column) * tiles, count, BLOCK)
            _store_part(start + SLOPES + column, total, None, ADD)


@triton.jit
def _store_part(pointers, value, mask, ADD: tl.constexpr):
    if ADD:
        value += tl.load(pointers, mask=mask)
        tl.debug_barrier()  # all warps have read before one of them writes
    tl.store(pointers, value, mask=mask)


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
    """Writes parts of the parameter gradients times ``factor``; the gradient is their sum.

    Args:
        activations: [M, rows rounded up, columns], from the forward pass.
        grads: [M, rows rounded up, columns], gradients of all pre-activations and of y.
        tile_parts: float32 [M, hidden layers, tiles], each tile's part of the slope gradients; with
            ``loss`` [M, hidden layers + 2, tiles], then its loss and the number of terms in it.
        parts: float32 [M, S, P], with ``loss`` [M, S, P + 2], S from :func:`split_rows`; written.
        net, config: layout and tile sizes.
        rows: number of rows of the buffers to sum, a multiple of ``config.rows``; None for all.
        abs_max: float32 [M], by which ``grads`` were scaled; None if they were not.
        factor: multiplies the gradients, but neither the loss nor the number of its terms.
        loss: True if the parts end with the loss and the number of its terms.
        add: True to add to the numbers in ``parts``, instead of overwriting them.
    """
    models, buffer_rows, _ = grads.shape
    splits, chunk = split_rows(net, config, models, buffer_rows)
    rows = buffer_rows if rows is None else rows
    tasks = weight_tiles(net, config, net.layers) + bias_tiles(net, config, net.layers)
    tasks += loss or net.shape.activation == "prelu"
    weight_gradient_kernel[tasks, splits, models](
        acts_ptr=activations,
        grads_ptr=grads,
        buffer_rows=buffer_rows,
        rows=rows,
        tile_parts_ptr=tile_parts,
        tiles=tile_parts.shape[2],
        parts_ptr=parts,
        chunk=chunk,
        abs_max_ptr=abs_max,
        factor=factor,
        NET=net,
        CONFIG=config,
        LOSS=loss,
        ADD=add,
        BLOCK=_BLOCK,
        num_warps=config.grad_warps,
    )


def split_rows(net: Layout, config: Config, models: int, rows: int) -> tuple[int, int]:
    """Returns the number of parts that a sum over rows is split into, and the rows of each."""
    tiles = weight_tiles(net, config, net.layers) * models
    splits = max(1, min(PROGRAMS // tiles, rows // (4 * config.grad_rows)))
    chunk = triton.cdiv(triton.cdiv(rows, splits), config.grad_rows) * config.grad_rows
    return triton.cdiv(rows, chunk), chunk
