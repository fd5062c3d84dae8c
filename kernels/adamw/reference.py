"""AdamW or Adam, with an exponential moving average of the weights, in plain PyTorch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..mlp.chunks import TrainingLayout, training_chunks_of
from ..mlp.config import to_operand
from ..mlp.layout import Layout, layout_of
from ..mlp.shape import MLPShape
from ..reduce_grad.reference import mean_of

_CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_


class AdamWState(NamedTuple):
    """Moments and averaged weights of M networks, each float32 [M, P]."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    ema: Tensor


class Course(NamedTuple):
    """Learning rates and records of losses of M models, on the device.

    Updates look up their learning rate in it and write down their loss.
    """

    rates: Tensor  # float32 [M, K], learning rates, each used for ``every`` updates
    every: Tensor  # int64 [M]
    total: Tensor  # int64 [M], updates after which a model stays as it is
    losses: Tensor  # float32 [M, R], loss of each update, or of R evenly spread ones if total > R
    means: Tensor | None = None  # float32 [M, K], mean loss of the updates of each rate


class Shadow(NamedTuple):
    """Operand weights: the weights as the matrix products of the kernels read them."""

    packed: Tensor  # [M, size], padded weights, operand dtype
    shape: MLPShape
    precision: str
    chunked: bool = False  # as kernels read them that keep activations in registers

    @property
    def layout(self) -> Layout | TrainingLayout:
        """The layout of ``packed``."""
        net = layout_of(self.shape, self.precision)
        return training_chunks_of(net) if self.chunked else net


def update_shadow(parameters: Tensor, shadow: Shadow) -> None:
    """Writes the rounded weights of parameters, float32 [M, P]; the padding stays zero."""
    layout = shadow.layout
    layers = shadow.shape.unpack(parameters).weights
    for piece, start in zip(layout.pieces, layout.starts, strict=False):
        exact = layers[piece.layer]
        out, width = exact.shape[1:]
        weight = exact.new_zeros(
            (len(exact), piece.down * piece.height, piece.across * piece.width)
        )
        weight[:, :out, :width] = exact
        # The rest of an input meets the same weight.
        if piece.layer == 0 and layout.rest is not None:
            weight[:, :out, layout.rest : layout.rest + width] = exact
        blocks = weight.view(-1, piece.down, piece.height, piece.across, piece.width)
        blocks = blocks.permute((0, 3, 1, 2, 4) if piece.by_input else (0, 1, 3, 2, 4))
        packed = to_operand(blocks.flatten(1), shadow.precision)
        shadow.packed[:, start : start + piece.size] = packed


def look_up(course: Course, step: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the learning rate of update ``step``, from 1, and a mask of models that take it.

    Both are [M].
    """
    entry = ((step - 1) // course.every).clamp(max=course.rates.shape[1] - 1)
    return course.rates.gather(1, entry[:, None])[:, 0], step <= course.total


def write_down(course: Course, step: Tensor, loss: Tensor) -> None:
    """Records the losses [M] of update ``step`` of the models that still take it."""
    models = (step <= course.total).nonzero()[:, 0]
    every, total = course.every[models], course.total[models]
    loss = loss[models].to(course.losses.dtype)
    place = (step - 1) * total.clamp(max=course.losses.shape[1]) // total
    # A loss that is not finite is kept, also if several updates share a place.
    course.losses[models, place] = loss + 0 * course.losses[models, place]
    means = course.means
    if means is not None:
        means[models, (step - 1) // every] += loss / every


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
    arithmetic: Callable[..., None] | None = None,
) -> None:
    """Updates parameters and state in place.

    Arguments are those of :func:`..adamw_`, checked; quantities that differ between models are [M].
    Models that take the step are updated by :func:`update`, or by other arithmetic to the same end.
    """
    arithmetic = arithmetic or update
    keep = torch.ones(len(parameters), dtype=torch.bool, device=parameters.device)
    number, course = torch.as_tensor(step), None
    if isinstance(lr, Course):
        course, (lr, keep) = lr, look_up(lr, number)
    loss = None
    if grad.dim() == 3:
        grad, loss = mean_of(grad)
        keep = keep & loss.isfinite()
    if squares is not None:
        norm = squares.sum(dim=1).sqrt()
        keep = keep & norm.isfinite()
        if clip_norm is not None:
            grad = grad * (clip_norm / (norm + _CLIP_EPS)).clamp(max=1)[:, None]
        if loss is not None:
            loss = torch.where(norm.isfinite(), loss, torch.nan)
    if course is not None and loss is not None:
        write_down(course, number, loss)
    options: Any = {"step": step, "betas": betas, "eps": eps, "decoupled": decoupled}
    buffers = (parameters, grad, *state)
    columns = (_column(lr), _column(weight_decay), _column(ema_decay))
    if keep.all():
        arithmetic(*buffers, *columns, **options)
    elif keep.any():
        chosen: Any = [buffer[keep] for buffer in buffers]
        theirs: Any = [c[keep] if torch.is_tensor(c) else c for c in columns]
        arithmetic(*chosen, *theirs, **options)
        for buffer, updated in zip((parameters, *state), (chosen[0], *chosen[2:]), strict=True):
            buffer[keep] = updated
    if shadow is not None:
        update_shadow(parameters, shadow)


def _column(number: float | Tensor) -> float | Tensor:
    """Returns a number as it is, and a tensor [M] as [M, 1]."""
    return number[:, None] if torch.is_tensor(number) else number


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
    """Updates buffers [M, P] in place; what differs between models is [M, 1]."""
    beta1, beta2 = betas
    step = step.double() if torch.is_tensor(step) else step
    if not decoupled:
        grad = grad + weight_decay * p
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (exp_avg_sq / (1 - beta2**step)).sqrt_().add_(eps)
    if decoupled:
        p.mul_(1 - lr * weight_decay)
    p.sub_(exp_avg / denominator * (lr / (1 - beta1**step)))
    ema.lerp_(p, 1 - ema_decay)
