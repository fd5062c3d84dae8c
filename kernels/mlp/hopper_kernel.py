"""The fused multi-layer perceptron on Hopper GPUs; same contract as :mod:`.kernel`.

A tile of rows goes through all layers, see :mod:`.hopper_network`. A narrow network leaves to
memory only what the backward pass and the weight gradients read.
"""

import triton
from torch import Tensor

from .._dispatch import capability_of
from ..cuda import device_of
from ..gluon import fence, gl, jit
from .arithmetic import gradient_scale, largest_magnitude, power_of_two_scale
from .chunks import TrainingLayout, ring_of, training_chunks_of
from .config import Config, config_for, saved_rows
from .hopper import (
    accumulators,
    chunk_descriptor,
    left_operand,
    load_tile,
    points_operand,
    store_columns,
    store_tile,
)
from .hopper_network import backward as backward_tile
from .hopper_network import forward as forward_tile
from .hopper_network import open_network, resident_first, resident_last
from .hopper_rows import TileRows, resident_biases
from .kernel import (
    BLOCK,
    UNALIGNED,
    VARYING,
    abs_max_of,
    extent,
    slots,
    strided,
    sum_gradients,
)
from .layout import Saved, layout_of
from .operand_weights import operands_of_layers
from .shape import MLPShape

_WARP_ROWS = 16  # whose slope gradients are a part of the tile's


@jit(do_not_specialize=[*VARYING, "tiles"], do_not_specialize_on_alignment=UNALIGNED)
def forward_kernel(
    x_ptr, x_stride_model, x_stride_row, x_stride_column,
    flat_ptr, weights_ptr, chunks_desc, acts_ptr, z_ptr, acts_rows, y_ptr, rows, tiles,
    NET: gl.constexpr, ROWS: gl.constexpr, RING: gl.constexpr, SAVE: gl.constexpr,
):  # fmt: skip
    """Computes y = MLP(x) for tiles of ROWS rows; grid (programs, M).

    A program takes every so many tiles, so that the weights of the next one are under way.

    Args:
        x_ptr ... y_ptr, rows: as in :func:`.kernel.forward_kernel`, but hidden features are in
            fragment order. ``z_ptr`` is None without SAVE, and so is ``acts_ptr`` unless the
            network is wide: each program then uses its own ROWS rows over and over.
        weights_ptr: operand dtype [M, size], weights as :class:`~.chunks.TrainingLayout` says.
        chunks_desc: descriptor of all of them as [rows, part] in blocks of a chunk.
        tiles: number of tiles.
        NET: layout of the networks.
        ROWS: rows of a tile, 16 for each warp.
        RING: number of chunks that lie in shared memory.
        SAVE: True if a backward pass follows.
    """
    PART: gl.constexpr = NET.part
    WARPS: gl.constexpr = ROWS // 16
    LAYERS: gl.constexpr = NET.rows.layers
    CHUNKS: gl.constexpr = NET.chunks // 2
    INPUT: gl.constexpr = left_operand(PART, ROWS)
    ROW: gl.constexpr = gl.SliceLayout(1, accumulators(NET.points, ROWS))
    Y_ROW: gl.constexpr = gl.SliceLayout(1, accumulators(NET.rows.padded[LAYERS], ROWS))
    model = gl.program_id(1).to(gl.int64)
    flat, weights, turns, stream = open_network(
        flat_ptr, weights_ptr, chunks_desc, tiles, 0, CHUNKS, NET, RING
    )
    w_first = resident_first(weights, NET, WARPS)
    w_last = resident_last(weights, NET, WARPS)
    biases = resident_biases(flat, NET, WARPS)
    fence()
    number = 0
    for turn in range(turns):
        first = (gl.program_id(0) + turn * gl.num_programs(0)).to(gl.int64) * ROWS
        live = first + gl.arange(0, ROWS, layout=ROW) < rows
        acts, z = None, None
        if acts_ptr is not None:
            slot = first if SAVE else gl.program_id(0).to(gl.int64) * ROWS
            acts = acts_ptr + (model * acts_rows + slot) * NET.rows.activation_columns
        if z_ptr is not None:
            z = z_ptr + (model * acts_rows + first) * NET.rows.z_columns
        x = x_ptr + model * x_stride_model + first * x_stride_row
        x = load_tile(x, x_stride_row, x_stride_column, live, NET.dim, NET.points)
        x = points_operand(x, w_first.dtype, NET)
        if SAVE:
            store_columns(acts, x, NET.rows.activation_columns, INPUT)
        tile = TileRows(acts, z, None, None, None)
        y, number = forward_tile(x, flat, biases, w_first, w_last, stream, number, tile, NET)
        OUT: gl.constexpr = NET.rows.shape.widths[LAYERS]
        live = gl.convert_layout(live, Y_ROW, assert_trivial=True)
        store_tile(y_ptr + (model * rows + first) * OUT, y, live, OUT)


