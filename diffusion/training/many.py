"""Training of many networks, those of one kind in the same launches."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ...kernels.default_state import in_default_state, methods_in_default_state
from ..device import choose_device
from ..errors import UserError
from ..progress import reported
from .distributed import Ranks
from .engine import Engine
from .module_engine import ModuleEngine
from .task import Task


class _Group(NamedTuple):
    """Tasks of one kind, and the share of them that this process trains."""

    places: list[int]  # of all its tasks, among all tasks
    own: list[int]  # of this process's tasks
    engine: Engine | None  # None if the process has no share


@methods_in_default_state
class ManyTrainer:
    """Trains many networks, those of one kind in the same launches.

    Each network ends as a :class:`Trainer` alone would leave it, up to rounding. Networks go
    together if they have the same shape, batch size, chunks, optimiser and kind of loss, redraw
    their noise alike, and all clip or none; data, schedules, learning rates, seeds and numbers of
    steps are their own. Of several processes each trains its share.

    Args:
        tasks: the networks to train.
        device: None takes CUDA where there is one.
        precision: precision of the matrix products on CUDA, see :class:`Trainer`.
        ranks: the processes that share the tasks.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        device: str | torch.device | None = None,
        precision: str = "fp16",
        ranks: Ranks | None = None,
    ):
        if not isinstance(tasks, Sequence) or not all(isinstance(task, Task) for task in tasks):
            raise UserError(f"tasks must be a list of Tasks, got {tasks!r}")
        self.tasks, self.ranks = tuple(tasks), ranks or Ranks()
        self.device = choose_device(device)
        if self.ranks.size > 1 and any(task.model is not None for task in self.tasks):
            raise UserError(
                "ranks must be left out for tasks with a model of your own: give each process "
                f"its own tasks, got {self.ranks.size} ranks"
            )
        kinds: dict[tuple, list[int]] = {}
        for place, task in enumerate(self.tasks):
            kinds.setdefault(task.kind(), []).append(place)
        self._groups = [self._group(places, precision) for places in kinds.values()]

    def _group(self, places: list[int], precision: str) -> _Group:
        first, count = self.ranks.share(len(places))
        own = places[first : first + count]
        tasks = [self.tasks[place] for place in own]
        engine: Engine | None = None
        if own and tasks[0].model is not None:
            engine = ModuleEngine(tasks[0], tasks[0].initial(), device=self.device)
        elif own:
            engine = Engine(tasks, device=self.device, precision=precision)
        return _Group(places, own, engine)

    @property
    def _engines(self) -> list[Engine]:
        return [group.engine for group in self._groups if group.engine is not None]

    @property
    def total_steps(self) -> int:
        """Number of steps of all groups that this process trains."""
        return sum(engine.total_steps for engine in self._engines)

    @property
    def step(self) -> int:
        """Number of these steps that are done."""
        return sum(engine.step for engine in self._engines)

    def run(self, steps: int, progress: bool | Callable[[int], None] = False) -> None:
        """Trains for so many steps, one group after the other.

        Args:
            steps: number of steps.
            progress: True shows a bar on stderr; a function is called with the number of steps done
                after each step, or each graph of them.
        """
        until = min(self.step + steps, self.total_steps)
        before = 0
        with reported(progress, "train", until, "steps", start=self.step) as report:
            for engine in self._engines:

                def on_step(done: int, before: int = before) -> None:
                    report(before + done)

                engine.run(max(0, until - before - engine.step), on_step)
                before += engine.total_steps

    def bad_step(self, task: int) -> int | None:
        """Returns the first step of a task, counted from 1, that was not finite, if any.

        Of a task that another process trains nothing is known: None.
        """
        for group in self._groups:
            if group.engine is not None and task in group.own:
                return group.engine.bad_step(group.own.index(task))
        return None

    def models(self) -> list[Any]:
        """Returns the networks with averaged weights, on the CPU, in the order of the tasks."""
        models: dict[int, Any] = {}
        for places, own, engine in self._groups:
            if isinstance(engine, ModuleEngine):
                models[places[0]] = engine.averaged(0)
                continue
            shape = self.tasks[places[0]].shape()
            flat = torch.zeros(len(places), shape.num_parameters, device=self.device)
            if engine is not None:
                flat[[places.index(place) for place in own]] = engine.state.ema
            self.ranks.add_up(flat)
            for place, parameters in zip(places, flat.cpu(), strict=True):
                models[place] = self.tasks[place].trained(parameters)
        return [models[place] for place in range(len(self.tasks))]

    def state_dict(self) -> dict[str, dict]:
        """Returns everything that :meth:`load_state_dict` needs to go on as if never stopped."""
        return {str(number): engine.state_dict() for number, engine in enumerate(self._engines)}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        """Goes back to a saved state of the same tasks.

        Raises:
            ValueError: it is the state of other tasks.
        """
        if state.keys() != {str(number) for number in range(len(self._engines))}:
            raise UserError(
                f"the saved state must be that of {len(self._engines)} kinds of networks, "
                f"got {len(state)}"
            )
        for number, engine in enumerate(self._engines):
            engine.load_state_dict(state[str(number)])


@in_default_state
def train_many(
    tasks: Sequence[Task],
    *,
    device: str | torch.device | None = None,
    precision: str = "fp16",
    ranks: Ranks | None = None,
    progress: bool | Callable[[int], None] = False,
) -> list[Any]:
    """Trains many networks to the end of their recipes, those of one kind in the same launches.

    Args:
        tasks, device, precision, ranks: see :class:`ManyTrainer`.
        progress: see :meth:`ManyTrainer.run`.

    Returns:
        The networks with their averaged weights, on the CPU, in the order of the tasks.
    """
    trainer = ManyTrainer(tasks, device=device, precision=precision, ranks=ranks)
    trainer.run(trainer.total_steps, progress)
    return trainer.models()
