"""One training step on a CPU, in pieces of few rows that stay in the cache.

The step of :mod:`.reference` in float32, with the passes of :mod:`..mlp.pieces`. Each thread takes
a share of the rows, and the gradients of the shares are added up.
"""

from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..mlp import MLPShape
from ..mlp.pieces import (
    Form,
    Memory,
    Rooms,
    backward,
    form_of,
    forward,
    layers_of,
    pieces_of,
    split,
)
from ..q_sample.ahead import DrawsAhead
from ..q_sample.reference import Draw, TrainingData
from ..scripts import scripted
from ..workers import one_thread, side_by_side, workers_for


class Source(NamedTuple):
    """The data of one model, as :class:`TrainingData` without the axis M."""

    points: Tensor  # [N, d]
    forward_table: Tensor  # [T, 5]
    time_features: Tensor  # [T, F]
    class_features: Tensor | None  # [C + 1, E]
    labels: Tensor | None  # [N], of a classifier


class Rows(NamedTuple):
    """The drawn rows of a piece, as :class:`Draw` without the axis M."""

    index: Tensor  # type: ignore[assignment]  # [B]
    t: Tensor  # [B]
    eps: Tensor  # [B, d]
    condition: Tensor | None  # [B]
    live: Tensor | None  # [B]


class Shares:
    """The shares of the work of M networks with up to ``rows`` rows, and their memory.

    Attributes:
        shape: shape of the networks.
        by_model: True if each share is of some models, False if it is of some rows of all.
        form: the shape as TorchScript knows it.
        memory: for the activations of each share.
        sums: gradients, loss and number of terms of each share but the first, if they are by rows.
    """

    def __init__(self, shape: MLPShape, models: int, rows: int):
        self.shape, workers = shape, workers_for(models * rows)
        self.by_model = models % workers == 0 or workers_for(rows) == 1
        parts = min(workers, models) if self.by_model else workers
        self.form, self.memory = form_of(shape), [Memory(shape, keep=True) for _ in range(parts)]
        others = 0 if self.by_model else parts - 1
        self.sums = torch.empty(others, models, shape.num_parameters + 2)
        self._draws: tuple[tuple, DrawsAhead] | None = None

    def draw(
        self,
        data: TrainingData,
        seed: Tensor,
        step: int | Tensor,
        batch_size: int,
        refresh: int | None,
        first_row: int,
        rows: int,
    ) -> Draw:
        """Returns the draw of a step, as :func:`..q_sample.reference.batch_draw` does."""
        call = (data, seed, batch_size, refresh, first_row, rows)
        if self._draws is None or not _same(self._draws[0], call):
            self._draws = (call, DrawsAhead(*call))
        return self._draws[1].draw(int(step))

    def of(self, models: int, rows: int) -> list[tuple[slice, slice]]:
        """Returns the models and rows of each share."""
        cut = models if self.by_model else rows
        parts = split(cut, max(1, -(-cut // len(self.memory))))
        if self.by_model:
            return [(part, slice(0, rows)) for part in parts]
        return [(slice(0, models), part) for part in parts]


def source_of(data: TrainingData, model: int) -> Source:
    """Returns the data of one model; what all of them share is its own, too."""

    def own(part: Tensor | None) -> Tensor | None:
        return None if part is None else part[model % len(part)]

    return Source(
        data.points[model % len(data.points)],
        data.forward_table[model % len(data.forward_table)],
        data.time_features[model % len(data.time_features)],
        own(data.class_features),
        own(data.labels if data.classifies else None),
    )


def rows_of(draw: Draw, model: int, rows: slice) -> Rows:
    """Returns the draw of some rows of one model."""

    def own(part: Tensor | None) -> Tensor | None:
        return None if part is None else part[model, rows]

    return Rows(
        draw.index[model, rows], draw.t[model, rows], draw.eps[model, rows],
        own(draw.condition), own(draw.live),
    )  # fmt: skip


def _same(before: tuple, now: tuple) -> bool:
    """Returns True if two calls have the same tensors and the same numbers."""
    return all(
        one is other if isinstance(one, tuple | Tensor) else one == other
        for one, other in zip(before, now, strict=True)
    )


def training_sums(
    parameters: Tensor,
    shape: MLPShape,
    data: TrainingData,
    shares: Shares,
    sums: Tensor,
    add: bool,
    drawn: tuple,
) -> None:
    """Writes gradients, loss and number of terms of the drawn rows into sums [M, 1, P + 2].

    Args:
        parameters, shape, data, sums: as in the reference.
        shares: made for these networks and at least so many rows.
        add: True adds to the sums.
        drawn: seed, step, batch size, refresh, first row and number of rows.
    """
    with one_thread() if len(shares.memory) > 1 else nullcontext():
        if not add:
            sums.zero_()
        draw = shares.draw(data, *drawn)
        cuts = shares.of(*draw.index.shape)
        run = scripted(_add_sums)

        def work(share: int, *_) -> None:
            own = sums[:, 0] if shares.by_model or share == 0 else shares.sums[share - 1].zero_()
            models, rows = cuts[share]
            for model in range(models.start, models.stop):
                for piece in pieces_of(shape, rows.stop - rows.start):
                    some = slice(rows.start + piece.start, rows.start + piece.stop)
                    run(
                        parameters[model], source_of(data, model), rows_of(draw, model, some),
                        shares.form, shares.memory[share].rooms(some.stop - some.start), own[model],
                    )  # fmt: skip

        side_by_side([partial(work, share) for share in range(len(cuts))])
        for own in shares.sums[: len(cuts) - 1]:
            sums[:, 0] += own


def _add_sums(
    parameters: Tensor, source: Source, rows: Rows, form: Form, rooms: Rooms, sums: Tensor
) -> None:
    """Adds gradients, loss and number of terms of a piece to sums [P + 2] of its model."""
    layers, grad = layers_of(parameters, form), layers_of(sums, form)
    numbers = source.forward_table[rows.t].split(1, dim=1)  # five of [B, 1]
    signal, noise, target_signal, target_noise, weight = numbers
    x_0 = source.points[rows.index]  # [B, d]
    inputs = [signal * x_0 + noise * rows.eps, source.time_features[rows.t]]
    features, condition, live = source.class_features, rows.condition, rows.live
    if features is not None and condition is not None:
        inputs.append(features[condition])
    passed = forward(torch.cat(inputs, dim=1), layers, form, rooms)
    y, labels = passed.y, source.labels
    if labels is not None:
        label = labels[rows.index][:, None]
        log_p = y.log_softmax(dim=1)
        term = -log_p.gather(1, label)
        grad_y = log_p.exp().scatter_add_(1, label, -torch.ones_like(term))
        terms_of_row = 1
    else:
        error = y - (target_signal * x_0 + target_noise * rows.eps)
        term, grad_y = weight * error * error, 2 * weight * error
        terms_of_row = y.shape[1]
    count = torch.tensor(len(y))
    if live is not None:  # rows after the end of an epoch do not count
        term, grad_y, count = term * live[:, None], grad_y * live[:, None], live.sum()
    backward(grad_y, passed, layers, form, rooms, grad)
    sums[-2].add_(term.sum())
    sums[-1].add_(count * terms_of_row)
