"""Which models of a sweep train in the same launches, and which part of a sweep has which."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from ..progress import Progress
from ..training import Task
from .grid import MANY, Sweep
from .models import SweepModel

_CACHE = 24 * 2**20  # bytes that networks together read and write in a step on a CPU, to be fast
_SHARE_OF_MEMORY = 0.5  # of a GPU, for networks that train together
_MOST_TOGETHER = 264  # two for each multiprocessor; an interrupt would lose the work of more
_COPIES = 5  # of the parameters: themselves, their gradient, two moments and the average


@dataclass(frozen=True)
class Training:
    """A network to train, and the models that draw their samples from it.

    Attributes:
        task: the training.
        models: models that differ in the sampling alone.
    """

    task: Task
    models: tuple[SweepModel, ...]

    @cached_property
    def cost(self) -> float:
        """Multiplications of the training."""
        task = self.task  # forwards, and backwards by inputs and by weights
        return 3.0 * task.total_steps * task.recipe.batch_size * task.num_parameters

    def drawing_cost(self, model: SweepModel, n: int) -> float:
        """Returns the multiplications of n samples of one of its models."""
        return float(n * model.evaluations * self.task.num_parameters)

    def memory(self) -> int:
        """Bytes that the training needs on the device beside the data."""
        parameters, recipe = self.task.num_parameters, self.task.recipe
        return 4 * (_COPIES * parameters) + self._rows_memory(recipe.batch_size)

    def _rows_memory(self, rows: int) -> int:
        """Bytes of the activations and their gradients in a step of so many rows.

        Those of a user's own network are not known, and taken for those of the recipe's widths.
        """
        rows = min(rows, self.task.recipe.chunk_rows or rows)
        return 2 * 4 * rows * sum(self.task.shape().widths)


def trainings_of(sweep: Sweep) -> list[Training]:
    """Returns the trainings that a sweep needs, each once, those of one kind next to each other.

    The kind is that of :meth:`.Task.kind`, with the number of steps.
    """
    by_id: dict[str, list[SweepModel]] = {}
    for model in sweep.models:
        by_id.setdefault(model.training_id(sweep.digest), []).append(model)
    groups: dict[tuple, list[Training]] = {}
    shown = sweep.progress and len(by_id) >= MANY
    with Progress("group", len(by_id), "networks", shown=shown) as bar:
        for done, sharing in enumerate(by_id.values(), 1):
            task = sharing[0].task(sweep.points)
            groups.setdefault((task.kind(), task.total_steps), []).append(
                Training(task, tuple(sharing))
            )
            bar.to(done)
    return [training for group in groups.values() for training in group]


def part_of(trainings: Sequence[Training], part: int, parts: int) -> list[Training]:
    """Returns one of several parts of trainings, of about the same cost each.

    All parts together are all trainings, whoever asks, wherever they are asked for.

    Args:
        trainings: all of them, those of one kind next to each other.
        part: number of the part, from 0.
        parts: number of parts.
    """
    total, before, own = sum(training.cost for training in trainings), 0.0, []
    for training in trainings:
        middle = before + training.cost / 2
        if min(int(middle / total * parts), parts - 1) == part:
            own.append(training)
        before += training.cost
    return own


def chunks_of(
    trainings: Sequence[Training], device: torch.device, together: int | None = None
) -> Iterator[list[Training]]:
    """Yields the trainings that run in the same launches.

    On a CPU they have one number of steps too: there a network that is finished would take as long
    as one that goes on.

    Args:
        trainings: the trainings.
        device: the device that they run on.
        together: number of networks at most; None takes as many as memory, or a CPU's cache, holds.
    """
    groups: dict[tuple, list[Training]] = {}
    for training in trainings:
        steps = training.task.total_steps if device.type == "cpu" else None
        groups.setdefault((training.task.kind(), steps), []).append(training)
    for group in groups.values():
        most = together or _most(group[0], device)
        yield from (group[start : start + most] for start in range(0, len(group), most))


def _most(training: Training, device: torch.device) -> int:
    """Returns the number of networks of one kind that train at once by default."""
    if device.type == "cpu":
        return max(1, _CACHE // training.memory())
    free = torch.cuda.mem_get_info(device)[0]
    return max(1, min(_MOST_TOGETHER, int(_SHARE_OF_MEMORY * free) // training.memory()))
