"""The sums of a training step on Hopper GPUs; same contract as :mod:`.kernel`.

The first launch keeps the activations and the gradients of a tile of rows in registers, see
:mod:`..mlp.hopper_network`.
"""

import triton
from torch import Tensor

from .._dispatch import capability_of, step_arguments
from ..adamw.reference import Shadow
from ..cuda import device_of
from ..dependent_launch import dependent_launch, wait_for_last_kernel
from ..gluon import fence, gl, jit
from ..mlp import MLPShape
from ..mlp import kernel as mlp
from ..mlp.arithmetic import UNIT_SCALE, gradient_scale, softmax
from ..mlp.chunks import ring_of, training_chunks_of
from ..mlp.config import config_for
from ..mlp.hopper import (
    accumulators,
    chunk_descriptor,
    left_operand,
    pairs,
    points_operand,
    store_columns,
)
from ..mlp.hopper_network import backward, forward, open_network, resident_first, resident_last
from ..mlp.hopper_rows import TileRows, resident_biases, store_sums
from ..mlp.layout import layout_of
from ..philox.kernel import DRAW, normal_pair
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
from .kernel import _VARYING, Buffers, allocated, factor_of

_WARP_ROWS = 16  # whose sums are a part of the tile's


@jit
def noised(
    x_0, forward_row, seed, step, element, live, targets, DIM: gl.constexpr, NET: gl.constexpr
):
    """Returns x_t in the first columns of a tile of inputs, fp32 [ROWS, points]; writes targets.

    Args:
        x_0: pointers to the point of each row.
        forward_row: pointers to the five numbers of each row's timestep.
        seed, step, element: what each row's noise follows from.
        live: bool [ROWS], False for rows whose input is 0.
        targets: pointer to what the network is to predict for the tile, fp32 [ROWS, DIM].
    """
    ROWS: gl.constexpr = live.shape[0]
    POINTS: gl.constexpr = accumulators(NET.points, ROWS)
    PAIRS: gl.constexpr = pairs(NET.points, ROWS)
    pair = gl.arange(0, NET.points // 2, layout=gl.SliceLayout(0, PAIRS))
    element = gl.convert_layout(element, gl.SliceLayout(1, PAIRS), assert_trivial=True)
    # The first two words of a row have made index and t.
    z_0, z_1 = normal_pair(
        seed, DRAW, step, gl.expand_dims(element, 1), gl.expand_dims(pair + 1, 0)
    )
    eps = gl.join(z_0, z_1).reshape([ROWS, NET.points])
    eps = gl.convert_layout(eps, POINTS, assert_trivial=True)
    row = gl.expand_dims(gl.arange(0, ROWS, layout=gl.SliceLayout(1, POINTS)), 1)
    column = gl.expand_dims(gl.arange(0, NET.points, layout=gl.SliceLayout(0, POINTS)), 0)
    inside = gl.expand_dims(live, 1) & (column < DIM)
    point = gl.load(gl.expand_dims(x_0, 1) + column, mask=inside, other=0.0)
    gl.store(targets + row * DIM + column, target_of(forward_row, point, eps), mask=inside)
    signal, noise = levels(forward_row)
    x_t = gl.expand_dims(signal, 1) * point + gl.expand_dims(noise, 1) * eps
    return gl.where(inside, x_t, 0.0)


@jit
def with_features(x, features, live, FIRST: gl.constexpr, WIDTH: gl.constexpr, NET: gl.constexpr):
    """Returns a tile of inputs with WIDTH features of each row from column FIRST on.

    Args:
        features: pointers to the first feature of each row.
    """
    POINTS: gl.constexpr = accumulators(NET.points, x.shape[0])
    column = gl.arange(0, NET.points, layout=gl.SliceLayout(0, POINTS)) - FIRST
    inside = gl.expand_dims((column >= 0) & (column < WIDTH), 0) & gl.expand_dims(live, 1)
    pointers = gl.expand_dims(features, 1) + gl.expand_dims(column, 0)
    return x + gl.load(pointers, mask=inside, other=0.0)


@jit
def target_loss(y, targets, weight, live, DIM: gl.constexpr):
    """Returns the sum of weight (y - target)^2 of each row, and half its gradient."""
    LAYOUT: gl.constexpr = accumulators(y.shape[1], y.shape[0])
    row = gl.expand_dims(gl.arange(0, y.shape[0], layout=gl.SliceLayout(1, LAYOUT)), 1)
    column = gl.expand_dims(gl.arange(0, y.shape[1], layout=gl.SliceLayout(0, LAYOUT)), 0)
    inside = gl.expand_dims(live, 1) & (column < DIM)
    # A thread reads the targets that it has written itself.
    wanted = gl.load(targets + row * DIM + column, mask=inside, other=0.0)
    error = gl.where(inside, y - wanted, 0.0)
    grad = gl.expand_dims(weight, 1) * error
    return gl.sum(grad * error, 1), grad


@jit
def label_loss(y, label, live, NET: gl.constexpr):
    """Returns -log softmax(y)[label] of each row, and its gradient."""
    CLASSES: gl.constexpr = NET.rows.shape.widths[NET.rows.layers]
    LAYOUT: gl.constexpr = accumulators(y.shape[1], y.shape[0])
    column = gl.arange(0, y.shape[1], layout=gl.SliceLayout(0, LAYOUT))
    p, log_p = softmax(y, column, CLASSES)
    alive = gl.expand_dims(live, 1)
    chosen = alive & (gl.expand_dims(column, 0) == gl.expand_dims(label, 1))
    grad = gl.where(alive, p - gl.where(chosen, 1.0, 0.0), 0.0)
    return -gl.sum(gl.where(chosen, log_p, 0.0), 1), grad


@jit(do_not_specialize=[*_VARYING, "tiles"])
def train_kernel(
    points_ptr, points_stride, forward_table_ptr, forward_table_stride, features_ptr,
    features_stride,
    labels_ptr, labels_stride, class_features_ptr, class_features_stride, classes, p_uncond_ptr,
    n_points_ptr, n_steps_ptr, steps, t_table_ptr, t_table_stride, n_entries_ptr, entries,
    seed_ptr, step_ptr, step, batch_size, refresh, first_row, rows,
    flat_ptr, weights_ptr, chunks_desc, abs_max_ptr, target_ptr, acts_ptr, z_ptr, grads_ptr,
    buffer_rows, tile_parts_ptr, tiles,
    DIM: gl.constexpr, TIME: gl.constexpr, CLASS: gl.constexpr, EPOCH: gl.constexpr,
    NET: gl.constexpr, ROWS: gl.constexpr, RING: gl.constexpr, DEPENDENT: gl.constexpr,
):  # fmt: skip
    """Takes tiles of rows through draw, forward pass, loss and backward pass; grid (programs, M).

    A program takes every so many tiles, so that the weights of the next one are under way.

    Args:
        points_ptr ... flat_ptr: as in :func:`.kernel.train_kernel`.
        weights_ptr: operand dtype [M, size], weights as :class:`~..mlp.chunks.TrainingLayout` says.
        chunks_desc: descriptor of all of them as [rows, part] in blocks of a chunk.
        abs_max_ptr ... buffer_rows: as there; hidden features are in fragment order.
        tile_parts_ptr: as there, each warp's part instead of each tile's.
        tiles: number of tiles.
        DIM, TIME, CLASS, EPOCH: as there.
        NET: layout of the network.
        ROWS: rows of a tile, 16 for each warp.
        RING: number of chunks that lie in shared memory.
        DEPENDENT: True for a dependent launch.
    """
    wait_for_last_kernel(DEPENDENT)
    PART: gl.constexpr = NET.part
    WARPS: gl.constexpr = ROWS // 16
    LAYERS: gl.constexpr = NET.rows.layers
    INPUT: gl.constexpr = left_operand(PART, ROWS)
    ROW: gl.constexpr = gl.SliceLayout(1, accumulators(NET.points, ROWS))
    Y: gl.constexpr = accumulators(NET.rows.padded[LAYERS], ROWS)
    model = gl.program_id(1).to(gl.int64)
    flat, weights, turns, stream = open_network(
        flat_ptr, weights_ptr, chunks_desc, tiles, 0, NET.chunks, NET, RING
    )
    w_first = resident_first(weights, NET, WARPS)
    w_last = resident_last(weights, NET, WARPS)
    biases = resident_biases(flat, NET, WARPS)
    fence()
    seed = gl.load(seed_ptr + model)
    if step_ptr is not None:
        step = gl.load(step_ptr)
    number = 0
    for turn in range(turns):
        tile_number = gl.program_id(0) + turn * gl.num_programs(0)
        first = tile_number.to(gl.int64) * ROWS
        row = first + gl.arange(0, ROWS, layout=ROW)
        index, t, element, draw_step, live = locate_rows(
            first_row + row, model, n_points_ptr, n_steps_ptr, steps,
            t_table_ptr + model * t_table_stride, n_entries_ptr, entries,
            seed, step, batch_size, refresh, EPOCH,
        )  # fmt: skip
        live = live & (row < rows)
        start = model * buffer_rows + first
        acts = acts_ptr + start * NET.rows.activation_columns
        z = acts
        if NET.rows.keeps_z:
            z = z_ptr + start * NET.rows.z_columns
        grads = grads_ptr + start * NET.rows.gradient_columns
        parts = tile_parts_ptr + (model * (LAYERS + 1) * tiles + tile_number) * WARPS
        tile = TileRows(acts, z, grads, parts, tiles * WARPS)
        targets = target_ptr + start * DIM
        forward_row = forward_table_ptr + model * forward_table_stride + t * FORWARD_NUMBERS
        x = noised(
            points_ptr + model * points_stride + index * DIM, forward_row,
            seed, draw_step, element, live, targets, DIM, NET,
        )  # fmt: skip
        features = features_ptr + model * features_stride + t * TIME
        x = with_features(x, features, live, DIM, TIME, NET)
        if CLASS > 0:
            labels = labels_ptr + model * labels_stride
            p_uncond = gl.load(p_uncond_ptr + model)
            condition = draw_condition(labels, index, p_uncond, classes, seed, draw_step, element)
            features = class_features_ptr + model * class_features_stride + condition * CLASS
            x = with_features(x, features, live, DIM + TIME, CLASS, NET)
        x = points_operand(x, w_first.dtype, NET)
        store_columns(acts, x, NET.rows.activation_columns, INPUT)
        y, number = forward(x, flat, biases, w_first, w_last, stream, number, tile, NET)
        alive = gl.convert_layout(live, gl.SliceLayout(1, Y), assert_trivial=True)
        terms = gl.where(alive, 1.0, 0.0)
        if labels_ptr is None or CLASS > 0:
            weight = gl.load(forward_row + WEIGHT)
            weight = gl.convert_layout(weight, gl.SliceLayout(1, Y), assert_trivial=True)
            loss, grad = target_loss(y, targets, weight, alive, DIM)
            LAYOUT: gl.constexpr = NET.rows
            grad *= gradient_scale(abs_max_ptr, model, LAYOUT)[0]
            terms *= DIM
        else:
            label = gl.load(labels_ptr + model * labels_stride + index)
            label = gl.convert_layout(label, gl.SliceLayout(1, Y), assert_trivial=True)
            loss, grad = label_loss(y, label, alive, NET)
            grad *= UNIT_SCALE
        store_sums(parts + (LAYERS - 1) * tile.stride, loss)
        store_sums(parts + LAYERS * tile.stride, terms)
        grad = grad.to(w_last.dtype)
        target = grads + (NET.rows.columns[LAYERS] - NET.rows.columns[1])
        store_columns(target, grad, NET.rows.gradient_columns, Y)
        grad = gl.convert_layout(grad, INPUT, assert_trivial=True)
        number = backward(grad, flat, None, w_last, stream, number, tile, NET)[1]


def buffers_of(
    data: TrainingData, shape: MLPShape, models: int, rows: int, precision: str
) -> tuple[Buffers, int]:
    """Returns buffers for steps of up to ``rows`` rows, and the number of parts of a gradient."""
    net = training_chunks_of(layout_of(shape, precision)).rows
    config = config_for(precision, capability_of(data.points.device), rows, models)
    tile = config.hopper_rows
    return allocated(data, net, models, rows, config, tile, tile // _WARP_ROWS)


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
    """Writes sums [M, S, P + 2]; the arguments are those of :func:`..training_sums`.

    The shadow is a chunked one.
    """
    if not rows or not len(parameters):
        if not add:
            sums.zero_()
        return
    net = training_chunks_of(layout_of(shape, shadow.precision))
    config = buffers.config
    models, tiles = len(parameters), triton.cdiv(rows, config.hopper_rows)
    warps = config.hopper_rows // _WARP_ROWS
    tile_parts = buffers.tile_parts.flatten()[: models * (net.rows.layers + 1) * tiles * warps]
    with device_of(parameters):
        train_kernel[min(tiles, mlp.slots(models, parameters.device)), models](
            **source_arguments(data),
            **step_arguments(step),
            seed_ptr=seed,
            batch_size=batch_size,
            refresh=refresh or 0,
            first_row=first_row,
            rows=rows,
            flat_ptr=parameters,
            weights_ptr=shadow.packed,
            chunks_desc=chunk_descriptor(shadow.packed, net.part),
            abs_max_ptr=buffers.abs_max,
            target_ptr=buffers.target,
            acts_ptr=buffers.activations,
            z_ptr=buffers.preactivations,
            grads_ptr=buffers.gradients,
            buffer_rows=buffers.activations.shape[1],
            tile_parts_ptr=tile_parts,
            tiles=tiles,
            EPOCH=refresh is not None,
            NET=net,
            ROWS=config.hopper_rows,
            RING=ring_of(config, net, None),
            **dependent_launch(parameters),
            num_warps=warps,
        )
        mlp.weight_gradients(
            buffers.activations,
            buffers.gradients,
            tile_parts.view(models, net.rows.layers + 1, tiles * warps),
            sums,
            net.rows,
            config,
            rows=tiles * config.hopper_rows,
            loss=True,
            add=add,
            abs_max=buffers.abs_max,
            factor=factor_of(data),
        )
