"""AdamW on a CPU: its arithmetic in one pass over memory, and the rest in one call."""

import torch
from torch import Tensor

from ..reduce_grad.reference import mean_of
from ..scripts import scripted
from . import reference
from .reference import AdamWState, Course, look_up, write_down


def adamw_(
    parameters: Tensor,
    grad: Tensor,
    state: AdamWState,
    lr: float | Tensor | Course,
    step: int | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float | Tensor,
    decoupled: bool,
    ema_decay: float | Tensor,
    clip_norm: float | Tensor | None,
    squares: Tensor | None,
    shadow: reference.Shadow | None,
) -> None:
    """Updates parameters and state in place, with the arguments and to the end of the reference."""
    if isinstance(lr, Course) and grad.dim() == 3 and squares is None and shadow is None:
        ready, mean, rates = scripted(_prepare)(grad, lr, torch.as_tensor(step))
        if ready:
            decay, kept = (
                number[:, None] if isinstance(number, Tensor) else number
                for number in (weight_decay, ema_decay)
            )
            update(
                parameters, mean, *state, rates, decay, kept, step=step, betas=betas, eps=eps,
                decoupled=decoupled,
            )  # fmt: skip
            return
    reference.adamw_(
        parameters, grad, state, lr, step, betas, eps, weight_decay, decoupled, ema_decay,
        clip_norm, squares, shadow, arithmetic=update,
    )  # fmt: skip


def _prepare(grad: Tensor, course: Course, step: Tensor) -> tuple[bool, Tensor, Tensor]:
    """Returns True, the mean gradient [M, P] and the rates [M, 1] if all models take the step.

    The losses are then written down.
    """
    mean, loss = mean_of(grad)
    rates, takes = look_up(course, step)
    ready = bool((takes & loss.isfinite()).all())
    if ready:
        write_down(course, step, loss)
    return ready, mean, rates[:, None]


def update(
    p: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    ema: Tensor,
    lr: float | Tensor,
    weight_decay: float | Tensor,
    ema_decay: float | Tensor,
    step: int | Tensor,
    betas: tuple[float, float],
    eps: float,
    decoupled: bool,
) -> None:
    """Updates buffers [M, P] in place, with the arguments and to the end of the reference."""
    fused = torch._fused_adamw_ if decoupled else torch._fused_adam_
    buffers = (p, grad, exp_avg, exp_avg_sq, ema)
    options = [_of_each(number, len(p)) for number in (lr, weight_decay, ema_decay)]
    numbers = list(zip(*options, strict=True))
    models = list(zip(*(buffer.unbind(0) for buffer in buffers), strict=True))
    if len(set(numbers)) == 1:  # all models are one long buffer
        models, numbers = [buffers], numbers[:1]
    count = torch.as_tensor(step, dtype=torch.float32)
    for (weights, mean, first, second, average), (rate, decay, kept) in zip(
        models, numbers, strict=True
    ):
        fused(
            [weights], [mean], [first], [second], [], [count], amsgrad=False, lr=rate,
            beta1=betas[0], beta2=betas[1], weight_decay=decay, eps=eps, maximize=False,
        )  # fmt: skip
        average.lerp_(weights, 1 - kept)


def _of_each(number: float | Tensor, models: int) -> list[float]:
    """Returns the number of each model, given one for all or a tensor [M, 1]."""
    return number.flatten().tolist() if isinstance(number, Tensor) else [number] * models
