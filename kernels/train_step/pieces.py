"""One training step on a CPU, in pieces of few rows that stay in the cache.

The step of :mod:`.reference` in float32, with the passes of :mod:`..mlp.pieces`. Where there are
many rows, each thread takes a share of them, and the gradients of the shares are added up.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..mlp import MLPShape
from ..mlp.pieces import Piece, layers_of, pieces_of, some, split
from ..q_sample.ahead import DrawsAhead
from ..q_sample.reference import Draw, TrainingData, gather_points, target_and_weight
from ..workers import one_thread, side_by_side, workers_for
from .reference import label_loss, noisy_inputs, target_loss


class Shares:
    """The shares of the work of M networks with up to ``rows`` rows, and their memory.

    Attributes:
        shape: shape of the networks.
        by_model: True if each share is of some models, False if it is of some rows of all.
        pieces: memory for the activations of each share.
        sums: gradients, loss and number of terms of each share but the first, if they are by rows.
    """

    def __init__(self, shape: MLPShape, models: int, rows: int):
        self.shape, workers = shape, workers_for(models * rows)
        self.by_model = models % workers == 0 or workers_for(rows) == 1
        parts = min(workers, models) if self.by_model else workers
        self.pieces = [Piece(shape, keep=True) for _ in range(parts)]
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
        parts = split(cut, max(1, -(-cut // len(self.pieces))))
        if self.by_model:
            return [(part, slice(0, rows)) for part in parts]
        return [(slice(0, models), part) for part in parts]


def models_of(data: TrainingData, models: slice) -> TrainingData:
    """Returns the data of some models; what all of them share stays as it is."""
    own = {
        name: part[models]
        for name, part in data._asdict().items()
        if part is not None and len(part) > 1
    }
    return data._replace(**own)


def rows_of(draw: Draw, models: slice, rows: slice) -> Draw:
    """Returns the draw of some rows of some models."""
    parts = {name: part for name, part in draw._asdict().items() if part is not None}
    return draw._replace(**{name: part[models, rows] for name, part in parts.items()})


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
    with one_thread() if len(shares.pieces) > 1 else nullcontext():
        if not add:
            sums.zero_()
        draw = shares.draw(data, *drawn)
        cuts = shares.of(*draw.index.shape)

        def work(share: int, *_) -> None:
            own = sums[:, 0] if shares.by_model or share == 0 else shares.sums[share - 1].zero_()
            of, rows = cuts[share]
            _add_sums(
                parameters[of], shape, models_of(data, of), rows_of(draw, of, rows),
                shares.pieces[share], own[of],
            )  # fmt: skip

        side_by_side([partial(work, share) for share in range(len(cuts))])
        for own in shares.sums[: len(cuts) - 1]:
            sums[:, 0] += own


def _add_sums(
    parameters: Tensor,
    shape: MLPShape,
    data: TrainingData,
    draw: Draw,
    piece: Piece,
    sums: Tensor,
) -> None:
    """Adds gradients, loss and number of terms of a share to sums [M, P + 2]."""
    inputs = noisy_inputs(data, draw)  # [M, B, in]
    loss_of, of_each = _loss(data, draw)
    for models, rows in pieces_of(shape, *inputs.shape[:2]):
        layers = layers_of(parameters, shape, models)
        y = piece.forward(some(inputs, models, rows), layers)
        y = y.view(models.stop - models.start, *y.shape[-2:])  # [M, B, out]
        live = None if draw.live is None else draw.live[models, rows]
        loss, grad_y, count = loss_of(y, *(part[models, rows] for part in of_each), live)
        grad = layers_of(sums[:, :-2], shape, models)
        piece.backward(some(grad_y, slice(0, len(grad_y))), layers, grad)
        sums[models, -2] += loss
        sums[models, -1] += count


def _loss(data: TrainingData, draw: Draw) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """Returns the function of the loss, and its arguments between output and ``live``, by row."""
    if data.labels is not None and data.classifies:
        return label_loss, (data.labels.expand(len(draw.index), -1).gather(1, draw.index),)
    x_0 = gather_points(data.points, draw.index)
    return target_loss, target_and_weight(x_0, data.forward_table, draw.t, draw.eps)
