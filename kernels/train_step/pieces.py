"""One training step on a CPU, in pieces of few rows that stay in the cache.

The step of :mod:`.reference` in float32, with the passes of :mod:`..mlp.pieces`. Each thread takes
a share of the rows, and the gradients of the shares are added up.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

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
    steps_of_call,
)
from ..q_sample.ahead import DrawsAhead
from ..q_sample.reference import Draw, TrainingData
from ..scripts import scripted
from ..workers import Halted, one_thread, side_by_side, workers_for
from . import reference

# Numbers in the activations of a layer of one model from which models pay that go one by one.
_LEAST_FLOATS = 2**13


class Shares:
    """The shares of the work of M networks with up to ``rows`` rows, and their memory.

    Attributes:
        shape: shape of the networks.
        together: True if there are many models so small that they go through each operation
            together, as in the reference, in no shares.
        by_model: True if each share is of some models, False if it is of some rows of all.
        form: the shape as TorchScript knows it.
        memory: for the activations of each share.
        sums: gradients, loss and number of terms of each share but the first, if they are by rows.
    """

    def __init__(self, shape: MLPShape, models: int, rows: int):
        self.shape, workers = shape, workers_for(models * rows)
        self.together = models > 1 and rows * max(shape.widths) < _LEAST_FLOATS
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
    if shares.together:
        with torch.no_grad():
            draw = shares.draw(data, *drawn)
            reference.training_sums(parameters, shape, data, draw, sums, add)
        return
    with one_thread() if len(shares.memory) > 1 else nullcontext():
        if not add:
            sums.zero_()
        draw = shares.draw(data, *drawn)
        cuts = shares.of(*draw.index.shape)
        run = scripted(_add_sums)  # before there are threads

        def work(share: int, stops: Callable[[], bool]) -> None:
            own = sums[:, 0] if shares.by_model or share == 0 else shares.sums[share - 1].zero_()
            memory = shares.memory[share]
            for models, rows in _calls(shape, *cuts[share]):
                if stops():
                    raise Halted
                run(
                    parameters[models], models.start, data, data.classifies,
                    rows_of(draw, models, rows), shares.form,
                    memory.rooms(rows.stop - rows.start), own[models],
                )  # fmt: skip

        side_by_side([partial(work, share) for share in range(len(cuts))])
        for own in shares.sums[: len(cuts) - 1]:
            sums[:, 0] += own


def _calls(shape: MLPShape, models: slice, rows: slice) -> Iterator[tuple[slice, slice]]:
    """Yields models and rows of each call in a share."""
    for piece in pieces_of(shape, rows.stop - rows.start):
        passes = steps_of_call(shape, 3 * (piece.stop - piece.start))  # a step is three passes
        for some in split(models.stop - models.start, passes):
            yield (
                slice(models.start + some.start, models.start + some.stop),
                slice(rows.start + piece.start, rows.start + piece.stop),
            )


def _add_sums(
    parameters: Tensor,
    first: int,
    data: TrainingData,
    classifies: bool,
    draw: Draw,
    form: Form,
    rooms: Rooms,
    sums: Tensor,
) -> None:
    """Adds gradients, losses and numbers of terms of a piece to sums [M, P + 2].

    Args:
        parameters: [M, P], those of the models from number ``first`` of the data on.
        classifies: True if labels are to be predicted.
        draw: the rows of the piece, [M, B].
    """
    for number in range(len(parameters)):
        model = first + number
        layers = layers_of(parameters[number], form)
        table = _of(data.forward_table, model)[draw.t[number]]  # [B, 5]
        signal, noise, target_signal, target_noise, weight = table.split(1, dim=1)
        x_0, eps = _of(data.points, model)[draw.index[number]], draw.eps[number]  # [B, d]
        inputs = [signal * x_0 + noise * eps, _of(data.time_features, model)[draw.t[number]]]
        # TorchScript knows of local names alone that they are not None.
        features, condition, labels = data.class_features, draw.condition, data.labels
        live = draw.live
        counts = None if live is None else live[number][:, None]  # [B, 1], of an epoch's last rows
        if features is not None and condition is not None:
            inputs.append(_of(features, model)[condition[number]])
        passed = forward(torch.cat(inputs, dim=1), layers, form, rooms)
        if classifies and labels is not None:
            label = _of(labels, model)[draw.index[number]]
            terms, grad_y = _label_terms(passed.y, label)
            if counts is not None:
                terms, grad_y = terms * counts, grad_y * counts
        else:
            error = passed.y - (target_signal * x_0 + target_noise * eps)
            if counts is not None:
                error = error * counts
            terms, grad_y = weight * error * error, 2 * weight * error
        backward(grad_y, passed, layers, form, rooms, layers_of(sums[number], form))
        sums[number, -2] += terms.sum()
        count = torch.tensor(len(terms)) if counts is None else counts.sum()
        sums[number, -1] += count * terms.shape[1]


def _of(parts: Tensor, model: int) -> Tensor:
    """Returns the part of a model; what all of them share is its own, too."""
    return parts[model % len(parts)]


def _label_terms(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cross-entropy [B, 1] and its gradient [B, C]."""
    log_p = logits.log_softmax(dim=1)
    terms = -log_p.gather(1, label[:, None])
    return terms, log_p.exp().scatter_add_(1, label[:, None], -torch.ones_like(terms))
