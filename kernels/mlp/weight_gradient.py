"""Weight gradients of the fused multi-layer perceptron in Triton, the rows split over programs."""

from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import dependent_launch, wait_for_last_kernel
from ..reduce_grad.kernel import strides_of
from .arithmetic import gradient_scale, sum_of
from .config import Config
from .layout import Layout

_BLOCK = 1024  # elements that are summed at once
# A program costs as much again as this many steps of its loop: it starts, and its result is written
# and read.
_OVERHEAD = 8
_FEW = 32  # inputs or outputs, with which a layer counts as narrow
# Arguments that change from call to call: no kernel is compiled anew for a value of 1 or of 16.
_VARYING = ["rows", "chunk", "tiles"]


@triton.constexpr_function
def kind_of(net, layer):
    """Returns the kind of a layer; each has its own tiles of weight gradients.

    The first and the last layer are often too narrow for the tiles of the others.
    """
    if net.padded[layer + 1] <= _FEW:
        return "few outputs"
    return "few inputs" if net.padded[layer] <= _FEW else "wide"


@triton.constexpr_function
def tile_of(net, config, kind):
    """Returns the numbers of inputs and outputs of a tile of a kind of layer.

    A narrow tile is twice as long as a wide one, because it then takes as long to read. Others are
    no larger than the layers, but have 64 outputs for each four warps, which tensor cores want.
    """
    layers = [layer for layer in range(net.layers) if kind_of(net, layer) == kind]
    inputs = max([1, *(net.padded[layer] for layer in layers)])
    outputs = max([1, *(net.padded[layer + 1] for layer in layers)])
    if kind == "few inputs":
        return inputs, 2 * config.grad_out
    if kind == "few outputs":
        return 2 * config.grad_in, outputs
    return min(config.grad_in, inputs), min(config.grad_out, max(16 * config.grad_warps, outputs))


