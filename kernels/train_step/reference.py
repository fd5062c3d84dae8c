"""One training step in plain PyTorch: draw, noise, forward pass, loss and all gradients.

Algorithm 1 of Ho et al. 2020; the loss of a classifier is the label's negative log probability::

    index, t, eps ~ Philox
    x_t    = signal_t x_0 + noise_t eps
    target = target_signal_t x_0 + target_noise_t eps
    y      = MLP(x_t, feature(t), feature(class))
    loss   = sum weight_t (y - target)^2     or   sum -log softmax(y)[label]

The class of some rows is withheld, so that the network also learns to predict without it (Ho and
Salimans 2022, algorithm 1). Losses and gradients are sums over rows, with a count of their terms.
They can therefore be added up over chunks of a batch and over ranks; :mod:`..adamw` divides.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..mlp import MLPShape
from ..mlp import reference as mlp
from ..q_sample.reference import (
    Draw,
    TrainingData,
    gather_points,
    q_sample,
    target_and_weight,
)


def noisy_inputs(data: TrainingData, draw: Draw) -> Tensor:
    """Returns the network's input [M, B, d + F + E]: x_t, and features of timestep and class."""
    x_0 = gather_points(data.points, draw.index)
    x_t = q_sample(x_0, data.forward_table, draw.t, draw.eps)
    parts = [x_t, gather_points(data.time_features, draw.t)]
    if data.class_features is not None and draw.condition is not None:
        parts.append(gather_points(data.class_features, draw.condition))
    return torch.cat(parts, dim=-1)


def training_sums(
    parameters: Tensor, shape: MLPShape, data: TrainingData, draw: Draw, sums: Tensor, add: bool
) -> None:
    """Writes gradients, loss and number of terms of the drawn rows into sums [M, 1, P + 2].

    With ``add`` they are added to the sums.
    """
    networks = shape.unpack(parameters)
    y, inputs, preactivations = mlp.forward(noisy_inputs(data, draw), networks, shape)
    if data.labels is not None and data.classifies:
        labels = data.labels.expand(len(y), -1).gather(1, draw.index)
        loss, grad_y, count = label_loss(y, labels, draw.live)
    else:
        x_0 = gather_points(data.points, draw.index)
        target, weight = target_and_weight(x_0, data.forward_table, draw.t, draw.eps)
        loss, grad_y, count = target_loss(y, target, weight, draw.live)
    total = torch.empty_like(sums[:, 0]) if add else sums[:, 0]
    grad = shape.unpack(total[:, :-2])
    mlp.backward(grad_y, inputs, preactivations, networks, shape, grad)
    total[:, -2], total[:, -1] = loss, count
    if add:
        sums[:, 0] += total


def target_loss(
    y: Tensor, target: Tensor, weight: Tensor, live: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | int]:
    """Returns the squared error of each model [M], its gradient [M, B, d] and the number of terms.

    The error of each row counts as much as its weight [M, B, 1]. Rows that are not ``live`` [M, B]
    do not count.
    """
    error = y - target
    if live is not None:
        error = error * live[..., None]
    weighted = weight * error
    loss = (weighted * error).sum(dim=(1, 2))
    return loss, weighted * 2, _terms(error, live) * error.shape[2]


def label_loss(
    logits: Tensor, labels: Tensor, live: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | int]:
    """Returns the cross-entropy of each model [M], its gradient [M, B, C] and the number of terms.

    Rows that are not ``live`` [M, B] do not count.
    """
    log_p = logits.log_softmax(dim=-1)
    wanted = -log_p.gather(-1, labels[..., None])[..., 0]
    grad = log_p.exp() - F.one_hot(labels, logits.shape[-1])
    if live is not None:
        wanted, grad = wanted * live, grad * live[..., None]
    return wanted.sum(dim=1), grad, _terms(logits, live)


def _terms(rows: Tensor, live: Tensor | None) -> Tensor | int:
    """Returns the number of rows of each model that count."""
    return rows.shape[1] if live is None else live.sum(dim=1)
