"""AdamW and weight averaging over one flat parameter buffer: the end of a training step."""

import math
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from .._dispatch import runs_in_pieces, use_triton
from .._kinds import checked
from .._validate import (
    check_backend,
    check_dtype,
    check_float,
    check_number,
    check_precision,
    check_same_device,
    check_shape,
    check_step,
)
from ..default_state import in_default_state, in_place_in_default_state
from ..mlp import MLPShape
from ..mlp.chunks import gap_of_training
from ..mlp.config import OPERAND_DTYPES
from ..mlp.layout import layout_of
from ..workers import one_thread
from . import fused, reference
from .reference import AdamWState, Course, Shadow, update_shadow

# Parameters that one thread of a CPU updates: starting PyTorch's threads, which then stay busy for
# some milliseconds, would cost the next step more than they save.
_FEW = 2**21

__all__ = [
    "AdamWState",
    "Course",
    "Shadow",
    "adamw_",
    "adamw_state",
    "shadow_of",
    "update_shadow",
]

_Number = TypeVar("_Number")


@in_default_state
@checked
def adamw_state(parameters: Tensor) -> AdamWState:
    """Returns a fresh state: zero moments, and the average equal to the parameters [M, P].

    Raises:
        TypeError: the parameters are not floating-point.
        ValueError: they are not [M, P].
    """
    check_float("parameters", parameters)
    check_shape("parameters", parameters, ("M", "P"))
    return AdamWState(
        torch.zeros_like(parameters), torch.zeros_like(parameters), parameters.detach().clone()
    )


@in_default_state
@checked
def shadow_of(
    parameters: Tensor, shape: MLPShape, precision: str, *, chunked: bool = False
) -> Shadow:
    """Returns the weights as the matrix products of the kernels read them.

    Args:
        parameters: float32 [M, P].
        shape: shape of the networks.
        precision: precision of the matrix products: ``fp16``, ``bf16``, ``tf32``, ``tf32x3`` or
            ``fp32``.
        chunked: True for the weights in the order in which kernels for Hopper GPUs train with them.

    Raises:
        ValueError: the precision is unknown, the shapes do not fit, or no kernel trains such
            networks with chunked weights.
    """
    check_precision(precision)
    check_shape("parameters", parameters, ("M", shape.num_parameters))
    gap = gap_of_training(layout_of(shape, precision)) if chunked else None
    if gap is not None:
        raise ValueError(f"chunked must be False for these networks, got True: {gap}")
    shadow = Shadow(parameters.new_empty(0), shape, precision, chunked)
    packed = (len(parameters), shadow.layout.starts[-1])
    shadow = shadow._replace(packed=parameters.new_zeros(packed, dtype=OPERAND_DTYPES[precision]))
    update_shadow(parameters, shadow)
    return shadow


@in_place_in_default_state
@checked
def adamw_(
    parameters: Tensor,
    grad: Tensor,
    state: AdamWState,
    *,
    lr: float | Tensor | Course,
    step: int | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | Tensor = 0.01,
    decoupled: bool = True,
    ema_decay: float | Tensor = 0.998,
    clip_norm: float | Tensor | None = None,
    squares: Tensor | None = None,
    shadow: Shadow | None = None,
    backend: str | None = None,
) -> None:
    """Makes one AdamW update, and ema += (1 - d)(p - ema).

    The update is algorithm 2 of Loshchilov and Hutter 2019. A model stays as it is if its loss or
    gradient is known not to be finite, or if its :class:`Course` is over.

    Args:
        parameters: float32 [M, P], updated in place.
        grad: float32 [M, P], or the sums [M, S, P + 2] that a training step leaves; the kernel
            reads 16 bytes at once if their strides are multiples of 16 elements.
        state: moments and average, updated in place.
        lr: learning rate, a number or float32 [M]; or a :class:`Course` that gives it. The loss, if
            it is among the sums, is then recorded there, as NaN if the gradient is not finite.
        step: number of this update, from 1, an int or an int64 scalar on the device.
        betas, eps: as in ``torch.optim.AdamW``.
        weight_decay: as in ``torch.optim.AdamW``, a number or [M].
        decoupled: False adds the weight decay to the gradient, as ``torch.optim.Adam`` does
            (Kingma and Ba 2015).
        ema_decay: d above, in [0, 1), a number or [M].
        clip_norm: largest norm of the gradient, a number or [M], infinite for any, as in
            ``torch.nn.utils.clip_grad_norm_``; needs ``squares``.
        squares: float32 [M, blocks], from :func:`~flashpoint.kernels.reduce_grad`; a gradient that
            is not finite is then not applied.
        shadow: weights as the kernels read them, updated along with the parameters.
        backend: ``"torch"`` forces the plain PyTorch reference, ``"triton"`` the kernel; None
            chooses.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, a number is out of its range, or
            ``clip_norm`` is given without ``squares``.
    """
    check_backend(backend)
    check_step(step, parameters, low=1)
    _check_numbers(lr, betas, eps, weight_decay, ema_decay, clip_norm)
    check_shape("parameters", parameters, ("M", "P"))
    _check_grad(grad, parameters)
    for name, part in state._asdict().items():
        check_shape(f"state.{name}", part, parameters.shape)
    check_same_device(parameters=parameters, grad=grad, squares=squares, **state._asdict())
    check_dtype(parameters.dtype, grad=grad, squares=squares, **state._asdict())
    if isinstance(lr, Course):
        _check_course(lr, parameters)
    if clip_norm is not None and squares is None:
        raise ValueError("squares must be given with clip_norm, as reduce_grad measures them")
    models = len(parameters)
    if squares is not None:
        check_shape("squares", squares, (models, "blocks"))
    if shadow is not None:
        _check_shadow(shadow, parameters)

    def of_each(name: str, number: _Number) -> _Number | Tensor:
        if not isinstance(number, Tensor):
            return number
        if number.numel() not in (1, models):
            raise ValueError(
                f"{name} must be one, or one for each of {models} models, got {number.numel()}"
            )
        return number.to(parameters).reshape(-1).expand(models).contiguous()

    arguments = (
        parameters, grad, state, of_each("lr", lr), step, betas, float(eps),
        of_each("weight_decay", weight_decay), decoupled, of_each("ema_decay", ema_decay),
        of_each("clip_norm", clip_norm), squares, shadow,
    )  # fmt: skip
    gap = _gap(parameters, grad, state, squares)
    if gap is None and runs_in_pieces(backend, parameters):
        with one_thread() if parameters.numel() < _FEW else nullcontext():
            fused.adamw_(*arguments)
        return
    precision = None if shadow is None else shadow.precision
    if use_triton(backend, "parameters", parameters, gap, precision):
        from . import kernel

        kernel.adamw_(*arguments)
    else:
        reference.adamw_(*arguments)


