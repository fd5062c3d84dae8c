"""AdamW or Adam with an average of the weights in Triton, one launch for all parameters.

Same contract as :mod:`.reference`. A training step ends here: the launch adds up the parts of the
gradient, looks its learning rate up, updates, writes the loss down and leaves the weights as the
next step's matrix products read them.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import device_of
from ..mlp.device import operand
from ..mlp.layout import layout_of
from .reference import _CLIP_EPS, AdamWState, Course, Shadow

_BLOCK = 1024
_LARGEST = tl.constexpr(3.4028234663852886e38)
_CLIP_MARGIN = tl.constexpr(_CLIP_EPS)
# Arguments that change from call to call: no kernel is compiled anew for a value of 1 or of 16, nor
# for a step counter that is not at a multiple of 16 bytes: a graph may be under capture by then.
_VARYING = ["splits", "blocks", "step_ptr", "step", "entries", "places"]


@triton.jit(do_not_specialize=_VARYING)
def adamw_kernel(
    parameters_ptr, exp_avg_ptr, exp_avg_sq_ptr, ema_ptr, packed_ptr,
    grad_ptr, splits, squares_ptr, blocks, clip_norm_ptr, clip_norm, step_ptr, step, lr_ptr, lr,
    rates_ptr, entries, every_ptr, total_ptr, losses_ptr, places, means_ptr,
    weight_decay_ptr, weight_decay, ema_weight_ptr, ema_weight, eps, size,
    LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr, beta2, weight1, weight2,
    DECOUPLED: tl.constexpr, SUMS: tl.constexpr, NET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One update of [M, size] parameters; grid (blocks, M).

    What has a pointer is read from it, for each model; without one it is the number. The gradient
    is [M, size], or with SUMS the sums [M, splits, size + 2] that a training step leaves. What is
    one minus a decay comes as its weight, because fp32 would lose it.
    """
    model = tl.program_id(1).to(tl.int64)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = element < size
    if step_ptr is not None:
        step = tl.load(step_ptr)
    if lr_ptr is not None:
        lr = tl.load(lr_ptr + model)
    if weight_decay_ptr is not None:
        weight_decay = tl.load(weight_decay_ptr + model)
    if ema_weight_ptr is not None:
        ema_weight = tl.load(ema_weight_ptr + model)
    loss = tl.full((), 0.0, tl.float32)
    if SUMS:
        g, loss = _mean(grad_ptr + model * splits * (size + 2), splits, element, live, size)
    else:
        g = tl.load(grad_ptr + model * size + element, mask=live, other=0.0)
    if squares_ptr is not None:
        norm = tl.sqrt_rn(_sum(squares_ptr + model * blocks, blocks, BLOCK))
        loss += norm * 0  # not finite if the gradient is not
        if clip_norm_ptr is not None:
            clip_norm = tl.load(clip_norm_ptr + model)
        if clip_norm > 0:
            g *= tl.minimum(clip_norm / (norm + _CLIP_MARGIN), 1.0)
    keep = tl.abs(loss) <= _LARGEST
    if rates_ptr is not None:
        every, total = tl.load(every_ptr + model), tl.load(total_ptr + model)
        entry = tl.minimum((step - 1) // every, entries - 1)
        lr = tl.load(rates_ptr + model * entries + entry)
        taken = step <= total
        first = taken & (tl.program_id(0) == 0)
        place = losses_ptr + model * places + ((step - 1) * tl.minimum(total, places)) // total
        # What is not finite stays, also where several updates share a place.
        written = loss + 0 * tl.load(place, mask=first, other=0.0)
        mean = 0.0
        if means_ptr is not None:
            means_ptr += model * entries + entry
            mean = tl.load(means_ptr) + loss / every
        tl.debug_barrier()  # all warps have read what one of them overwrites
        tl.store(place, written, mask=first)
        if means_ptr is not None:
            tl.store(means_ptr, mean, mask=first)
        keep = keep & taken
    live = element < tl.where(keep, size, 0)
    offset = model * size + element
    p = tl.load(parameters_ptr + offset, mask=live, other=0.0)
    m = tl.load(exp_avg_ptr + offset, mask=live, other=0.0)
    v = tl.load(exp_avg_sq_ptr + offset, mask=live, other=0.0)
    ema = tl.load(ema_ptr + offset, mask=live, other=0.0)
    correction1 = _correction(step, LOG_BETA1)
    correction2 = _correction(step, LOG_BETA2)
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
    if NET is not None:
        _store_shadow(packed_ptr + model * NET.packed[NET.layers], element, p, live, NET)


@triton.jit
def _mean(parts, splits, element, live, size):
    """Mean gradient of some elements and mean loss, from parts [splits, size + 2]."""
    g = tl.zeros(element.shape, tl.float32)
    loss, count = 0.0, 0.0
    for _ in range(splits):
        g += tl.load(parts + element, mask=live, other=0.0)
        loss += tl.load(parts + size)
        count += tl.load(parts + size + 1)
        parts += size + 2
    return g / count, loss / count


@triton.jit
def _sum(pointer, length, BLOCK: tl.constexpr):
    acc = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        element = start + tl.arange(0, BLOCK)
        acc += tl.load(pointer + element, mask=element < length, other=0.0)
    return tl.sum(acc)


@triton.jit
def _correction(step, LOG_BETA: tl.constexpr):
    """1 - beta^step, in fp64 because fp32 would lose it."""
    return (1 - tl.exp(step.to(tl.float64) * LOG_BETA)).to(tl.float32)


@triton.jit
def _store_shadow(packed, element, p, live, NET: tl.constexpr):
    """Writes weights, rounded, to where the matrix products read them."""
    LAYERS: tl.constexpr = NET.layers
    for layer in tl.static_range(LAYERS):
        _store_layer(packed + NET.packed[layer], element - NET.flat[layer], p, live, NET, layer)


@triton.jit
def _store_layer(packed, element, p, live, NET: tl.constexpr, LAYER: tl.constexpr):
    IN: tl.constexpr = NET.shape.widths[LAYER]
    OUT: tl.constexpr = NET.shape.widths[LAYER + 1]
    inside = live & (element >= 0) & (element < IN * OUT)
    target = packed + (element // IN) * NET.padded[LAYER] + element % IN
    weight = operand(p, packed.dtype.element_ty, NET)
    tl.store(target, weight, mask=inside)
    if LAYER == 0 and NET.split:  # the rest of an input meets the weight of its rounded part
        tl.store(target + IN, weight, mask=inside)


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
    shadow: Shadow | None,
) -> None:
    """In place, step counted from 1; all tensors contiguous, what differs between models [M]."""
    models, size = parameters.shape
    beta1, beta2 = betas
    course, rate = (lr, (None, 0.0)) if isinstance(lr, Course) else (None, _pair(lr))
    looked_up: tuple[Tensor | int | None, ...] = (None, 1, None, None, None, 1, None)
    if course is not None:
        looked_up = (
            course.rates, course.rates.shape[1], course.every, course.total,
            course.losses, course.losses.shape[1], course.means,
        )  # fmt: skip
    clip_norm = 0.0 if clip_norm is None else clip_norm
    net = None if shadow is None else layout_of(shadow.shape, shadow.precision)
    if parameters.numel():
        with device_of(parameters):
            adamw_kernel[triton.cdiv(size, _BLOCK), models](
                parameters, *state, None if shadow is None else shadow.packed,
                grad, grad.shape[1],
                squares, 0 if squares is None else squares.shape[1], *_pair(clip_norm),
                *_pair(step), *rate, *looked_up,
                *_pair(weight_decay), *_pair(1 - ema_decay), eps, size,
                _log(beta1), _log(beta2), beta2, 1 - beta1, 1 - beta2,
                decoupled, grad.dim() == 3, net, _BLOCK,
            )  # fmt: skip


def _pair(number: float | Tensor) -> tuple[Tensor | None, float]:
    """A number as a kernel takes it: from memory, or as it is."""
    if isinstance(number, Tensor):
        return number, 0.0 if number.is_floating_point() else 0
    return None, number


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -1e300
