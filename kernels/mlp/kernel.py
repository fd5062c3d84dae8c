"""The fused multi-layer perceptron in Triton: forward and backward pass of M networks.

The contract is that of :mod:`.reference`. A forward and backward pass takes five launches, and in
fp16, for large gradients, PyTorch's norm as well:

1. :mod:`.operand_weights` rounds and pads the weights, and gathers biases and slopes.
2. :func:`forward_kernel`: a program takes a tile of rows through all layers. Activations of a layer
   go through a buffer that stays in cache, pre-activations to a buffer for the backward pass.
3. :func:`backward_kernel`: the same backwards, down to the gradients of every pre-activation, of
   the slopes, and of x if asked.
4. :mod:`.weight_gradient`: dW_l = dz_l^T h_l, the rows split over programs.
5. :mod:`..reduce_grad` sums the parts in a fixed order, so two runs give the same bits.

The activation is applied when a layer is written, not when it is read: every matrix product then
takes both operands from memory as they are. z is kept as well if the derivative needs it: the slope
of a PReLU may be negative, and then h does not tell the sign of z.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import capability_of, model_stride
from ..cuda import device_of
from ..reduce_grad.kernel import add_up
from ..reduce_grad.reference import empty_parts
from .arithmetic import gradient_scale, largest_magnitude, power_of_two_scale
from .config import PROGRAMS, Config, config_for, saved_rows
from .layout import Layout, Saved, layout_of
from .operand_weights import operand_weights, operands_of_layers
from .shape import MLPParameters, MLPShape
from .tile import (
    backward_hidden,
    forward_hidden,
    last_layer,
    store_grad_x,
    store_grad_y,
    store_input,
)
from .weight_gradient import split_rows, weight_gradients

pack = operand_weights  # its former name

# Each program of the backward pass measures gradients of y of at most so many numbers, for which it
# reads up to 128 KiB from cache. For more, PyTorch's norm is one more launch.
_MEASURED = 32_768
BLOCK = tl.constexpr(1024)  # numbers that are measured at once

# Arguments that change from call to call: no kernel is compiled anew for a value of 1 or of 16.
VARYING = [
    "rows", "x_stride_model", "x_stride_row", "grad_y_stride_model", "grad_y_stride_row",
]  # fmt: skip
# Nor is one compiled anew for another alignment of the caller's tensors. Kernels for dense columns
# differ from those for all others.
UNALIGNED = ["x_ptr", "x_stride_column", "grad_y_ptr", "grad_y_stride_column"]


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def forward_kernel(
    x_ptr, x_stride_model, x_stride_row, x_stride_column,
    flat_ptr, weights_ptr, acts_ptr, acts_rows, z_ptr, y_ptr, rows,
    NET: tl.constexpr, CONFIG: tl.constexpr, ROWS: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Computes y = MLP(x) for tiles of ROWS rows; grid (programs, M).

    With SAVE the activations of every row stay in their buffer, and the pre-activations in theirs
    if there is one; without, each program uses its own ROWS rows over and over.

    Args:
        x_ptr: float [M, rows, in].
        x_stride_model, x_stride_row, x_stride_column: strides of x, in elements.
        flat_ptr: float32 [M, P], flat parameters.
        weights_ptr: [M, size], operand weights, operand dtype.
        acts_ptr: [M, acts_rows, columns], activations, operand dtype; written.
        acts_rows: rows of the buffers of activations and pre-activations for each model.
        z_ptr: [M, acts_rows, columns], pre-activations, operand dtype; written. None if not kept.
        y_ptr: float [M, rows, out], contiguous; written.
        rows: rows of x for each model.
        NET: :class:`~.layout.Layout` of the networks.
        CONFIG: :class:`~.config.Config`, tile sizes.
        ROWS: rows of a tile.
        SAVE: True if a backward pass follows.
    """
    LAYERS: tl.constexpr = NET.layers
    program = tl.program_id(0).to(tl.int64)
    model = tl.program_id(1).to(tl.int64)
    flat = flat_ptr + model * NET.shape.num_parameters
    weights = weights_ptr + model * NET.weights[LAYERS]
    for tile in tl.range(program, tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=1):
        first = tile * ROWS
        slot = first if SAVE else program * ROWS
        acts = acts_ptr + (model * acts_rows + slot) * NET.activation_columns
        z = z_ptr + (model * acts_rows + slot) * NET.z_columns if z_ptr is not None else None
        live = first + tl.arange(0, ROWS) < rows
        x = x_ptr + model * x_stride_model + first * x_stride_row
        store_input(x, x_stride_row, x_stride_column, live, acts, NET, ROWS)
        tl.debug_barrier()
        forward_hidden(acts, z, weights, flat, NET, CONFIG, ROWS)
        y = y_ptr + (model * rows + first) * NET.shape.widths[LAYERS]
        last_layer(acts, weights, flat, y, live, NET, CONFIG, ROWS)
        tl.debug_barrier()


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def backward_kernel(
    grad_y_ptr, grad_y_stride_model, grad_y_stride_row, grad_y_stride_column, abs_max_ptr,
    flat_ptr, weights_ptr, z_ptr, z_rows,
    grads_ptr, grads_rows, slope_parts_ptr, grad_x_ptr, rows,
    NET: tl.constexpr, CONFIG: tl.constexpr, ROWS: tl.constexpr,
    SAVE: tl.constexpr, NEED_X: tl.constexpr, MEASURE: tl.constexpr,
):  # fmt: skip
    """Computes gradients of sum(grad_y * y) for tiles of ROWS rows; grid (programs, M).

    With SAVE the gradients of all pre-activations stay in their buffer, and each tile's slope
    gradients in theirs, all times a scale that follows from ``abs_max``; without, each program uses
    its own ROWS rows over and over.

    Args:
        grad_y_ptr: float [M, rows, out].
        grad_y_stride_model, grad_y_stride_row, grad_y_stride_column: strides of it, in elements.
        abs_max_ptr: float32 [M], largest magnitude of grad_y, for fp16; None for no scale. Written
            with MEASURE.
        flat_ptr: float32 [M, P], flat parameters.
        weights_ptr: [M, size], operand weights, operand dtype.
        z_ptr: [M, z_rows, columns], pre-activations, operand dtype, or the activations if
            ``NET.keeps_z`` is false.
        z_rows: rows of that buffer for each model.
        grads_ptr: [M, grads_rows, columns], gradients of all z_l and of y, operand dtype; written.
        grads_rows: rows of that buffer for each model.
        slope_parts_ptr: float32 [M, hidden layers, tiles], scaled slope gradients of each tile;
            written with SAVE, for PReLU.
        grad_x_ptr: float [M, rows, in], contiguous, not scaled; written with NEED_X.
        rows: rows of grad_y for each model.
        NET: :class:`~.layout.Layout` of the networks.
        CONFIG: :class:`~.config.Config`, tile sizes.
        ROWS: rows of a tile.
        SAVE: True if the weight gradients follow.
        NEED_X: True to write grad_x.
        MEASURE: True if each program finds the largest magnitude.
    """
    LAYERS: tl.constexpr = NET.layers
    OUT: tl.constexpr = NET.shape.widths[LAYERS]
    program = tl.program_id(0).to(tl.int64)
    model = tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(rows, ROWS)
    flat = flat_ptr + model * NET.shape.num_parameters
    weights = weights_ptr + model * NET.weights[LAYERS]
    grad_y_ptr += model * grad_y_stride_model
    if MEASURE:
        abs_max = largest_magnitude(
            grad_y_ptr, grad_y_stride_row, grad_y_stride_column, rows * OUT,
            tl.arange(0, BLOCK), OUT,
        )  # fmt: skip
        if program == 0:
            tl.store(abs_max_ptr + model, abs_max)
        scale, inverse = power_of_two_scale(abs_max)
    else:
        scale, inverse = gradient_scale(abs_max_ptr, model, NET)
    for tile in tl.range(program, tiles, tl.num_programs(0), num_stages=1):
        first = tile * ROWS
        slot = first if SAVE else program * ROWS
        z = z_ptr + (model * z_rows + first) * NET.z_columns
        grads = grads_ptr + (model * grads_rows + slot) * NET.gradient_columns
        live = first + tl.arange(0, ROWS) < rows
        grad_y = grad_y_ptr + first * grad_y_stride_row
        store_grad_y(grad_y, grad_y_stride_row, grad_y_stride_column, live, scale, grads, NET, ROWS)
        tl.debug_barrier()
        parts = slope_parts_ptr + model * (LAYERS - 1) * tiles + tile if SAVE else None
        backward_hidden(z, grads, weights, flat, parts, tiles, NET, CONFIG, ROWS)
        if NEED_X:
            grad_x = grad_x_ptr + (model * rows + first) * NET.shape.widths[0]
            store_grad_x(grads, weights, grad_x, live, inverse, NET, CONFIG, ROWS)
        tl.debug_barrier()


