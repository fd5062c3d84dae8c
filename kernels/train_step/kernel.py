"""One training step in five launches: the same algorithm as :mod:`.reference`.

1. the weights are packed, 2. a batch is drawn and noised, 3. :func:`train_kernel` takes each tile
of it forwards, through the loss and backwards, 4. and 5. the gradients of the weights.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import capability_of, device_of, model_stride
from ..mlp import MLPShape
from ..mlp import kernel as mlp
from ..mlp.config import TILE_ROWS, config_for
from ..mlp.device import UNIT_SCALE, divisor, softmax
from ..mlp.layout import Layout, layout_of
from ..mlp.tile import backward_hidden, forward_hidden, layer_columns, store_input
from ..q_sample.kernel import Source, draw_epoch, draw_fresh
from ..q_sample.reference import Draw
from .reference import TrainingData


@triton.jit(do_not_specialize=["rows"])
def train_kernel(
    inputs_ptr, eps_ptr, labels_ptr, labels_stride, index_ptr, flat_ptr, packed_ptr,
    acts_ptr, grads_ptr, buffer_rows, slope_parts_ptr, loss_parts_ptr, rows,
    NET: tl.constexpr, CONFIG: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Forward, loss and backward of one tile; grid (tiles, M).

    The loss is that of eps, or with labels of the label of point ``index``. Its parts are sums over
    rows, and so are the gradients, scaled.
    """
    LAYERS: tl.constexpr = NET.layers
    IN: tl.constexpr = NET.shape.widths[0]
    tiles = tl.num_programs(0)
    model = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = first + tl.arange(0, ROWS)
    live = row < rows
    flat = flat_ptr + model * NET.shape.num_parameters
    packed = packed_ptr + model * NET.packed[LAYERS]
    acts = acts_ptr + (model * buffer_rows + first) * NET.activation_columns
    grads = grads_ptr + (model * buffer_rows + first) * NET.gradient_columns
    inputs = inputs_ptr + (model * rows + first) * IN
    store_input(inputs, IN, 1, live, acts, NET, ROWS)
    tl.debug_barrier()
    forward_hidden(acts, packed, flat, NET, CONFIG, ROWS)
    if labels_ptr is None:
        eps = eps_ptr + (model * rows + first) * NET.shape.widths[LAYERS]
        loss = _eps_loss(acts, packed, flat, grads, eps, live, NET, CONFIG, ROWS)
    else:
        index = tl.load(index_ptr + model * rows + row, mask=live, other=0)
        label = tl.load(labels_ptr + model * labels_stride + index)
        loss = _label_loss(acts, packed, flat, grads, label, live, NET, CONFIG, ROWS)
    tl.store(loss_parts_ptr + model * tiles + tl.program_id(0), loss)
    tl.debug_barrier()
    parts = slope_parts_ptr + model * (LAYERS - 1) * tiles + tl.program_id(0)
    backward_hidden(acts, grads, packed, flat, parts, tiles, NET, CONFIG, ROWS)


