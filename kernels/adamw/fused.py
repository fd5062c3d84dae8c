"""The arithmetic of an AdamW update on a CPU, in one pass over memory for each model."""

import torch
from torch import Tensor


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
    """Updates contiguous buffers [M, P] in place, as :func:`.reference.update` does.

    The other arguments are those of the reference.
    """
    fused = torch._fused_adamw_ if decoupled else torch._fused_adam_
    columns = [_of_each(number, len(p)) for number in (lr, weight_decay, ema_decay)]
    for model, (rate, decay, averaged) in enumerate(zip(*columns, strict=True)):
        fused(
            [p[model]], [grad[model]], [exp_avg[model]], [exp_avg_sq[model]], [],
            [torch.as_tensor(step, dtype=torch.float32)], amsgrad=False, lr=rate, beta1=betas[0],
            beta2=betas[1], weight_decay=decay, eps=eps, maximize=False,
        )  # fmt: skip
        ema[model].lerp_(p[model], 1 - averaged)


def _of_each(number: float | Tensor, models: int) -> list[float]:
    """Returns the number of each model, of one for all or of a tensor [M, 1]."""
    return number.flatten().tolist() if isinstance(number, Tensor) else [number] * models
