"""AdamW or Adam, with an exponential moving average of the weights, in plain PyTorch."""

from typing import NamedTuple

from torch import Tensor


class AdamWState(NamedTuple):
    """Moments and averaged weights of M networks, each float32 [M, P]."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    ema: Tensor


def adamw_(
    parameters: Tensor,
    grad: Tensor,
    state: AdamWState,
    lr: Tensor,
    step: int,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    ema_decay: float,
) -> None:
    """In place, step counted from 1; lr [M, 1]."""
    beta1, beta2 = betas
    if not decoupled:
        grad = grad + weight_decay * parameters
    state.exp_avg.lerp_(grad, 1 - beta1)
    state.exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (state.exp_avg_sq / (1 - beta2**step)).sqrt_().add_(eps)
    if decoupled:
        parameters.mul_(1 - lr * weight_decay)
    parameters.sub_(state.exp_avg / denominator * (lr / (1 - beta1**step)))
    state.ema.lerp_(parameters, 1 - ema_decay)
