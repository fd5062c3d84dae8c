"""What a trainer tells its callbacks, and when: a row of numbers every fifty steps."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..logs import Callback, CallbackError, check_callbacks
from ..logs.callbacks import call
from ..own_networks import is_own

if TYPE_CHECKING:
    from .trainer import Trainer

_Exit = Callable[
    [type[BaseException] | None, BaseException | None, TracebackType | None], None
]  # of a context
_EVERY = 50  # steps between two rows, as many as a CUDA graph holds
# Fields of a recipe that a network of one's own does not follow.
_OF_PERCEPTRONS = ("hidden_layers", "activation", "linear_input")


class Reports:
    """Tells callbacks how a training goes; a context, which begins and ends it for them.

    Rows are made of losses that have reached the host: training does not wait for them. What is in
    a row does not depend on where a training was stopped and went on.

    Args:
        trainer: what trains.
        callbacks: who listens; in processes other than the first nobody does.
        seconds: seconds of training before.

    Raises:
        ValueError: something else is among the callbacks.
    """

    def __init__(self, trainer: "Trainer", callbacks: Sequence[Callback], *, seconds: float = 0.0):
        check_callbacks(callbacks)
        self._trainer, self._losses = trainer, trainer.engine.losses
        self._callbacks = list(callbacks) if trainer.engine.ranks.writes else []
        self._began = time.perf_counter() - seconds
        self._ends = ExitStack()  # tells those of the end who were told of the beginning
        self._told = trainer.step

    def to(
        self, step: int, values: Mapping[str, float] | None = None, *, wait: bool = False
    ) -> None:
        """Tells the rows up to a step as far as their losses are known.

        Args:
            step: number of steps done.
            values: what else was measured at this step, by name, for a row of its own if need be.
            wait: waits for the losses of all these steps.

        Raises:
            CallbackError: a callback has failed.
        """
        if not self._callbacks:
            return
        if wait or values:
            self._losses.wait()
        while self._told < (due := self._due()) <= min(step, self._losses.step_on_host):
            self._tell(due, values if due == step else None)
        if values and self._told < step:
            self._tell(step, values)

    def _due(self) -> int:
        """Returns the step of the next row."""
        return min((self._told // _EVERY + 1) * _EVERY, self._trainer.total_steps)

    def _tell(self, step: int, values: Mapping[str, float] | None) -> None:
        self._told = step
        row = {
            "loss": self._losses.mean_on_host(0, (step - 1) // _EVERY * _EVERY, step),
            "lr": self._rate(step - 1),
            "seconds": time.perf_counter() - self._began,
            **(values or {}),
        }
        for callback in self._callbacks:
            call(callback, "on_log", step, dict(row))

    def _rate(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0."""
        task = self._trainer.task
        place = step // task.recipe.steps_per_rate(task.pairs)
        if not task.recipe.depends_on_losses:
            return self._rates[place].item()
        losses = self._trainer.epoch_losses[:place].tolist()
        return task.recipe.learning_rate(step, task.pairs, losses)

    @cached_property
    def _rates(self) -> Tensor:
        return self._trainer.task.recipe.rates(self._trainer.task.pairs)

    def __enter__(self) -> "Reports":
        settings = settings_of(self._trainer) if self._callbacks else {}
        with self._ends.pop_all() as begun:
            for callback in self._callbacks:
                begun.push(_end_of(callback))
                call(callback, "on_begin", dict(settings))
            self._ends = begun.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._ends.__exit__(kind, error, traceback)
            return
        with self._ends:
            self.to(self._trainer.step, wait=True)


def _end_of(callback: Callback) -> _Exit:
    """Returns what tells a callback of the end; an error before, which ended it, stays the one."""

    def end(
        kind: type[BaseException] | None,  # noqa: ARG001
        error: BaseException | None,
        traceback: TracebackType | None,  # noqa: ARG001
    ) -> None:
        try:
            call(callback, "on_end")
        except CallbackError:
            if error is None:
                raise

    return end


def settings_of(trainer: "Trainer") -> dict[str, Any]:
    """Returns what callbacks are told of a training before its first step."""
    task, points = trainer.task, trainer.task.points
    settings: dict[str, Any] = {
        "network": task.role,
        "first_step": trainer.step,
        "total_steps": trainer.total_steps,
        "data": points.name,
        "points": len(points),
        "dim": points.dim,
        "seed": task.seed,
        "device": str(trainer.device),
    }
    for name, part in (("recipe", task.recipe), ("schedule", task.schedule)):
        settings |= _flat(asdict(part), f"{name}/")
    if is_own(trainer.module):
        settings["model"] = type(trainer.module).__name__
        for name in _OF_PERCEPTRONS:
            del settings[f"recipe/{name}"]
    return settings


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the values of nested dicts by their names with slashes."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
