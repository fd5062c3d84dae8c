"""The forward process in plain PyTorch: draw a row, noise it.

x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps        (Ho et al. 2020, equation 4)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..philox import Stream, normals, permute, random_words, uniform, uniform_integers

# A row's random words: the data index, the timestep, then the noise.
_INDEX, _TIMESTEP, _NOISE = 0, 1, 2


class TrainingData(NamedTuple):
    """All that the rows of M models are made of, resident on the device.

    With ``class_features`` the network is told a row's class, its label, and learns to predict the
    noise; without, labels are what a classifier predicts.
    """

    points: Tensor  # float32 [M, N, d]
    alpha_bar: Tensor  # float32 [M, T]
    time_features: Tensor  # float32 [M, T, F], what the network sees of t
    labels: Tensor | None  # int64 [M, N]
    n_points: Tensor  # int64 [M], how many of the N points each model has
    t_table: Tensor  # int64 [M, K], timesteps that fresh rows are drawn from, each entry as likely
    # float32 [M, C + 1, E], what the network sees of a class; the last entry is "no class"
    class_features: Tensor | None = None
    p_uncond: Tensor | None = None  # float32 [M], how often a row's class is withheld
    n_steps: Tensor | None = None  # int64 [M], how many of the T timesteps; None for all
    n_entries: Tensor | None = None  # int64 [M], how many of the K entries; None for all

    @property
    def classifies(self) -> bool:
        """Whether labels are what the network predicts."""
        return self.labels is not None and self.class_features is None

    @property
    def input_width(self) -> int:
        """Width of the network's input: d + F + E."""
        parts = (self.points, self.time_features, self.class_features)
        return sum(part.shape[-1] for part in parts if part is not None)


class Draw(NamedTuple):
    """What is random about the rows of a batch."""

    index: Tensor  # type: ignore[assignment]  # int64 [M, B], which data point
    t: Tensor  # int64 [M, B], 0 is the least noisy timestep
    eps: Tensor  # float32 [M, B, d]
    condition: Tensor | None = None  # int64 [M, B], the class that the network is told
    # bool [M, B], rows that are there: an epoch's last batch has fewer; None for all
    live: Tensor | None = None


