"""The forward process in plain PyTorch: draw a row, then noise it.

Five numbers for each timestep, a forward table, say what a denoiser sees, what it is to predict and
how much its error counts::

    x_t    = signal x_0 + noise eps
    target = target_signal x_0 + target_noise eps
    loss   = weight (MLP(x_t) - target)^2

Signal and noise of Ho et al. 2020, equation 4, are sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), and
the target is eps: 0 and 1. Other tables make the same step that of x_0- and v-prediction, of flow
matching or of EDM.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..philox import Stream, normals, permute, random_words, uniform, uniform_integers

# A row's random words: the data index, the timestep, then the noise.
_INDEX, _TIMESTEP, _NOISE = 0, 1, 2
# Columns of a forward table.
SIGNAL, NOISE, TARGET_SIGNAL, TARGET_NOISE, WEIGHT = range(5)


class TrainingData(NamedTuple):
    """Points, schedules, features and labels of M models, resident on the device.

    With ``class_features`` the network is conditional: it sees the class of a row, its label, and
    predicts the target. Without them, labels make it a classifier, which predicts them.
    """

    points: Tensor  # float32 [M, N, d]
    forward_table: Tensor  # float32 [M, T, 5], the five numbers of each timestep
    time_features: Tensor  # float32 [M, T, F], the network's input for each t
    labels: Tensor | None  # int64 [M, N]
    n_points: Tensor  # int64 [M], number of points of each model, at most N
    t_table: Tensor  # int64 [M, K], timesteps to draw from, each entry equally likely
    # float32 [M, C + 1, E], the network's input for each class; the last entry is "no class"
    class_features: Tensor | None = None
    p_uncond: Tensor | None = None  # float32 [M], probability that a row's class is withheld
    n_steps: Tensor | None = None  # int64 [M], number of timesteps, at most T; None for T
    n_entries: Tensor | None = None  # int64 [M], number of table entries, at most K; None for K

    @property
    def classifies(self) -> bool:
        """True if the network predicts labels, False if it predicts the target of the table."""
        return self.labels is not None and self.class_features is None

    @property
    def input_width(self) -> int:
        """Width of the network's input, d + F + E."""
        parts = (self.points, self.time_features, self.class_features)
        return sum(part.shape[-1] for part in parts if part is not None)


class Draw(NamedTuple):
    """The random numbers behind the rows of a batch."""

    index: Tensor  # type: ignore[assignment]  # int64 [M, B], number of the data point
    t: Tensor  # int64 [M, B], 0 is the least noisy timestep
    eps: Tensor  # float32 [M, B, d]
    condition: Tensor | None = None  # int64 [M, B], the class that the network sees
    # bool [M, B], False for rows after the end of an epoch, whose last batch is smaller; None if
    # every row counts
    live: Tensor | None = None