@triton.constexpr_function
def tiles_before(net, config, kind, layer):
    """Returns the number of tiles of all layers of a kind that come before ``layer``."""
    tile_in, tile_out = tile_of(net, config, kind)
    widths = net.shape.widths
    return sum(
        -(-widths[each] // tile_in) * -(-widths[each + 1] // tile_out)
        for each in range(layer)
        if kind_of(net, each) == kind
    )


@triton.constexpr_function
def common_divisor(net, kind, numbers):
    """Returns the largest power of two, up to 16, that divides a number of each layer of a kind."""
    found = 16
    for layer in range(net.layers):
        while kind_of(net, layer) == kind and numbers[layer] % found:
            found //= 2
    return found


@triton.jit(do_not_specialize=_VARYING)
def weight_gradient_kernel(
    acts_ptr, grads_ptr, buffer_rows, rows, tile_parts_ptr, tiles,
    parts_ptr, parts_stride_model, parts_stride, chunk, abs_max_ptr, factor,
    NET: tl.constexpr, CONFIG: tl.constexpr, LOSS: tl.constexpr, ADD: tl.constexpr,
    BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Writes parts of the gradients of all parameters, summed over ``chunk`` rows each.

    The grid is (splits, tasks, M). A task is a tile of a layer's weights, and of its biases if the
    tile has the first inputs; those that take longest come first. The last task sums the slope
    gradients, and with LOSS the loss, over tiles of rows.

    Args:
        acts_ptr: [M, buffer_rows, columns], activations, operand dtype.
        grads_ptr: [M, buffer_rows, columns], gradients of all z_l and of y, operand dtype.
        buffer_rows: rows of both buffers for each model.
        rows: rows to sum, a multiple of the rows of a tile; each split has some.
        tile_parts_ptr: float32 [M, hidden layers, tiles], slope gradients of each tile of rows;
            with LOSS [M, hidden layers + 2, tiles], then the loss and the number of its terms.
        tiles: number of tiles of rows.
        parts_ptr: float32 [M, splits, P], with LOSS [M, splits, P + 2]; written.
        parts_stride_model, parts_stride: elements of ``parts`` between models, and between parts.
        chunk: rows of a part, a multiple of CONFIG.grad_rows.
        abs_max_ptr: float32 [M], by which the gradients were scaled; None if they were not.
        factor: multiplies all gradients, but neither the loss nor the number of its terms.
        NET: :class:`~.layout.Layout` of the networks.
        CONFIG: :class:`~.config.Config`, tile sizes.
        LOSS: True if the parts end with the loss and the number of its terms.
        ADD: True to add to the numbers in ``parts``, instead of overwriting them.
        BLOCK: tiles of rows that are summed at once.
        DEPENDENT: True for a dependent launch.
    """
    wait_for_last_kernel(DEPENDENT)
    LAYERS: tl.constexpr = NET.layers
    WIDE: tl.constexpr = tiles_before(NET, CONFIG, "wide", LAYERS)
    FEW_INPUTS: tl.constexpr = WIDE + tiles_before(NET, CONFIG, "few inputs", LAYERS)
    FEW_OUTPUTS: tl.constexpr = FEW_INPUTS + tiles_before(NET, CONFIG, "few outputs", LAYERS)
    SUMS: tl.constexpr = LAYERS - 1 + (2 if LOSS else 0)
    split = tl.program_id(0)
    task = tl.program_id(1)
    model = tl.program_id(2).to(tl.int64)
    parts = parts_ptr + model * parts_stride_model + split.to(tl.int64) * parts_stride
    first = split * chunk
    count = tl.minimum(chunk, rows - first)
    tl.assume(count > 0)  # else ptxas may let no two products of a loop overlap
    acts = acts_ptr + (model * buffer_rows + first) * NET.activation_columns
    grads = grads_ptr + (model * buffer_rows + first) * NET.gradient_columns
    factor *= gradient_scale(abs_max_ptr, model, NET)[1]
    if task < WIDE:
        _tile(acts, grads, count, parts, task, factor, "wide", NET, CONFIG, ADD)
    elif task < FEW_INPUTS:
        _tile(acts, grads, count, parts, task - WIDE, factor, "few inputs", NET, CONFIG, ADD)
    elif task < FEW_OUTPUTS:
        _tile(acts, grads, count, parts, task - FEW_INPUTS, factor, "few outputs", NET, CONFIG, ADD)
    else:
        # The first split sums all tiles of rows: there are few numbers in each.
        tile_parts = tile_parts_ptr + model * SUMS * tiles
        _tile_sums(tile_parts, tl.where(split == 0, tiles, 0), tiles, parts, factor, NET, LOSS, ADD,
                   BLOCK)  # fmt: skip


@triton.jit
def _tile(
    acts, grads, count, parts, task, factor, KIND: tl.constexpr, NET: tl.constexpr,
    CONFIG: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Writes a tile of dW = dz^T h, and of db, the sum of dz, summed over ``count`` rows."""
    LAYERS: tl.constexpr = NET.layers
    IN: tl.constexpr = tile_of(NET, CONFIG, KIND)[0]
    OUT: tl.constexpr = tile_of(NET, CONFIG, KIND)[1]
    tile, inputs, outputs, source, target = task, 0, 0, 0, 0
    padded_in, padded_out, start = 0, 0, 0
    hidden_in, hidden_out = False, False
    for layer in tl.static_range(LAYERS):
        if kind_of(NET, layer) == KIND:
            chosen = task >= tiles_before(NET, CONFIG, KIND, layer)
            tile = tl.where(chosen, task - tiles_before(NET, CONFIG, KIND, layer), tile)
            inputs = tl.where(chosen, NET.shape.widths[layer], inputs)
            outputs = tl.where(chosen, NET.shape.widths[layer + 1], outputs)
            padded_in = tl.where(chosen, NET.padded[layer], padded_in)
            padded_out = tl.where(chosen, NET.padded[layer + 1], padded_out)
            source = tl.where(chosen, NET.columns[layer], source)
            target = tl.where(chosen, NET.columns[layer + 1] - NET.columns[1], target)
            start = tl.where(chosen, NET.flat[layer], start)
            hidden_in = tl.where(chosen, layer > 0, hidden_in)
            hidden_out = tl.where(chosen, layer < LAYERS - 1, hidden_out)
    inputs = tl.multiple_of(inputs, common_divisor(NET, KIND, NET.shape.widths))
    start = tl.multiple_of(start, common_divisor(NET, KIND, NET.flat))
    tiles_in = tl.cdiv(inputs, IN)
    column_in = (tile % tiles_in) * IN + tl.arange(0, IN)
    column_out = (tile // tiles_in) * OUT + tl.arange(0, OUT)
    acts += tl.multiple_of(source, 16)
    grads += tl.multiple_of(target, 16)
    padded_in = tl.multiple_of(padded_in, 16)
    padded_out = tl.multiple_of(padded_out, 16)
    parts += start
    if KIND == "few outputs":
        weight, bias = _products_of_few_outputs(
            acts, grads, count, column_in, column_out, padded_in, padded_out, NET, CONFIG
        )
        column_in = _features(column_in, hidden_in, NET)
        column_out = _features(column_out, hidden_out, NET)
        inside = (column_in < inputs)[:, None] & (column_out < outputs)[None, :]
        pointers = parts + column_in[:, None] + column_out[None, :] * inputs
    else:
        weight, bias = _products(
            acts, grads, count, column_in, column_out, padded_in, padded_out, NET, CONFIG
        )
        if NET.fragments and KIND == "wide":  # to write a row of features side by side
            weight = weight.reshape(OUT, IN // 32, 4, 4, 2).permute(0, 1, 3, 2, 4).reshape(OUT, IN)
            hidden_in = hidden_in == 0  # the order is its own inverse
        column_in = _features(column_in, hidden_in, NET)
        column_out = _features(column_out, hidden_out, NET)
        inside = (column_out < outputs)[:, None] & (column_in < inputs)[None, :]
        pointers = parts + column_out[:, None] * inputs + column_in[None, :]
    _store_part(pointers, weight * factor, inside, ADD)
    if NET.shape.bias:
        column_out = tl.where(tile % tiles_in == 0, column_out, outputs)
        pointers = parts + inputs * outputs + column_out
        _store_part(pointers, bias * factor, column_out < outputs, ADD)


@triton.jit
def _features(column, hidden, NET: tl.constexpr):
    """Returns the features in columns of the buffers; only hidden ones are in fragment order."""
    if NET.fragments:
        feature = column // 32 * 32 + column // 2 % 4 * 8 + column // 8 % 4 * 2 + column % 2
        column = tl.where(hidden, feature, column)
    return column


@triton.jit
def _products(
    source, target, count, column_in, column_out, padded_in, padded_out,
    NET: tl.constexpr, CONFIG: tl.constexpr,
):  # fmt: skip
    """Returns dz^T h [outputs, inputs] and the sum of dz [outputs] over ``count`` rows, in fp32."""
    ROWS: tl.constexpr = CONFIG.grad_rows
    IN: tl.constexpr = column_in.shape[0]
    OUT: tl.constexpr = column_out.shape[0]
    # Tensor cores sum dz as well: they multiply it by ones, as it lies in shared memory. Products
    # of fp32 would take longer than a sum in registers.
    ONES: tl.constexpr = NET.precision != "fp32" and NET.precision != "tf32x3"
    row = tl.arange(0, ROWS)[:, None]
    h_ptrs = source + row * NET.activation_columns + column_in[None, :]
    grad_ptrs = target + row * NET.gradient_columns + column_out[None, :]
    weight = tl.zeros((OUT, IN), tl.float32)
    bias = tl.zeros((OUT, 16) if ONES else (ROWS, OUT), tl.float32)
    one = (tl.arange(0, 16) == 0)[None, :].broadcast_to(ROWS, 16).to(source.dtype.element_ty)
    for _ in tl.range(0, count, ROWS, num_stages=CONFIG.grad_stages):
        h = tl.load(h_ptrs, mask=(column_in < padded_in)[None, :], other=0.0)
        grad_z = tl.load(grad_ptrs, mask=(column_out < padded_out)[None, :], other=0.0)
        if NET.shape.bias and ONES:
            bias = tl.dot(tl.trans(grad_z), one, bias, input_precision=NET.input_precision)
        elif NET.shape.bias:
            bias += grad_z
        weight = tl.dot(tl.trans(grad_z), h, weight, input_precision=NET.input_precision)
        h_ptrs += ROWS * NET.activation_columns
        grad_ptrs += ROWS * NET.gradient_columns
    return weight, tl.sum(bias, axis=1 if ONES else 0)


@triton.jit
def _products_of_few_outputs(
    source, target, count, column_in, column_out, padded_in, padded_out,
    NET: tl.constexpr, CONFIG: tl.constexpr,
):  # fmt: skip
    """Returns h^T dz [inputs, outputs] and the sum of dz [outputs] over ``count`` rows, in fp32.

    Tensor cores want many rows, so it is the transpose of :func:`_products`.
    """
    ROWS: tl.constexpr = CONFIG.grad_rows
    row = tl.arange(0, ROWS)[:, None]
    h_ptrs = source + row * NET.activation_columns + column_in[None, :]
    grad_ptrs = target + row * NET.gradient_columns + column_out[None, :]
    # So few numbers are loaded once more for their sum: if registers read them where the product
    # does, triton 3.6 overwrites them in shared memory before the product has done so.
    sum_ptrs = target + tl.arange(0, ROWS)[None, :] * NET.gradient_columns + column_out[:, None]
    weight = tl.zeros((column_in.shape[0], column_out.shape[0]), tl.float32)
    bias = tl.zeros((column_out.shape[0], ROWS), tl.float32)
    inside = column_out < padded_out
    for _ in tl.range(0, count, ROWS, num_stages=CONFIG.grad_stages):
        h = tl.load(h_ptrs, mask=(column_in < padded_in)[None, :], other=0.0)
        grad_z = tl.load(grad_ptrs, mask=inside[None, :], other=0.0)
        weight = tl.dot(tl.trans(h), grad_z, weight, input_precision=NET.input_precision)
        if NET.shape.bias:
            bias += tl.load(sum_ptrs, mask=inside[:, None], other=0.0)
        h_ptrs += ROWS * NET.activation_columns
        grad_ptrs += ROWS * NET.gradient_columns
        sum_ptrs += ROWS * NET.gradient_columns
    return weight, tl.sum(bias, axis=1)


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
        rows: number of rows of the buffers to sum, a multiple of ``config.grad_rows``; None
            for all.
            Parts without rows are zero.
        abs_max: float32 [M], by which ``grads`` were scaled; None if they were not.
        factor: multiplies the gradients, but neither the loss nor the number of its terms.
        loss: True if the parts end with the loss and the number of its terms.
        add: True to add to the numbers in ``parts``, instead of overwriting them.
    """
    models, buffer_rows, _ = grads.shape
    rows = buffer_rows if rows is None else rows
    splits, chunk = split_rows(net, config, models, buffer_rows)
    filled = -(-rows // chunk)
    if filled < splits and not add:
        parts[:, filled:].zero_()
    stride_model, stride = strides_of(parts)
    tasks = tasks_of(net, config) + (loss or net.shape.activation == "prelu")
    weight_gradient_kernel[filled, tasks, models](
        acts_ptr=activations,
        grads_ptr=grads,
        buffer_rows=buffer_rows,
        rows=rows,
        tile_parts_ptr=tile_parts,
        tiles=tile_parts.shape[2],
        parts_ptr=parts,
        parts_stride_model=stride_model,
        parts_stride=stride,
        chunk=chunk,
        abs_max_ptr=abs_max,
        factor=factor,
        NET=net,
        CONFIG=config,
        LOSS=loss,
        ADD=add,
        BLOCK=_BLOCK,
        num_warps=config.grad_warps,
        **dependent_launch(grads),
    )


@lru_cache(maxsize=1024)
def split_rows(net: Layout, config: Config, models: int, rows: int) -> tuple[int, int]:
    """Returns the number of parts that a sum over rows is split into, and the rows of each.

    It makes waves of programs and the rows of each few.
    """
    tasks = tasks_of(net, config) * models

    def chunk(splits: int) -> int:
        return -(-rows // (splits * config.grad_rows)) * config.grad_rows

    def cost(splits: int) -> int:
        waves = -(-tasks * splits // config.grad_programs)
        return waves * (chunk(splits) + _OVERHEAD * config.grad_rows)

    most = max(1, min(config.grad_programs, rows // (4 * config.grad_rows)))
    best = chunk(min(range(1, most + 1), key=cost))
    return -(-rows // best), best


@lru_cache(maxsize=1024)
def tasks_of(net: Layout, config: Config) -> int:
    """Returns the number of tiles of all weight gradients."""
    kinds = ("wide", "few inputs", "few outputs")
    return sum(tiles_before(net, config, kind, net.layers) for kind in kinds)
