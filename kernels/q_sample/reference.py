"""The forward process in plain PyTorch: draw a row, noise it.

x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps        (Ho et al. 2020, equation 4)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..philox import Stream, normals, permute, random_words, uniform_integers

# A row's random words: the data index, the timestep, then the noise.
_INDEX, _TIMESTEP, _NOISE = 0, 1, 2


class Draw(NamedTuple):
    """What is random about the rows of a batch."""

    index: Tensor  # type: ignore[assignment]  # int64 [M, B], which data point
    t: Tensor  # int64 [M, B], 0 is the least noisy timestep
    eps: Tensor  # float32 [M, B, d]


def q_sample(x_0: Tensor, alpha_bar: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t from given x_0 [M, B, d], alpha_bar [M, T], t [M, B] and eps [M, B, d]."""
    alpha_bar_t = alpha_bar.gather(1, t)[..., None]  # [M, B, 1]
    return alpha_bar_t.sqrt() * x_0 + (1 - alpha_bar_t).sqrt() * eps


def draw_fresh(seed: Tensor, step: int, rows: Tensor, n_points: Tensor, t_table: Tensor, dim: int):
    """Index, timestep and noise drawn anew in every step.

    Args:
        seed: int64 [M].
        step: training step in [0, 2**32).
        rows: int64 [B], global row numbers of this batch.
        n_points: int64 [M], how many points each model has.
        t_table: int64 [M, K], timesteps to draw from, each entry as likely as any other; a
            timestep that should come more often stands in it more often.
        dim: dimension d of a point.
    """
    words = random_words(seed, Stream.DRAW, step, rows, _NOISE + dim)  # [M, B, words]
    entry = uniform_integers(words[..., _TIMESTEP], t_table.shape[1])
    return Draw(
        uniform_integers(words[..., _INDEX], n_points[:, None]),
        t_table.expand(len(entry), -1).gather(1, entry),
        _noise(words, dim),
    )


def draw_epoch(
    seed: Tensor, epoch: int, refresh: int, rows: Tensor, n_points: int, n_steps: int, dim: int
):
    """Rows of an epoch over all pairs of point and timestep, each exactly once, in keyed order.

    Pair number t * n_points + index; its noise stays the same until ``refresh`` changes. No table
    of the n_points * n_steps pairs exists anywhere.

    Args:
        seed: int64 [M].
        epoch: which order, in [0, 2**32).
        refresh: which noise, in [0, 2**32).
        rows: int64 [B], positions in the epoch, in [0, n_points * n_steps).
        n_points, n_steps: numbers of points and timesteps, of all models.
        dim: dimension d of a point.
    """
    pair = permute(rows, n_points * n_steps, seed, epoch)  # [M, B]
    words = random_words(seed, Stream.DRAW, refresh, pair, _NOISE + dim)
    return Draw(pair % n_points, pair // n_points, _noise(words, dim))


def _noise(words: Tensor, dim: int) -> Tensor:
    """Noise [M, B, d] from words _NOISE onwards; an odd d leaves one normal number unused."""
    return normals(words[..., _NOISE : _NOISE + dim + dim % 2])[..., :dim]


def gather_points(points: Tensor, index: Tensor) -> Tensor:
    """Rows [M, B, d] of points [M, N, d] at index [M, B]."""
    if points.shape[0] == 1:
        return points[0][index]
    return torch.take_along_dim(points, index[..., None], dim=1)