def forward(
    x: Tensor,
    layers: tuple[Tensor, ...],
    shape: MLPShape,
    precision: str,
    *,
    save: bool = True,
    y: Tensor | None = None,
) -> tuple[Tensor, Saved]:
    """Returns y = MLP(x), in the dtype of x, and the tensors that :func:`backward` needs.

    Args:
        x: float [M, B, in], or [B, in] for one network, any strides.
        layers: weights, then biases if there are any, then slopes, read where they lie; see
            :func:`.operand_weights.operands_of_layers`.
        shape: shape of these networks.
        precision: precision of the matrix products, one of :data:`.config.OPERAND_DTYPES`.
        save: False if no backward pass will follow; the buffer then has rows only for the programs
            that run at once.
        y: receives y, a contiguous float tensor; None allocates it.

    Returns:
        y [M, B, out] or [B, out], and the :class:`Saved` tensors.
    """
    net = layout_of(shape, precision)
    models = x.shape[0] if x.dim() == 3 else 1
    weights, flat = operands_of_layers(layers, net, models)
    return _launch_forward(x, weights, flat, net, save, y)


def forward_flat(
    x: Tensor, flat: Tensor, shape: MLPShape, precision: str, *, save: bool = True
) -> tuple[Tensor, Saved]:
    """Does what :func:`forward` does, with flat parameters [M, P]."""
    flat = flat.float().contiguous()
    weights = operand_weights(flat, shape, precision)
    return _launch_forward(x, weights, flat, layout_of(shape, precision), save, None)


