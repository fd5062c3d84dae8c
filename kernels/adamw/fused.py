"""The arithmetic of AdamW on a CPU, in one pass over memory."""

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
