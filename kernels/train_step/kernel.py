"""The sums of a training step in two launches; same contract as :mod:`.reference`.

1. :func:`train_kernel` draws and noises a tile of rows, and takes it forwards, through the loss and
   backwards.
2. The gradients of the weights are computed, with the rows split over programs.

The third launch of a step is :mod:`..adamw`, which adds up the parts of the gradient.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import capability_of, step_arguments
from ..adamw.reference import Shadow
from ..cuda import device_of
from ..dependent_launch import dependent_launch, wait_for_last_kernel
from ..mlp import MLPShape
from ..mlp import kernel as mlp
from ..mlp.arithmetic import (
    UNIT_SCALE,
    divisor,
    gradient_scale,
    operand,
    power_of_two,
    softmax,
)
from ..mlp.config import OPERAND_DTYPES, Config, config_for
from ..mlp.input_columns import clear_padding, store_features, store_inputs
from ..mlp.layout import Layout, layout_of
from ..mlp.tile import backward_hidden, forward_hidden, layer_columns
from ..philox.kernel import DRAW, normal_columns
from ..q_sample.kernel import (
    FORWARD_NUMBERS,
    WEIGHT,
    draw_condition,
    levels,
    locate_rows,
    source_arguments,
    target_of,
)
from ..q_sample.reference import TrainingData

# Arguments that change from call to call. Triton would compile a kernel anew for a value of 1 or of
# a multiple of 16, and for a step counter at an address that is not a multiple of 16 bytes, when a
# graph may already be under capture.
_VARYING = [
    "entries", "steps", "step_ptr", "step", "batch_size", "refresh", "first_row", "rows", "classes",
]  # fmt: skip


@triton.jit(do_not_specialize=_VARYING)
def train_kernel(
    points_ptr, points_stride, forward_table_ptr, forward_table_stride, features_ptr,
    features_stride,
    labels_ptr, labels_stride, class_features_ptr, class_features_stride, classes, p_uncond_ptr,
    n_points_ptr, n_steps_ptr, steps, t_table_ptr, t_table_stride, n_entries_ptr, entries,
    seed_ptr, step_ptr, step, batch_size, refresh, first_row, rows,
    flat_ptr, weights_ptr, abs_max_ptr, target_ptr, acts_ptr, z_ptr, grads_ptr, buffer_rows,
    tile_parts_ptr,
    DIM: tl.constexpr, TIME: tl.constexpr, CLASS: tl.constexpr, EPOCH: tl.constexpr,
    NET: tl.constexpr, CONFIG: tl.constexpr, ROWS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Takes one tile of rows through draw, forward pass, loss and backward pass; grid (tiles, M).

    The loss is the squared error; of a classifier, with labels but no class features, it is the
    cross-entropy. Loss, number of terms and gradients are sums over rows. The gradients are
    multiplied by a scale that follows from ``abs_max``, those of a classifier by ``UNIT_SCALE``.

    Args:
        points_ptr ... entries: the source of the rows, as in :func:`..q_sample.kernel.draw_kernel`.
        seed_ptr: int64 [M].
        step_ptr, step: int64 [1], the training step; without it ``step``.
        batch_size: rows of a step.
        refresh: epochs for which a pair keeps its noise, with EPOCH.
        first_row, rows: first row of the batch, and number of rows, to do.
        flat_ptr: float32 [M, P], parameters.
        weights_ptr: operand dtype [M, size], weights as the matrix products read them.
        abs_max_ptr: float32 [M], the largest weight of an error, for fp16; None for a classifier.
        target_ptr: float32 [M, buffer_rows, DIM], scratch: what the network is to predict.
        acts_ptr: operand dtype [M, buffer_rows, activation columns], output: inputs of all layers.
        z_ptr: operand dtype [M, buffer_rows, z columns], scratch, or None: pre-activations.
        grads_ptr: operand dtype [M, buffer_rows, gradient columns], output: gradients of all
            pre-activations and of y.
        buffer_rows: rows of each model in these buffers, a multiple of ROWS.
        tile_parts_ptr: float32 [M, hidden layers + 2, tiles], output: each tile's part of the slope
            gradients, of the loss and of the number of terms.
        DIM, TIME, CLASS: widths of point, timestep feature and class feature; CLASS is 0 without.
        EPOCH: True for epochs over all pairs of point and timestep, False to draw anew each step.
        NET: layout of the network.
        CONFIG: tile sizes.
        ROWS: rows of a tile.
        DEPENDENT: True for a dependent launch.
    """
    wait_for_last_kernel(DEPENDENT)
    LAYERS: tl.constexpr = NET.layers
    tiles = tl.num_programs(0)
    model = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = first + tl.arange(0, ROWS)
    seed = tl.load(seed_ptr + model)
    if step_ptr is not None:
        step = tl.load(step_ptr)
    index, t, element, step, live = locate_rows(
        first_row + row, model, n_points_ptr, n_steps_ptr, steps,
        t_table_ptr + model * t_table_stride, n_entries_ptr, entries,
        seed, step, batch_size, refresh, EPOCH,
    )  # fmt: skip
    live = live & (row < rows)
    labels = labels_ptr
    if labels_ptr is not None:
        labels += model * labels_stride
    class_features = class_features_ptr
    if CLASS > 0:
        p_uncond = tl.load(p_uncond_ptr + model)
        condition = draw_condition(labels, index, p_uncond, classes, seed, step, element)
        class_features += model * class_features_stride + condition * CLASS
    flat = flat_ptr + model * NET.shape.num_parameters
    weights = weights_ptr + model * NET.weights[LAYERS]
    acts = acts_ptr + (model * buffer_rows + first) * NET.activation_columns
    z = z_ptr + (model * buffer_rows + first) * NET.z_columns if NET.keeps_z else None
    grads = grads_ptr + (model * buffer_rows + first) * NET.gradient_columns
    target = target_ptr + (model * buffer_rows + first) * DIM
    weight = _noise_points(
        points_ptr + model * points_stride + index * DIM,
        forward_table_ptr + model * forward_table_stride + t * FORWARD_NUMBERS,
        seed, step, element, live, target, acts, DIM, NET, ROWS,
    )  # fmt: skip
    alive, time_features = live[:, None], features_ptr + model * features_stride + t * TIME
    store_features(time_features[:, None], alive, DIM, TIME, acts, NET, ROWS)
    if CLASS > 0:
        store_features(class_features[:, None], alive, DIM + TIME, CLASS, acts, NET, ROWS)
    clear_padding(acts, NET, ROWS)
    tl.debug_barrier()
    forward_hidden(acts, z, weights, flat, NET, CONFIG, ROWS)
    terms = tl.sum(live.to(tl.float32), axis=0)
    if labels_ptr is None or CLASS > 0:
        scale, _ = gradient_scale(abs_max_ptr, model, NET)
        loss = _target_loss(
            acts, weights, flat, grads, target, weight, scale, live, NET, CONFIG, ROWS
        )
        terms *= DIM
    else:
        label = tl.load(labels + index)
        loss = _label_loss(acts, weights, flat, grads, label, live, NET, CONFIG, ROWS)
    parts = tile_parts_ptr + model * (LAYERS + 1) * tiles + tl.program_id(0)
    tl.store(parts + (LAYERS - 1) * tiles, loss)
    tl.store(parts + LAYERS * tiles, terms)
    tl.debug_barrier()
    z = z if NET.keeps_z else acts
    backward_hidden(z, grads, weights, flat, parts, tiles, NET, CONFIG, ROWS)


