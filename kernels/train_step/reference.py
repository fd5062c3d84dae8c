"""One training step in plain PyTorch: draw, noise, forward, loss and all gradients.

Algorithm 1 of Ho et al. 2020, and for a classifier the same with the label's log probability::

    index, t, eps ~ Philox
    x_t  = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps
    y    = MLP(x_t, feature(t))
    loss = mean (y - eps)^2            or   mean -log softmax(y)[label]
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..mlp import MLPShape
from ..mlp import reference as mlp
from ..q_sample.reference import Draw, gather_points, q_sample


class TrainingData(NamedTuple):
    """All that the rows of M models are made of, resident on the device."""

    points: Tensor  # float32 [M, N, d]
    alpha_bar: Tensor  # float32 [M, T]
    time_features: Tensor  # float32 [M, T, F], what the network sees of t
    labels: Tensor | None  # int64 [M, N], what a classifier predicts
    n_points: Tensor  # int64 [M], how many of the N points each model has
    t_table: Tensor  # int64 [M, K], timesteps that fresh rows are drawn from, each entry as likely


def noisy_inputs(data: TrainingData, draw: Draw) -> Tensor:
    """The network's input [M, B, d + F]: the noisy point and its timestep's feature."""
    x_t = q_sample(gather_points(data.points, draw.index), data.alpha_bar, draw.t, draw.eps)
    return torch.cat((x_t, gather_points(data.time_features, draw.t)), dim=-1)


def train_step(
    parameters: Tensor, shape: MLPShape, data: TrainingData, draw: Draw, grad: Tensor
) -> Tensor:
    """Loss [M] of the drawn rows; their mean gradient is written into ``grad`` [M, P]."""
    networks = shape.unpack(parameters)
    y, inputs, preactivations = mlp.forward(noisy_inputs(data, draw), networks, shape)
    if data.labels is None:
        loss, grad_y = eps_loss(y, draw.eps)
    else:
        loss, grad_y = label_loss(y, data.labels.expand(len(y), -1).gather(1, draw.index))
    mlp.backward(grad_y, inputs, preactivations, networks, shape, shape.unpack(grad))
    return loss


def eps_loss(y: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error per model [M] and its gradient [M, B, d]."""
    error = y - eps
    return error.square().mean(dim=(1, 2)), error * (2 / max(1, error[0].numel()))


def label_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy per model [M] and its gradient [M, B, classes], labels [M, B]."""
    log_p = logits.log_softmax(dim=-1)
    loss = -log_p.gather(-1, labels[..., None]).mean(dim=(1, 2))
    one_hot = F.one_hot(labels, logits.shape[-1])
    return loss, (log_p.exp() - one_hot) / max(1, labels.shape[1])
