"""The whole reverse process in plain PyTorch: algorithm 2 of Ho et al. 2020, guided or not.

x_T ~ N(0, I)
for each step of the table:
    eps    = MLP(x, feature)
    grad   = d/dx log softmax(classifier(x, feature))[label]
    x      = reverse_step(x, eps, coefficients, z, grad)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..mlp import MLPShape
from ..mlp import reference as mlp
from ..philox import Stream
from ..reverse_step import draw_noise
from ..reverse_step.reference import NOISE, reverse_step

# Rows small enough that a layer's activations stay in a core's cache, and noise for many steps at
# once so that the cost of calling Philox is spread over them.
_CACHE_ROWS = 1000
_NOISE_STEPS = 50


class Network(NamedTuple):
    """M networks of one shape."""

    parameters: Tensor  # float32 [M, P]
    shape: MLPShape


class Guide(NamedTuple):
    """A classifier of noisy points and what it should see."""

    classifier: Network
    labels: Tensor  # int64 [M, B]


def sample_chain(
    denoiser: Network,
    x: Tensor,
    table: Tensor,
    time_features: Tensor,
    seed: Tensor,
    guide: Guide | None,
    first_row: int,
    keep_every: int,
) -> tuple[Tensor, Tensor]:
    """Samples [M, B, d] and the trajectory [K, M, B, d], from x_T [M, B, d]."""
    chunks = []
    for start in range(0, max(1, x.shape[1]), _CACHE_ROWS):
        rows = slice(start, start + _CACHE_ROWS)
        part = None if guide is None else guide._replace(labels=guide.labels[:, rows])
        chunks.append(
            _chain(
                denoiser,
                x[:, rows],
                table,
                time_features,
                seed,
                part,
                first_row + start,
                keep_every,
            )
        )
    samples, trajectories = zip(*chunks, strict=True)
    return torch.cat(samples, dim=1), torch.cat(trajectories, dim=2)


def _chain(denoiser, x, table, time_features, seed, guide, first_row, keep_every):
    networks = denoiser.shape.unpack(denoiser.parameters)
    rows = torch.arange(first_row, first_row + x.shape[1], device=x.device)
    noisy = bool((table[..., NOISE] != 0).any())
    kept = [x] if keep_every else []
    for step in range(table.shape[1]):
        if noisy and step % _NOISE_STEPS == 0:
            steps = torch.arange(step, min(step + _NOISE_STEPS, table.shape[1]), device=x.device)
            noise = draw_noise(seed, Stream.NOISE, steps, rows, x.shape[2])  # [S, M, B, d]
        features = time_features[:, step, None].expand(*x.shape[:2], -1)
        inputs = torch.cat((x, features), dim=-1)  # [M, B, d + F]
        eps = mlp.forward(inputs, networks, denoiser.shape)[0]
        grad = None if guide is None else grad_log_p(guide, inputs)[..., : x.shape[2]]
        x = reverse_step(
            x, eps, table[:, step], noise[step % _NOISE_STEPS] if noisy else None, grad
        )
        if keep_every and ((step + 1) % keep_every == 0 or step + 1 == table.shape[1]):
            kept.append(x)
    return x, torch.stack(kept) if kept else x.new_empty((0, *x.shape))


def grad_log_p(guide: Guide, inputs: Tensor) -> Tensor:
    """Gradient of log p(label | inputs) with respect to the inputs, [M, B, d + F]."""
    (parameters, shape), labels = guide
    networks = shape.unpack(parameters)
    logits, _, preactivations = mlp.forward(inputs, networks, shape)
    grad_logits = -logits.softmax(dim=-1)
    grad_logits.scatter_add_(-1, labels[..., None], torch.ones_like(grad_logits[..., :1]))
    return mlp.input_gradient(grad_logits, preactivations, networks, shape)
