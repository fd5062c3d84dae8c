"""One training step on the Triton kernels: the same algorithm as :mod:`.reference`."""

from torch import Tensor

from ..mlp import MLPShape
from ..mlp import kernel as mlp
from ..q_sample.kernel import Source, draw_epoch, draw_fresh
from .reference import TrainingData, eps_loss, label_loss


def train_step(
    parameters: Tensor,
    shape: MLPShape,
    data: TrainingData,
    grad: Tensor,
    precision: str,
    *,
    batch_size: int,
    seed: Tensor,
    step: int,
    epoch: int | None,
    refresh: int,
    first_row: int,
) -> Tensor:
    """Loss [M]; the gradient is written into ``grad`` [M, P]. See :func:`..train_step`."""
    source = Source(
        data.points,
        data.alpha_bar,
        data.time_features,
        data.n_points.expand(len(parameters)),
        data.t_table,
    )
    if epoch is None:
        inputs, draw = draw_fresh(source, seed, step, first_row, batch_size)
    else:
        first_row += step * batch_size
        inputs, draw = draw_epoch(source, seed, epoch, refresh, first_row, batch_size)
    y, saved = mlp.forward_flat(inputs, parameters, shape, precision)
    if data.labels is None:
        loss, grad_y = eps_loss(y, draw.eps)
    else:
        loss, grad_y = label_loss(y, data.labels.expand(len(y), -1).gather(1, draw.index))
    mlp.backward(grad_y, saved, shape, precision, need_x=False, grad=grad)
    return loss