@jit(do_not_specialize=[*VARYING, "tiles"], do_not_specialize_on_alignment=UNALIGNED)
def backward_kernel(
    grad_y_ptr, grad_y_stride_model, grad_y_stride_row, grad_y_stride_column, abs_max_ptr,
    flat_ptr, weights_ptr, chunks_desc, z_ptr, z_rows,
    grads_ptr, grads_rows, slope_parts_ptr, grad_x_ptr, rows, tiles,
    NET: gl.constexpr, ROWS: gl.constexpr, RING: gl.constexpr, SAVE: gl.constexpr,
    MEASURE: gl.constexpr,
):  # fmt: skip
    """Computes gradients of sum(grad_y * y) for tiles of ROWS rows; grid (programs, M).

    Args:
        grad_y_ptr ... rows: as in :func:`.kernel.backward_kernel`, but hidden features are in
            fragment order, and ``slope_parts_ptr`` has a number for each warp instead of each tile.
            It is not written without SAVE. Then ``grads_ptr`` is None unless the network is wide,
            as ``acts_ptr`` is on the way forward. ``grad_x_ptr`` is None to leave out the gradient
            of x.
        weights_ptr, chunks_desc, tiles: as in :func:`forward_kernel`.
        NET, ROWS, RING: as there.
        SAVE: True if the weight gradients follow.
        MEASURE: True if each program finds the largest magnitude.
    """
    PART: gl.constexpr = NET.part
    WARPS: gl.constexpr = ROWS // 16
    LAYERS: gl.constexpr = NET.rows.layers
    CHUNKS: gl.constexpr = NET.chunks // 2
    OUT: gl.constexpr = NET.rows.shape.widths[LAYERS]
    OUTPUTS: gl.constexpr = NET.rows.padded[LAYERS]
    INPUT: gl.constexpr = left_operand(PART, ROWS)
    Y: gl.constexpr = accumulators(OUTPUTS, ROWS)
    X_ROW: gl.constexpr = gl.SliceLayout(1, accumulators(NET.points, ROWS))
    model = gl.program_id(1).to(gl.int64)
    # The chunks of the way back follow those of the way forward.
    flat, weights, turns, stream = open_network(
        flat_ptr, weights_ptr, chunks_desc, tiles, CHUNKS, CHUNKS, NET, RING
    )
    w_first = None
    if grad_x_ptr is not None:
        w_first = resident_first(weights, NET, WARPS)
    w_last = resident_last(weights, NET, WARPS)
    fence()
    grad_y_ptr += model * grad_y_stride_model
    if MEASURE:
        abs_max = largest_magnitude(
            grad_y_ptr, grad_y_stride_row, grad_y_stride_column, rows * OUT,
            gl.arange(0, BLOCK, layout=gl.BlockedLayout([1], [32], [WARPS], [0])), OUT,
        )  # fmt: skip
        if gl.program_id(0) == 0:
            gl.store(abs_max_ptr + model, abs_max)
        scale, inverse = power_of_two_scale(abs_max)
    else:
        LAYOUT: gl.constexpr = NET.rows
        scale, inverse = gradient_scale(abs_max_ptr, model, LAYOUT)
    number = 0
    for turn in range(turns):
        tile_number = gl.program_id(0) + turn * gl.num_programs(0)
        first = tile_number.to(gl.int64) * ROWS
        live = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, Y)) < rows
        z = z_ptr + (model * z_rows + first) * NET.rows.z_columns
        grads, parts = None, None
        if grads_ptr is not None:
            slot = first if SAVE else gl.program_id(0).to(gl.int64) * ROWS
            grads = grads_ptr + (model * grads_rows + slot) * NET.rows.gradient_columns
        if SAVE:
            parts = slope_parts_ptr + (model * (LAYERS - 1) * tiles + tile_number) * WARPS
        grad = grad_y_ptr + first * grad_y_stride_row
        grad = load_tile(grad, grad_y_stride_row, grad_y_stride_column, live, OUT, OUTPUTS)
        grad = (grad * scale).to(w_last.dtype)
        if SAVE:
            target = grads + (NET.rows.columns[LAYERS] - NET.rows.columns[1])
            store_columns(target, grad, NET.rows.gradient_columns, Y)
        grad = gl.convert_layout(grad, INPUT, assert_trivial=True)
        tile = TileRows(None, z, grads, parts, tiles * WARPS)
        grad_x, number = backward_tile(grad, flat, w_first, w_last, stream, number, tile, NET)
        if grad_x_ptr is not None:
            live = gl.convert_layout(live, X_ROW, assert_trivial=True)
            pointer = grad_x_ptr + (model * rows + first) * NET.dim
            store_tile(pointer, grad_x * inverse, live, NET.dim)