def q_sample(x_0: Tensor, forward_table: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Returns x_t [M, B, d] of x_0 [M, B, d], a table [M, T, 5], t [M, B] and eps [M, B, d]."""
    row = gather_points(forward_table, t)  # [M, B, 5]
    return row[..., SIGNAL, None] * x_0 + row[..., NOISE, None] * eps


def target_and_weight(
    x_0: Tensor, forward_table: Tensor, t: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns what a network is to predict, [M, B, d], and the weight of its error, [M, B, 1]."""
    row = gather_points(forward_table, t)  # [M, B, 5]
    target = row[..., TARGET_SIGNAL, None] * x_0 + row[..., TARGET_NOISE, None] * eps
    return target, row[..., WEIGHT, None]


def draw_fresh(
    seed: Tensor,
    step: int | Tensor,
    rows: Tensor,
    n_points: Tensor,
    t_table: Tensor,
    dim: int,
    n_entries: Tensor | None = None,
) -> Draw:
    """Draws index, timestep and noise anew in every step.

    Args:
        seed: int64 [M].
        step: training step in [0, 2**32), an int or an int64 scalar.
        rows: int64 [B], global row numbers of this batch.
        n_points: int64 [M], number of points of each model.
        t_table: int64 [M, K], timesteps to draw from, each entry equally likely; a timestep
            can have several entries to be drawn more often.
        dim: dimension d of a point.
        n_entries: int64 [M], number of entries of each model's table; None for K.
    """
    words = random_words(seed, Stream.DRAW, step, rows, _NOISE + dim)  # [M, B, words]
    entries = t_table.shape[1] if n_entries is None else n_entries[:, None]
    entry = uniform_integers(words[..., _TIMESTEP], entries)
    return Draw(
        uniform_integers(words[..., _INDEX], n_points[:, None]),
        t_table.expand(len(entry), -1).gather(1, entry),
        normals(words[..., _NOISE:], dim),
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
    """Draws rows of an epoch, which has each pair of point and timestep exactly once.

    The order of the pairs is a keyed permutation, so there is no table of them. The number of a
    pair is t * n_points + index; its noise stays the same until ``refresh`` changes.

    Args:
        seed: int64 [M].
        epoch: number of the order, in [0, 2**32), an int or int64 [M, 1].
        refresh: number of the noise, likewise.
        rows: int64 [B] or [M, B], positions in the epoch. Rows after the last pair are not
            ``live`` and get the draw of position 0.
        n_points, n_steps: numbers of points and timesteps of each of the M models.
        dim: dimension d of a point.
    """
    pairs = [n * steps for n, steps in zip(n_points, n_steps, strict=True)]
    live = rows.expand(len(seed), -1) < torch.tensor(pairs, device=rows.device)[:, None]
    pair = permute(rows * live, pairs, seed, epoch)  # [M, B]
    words = random_words(seed, Stream.DRAW, refresh, pair, _NOISE + dim)
    points = torch.tensor(n_points, device=rows.device)[:, None]
    t = pair // points
    return Draw(pair - t * points, t, normals(words[..., _NOISE:], dim), live=live)


def draw_condition(
    data: TrainingData, seed: Tensor, step: int | Tensor, element: Tensor, index: Tensor
) -> Tensor:
    """Returns the class of each row that the network sees, int64 [M, B]; C where it is withheld.

    Args:
        data: the source of the rows, with class features.
        seed: int64 [M].
        step: the Philox step of the rows' noise, in [0, 2**32).
        element: int64 [B] or [M, B], the Philox elements of the rows' noise.
        index: int64 [M, B], numbers of the data points.
    """
    assert data.labels is not None
    assert data.class_features is not None
    assert data.p_uncond is not None
    word = random_words(seed, Stream.CLASS, step, element, 1)[..., 0]
    labels = data.labels.expand(len(index), -1).gather(1, index)
    unconditional = data.class_features.shape[1] - 1
    return torch.where(uniform(word) < data.p_uncond[:, None], unconditional, labels)


def gather_points(points: Tensor, index: Tensor) -> Tensor:
    """Returns rows [M, B, d] of points [M, N, d] or [1, N, d] at index [M, B]."""
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
    """Draws the batch of one training step.

    Args:
        data: the source of the rows.
        seed: int64 [M].
        step: number of the step, an int or an int64 scalar.
        batch_size: rows of a step.
        refresh: None draws everything anew in each step. A number makes the steps go through
            epochs over all pairs of point and timestep: with S = ceil(N T / batch_size), step s
            takes rows (s mod S) * batch_size ... of epoch s // S; a pair keeps its noise for
            ``refresh`` epochs.
        first_row, rows: the part of the step's rows to draw; None for all from ``first_row`` on.
    """
    device = data.points.device
    rows = batch_size - first_row if rows is None else rows
    element = torch.arange(first_row, first_row + rows, device=device)
    if refresh is None:
        return fresh_rows(data, seed, step, element)
    counts, steps, lengths = epoch_sizes(data, len(seed), batch_size)
    length = torch.tensor(lengths, device=device)[:, None]  # steps of an epoch, [M, 1]
    epoch, step = step // length, step % length
    return epoch_rows(
        data, seed, epoch, epoch // refresh, element + step * batch_size, counts, steps
    )


def epoch_sizes(
    data: TrainingData, models: int, batch_size: int
) -> tuple[list[int], list[int], list[int]]:
    """Returns each model's number of points, of timesteps, and of steps of an epoch."""
    counts = data.n_points.expand(models).tolist()
    steps = [data.forward_table.shape[1]] * models
    if data.n_steps is not None:
        steps = data.n_steps.tolist()
    return counts, steps, [-(-n * t // batch_size) for n, t in zip(counts, steps, strict=True)]


def fresh_rows(data: TrainingData, seed: Tensor, step: int | Tensor, element: Tensor) -> Draw:
    """Returns the :func:`draw_fresh` of rows of the data, with the classes that a network sees.

    Args:
        data: the source of the rows.
        seed: int64 [M].
        step: training step in [0, 2**32), an int, an int64 scalar or [1, B].
        element: int64 [B], global row numbers in their step.
    """
    n_points, dim = data.n_points.expand(len(seed)), data.points.shape[-1]
    draw = draw_fresh(seed, step, element, n_points, data.t_table, dim, data.n_entries)
    return _with_condition(data, draw, seed, step, element)


def epoch_rows(
    data: TrainingData,
    seed: Tensor,
    epoch: int | Tensor,
    refresh: int | Tensor,
    rows: Tensor,
    n_points: list[int],
    n_steps: list[int],
) -> Draw:
    """Returns the :func:`draw_epoch` of rows of the data, with the classes that a network sees."""
    draw = draw_epoch(seed, epoch, refresh, rows, n_points, n_steps, data.points.shape[-1])
    element = draw.t * data.n_points.expand(len(seed))[:, None] + draw.index
    return _with_condition(data, draw, seed, refresh, element)


def _with_condition(
    data: TrainingData, draw: Draw, seed: Tensor, step: int | Tensor, element: Tensor
) -> Draw:
    if data.class_features is None:
        return draw
    return draw._replace(condition=draw_condition(data, seed, step, element, draw.index))