def _launch_forward(
    x: Tensor, weights: Tensor, flat: Tensor, net: Layout, save: bool, y: Tensor | None
) -> tuple[Tensor, Saved]:
    x, models, rows, strides = extent(x)
    config = config_for(net.precision, capability_of(x.device), rows, models, "perceptron")
    tiles = -(-rows // config.rows)
    programs = tiles if save else min(tiles, slots(models, x.device))
    buffer_rows = saved_rows(rows) if save else programs * config.rows
    acts = weights.new_empty((models, buffer_rows, net.activation_columns))
    z = None
    if save and net.keeps_z:
        z = weights.new_empty((models, buffer_rows, net.z_columns))
    if y is None:
        y = x.new_empty((*x.shape[:-1], net.shape.widths[-1]))
    if rows and models:
        with device_of(x):
            forward_kernel[programs, models](
                **strided("x", x, strides),
                flat_ptr=flat,
                weights_ptr=weights,
                acts_ptr=acts,
                acts_rows=buffer_rows,
                z_ptr=z,
                y_ptr=y,
                rows=rows,
                NET=net,
                CONFIG=config,
                ROWS=config.rows,
                SAVE=save,
                num_warps=config.warps,
            )
    return y, Saved(acts, weights, flat, z)


def extent(x: Tensor) -> tuple[Tensor, int, int, tuple[int, ...]]:
    """Returns x [M, B, d] or [B, d], M, B, and the strides between models, rows and columns.

    It is a copy of x if 32 bits do not count the elements between the rows of a tile.
    """
    if saved_rows(1) * x.stride(-2) >= 2**31:
        x = x.contiguous()
    if x.dim() == 2:
        return x, 1, x.shape[0], (0, *x.stride())
    models, rows, _ = x.shape
    return x, models, rows, (model_stride(x), *x.stride()[1:])


def strided(name: str, tensor: Tensor, strides: tuple[int, ...]) -> dict[str, Tensor | int]:
    """Returns the arguments of a kernel that stand for a tensor with its strides."""
    model, row, column = strides
    return {
        f"{name}_ptr": tensor,
        f"{name}_stride_model": model,
        f"{name}_stride_row": row,
        f"{name}_stride_column": column,
    }


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
    """Returns gradients of sum(grad_y * y) with respect to x and to all parameters.

    Args:
        grad_y: float [M, B, out], any strides.
        saved: the tensors that :func:`forward` returned with ``save=True``.
        shape, precision: as in :func:`forward`.
        need_x: False to leave out grad_x.
        need_weights: False to leave out the gradients of the parameters.
        grad: float [M, P], receives the flat gradients of the parameters; None allocates it.

    Returns:
        grad_x [M, B, in] in the dtype of grad_y, and the float32 gradients of the parameters, views
        of one flat buffer; None in place of a gradient that is left out.
    """
    grad_x = grad_y.new_empty((*grad_y.shape[:-1], shape.widths[0])) if need_x else None
    if not need_weights:
        grad = None
    elif grad is None:
        grad = torch.empty_like(saved.flat)
    write_gradients(grad_y, saved, shape, precision, grad_x=grad_x, grad=grad)
    return grad_x, None if grad is None else shape.unpack(grad)


def write_gradients(
    grad_y: Tensor,
    saved: Saved,
    shape: MLPShape,
    precision: str,
    *,
    grad_x: Tensor | None,
    grad: Tensor | None,
) -> None:
    """Writes the gradients of :func:`backward`.

    Args:
        grad_y: float [M, B, out], or [B, out] for one network, any strides.
        saved, shape, precision: as in :func:`backward`.
        grad_x: contiguous float tensor of M * B * in numbers, receives the gradient of x; None
            leaves it out.
        grad: float [M, P], receives the flat gradients of the parameters; None leaves them out.
    """
    net = layout_of(shape, precision)
    grad_y, models, rows, strides = extent(grad_y)
    if not (rows and models):
        if grad is not None:
            grad.zero_()
        return
    config = config_for(precision, capability_of(grad_y.device), rows, models, "perceptron")
    z = saved.activations if saved.preactivations is None else saved.preactivations
    tiles = -(-rows // config.rows)
    if grad is None:
        programs = min(tiles, slots(models, grad_y.device))
        buffer_rows = programs * config.rows
    else:
        programs, buffer_rows = tiles, saved.activations.shape[1]
    grads = saved.activations.new_empty((models, buffer_rows, net.gradient_columns))
    slope_parts = saved.flat.new_empty((models, net.layers - 1, tiles))
    abs_max, measure = abs_max_of(grad_y, models, precision)
    with device_of(grad_y):
        backward_kernel[programs, models](
            **strided("grad_y", grad_y, strides),
            abs_max_ptr=abs_max,
            flat_ptr=saved.flat,
            weights_ptr=saved.weights,
            z_ptr=z,
            z_rows=z.shape[1],
            grads_ptr=grads,
            grads_rows=buffer_rows,
            slope_parts_ptr=slope_parts,
            grad_x_ptr=grad_x,
            rows=rows,
            NET=net,
            CONFIG=config,
            ROWS=config.rows,
            SAVE=grad is not None,
            NEED_X=grad_x is not None,
            MEASURE=measure,
            num_warps=config.warps,
        )
        if grad is not None:
            sum_gradients(
                grad, saved, grads, slope_parts, net, config, tiles * config.rows, abs_max
            )


def sum_gradients(
    grad: Tensor,
    saved: Saved,
    grads: Tensor,
    slope_parts: Tensor,
    net: Layout,
    config: Config,
    rows: int,
    abs_max: Tensor | None,
) -> None:
    """Writes the flat gradients of the parameters, [M, P].

    Args:
        grad: float [M, P]; written.
        saved, grads: activations, and the gradients of all pre-activations and of y.
        slope_parts, net, config, rows, abs_max: as in :func:`.weight_gradients`.
    """
    models, buffer_rows, _ = grads.shape
    splits, _ = split_rows(net, config, models, buffer_rows)
    parts = empty_parts(saved.flat, models, splits, net.shape.num_parameters)
    weight_gradients(
        saved.activations, grads, slope_parts, parts, net, config, rows=rows, abs_max=abs_max
    )
    add_up(parts, grad)


def slots(models: int, device: torch.device) -> int:
    """Returns the number of programs of each model that run at once, each taking many tiles.

    A multiprocessor has room for one; one program more would wait until all others are done.
    """
    programs = PROGRAMS
    if device.type == "cuda":
        programs = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, programs // max(1, models))


def abs_max_of(grad_y: Tensor, models: int, precision: str) -> tuple[Tensor | None, bool]:
    """Returns the largest magnitude of each model's gradient, M float32; NaN stays NaN.

    Also returns whether the backward kernel still has to find it. Both are for fp16 alone: None and
    False otherwise.
    """
    if precision != "fp16":
        return None, False
    if grad_y.numel() // models <= _MEASURED:
        return grad_y.new_empty(models, dtype=torch.float32), True
    dims = None if models == 1 else (1, 2)  # given dimensions cost time on the host
    return torch.linalg.vector_norm(grad_y, torch.inf, dim=dims, dtype=torch.float32), False
