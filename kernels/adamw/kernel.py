"""AdamW or Adam with an average of the weights in Triton, one launch for all parameters.

Same contract as :mod:`.reference`.
"""

import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import device_of
from .reference import AdamWState

_BLOCK = 1024


@triton.jit
def adamw_kernel(
    parameters_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, ema_ptr, lr_ptr, lr, size,
    beta2, weight1, weight2, correction1, correction2, eps, weight_decay, ema_weight,
    DECOUPLED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One update of [M, size] parameters; grid (blocks, M).

    The learning rate is read for each model, or without a pointer it is ``lr``. What is one minus
    a decay comes as its weight, because fp32 would lose it.
    """
    model = tl.program_id(1).to(tl.int64)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = element < size
    offset = model * size + element
    if lr_ptr is not None:
        lr = tl.load(lr_ptr + model)
    p = tl.load(parameters_ptr + offset, mask=live, other=0.0)
    g = tl.load(grad_ptr + offset, mask=live, other=0.0)
    m = tl.load(exp_avg_ptr + offset, mask=live, other=0.0)
    v = tl.load(exp_avg_sq_ptr + offset, mask=live, other=0.0)
    ema = tl.load(ema_ptr + offset, mask=live, other=0.0)
    if not DECOUPLED:
        g += weight_decay * p
    m += weight1 * (g - m)
    v = beta2 * v + weight2 * g * g
    if DECOUPLED:
        p *= 1 - lr * weight_decay
    p -= m / (tl.sqrt_rn(v / correction2) + eps) * (lr / correction1)
    ema += ema_weight * (p - ema)
    tl.store(parameters_ptr + offset, p, mask=live)
    tl.store(exp_avg_ptr + offset, m, mask=live)
    tl.store(exp_avg_sq_ptr + offset, v, mask=live)
    tl.store(ema_ptr + offset, ema, mask=live)


def adamw_(
    parameters: Tensor,
    grad: Tensor,
    state: AdamWState,
    lr: float | Tensor,
    step: int,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    ema_decay: float,
) -> None:
    """In place, step counted from 1; all buffers float32 [M, P] and contiguous, lr [M] if given."""
    models, size = parameters.shape
    beta1, beta2 = betas
    lr_ptr, lr = (lr.contiguous(), 0.0) if isinstance(lr, Tensor) else (None, float(lr))
    if parameters.numel():
        with device_of(parameters):
            adamw_kernel[triton.cdiv(size, _BLOCK), models](
                parameters, grad, *state, lr_ptr, lr, size, beta2, 1 - beta1, 1 - beta2,
                1 - beta1**step, 1 - beta2**step, eps, weight_decay, 1 - ema_decay,
                decoupled, _BLOCK,
            )  # fmt: skip