@triton.jit
def _noise_points(
    points, forward_row, seed, step, element, live, targets, acts, DIM: tl.constexpr,
    NET: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Writes the targets, and x_t as the first columns of the network's input.

    Args:
        points: pointers to the point of each row.
        forward_row: pointers to the five numbers of each row's timestep.
        seed, step, element: what each row's noise follows from.
        live: bool [ROWS], False for rows whose input is 0.
        targets: pointer to what the network is to predict for the tile, fp32 [ROWS, DIM].

    Returns:
        The weight of each row's error, fp32 [ROWS].
    """
    signal, noise = levels(forward_row)
    weight = tl.load(forward_row + WEIGHT)
    PAIRS: tl.constexpr = min(16, power_of_two(max(DIM, 2)) // 2)  # at once
    row = tl.arange(0, ROWS)[:, None]
    for start in tl.range(0, DIM, 2 * PAIRS, num_stages=1):
        column = start + tl.arange(0, 2 * PAIRS)
        inside = live[:, None] & (column < DIM)[None, :]
        # The first two words of a row have made index and t.
        eps = normal_columns(seed, DRAW, step, element, start // 2 + 1, PAIRS)
        x_0 = tl.load(points[:, None] + column[None, :], mask=inside, other=0.0)
        tl.store(
            targets + row * DIM + column[None, :], target_of(forward_row, x_0, eps), mask=inside
        )
        x_t = signal[:, None] * x_0 + noise[:, None] * eps
        x_t = tl.where(live[:, None], x_t, 0.0)
        store_inputs(x_t, column, column < DIM, acts, NET, ROWS)
    return weight


@triton.jit
def _target_loss(
    acts, weights, flat, grads, targets, weight, scale, live, NET: tl.constexpr,
    CONFIG: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Returns the sum of weight (y - target)^2 over a tile; writes half its gradient, scaled."""
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
        y = layer_columns(acts, weights, flat, 0, column, LAYERS - 1, NET, CONFIG, ROWS)
        wanted = tl.load(targets + row * WIDTH + column[None, :], mask=inside, other=0.0)
        error = tl.where(inside, y - wanted, 0.0)
        grad = weight[:, None] * error
        loss += tl.sum(grad * error)
        grad = operand(grad * scale, grads.dtype.element_ty, NET)
        tl.store(target + row * NET.gradient_columns + column[None, :], grad)
    return loss


@triton.jit
def _label_loss(
    acts, weights, flat, grads, label, live, NET: tl.constexpr, CONFIG: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Returns the sum of -log softmax(y)[label] over a tile; writes its gradient, scaled."""
    LAYERS: tl.constexpr = NET.layers
    WIDTH: tl.constexpr = NET.shape.widths[LAYERS]
    PADDED: tl.constexpr = NET.padded[LAYERS]
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, PADDED)
    y = layer_columns(acts, weights, flat, 0, column, LAYERS - 1, NET, CONFIG, ROWS)
    p, log_p = softmax(y, column, WIDTH)
    chosen = live[:, None] & (column[None, :] == label[:, None])
    grad = tl.where(live[:, None], p - chosen, 0.0)
    grad = operand(grad * UNIT_SCALE, grads.dtype.element_ty, NET)
    target = grads + (NET.columns[LAYERS] - NET.columns[1])
    tl.store(target + row * NET.gradient_columns + column[None, :], grad)
    return -tl.sum(tl.where(chosen, log_p, 0.0))


class Buffers(NamedTuple):
    """Tensors that the launches of a step pass on, for a number of rows; no step needs old ones.

    A step of fewer rows than they have room for uses the same configuration.
    """

    abs_max: Tensor | None  # float32 [M], the largest weight of an error; None for a classifier
    target: Tensor  # float32 [M, rows, d]
    activations: Tensor  # [M, rows, columns], operand dtype
    preactivations: Tensor | None  # [M, rows, columns], operand dtype
    gradients: Tensor  # [M, rows, columns], operand dtype
    tile_parts: Tensor  # float32 [M, hidden layers + 2, parts of tiles]
    config: Config


def buffers_of(
    data: TrainingData, shape: MLPShape, models: int, rows: int, precision: str
) -> tuple[Buffers, int]:
    """Returns buffers for steps of up to ``rows`` rows, and the number of parts of a gradient."""
    config = config_for(precision, capability_of(data.points.device), rows, models)
    return allocated(data, layout_of(shape, precision), models, rows, config, config.rows)


def allocated(
    data: TrainingData,
    net: Layout,
    models: int,
    rows: int,
    config: Config,
    tile: int,
    parts_of_tile: int = 1,
) -> tuple[Buffers, int]:
    """Returns what :func:`buffers_of` does.

    Args:
        data, models, rows: as there.
        net: layout of the networks.
        config: configuration of the steps.
        tile: rows of a tile.
        parts_of_tile: number of parts in which a tile's sums are written.
    """
    tiles = max(1, triton.cdiv(rows, tile))
    rows, new, dtype = tiles * tile, data.points.new_empty, OPERAND_DTYPES[net.precision]
    buffers = Buffers(
        abs_max=None if data.classifies else _largest_weight(data, models),
        target=new((models, rows, data.points.shape[-1])),
        activations=new((models, rows, net.activation_columns), dtype=dtype),
        preactivations=new((models, rows, net.z_columns), dtype=dtype) if net.keeps_z else None,
        gradients=new((models, rows, net.gradient_columns), dtype=dtype),
        tile_parts=new((models, net.layers + 1, tiles * parts_of_tile)),
        config=config,
    )
    return buffers, mlp.split_rows(net, config, models, rows)[0]


def _largest_weight(data: TrainingData, models: int) -> Tensor:
    """Returns the largest weight that the error of a row can have, float32 [M]."""
    weight = data.forward_table[..., WEIGHT.value]  # [M, T], or [1, T]
    if data.n_steps is not None:
        t = torch.arange(weight.shape[1], device=weight.device)
        weight = torch.where(t < data.n_steps[:, None], weight, 0.0)
    return weight.abs().amax(dim=1).expand(models).contiguous()


def factor_of(data: TrainingData) -> float:
    """Returns what gradients without their scale have to be multiplied by."""
    return 1 / UNIT_SCALE.value if data.classifies else 2.0


def training_sums(
    parameters: Tensor,
    shape: MLPShape,
    data: TrainingData,
    sums: Tensor,
    shadow: Shadow,
    buffers: Buffers,
    *,
    batch_size: int,
    seed: Tensor,
    step: int | Tensor,
    refresh: int | None,
    first_row: int,
    rows: int,
    add: bool,
) -> None:
    """Writes sums [M, S, P + 2]; the arguments are those of :func:`..training_sums`."""
    if not rows:
        if not add:
            sums.zero_()
        return
    net = layout_of(shape, shadow.precision)
    config = buffers.config
    models, tiles = len(parameters), triton.cdiv(rows, config.rows)
    tile_parts = buffers.tile_parts.flatten()[: models * (net.layers + 1) * tiles]
    tile_parts = tile_parts.view(models, net.layers + 1, tiles)
    with device_of(parameters):
        train_kernel[tiles, models](
            **source_arguments(data),
            **step_arguments(step),
            seed_ptr=seed,
            batch_size=batch_size,
            refresh=refresh or 0,
            first_row=first_row,
            rows=rows,
            flat_ptr=parameters,
            weights_ptr=shadow.packed,
            abs_max_ptr=buffers.abs_max,
            target_ptr=buffers.target,
            acts_ptr=buffers.activations,
            z_ptr=buffers.preactivations,
            grads_ptr=buffers.gradients,
            buffer_rows=buffers.activations.shape[1],
            tile_parts_ptr=tile_parts,
            EPOCH=refresh is not None,
            NET=net,
            CONFIG=config,
            ROWS=config.rows,
            **dependent_launch(parameters),
            num_warps=config.warps,
        )
        mlp.weight_gradients(
            buffers.activations,
            buffers.gradients,
            tile_parts,
            sums,
            net,
            config,
            rows=tiles * config.rows,
            loss=True,
            add=add,
            abs_max=buffers.abs_max,
            factor=factor_of(data),
        )