def forward(
    x: Tensor,
    layers: tuple[Tensor, ...],
    shape: MLPShape,
    precision: str,
    *,
    save: bool = True,
    y: Tensor | None = None,
) -> tuple[Tensor, Saved]:
    """Returns y = MLP(x) and the saved tensors; see :func:`.kernel.forward`.

    Without ``save`` the activations are empty, or scratch memory of a wide network.
    """
    net = training_chunks_of(layout_of(shape, precision))
    weights, flat = operands_of_layers(layers, net, x.shape[0] if x.dim() == 3 else 1)
    x, models, rows, strides = extent(x)
    config = config_for(precision, capability_of(x.device), rows, models, "perceptron")
    tiles = triton.cdiv(rows, config.hopper_rows)
    programs = min(tiles, slots(models, x.device))
    buffer_rows = saved_rows(rows) if save else _scratch_rows(programs, net, config)
    acts = weights.new_empty((models, buffer_rows, net.rows.activation_columns))
    z = None
    if save and net.rows.keeps_z:
        z = weights.new_empty((models, buffer_rows, net.rows.z_columns))
    if y is None:
        y = x.new_empty((*x.shape[:-1], shape.widths[-1]))
    if rows and models:
        with device_of(x):
            forward_kernel[programs, models](
                **strided("x", x, strides),
                flat_ptr=flat,
                weights_ptr=weights,
                chunks_desc=chunk_descriptor(weights, net.part),
                acts_ptr=acts if buffer_rows else None,
                z_ptr=z,
                acts_rows=buffer_rows,
                y_ptr=y,
                rows=rows,
                tiles=tiles,
                NET=net,
                ROWS=config.hopper_rows,
                RING=ring_of(config, net, None),
                SAVE=save,
                num_warps=config.hopper_rows // _WARP_ROWS,
            )
    return y, Saved(acts, weights, flat, z)


def _scratch_rows(programs: int, net: TrainingLayout, config: Config) -> int:
    """Returns the rows of a buffer through which wide networks go where nothing is saved."""
    return programs * config.hopper_rows if net.wide else 0


def write_gradients(
    grad_y: Tensor,
    saved: Saved,
    shape: MLPShape,
    precision: str,
    *,
    grad_x: Tensor | None,
    grad: Tensor | None,
) -> None:
    """Writes the gradients of x and of all parameters; see :func:`.kernel.write_gradients`."""
    net = training_chunks_of(layout_of(shape, precision))
    grad_y, models, rows, strides = extent(grad_y)
    if not (rows and models):
        if grad is not None:
            grad.zero_()
        return
    config = config_for(precision, capability_of(grad_y.device), rows, models, "perceptron")
    z = saved.activations if saved.preactivations is None else saved.preactivations
    tiles, warps = triton.cdiv(rows, config.hopper_rows), config.hopper_rows // _WARP_ROWS
    programs = min(tiles, slots(models, grad_y.device))
    buffer_rows = _scratch_rows(programs, net, config) if grad is None else z.shape[1]
    grads = z.new_empty((models, buffer_rows, net.rows.gradient_columns))
    slope_parts = saved.flat.new_empty((models, net.rows.layers - 1, tiles * warps))
    abs_max, measure = abs_max_of(grad_y, models, precision)
    with device_of(grad_y):
        backward_kernel[programs, models](
            **strided("grad_y", grad_y, strides),
            abs_max_ptr=abs_max,
            flat_ptr=saved.flat,
            weights_ptr=saved.weights,
            chunks_desc=chunk_descriptor(saved.weights, net.part),
            z_ptr=z,
            z_rows=z.shape[1],
            grads_ptr=grads if buffer_rows else None,
            grads_rows=buffer_rows,
            slope_parts_ptr=slope_parts,
            grad_x_ptr=grad_x,
            rows=rows,
            tiles=tiles,
            NET=net,
            ROWS=config.hopper_rows,
            RING=ring_of(config, net, None),
            SAVE=grad is not None,
            MEASURE=measure,
            num_warps=warps,
        )
        if grad is not None:
            covered = tiles * config.hopper_rows
            sum_gradients(grad, saved, grads, slope_parts, net.rows, config, covered, abs_max)