@triton.jit
def _eps_loss(
    acts, packed, flat, grads, eps, live, NET: tl.constexpr, CONFIG: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Sum of (y - eps)^2 of a tile; writes y - eps, half its gradient, scaled."""
    LAYERS: tl.constexpr = NET.layers
    WIDTH: tl.constexpr = NET.shape.widths[LAYERS]
    PADDED: tl.constexpr = NET.padded[LAYERS]
    CHUNK: tl.constexpr = divisor(PADDED, CONFIG.out)
    row = tl.arange(0, ROWS)[:, None]
    target = grads + (NET.columns[LAYERS] - NET.columns[1])
    loss = 0.0
    for start in tl.range(0, PADDED, CHUNK, num_stages=1):
        column = start + tl.arange(0, CHUNK)
        inside = live[:, None] & (column < WIDTH)[None, :]
        y = layer_columns(acts, packed, flat, 0, column, LAYERS - 1, NET, CONFIG, ROWS)
        wanted = tl.load(eps + row * WIDTH + column[None, :], mask=inside, other=0.0)
        error = tl.where(inside, y - wanted, 0.0)
        loss += tl.sum(error * error)
        error = (error * UNIT_SCALE).to(grads.dtype.element_ty)
        tl.store(target + row * NET.gradient_columns + column[None, :], error)
    return loss


@triton.jit
def _label_loss(
    acts, packed, flat, grads, label, live, NET: tl.constexpr, CONFIG: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Sum of -log softmax(y)[label] of a tile; writes its gradient, scaled."""
    LAYERS: tl.constexpr = NET.layers
    WIDTH: tl.constexpr = NET.shape.widths[LAYERS]
    PADDED: tl.constexpr = NET.padded[LAYERS]
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, PADDED)
    y = layer_columns(acts, packed, flat, 0, column, LAYERS - 1, NET, CONFIG, ROWS)
    p, log_p = softmax(y, column, WIDTH)
    chosen = live[:, None] & (column[None, :] == label[:, None])
    grad = tl.where(live[:, None], p - chosen, 0.0)
    grad = (grad * UNIT_SCALE).to(grads.dtype.element_ty)
    target = grads + (NET.columns[LAYERS] - NET.columns[1])
    tl.store(target + row * NET.gradient_columns + column[None, :], grad)
    return -tl.sum(tl.where(chosen, log_p, 0.0))


def train_step(
    parameters: Tensor,
    shape: MLPShape,
    data: TrainingData,
    grad: Tensor,
    precision: str,
    *,
    batch_size: int,
    seed: Tensor,
    step: int,
    epoch: int | None,
    refresh: int,
    first_row: int,
) -> Tensor:
    """Loss [M]; the gradient is written into ``grad`` [M, P]. See :func:`..train_step`."""
    source = Source(
        data.points,
        data.alpha_bar,
        data.time_features,
        data.n_points.expand(len(parameters)),
        data.t_table,
    )
    if epoch is None:
        inputs, draw = draw_fresh(source, seed, step, first_row, batch_size)
    else:
        first_row += step * batch_size
        inputs, draw = draw_epoch(source, seed, epoch, refresh, first_row, batch_size)
    return _fused(inputs, draw, parameters, data.labels, grad, layout_of(shape, precision))


def _fused(
    inputs: Tensor,
    draw: Draw,
    parameters: Tensor,
    labels: Tensor | None,
    grad: Tensor,
    net: Layout,
) -> Tensor:
    """Loss [M] of the drawn rows; writes the gradient."""
    config = config_for(net.precision, capability_of(inputs.device))
    models, rows, _ = inputs.shape
    if not rows:
        grad.zero_()
        return grad.new_full((models,), torch.nan)
    tiles = triton.cdiv(rows, TILE_ROWS)
    flat = parameters.float().contiguous()
    packed = mlp.pack(flat, net.shape, net.precision)
    acts = packed.new_empty((models, tiles * TILE_ROWS, net.activation_columns))
    grads = packed.new_empty((models, tiles * TILE_ROWS, net.gradient_columns))
    slope_parts = flat.new_empty((models, net.layers - 1, tiles))
    loss_parts = flat.new_empty((models, tiles))
    if labels is not None:
        labels = labels.contiguous()
    with device_of(inputs):
        train_kernel[tiles, models](
            inputs, draw.eps, labels, 0 if labels is None else model_stride(labels), draw.index,
            flat, packed, acts, grads, acts.shape[1], slope_parts, loss_parts, rows,
            net, config, TILE_ROWS, num_warps=config.warps,
        )  # fmt: skip
        count = rows if labels is not None else rows * net.shape.widths[-1]
        derivative = (1 if labels is not None else 2) / UNIT_SCALE.value
        mlp.weight_gradients(
            mlp.Saved(acts, packed, flat), grads, slope_parts, grad, net, config,
            factor=derivative / count,
        )  # fmt: skip
    return loss_parts.sum(dim=1) / count