def _check_numbers(lr, betas, eps, weight_decay, ema_decay, clip_norm) -> None:
    """Raises ValueError if one of these is a number out of its range."""
    for name, number, below in (
        ("lr", lr, math.inf), ("betas[0]", betas[0], 1), ("betas[1]", betas[1], 1),
        ("eps", eps, math.inf), ("weight_decay", weight_decay, math.inf),
        ("ema_decay", ema_decay, 1), ("clip_norm", clip_norm, None),
    ):  # fmt: skip
        if isinstance(number, int | float):
            check_number(name, number, below)


def _check_grad(grad: Tensor, parameters: Tensor) -> None:
    """Raises ValueError unless it is a mean gradient [M, P], or sums [M, S, P + 2] of parts."""
    if grad.dim() != 3:
        check_shape("grad", grad, parameters.shape)
        return
    check_shape("grad", grad, (len(parameters), "S", parameters.shape[1] + 2))
    if grad.shape[1] == 0:
        raise ValueError(f"grad must have at least one part, got {list(grad.shape)}")


def _check_shadow(shadow: Shadow, parameters: Tensor) -> None:
    """Raises ValueError if a shadow does not belong to M models of the parameters' size."""
    check_shape("parameters", parameters, (len(parameters), shadow.shape.num_parameters))
    check_shape("shadow.packed", shadow.packed, (len(parameters), shadow.layout.starts[-1]))
    check_same_device(parameters=parameters, **{"shadow.packed": shadow.packed})


def _check_course(course: Course, parameters: Tensor) -> None:
    """Raises ValueError if a course does not fit M models, or has an unfit dtype or layout."""
    models = len(parameters)
    check_same_device(parameters=parameters, **course._asdict())
    check_dtype(torch.float32, rates=course.rates, losses=course.losses, means=course.means)
    check_dtype(torch.int64, every=course.every, total=course.total)
    check_shape("rates", course.rates, (models, "K"))
    check_shape("losses", course.losses, (models, "R"))
    check_shape("every", course.every, (models,))
    check_shape("total", course.total, (models,))
    if course.means is not None:
        check_shape("means", course.means, tuple(course.rates.shape))
    for name, part in course._asdict().items():
        if part is not None and not part.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {part.stride()}")


def _gap(parameters: Tensor, grad: Tensor, state: AdamWState, squares: Tensor | None) -> str | None:
    """Returns why the kernel does not cover a call, None if it does."""
    dense = [parameters, *state, *([] if squares is None else [squares])]
    if grad.dim() == 2:
        dense.append(grad)
    if any(buffer.dtype != torch.float32 for buffer in (grad, *dense)):
        return "an optimiser of other than float32"
    if not all(buffer.is_contiguous() for buffer in dense) or grad.stride(-1) != 1:
        return "an optimiser of scattered parameters"
    return None
