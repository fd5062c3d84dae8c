"""AdamW and weight averaging over one flat parameter buffer: the end of a training step."""

from typing import TypeVar

import torch
from torch import Tensor

from .._dispatch import use_triton
from .._validate import check_backend, check_positive, check_same_device, check_shape
from ..mlp import MLPShape
from ..mlp.config import OPERAND_DTYPES
from ..mlp.layout import layout_of
from . import reference
from .reference import AdamWState, Course, Shadow

__all__ = ["AdamWState", "Course", "Shadow", "adamw_", "adamw_state", "shadow_of"]

_Number = TypeVar("_Number")


def adamw_state(parameters: Tensor) -> AdamWState:
    """Fresh state: zero moments, and the average starting at the parameters [M, P]."""
    return AdamWState(
        torch.zeros_like(parameters), torch.zeros_like(parameters), parameters.detach().clone()
    )


def shadow_of(parameters: Tensor, shape: MLPShape, precision: str) -> Shadow:
    """The weights as the kernels multiply them.

    Args:
        parameters: float32 [M, P].
        shape: of the networks.
        precision: of the matrix products, ``fp16``, ``bf16``, ``tf32`` or ``fp32``.
    """
    size = layout_of(shape, precision).packed[-1]
    dtype = OPERAND_DTYPES[precision]
    shadow = Shadow(parameters.new_zeros((len(parameters), size), dtype=dtype), shape, precision)
    reference.update_shadow(parameters, shadow)
    return shadow


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
    """One AdamW update (Loshchilov and Hutter 2019, algorithm 2) and ema += (1 - d)(p - ema).

    A model whose loss or gradient is known not to be finite stays as it is, and so does one whose
    :class:`Course` is over.

    Args:
        parameters: float32 [M, P], updated in place.
        grad: float32 [M, P], or the sums [M, S, P + 2] that a training step leaves.
        state: moments and average, updated in place.
        lr: learning rate, a number or float32 [M]; or a :class:`Course`, where it is looked up and
            where the loss is written down, NaN if the gradient is not finite.
        step: number of this update, from 1, an int or an int64 scalar on the device.
        betas, eps, weight_decay: as in ``torch.optim.AdamW``; the decay may differ, [M].
        decoupled: False adds the weight decay to the gradient, as ``torch.optim.Adam`` does
            (Kingma and Ba 2015).
        ema_decay: d above, in [0, 1), a number or [M].
        clip_norm: largest norm of the gradient, a number or [M], as in
            ``torch.nn.utils.clip_grad_norm_``; needs ``squares``.
        squares: what :func:`~flashpoint.kernels.reduce_grad` measured; a gradient that is not
            finite is not applied.
        shadow: weights as the kernels read them, kept up to date.
        backend: ``"torch"`` forces the plain PyTorch reference, ``"triton"`` the kernel; None
            chooses.

    Raises:
        ValueError: shapes or devices do not fit, step is less than 1, or a norm to clip to without
            its squares.
    """
    check_backend(backend)
    if not isinstance(step, Tensor):
        check_positive("step", step)
    if grad.dim() == 3:
        check_shape("grad", grad, (len(parameters), grad.shape[1], parameters.shape[1] + 2))
    else:
        check_shape("grad", grad, parameters.shape)
    check_shape("state.exp_avg", state.exp_avg, parameters.shape)
    check_same_device(parameters=parameters, grad=grad, exp_avg=state.exp_avg)
    if clip_norm is not None and squares is None:
        raise ValueError("clip_norm needs squares, the norm that reduce_grad measured")
    models = len(parameters)

    def of_each(number: _Number) -> _Number | Tensor:
        if not isinstance(number, Tensor):
            return number
        return number.to(parameters).reshape(-1).expand(models).contiguous()

    arguments = (
        parameters, grad, state, of_each(lr), step, betas, eps, of_each(weight_decay), decoupled,
        of_each(ema_decay), of_each(clip_norm), squares, shadow,
    )  # fmt: skip
    if use_triton(backend, "parameters", parameters, _gap((parameters, grad, *state))):
        from . import kernel

        kernel.adamw_(*arguments)
    else:
        reference.adamw_(*arguments)


def _gap(buffers: tuple[Tensor, ...]) -> str | None:
    """What the kernel does not cover, if anything."""
    if any(buffer.dtype != torch.float32 for buffer in buffers):
        return "an optimiser of other than float32"
    if not all(buffer.is_contiguous() for buffer in buffers):
        return "an optimiser of scattered parameters"
    return None
