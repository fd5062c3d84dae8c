"""Draws of many training steps at once: on a CPU a small batch costs little but its calls."""

from collections.abc import Callable

import torch
from torch import Tensor

from .reference import Draw, TrainingData, batch_draw, epoch_rows, epoch_sizes, fresh_rows

# Words of all models and steps that are drawn together, half a megabyte of them.
_WORDS = 2**16
_INDEX_AND_TIMESTEP = 2  # words of a row beside its noise


class DrawsAhead:
    """The draws of a run's steps, each that of :func:`~.reference.batch_draw`, bit for bit.

    Small steps that follow each other are drawn together, up to the end of an epoch. What was drawn
    ahead is dropped where the seed or the data were changed in place, of which PyTorch keeps count.
    Only one thread at a time may draw.
    """

    def __init__(
        self,
        data: TrainingData,
        seed: Tensor,
        batch_size: int,
        refresh: int | None = None,
        first_row: int = 0,
        rows: int | None = None,
    ) -> None:
        """Takes the arguments of :func:`~.reference.batch_draw` but for the step."""
        self._data, self._seed = data, seed
        self._batch_size, self._refresh = batch_size, refresh
        self._first_row = first_row
        self._rows = batch_size - first_row if rows is None else rows
        words = len(seed) * self._rows * (_INDEX_AND_TIMESTEP + data.points.shape[-1])
        self._most = max(1, _WORDS // words) if words else 1  # steps together
        given = (data.labels, data.n_points, data.t_table, data.p_uncond, data.n_steps)
        sources = [each for each in (seed, *given, data.n_entries) if each is not None]
        if any(source.is_inference() for source in sources):
            self._most = 1  # PyTorch does not count their changes
        self._sources = sources if self._most > 1 else []
        self._versions: list[int] = []
        self._steps = range(0)
        self._draws: Draw | None = None  # of the steps, each part [M, S, B, ...]

    def draw(self, step: int) -> Draw:
        """Returns the draw of a step; its parts may be views of more, and are not to be changed."""
        versions = [source._version for source in self._sources]
        if step not in self._steps or versions != self._versions:
            self._steps, self._draws = self._draw_from(step)
            self._versions = versions
        if self._draws is None:
            return batch_draw(
                self._data,
                self._seed,
                step,
                self._batch_size,
                self._refresh,
                self._first_row,
                self._rows,
            )
        number = step - self._steps.start
        return _of_each_part(self._draws, lambda part: part[:, number])

    def _draw_from(self, step: int) -> tuple[range, Draw | None]:
        """Returns the steps that are drawn together from a step on, and their draws if many."""
        data, seed, device = self._data, self._seed, self._seed.device
        steps = range(step, step + self._most)
        row = torch.arange(self._first_row, self._first_row + self._rows, device=device)
        if self._refresh is not None and len(steps) > 1:
            counts, times, lengths = epoch_sizes(data, len(seed), self._batch_size)
            epoch, first = divmod(step, lengths[0])
            alike = len(set(lengths)) == 1
            steps = range(step, min(steps.stop, step + lengths[0] - first) if alike else step + 1)
        if len(steps) == 1:
            return steps, None
        if self._refresh is None:
            of_rows = torch.arange(step, steps.stop, device=device).repeat_interleave(self._rows)
            draw = fresh_rows(data, seed, of_rows[None], row.repeat(len(steps)))
        else:
            batches = torch.arange(first, first + len(steps), device=device)
            rows = (batches[:, None] * self._batch_size + row).flatten()
            draw = epoch_rows(data, seed, epoch, epoch // self._refresh, rows, counts, times)
        shape = len(steps), self._rows
        return steps, _of_each_part(draw, lambda part: part.unflatten(1, shape))


def _of_each_part(draw: Draw, change: Callable[[Tensor], Tensor]) -> Draw:
    """Returns a draw with all its parts changed alike."""
    condition, live = (part if part is None else change(part) for part in draw[3:])
    return Draw(change(draw.index), change(draw.t), change(draw.eps), condition, live)
