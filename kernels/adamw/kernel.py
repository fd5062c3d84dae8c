"""AdamW or Adam in Triton, with an average of the weights, in one launch for all parameters.

The contract is that of :mod:`.reference`. A training step ends here: the launch adds up the parts
of the gradient, looks up the learning rate, updates the parameters, records the loss, and writes
the weights as the next step's matrix products read them.
"""

import math
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import capability_of, model_stride
from ..cuda import device_of
from ..dependent_launch import dependent_launch, wait_for_last_kernel
from ..mlp.arithmetic import operand, sum_of
from ..mlp.config import config_for
from ..reduce_grad.kernel import strides_of, sum_of_column, sum_of_parts
from .reference import _CLIP_EPS, AdamWState, Course, Shadow

_MOST = tl.constexpr(2**31 - 1)
_LARGEST = tl.constexpr(3.4028234663852886e38)
_CLIP_MARGIN = tl.constexpr(_CLIP_EPS)
# Arguments that change from call to call: no kernel is compiled anew for a value of 1 or of 16, nor
# for a step counter that is not at a multiple of 16 bytes, because a graph may be under capture.
_VARYING = ["blocks", "step_ptr", "step", "entries", "places"]


@triton.jit(do_not_specialize=_VARYING)
def adamw_kernel(
    parameters_ptr, exp_avg_ptr, exp_avg_sq_ptr, ema_ptr, stride_model, weights_ptr,
    grad_ptr, grad_stride_model, grad_stride, squares_ptr, blocks, clip_norm_ptr, clip_norm,
    step_ptr, step, lr_ptr, lr, rates_ptr, entries, every_ptr, total_ptr, losses_ptr, places,
    means_ptr, weight_decay_ptr, weight_decay, ema_weight_ptr, ema_weight, eps, size,
    LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr, beta2, weight1, weight2,
    DECOUPLED: tl.constexpr, SPLITS: tl.constexpr, NET: tl.constexpr, BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Makes one update of the parameters of M models; grid (blocks, M).

    Several quantities have a pointer and a number. A pointer that is not None holds one value for
    each model, float32 [M], and the number is then ignored. ``step_ptr`` holds one int64 for all.

    Args:
        parameters_ptr, exp_avg_ptr, exp_avg_sq_ptr, ema_ptr: float32 [M, size], parameters, moments
            and averaged parameters; updated in place.
        stride_model: elements of each of these between models.
        weights_ptr: [M, columns], operand weights, operand dtype; written. None if NET is None.
        grad_ptr: float32 [M, size], mean gradient; with SPLITS [M, SPLITS, size + 2], the sums that
            a training step leaves: gradient, loss, number of terms.
        grad_stride_model, grad_stride: elements of it between models, and between parts.
        squares_ptr: float32 [M, blocks], parts of the squared norm of the gradient; None if it was
            not measured.
        blocks: parts of the squared norm.
        clip_norm_ptr, clip_norm: largest norm of the gradient, infinite for any; needs squares.
        step_ptr, step: number of this update, from 1.
        lr_ptr, lr: learning rate, unless there are rates.
        rates_ptr: float32 [M, entries], learning rates of a course; None without a course. The
            other fields of :class:`.Course` follow it.
        entries: K, rates of each model.
        every_ptr: int64 [M], updates that use each rate.
        total_ptr: int64 [M], updates after which a model stays as it is.
        losses_ptr: float32 [M, places], losses of single updates; written with SPLITS.
        places: R, losses of each model.
        means_ptr: float32 [M, entries], mean losses of the updates of each rate; added to with
            SPLITS. None to leave them out.
        weight_decay_ptr, weight_decay: weight decay of AdamW or Adam.
        ema_weight_ptr, ema_weight: one minus the decay of the averaged parameters: fp32 would lose
            the difference, as in ``weight1`` and ``weight2``.
        eps: added to the root of the second moment.
        size: P, parameters of each model.
        LOG_BETA1, LOG_BETA2: natural logarithms of both betas.
        beta2, weight1, weight2: beta2, 1 - beta1 and 1 - beta2.
        DECOUPLED: True for AdamW; False adds the weight decay to the gradient, as Adam does.
        SPLITS: parts of the sums, constant so that all are loaded at once; 0 for a mean gradient.
        NET: layout of the operand weights, :class:`~..mlp.layout.Layout` or
            :class:`~..mlp.chunks.TrainingLayout`; None to leave them alone.
        BLOCK: parameters of a program.
        DEPENDENT: True for a dependent launch.
    """
    wait_for_last_kernel(DEPENDENT)
    model = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK
    if step_ptr is not None:
        step = tl.load(step_ptr)
    if lr_ptr is not None:
        lr = tl.load(lr_ptr + model)
    if weight_decay_ptr is not None:
        weight_decay = tl.load(weight_decay_ptr + model)
    if ema_weight_ptr is not None:
        ema_weight = tl.load(ema_weight_ptr + model)
    for PARTIAL in tl.static_range(2):
        # All elements of most programs exist. Without a mask, which may end anywhere, accesses are
        # of 16 bytes. Nothing waits for the loss but the stores.
        if (first + BLOCK > size) == PARTIAL:
            element = first + tl.arange(0, BLOCK)
            live = element < size if PARTIAL else None
            offset = model * stride_model + element
            p = _load(parameters_ptr + offset, live)
            m = _load(exp_avg_ptr + offset, live)
            v = _load(exp_avg_sq_ptr + offset, live)
            ema = _load(ema_ptr + offset, live)
            keep = True
            if rates_ptr is not None:
                lr, keep = _rate(step, model, rates_ptr, entries, every_ptr, total_ptr)
            g, loss = _gradient(
                grad_ptr + model * grad_stride_model, grad_stride, squares_ptr, blocks,
                clip_norm_ptr, clip_norm, model, element, live, size, SPLITS, BLOCK,
            )  # fmt: skip
            if rates_ptr is not None and SPLITS > 0:
                _record_loss(
                    loss, step, model, keep & (first == 0), entries, every_ptr, total_ptr,
                    losses_ptr, places, means_ptr,
                )  # fmt: skip
            keep = keep & (tl.abs(loss) <= _LARGEST)
            if not DECOUPLED:
                g += weight_decay * p
            m += weight1 * (g - m)
            v = beta2 * v + weight2 * g * g
            if DECOUPLED:
                p *= 1 - lr * weight_decay
            root = tl.sqrt(v * (1 / _correction(step, LOG_BETA2))) + eps
            p -= m / root * (lr / _correction(step, LOG_BETA1))
            ema += ema_weight * (p - ema)
            stored = tl.zeros_like(element) < tl.where(keep, 1, 0)  # one value: all or none
            if PARTIAL:
                stored &= live
            tl.store(parameters_ptr + offset, p, mask=stored)
            tl.store(exp_avg_ptr + offset, m, mask=stored)
            tl.store(exp_avg_sq_ptr + offset, v, mask=stored)
            tl.store(ema_ptr + offset, ema, mask=stored)
            if NET is not None:
                weights = weights_ptr + model * _size_of(NET)
                _store_shadow(weights, first, element, p, stored, NET, BLOCK)


@triton.jit
def _load(pointers, live):
    """Returns some elements, and 0 where ``live`` is not None and false."""
    return tl.load(pointers) if live is None else tl.load(pointers, mask=live, other=0.0)


@triton.jit
def _gradient(
    grad, stride, squares_ptr, blocks, clip_norm_ptr, clip_norm, model, element, live, size,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Returns the clipped mean gradient of some elements, and the mean loss.

    The loss is 0 without SPLITS, and not finite if the gradient was measured and is not.
    """
    loss = tl.full((), 0.0, tl.float32)
    if SPLITS:
        inverse = 1 / sum_of_column(grad + size + 1, stride, SPLITS)
        loss = sum_of_column(grad + size, stride, SPLITS) * inverse
        g = sum_of_parts(grad, stride, SPLITS, element, live) * inverse
    else:
        g = _load(grad + element, live)
    if squares_ptr is not None:
        norm = tl.sqrt_rn(sum_of(squares_ptr + model * blocks, blocks, BLOCK))
        loss += norm * 0
        if clip_norm_ptr is not None:
            clip_norm = tl.load(clip_norm_ptr + model)
        g *= tl.minimum(clip_norm / (norm + _CLIP_MARGIN), 1.0)
    return g, loss


@triton.jit
def _rate(step, model, rates_ptr, entries, every_ptr, total_ptr):
    """Returns the learning rate of an update, and true if the model takes it."""
    every, total = tl.load(every_ptr + model), tl.load(total_ptr + model)
    taken = step <= total
    # Numbers of updates fit 32 bits, and a division of 64 takes many more instructions.
    last = tl.minimum(tl.maximum(tl.minimum(step, total), 1) - 1, _MOST).to(tl.int32)
    entry = tl.minimum(last // tl.minimum(every, _MOST).to(tl.int32), entries - 1)
    return tl.load(rates_ptr + model * entries + entry), taken


@triton.jit
def _record_loss(
    loss, step, model, recorded, entries, every_ptr, total_ptr, losses_ptr, places, means_ptr
):
    """Writes down the loss of an update, in the one program in which ``recorded`` is true."""
    if recorded:
        every, total = tl.load(every_ptr + model), tl.load(total_ptr + model)
        place = losses_ptr + model * places + ((step - 1) * tl.minimum(total, places)) // total
        # A loss that is not finite is kept, also if several updates share a place.
        written = loss + 0 * tl.load(place)
        mean = 0.0
        if means_ptr is not None:
            means_ptr += model * entries + tl.minimum((step - 1) // every, entries - 1)
            mean = tl.load(means_ptr) + loss / every
        tl.debug_barrier()  # all warps have read before one of them writes
        tl.store(place, written)
        if means_ptr is not None:
            tl.store(means_ptr, mean)


@triton.jit
def _correction(step, LOG_BETA: tl.constexpr):
    """Returns 1 - beta^step, to the accuracy of fp32."""
    x = step.to(tl.float32) * LOG_BETA
    # A difference of nearly equal numbers would lose digits, a Taylor series does not.
    small, series = tl.maximum(x, -0.5), 1.0
    for i in tl.static_range(9, 1, -1):
        series = 1 + small * series * (1 / i)
    return tl.where(x > -0.5, -small * series, 1 - tl.exp(x))


@triton.constexpr_function
def _size_of(net):
    """Returns the number of a model's operand weights."""
    return net.starts[-1]


@triton.jit
def _store_shadow(weights, first, element, p, stored, NET: tl.constexpr, BLOCK: tl.constexpr):
    """Writes some parameters into the operand weights, rounded."""
    PIECES: tl.constexpr = len(NET.pieces)
    for number in tl.static_range(PIECES):
        # Few programs have parameters of two layers, so each skips most of the code.
        if (first < _end_of(NET, number)) & (first + BLOCK > _start_of(NET, number)):
            element_of_layer = element - _start_of(NET, number)
            _store_piece(weights + NET.starts[number], element_of_layer, p, stored, number, NET)


@triton.constexpr_function
def _start_of(net, number):
    """Returns the start of the weight of a piece's layer in the flat parameters."""
    return net.net.flat[net.pieces[number].layer]


@triton.constexpr_function
def _end_of(net, number):
    """Returns the end of that weight."""
    layer, widths = net.pieces[number].layer, net.net.shape.widths
    return net.net.flat[layer] + widths[layer] * widths[layer + 1]


@triton.constexpr_function
def _together(net, number):
    """Returns how many weights of a piece surely lie side by side, up to 16 bytes."""
    piece = net.pieces[number]
    return math.gcd(net.net.shape.widths[piece.layer], piece.width, _start_of(net, number), 8)


@triton.jit
def _store_piece(weights, element, p, stored, NUMBER: tl.constexpr, NET: tl.constexpr):
    """Writes the weights among some parameters, counted from the first one of their layer."""
    PIECE: tl.constexpr = NET.pieces[NUMBER]
    LAYOUT: tl.constexpr = NET.net
    IN: tl.constexpr = NET.net.shape.widths[PIECE.layer]
    OUT: tl.constexpr = NET.net.shape.widths[PIECE.layer + 1]
    inside = stored & (element >= 0) & (element < IN * OUT)
    target = weights + _place(element, IN, PIECE, _together(NET, NUMBER))
    weight = operand(p, weights.dtype.element_ty, LAYOUT)
    tl.store(target, weight, mask=inside)
    if PIECE.layer == 0 and NET.rest is not None:  # the rest of an input meets the same weight
        tl.store(target + NET.rest, weight, mask=inside)


@triton.jit
def _place(element, IN: tl.constexpr, PIECE: tl.constexpr, TOGETHER: tl.constexpr):
    """Returns where elements of a weight [out, IN] lie in a piece.

    So many elements lie side by side, which triton does not see through blocks.
    """
    row, column = element // IN, element % IN
    if PIECE.down * PIECE.across > 1:
        down, across = row // PIECE.height, column // PIECE.width
        block = across * PIECE.down + down if PIECE.by_input else down * PIECE.across + across
        place = block * PIECE.height + row % PIECE.height
        place = place * PIECE.width + column % PIECE.width
        place = tl.max_contiguous(tl.multiple_of(place, TOGETHER), TOGETHER)
    elif PIECE.width == IN:
        place = element
    else:
        place = row * PIECE.width + column
    return place


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
    """Updates in place, as :func:`.reference.adamw_` does.

    All tensors are contiguous, but parts of sums may lie apart.
    """
    models, size = parameters.shape
    if not parameters.numel():
        return
    beta1, beta2 = betas
    course, rate = (lr, 0.0) if isinstance(lr, Course) else (None, lr)
    net = None if shadow is None else shadow.layout
    precision = "fp32" if shadow is None else shadow.precision
    config = config_for(precision, capability_of(parameters.device), 0, models, "adamw")
    splits, (stride_model, stride) = 0, (model_stride(grad), 0)
    if grad.dim() == 3:
        splits, (stride_model, stride) = grad.shape[1], strides_of(grad)
    with device_of(parameters):
        adamw_kernel[-(-size // config.adamw_block), models](
            parameters_ptr=parameters,
            exp_avg_ptr=state.exp_avg,
            exp_avg_sq_ptr=state.exp_avg_sq,
            ema_ptr=state.ema,
            stride_model=model_stride(parameters),
            weights_ptr=None if shadow is None else shadow.packed,
            grad_ptr=grad,
            grad_stride_model=stride_model,
            grad_stride=stride,
            squares_ptr=squares,
            blocks=0 if squares is None else squares.shape[1],
            **_pair("clip_norm", math.inf if clip_norm is None else clip_norm),
            **_pair("step", step),
            **_pair("lr", rate),
            **_course_arguments(course),
            **_pair("weight_decay", weight_decay),
            **_pair("ema_weight", 1 - ema_decay),
            eps=eps,
            size=size,
            LOG_BETA1=_log(beta1),
            LOG_BETA2=_log(beta2),
            beta2=beta2,
            weight1=1 - beta1,
            weight2=1 - beta2,
            DECOUPLED=decoupled,
            SPLITS=splits,
            NET=net,
            BLOCK=config.adamw_block,
            num_warps=config.adamw_warps,
            **dependent_launch(parameters),
        )


def _course_arguments(course: Course | None) -> dict[str, Any]:
    """Returns the kernel's arguments for a course."""
    if course is None:
        nothing = dict.fromkeys(
            ("rates_ptr", "every_ptr", "total_ptr", "losses_ptr", "means_ptr"), None
        )
        return {**nothing, "entries": 1, "places": 1}
    return {
        "rates_ptr": course.rates,
        "entries": course.rates.shape[1],
        "every_ptr": course.every,
        "total_ptr": course.total,
        "losses_ptr": course.losses,
        "places": course.losses.shape[1],
        "means_ptr": course.means,
    }


def _pair(name: str, number: float | Tensor) -> dict[str, Any]:
    """Returns the kernel's two arguments for a quantity: its pointer and its number."""
    if isinstance(number, Tensor):
        return {f"{name}_ptr": number, name: 0.0 if number.is_floating_point() else 0}
    return {f"{name}_ptr": None, name: number}


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -1e30