def q_sample(x_0: Tensor, alpha_bar: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t from given x_0 [M, B, d], alpha_bar [M, T], t [M, B] and eps [M, B, d]."""
    alpha_bar_t = alpha_bar.expand(len(t), -1).gather(1, t)[..., None]  # [M, B, 1]
    return alpha_bar_t.sqrt() * x_0 + (1 - alpha_bar_t).sqrt() * eps


def draw_fresh(
    seed: Tensor,
    step: int | Tensor,
    rows: Tensor,
    n_points: Tensor,
    t_table: Tensor,
    dim: int,
    n_entries: Tensor | None = None,
) -> Draw:
    """Index, timestep and noise drawn anew in every step.

    Args:
        seed: int64 [M].
        step: training step in [0, 2**32), an int or an int64 scalar.
        rows: int64 [B], global row numbers of this batch.
        n_points: int64 [M], how many points each model has.
        t_table: int64 [M, K], timesteps to draw from, each entry as likely as any other; a
            timestep that should come more often stands in it more often.
        dim: dimension d of a point.
        n_entries: int64 [M], how many entries of its table a model has; None for all.
    """
    words = random_words(seed, Stream.DRAW, step, rows, _NOISE + dim)  # [M, B, words]
    entries = t_table.shape[1] if n_entries is None else n_entries[:, None]
    entry = uniform_integers(words[..., _TIMESTEP], entries)
    return Draw(
        uniform_integers(words[..., _INDEX], n_points[:, None]),
        t_table.expand(len(entry), -1).gather(1, entry),
        _noise(words, dim),
    )


def draw_epoch(
    seed: Tensor,
    epoch: int | Tensor,
    refresh: int | Tensor,
    rows: Tensor,
    n_points: list[int],
    n_steps: list[int],
    dim: int,
) -> Draw:
    """Rows of an epoch over all pairs of point and timestep, each exactly once, in keyed order.

    Pair number t * n_points + index; its noise stays the same until ``refresh`` changes. No table
    of the n_points * n_steps pairs exists anywhere.

    Args:
        seed: int64 [M].
        epoch: which order, in [0, 2**32), an int or int64 [M, 1].
        refresh: which noise, the same.
        rows: int64 [B] or [M, B], positions in the epoch; those after the last pair are not
            ``live`` and have the draw of position 0.
        n_points, n_steps: numbers of points and timesteps of each of the M models.
        dim: dimension d of a point.
    """
    pairs = [n * steps for n, steps in zip(n_points, n_steps, strict=True)]
    live = rows.expand(len(seed), -1) < torch.tensor(pairs, device=rows.device)[:, None]
    pair = permute(rows * live, pairs, seed, epoch)  # [M, B]
    words = random_words(seed, Stream.DRAW, refresh, pair, _NOISE + dim)
    points = torch.tensor(n_points, device=rows.device)[:, None]
    return Draw(pair % points, pair // points, _noise(words, dim), live=live)


def draw_condition(
    data: TrainingData, seed: Tensor, step: int | Tensor, element: Tensor, index: Tensor
) -> Tensor:
    """The class that the network is told of each row, int64 [M, B]; C where it is withheld.

    Args:
        data: what rows are made of, with class features.
        seed: int64 [M].
        step: that the row's noise is a function of, in [0, 2**32).
        element: int64 [B] or [M, B], that the row's noise is a function of.
        index: int64 [M, B], which data points.
    """
    assert data.labels is not None
    assert data.class_features is not None
    assert data.p_uncond is not None
    word = random_words(seed, Stream.CLASS, step, element, 1)[..., 0]
    labels = data.labels.expand(len(index), -1).gather(1, index)
    unconditional = data.class_features.shape[1] - 1
    return torch.where(uniform(word) < data.p_uncond[:, None], unconditional, labels)


def _noise(words: Tensor, dim: int) -> Tensor:
    """Noise [M, B, d] from words _NOISE onwards; an odd d leaves one normal number unused."""
    return normals(words[..., _NOISE : _NOISE + dim + dim % 2])[..., :dim]


def gather_points(points: Tensor, index: Tensor) -> Tensor:
    """Rows [M, B, d] of points [M, N, d] at index [M, B]."""
    if points.shape[0] == 1:
        return points[0][index]
    return torch.take_along_dim(points, index[..., None], dim=1)


def batch_draw(
    data: TrainingData,
    seed: Tensor,
    step: int | Tensor,
    batch_size: int,
    refresh: int | None = None,
    first_row: int = 0,
    rows: int | None = None,
) -> Draw:
    """What step ``step`` of a training run draws.

    Args:
        data: what rows are made of.
        seed: int64 [M].
        step: an int or an int64 scalar.
        batch_size: rows of a step.
        refresh: None draws everything anew in each step. A number takes step s through its piece of
            an epoch over all pairs of point and timestep: with S = ceil(N T / batch_size), rows
            (s mod S) * batch_size ... of epoch s // S; the noise stays for ``refresh`` epochs.
        first_row, rows: which part of the step's rows; None for all.
    """
    device, dim = data.points.device, data.points.shape[-1]
    rows = batch_size - first_row if rows is None else rows
    element = torch.arange(first_row, first_row + rows, device=device)
    n_points = data.n_points.expand(len(seed))
    if refresh is None:
        draw = draw_fresh(seed, step, element, n_points, data.t_table, dim, data.n_entries)
    else:
        steps = [data.alpha_bar.shape[1]] * len(seed)
        if data.n_steps is not None:
            steps = data.n_steps.tolist()
        counts = n_points.tolist()
        lengths = [-(-n * t // batch_size) for n, t in zip(counts, steps, strict=True)]
        length = torch.tensor(lengths, device=device)[:, None]  # [M, 1], steps of an epoch
        epoch, step = step // length, step % length
        draw = draw_epoch(
            seed, epoch, epoch // refresh, element + step * batch_size, counts, steps, dim
        )
        step, element = epoch // refresh, draw.t * n_points[:, None] + draw.index
    if data.class_features is None:
        return draw
    return draw._replace(condition=draw_condition(data, seed, step, element, draw.index))
