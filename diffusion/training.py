"""Training of denoisers and noisy-point classifiers, one or many, the data set on the device."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .device import choose_device
from .distributed import Ranks
from .engine import Engine, Task, timestep_table
from .models import MLP
from .points import Points
from .recipes import ClassicRecipe, Recipe
from .schedules import Schedule

__all__ = ["ManyTrainer", "Task", "Trainer", "timestep_table", "train_many"]

_logger = logging.getLogger("flashpoint")


class Trainer(Engine):
    """Trains one network; :meth:`run` as many times as wanted, until ``total_steps`` are done.

    Args:
        points: the data set.
        schedule: of the forward process.
        recipe: how to train.
        classify: False trains a denoiser, True a classifier of noisy points, which needs labels.
        seed: of the initial weights and of everything drawn.
        device: None takes CUDA where there is one.
        precision: of the matrix products on CUDA: ``fp16``, ``bf16``, ``tf32``, ``tf32x3`` or
            ``fp32``.
        ranks: the processes that share each batch.

    Attributes:
        step: number of steps done.
        total_steps: number of steps that the recipe has.
        module: the network being trained. Its Parameters are views of one flat buffer, and what is
            changed in them counts from the next :meth:`run` on; one that no longer is a view, say
            after ``module.double()``, is made one again, with its values.
        losses: float32 on the device, the loss of every step; of a run of more than 100,000 steps,
            of that many steps evenly spread.
        epoch_losses: float32 [epochs] on the device, the mean loss of each epoch of a classic
            recipe.

    Raises:
        ValueError: a classifier or a conditional denoiser is asked for and the points have no
            labels.
    """

    def __init__(
        self,
        points: Points,
        schedule: Schedule,
        recipe: Recipe | ClassicRecipe,
        *,
        classify: bool = False,
        seed: int = 0,
        device: str | torch.device | None = None,
        precision: str = "fp16",
        ranks: Ranks | None = None,
    ):
        task = Task(points, schedule, recipe, classify, seed)
        super().__init__([task], device=device, precision=precision, ranks=ranks)
        self.classify = classify
        self.seed = int(self._seeds[0])
        self.module = task.initial().to(self.device)
        for owner, name, view in self._places():
            getattr(owner, name).data = view
        self.module.register_state_dict_post_hook(_detach_saved)

    @property
    def losses(self) -> Tensor:
        """The loss of every step, on the device."""
        return self.course.losses[0]

    @property
    def epoch_losses(self) -> Tensor:
        """The mean loss of each epoch, on the device."""
        return self._means()[0]

    def curve(self) -> Tensor:
        """The losses recorded so far, on the device; never empty once a step is done."""
        return self.losses_of(0)

    def model(self) -> MLP:
        """The network with the averaged weights, on the CPU."""
        return self.model_of(0)

    def _places(self) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """Where each Parameter of the module belongs: its owner, its name, its view."""
        weights, biases, slope = self.shape.unpack(self.parameters)
        assert biases is not None  # every layer here has one
        for linear, weight, bias in zip(self.module.linears(), weights, biases, strict=True):
            yield linear, "weight", weight[0]
            yield linear, "bias", bias[0]
        if slope is not None:
            yield self.module.act, "weight", slope[0]

    def _refresh(self) -> None:
        """Takes over the values of Parameters that are no longer views, and makes them views."""
        lost = [
            (getattr(owner, name), view)
            for owner, name, view in self._places()
            if not _is_same(getattr(owner, name), view)
        ]
        for parameter, view in lost:
            view.copy_(parameter.detach())
            parameter.data = view
        if lost:
            _logger.info(
                "%d parameters had left the trainer's buffer; their values were copied back",
                len(lost),
            )
        super()._refresh()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later :meth:`load_state_dict` needs to go on as if never stopped."""
        state = super().state_dict()
        first = {name: state[name][0] for name in ("losses", "epoch_losses")}
        return {**state, "seed": self.seed, **first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to a saved state.

        Raises:
            ValueError: it is that of another network, seed or number of steps.
        """
        with_models = {name: state[name][None] for name in ("losses", "epoch_losses")}
        super().load_state_dict({**state, "seed": torch.tensor([state["seed"]]), **with_models})


def _is_same(parameter: Tensor, view: Tensor) -> bool:
    """Whether both are the same numbers in the same memory."""
    return (
        parameter.device == view.device
        and parameter.dtype == view.dtype
        and parameter.shape == view.shape
        and parameter.stride() == view.stride()
        and parameter.data_ptr() == view.data_ptr()
    )


def _detach_saved(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:  # noqa: ARG001
    """What is saved shares no memory with the buffer, which would be saved along."""
    for name, tensor in state.items():
        state[name] = tensor.detach().clone()


class ManyTrainer:
    """Trains many networks, those of one kind in the same launches.

    Each network ends as a :class:`Trainer` alone would leave it, up to rounding. Networks go
    together if they have the same shape, batch size, chunks, optimiser and kind of loss, redraw
    their noise alike, and all clip or none; data, schedules, learning rates, seeds and numbers of
    steps are their own. Of several processes each trains its share.

    Args:
        tasks: what to train.
        device, precision: as of :class:`Trainer`.
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
        self.tasks, self.ranks = tuple(tasks), ranks or Ranks()
        self.device = choose_device(device)
        kinds: dict[tuple, list[int]] = {}
        for place, task in enumerate(self.tasks):
            kinds.setdefault(task.kind(), []).append(place)
        self._groups = list(kinds.values())
        self._engines: list[tuple[list[int], Engine]] = []
        for group in self._groups:
            first, count = self.ranks.share(len(group))
            own = group[first : first + count]
            if own:
                chosen = [self.tasks[place] for place in own]
                self._engines.append((own, Engine(chosen, device=self.device, precision=precision)))

    @property
    def total_steps(self) -> int:
        """Steps of all groups, those of this process alone."""
        return sum(engine.total_steps for _, engine in self._engines)

    @property
    def step(self) -> int:
        """Number of steps done, of those."""
        return sum(engine.step for _, engine in self._engines)

    def run(self, steps: int, on_step: Callable[[int], None] | None = None) -> None:
        """Trains for so many steps, one group after the other.

        Args:
            steps: how many.
            on_step: called with the number of steps done.
        """
        until = self.step + steps
        before = 0
        for _, engine in self._engines:
            told = None if on_step is None else lambda done, b=before: on_step(b + done)
            engine.run(max(0, until - before - engine.step), told)
            before += engine.total_steps

    def bad_step(self, task: int) -> int | None:
        """The first step of a task, from 1, that was not finite; None also for other processes'."""
        for places, engine in self._engines:
            if task in places:
                return engine.bad_step(places.index(task))
        return None

    def models(self) -> list[MLP]:
        """The networks with their averaged weights, on the CPU, in the order of the tasks."""
        found: dict[int, MLP] = {}
        for group in self._groups:
            shape = self.tasks[group[0]].shape()
            flat = torch.zeros(len(group), shape.num_parameters, device=self.device)
            for places, engine in self._engines:
                if places[0] in group:
                    flat[[group.index(place) for place in places]] = engine.state.ema
            self.ranks.add_up(flat)
            for place, parameters in zip(group, flat.cpu(), strict=True):
                found[place] = self.tasks[place].initial().load_flat(parameters)
        return [found[place] for place in range(len(self.tasks))]

    def state_dict(self) -> dict[str, dict]:
        """Everything that a later :meth:`load_state_dict` needs to go on as if never stopped."""
        return {str(number): engine.state_dict() for number, (_, engine) in self._numbered()}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        """Goes back to a saved state of the same tasks.

        Raises:
            ValueError: it is that of other tasks.
        """
        for number, (_, engine) in self._numbered():
            engine.load_state_dict(state[str(number)])

    def _numbered(self) -> list[tuple[int, tuple[list[int], Engine]]]:
        return list(enumerate(self._engines))


def train_many(
    tasks: Sequence[Task],
    *,
    device: str | torch.device | None = None,
    precision: str = "fp16",
    ranks: Ranks | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[MLP]:
    """Trains many networks to the end of their recipes, those of one kind in the same launches.

    Args:
        tasks, device, precision, ranks: as of :class:`ManyTrainer`.
        progress: called with the number of steps done.

    Returns:
        The networks with their averaged weights, on the CPU, in the order of the tasks.
    """
    trainer = ManyTrainer(tasks, device=device, precision=precision, ranks=ranks)
    trainer.run(trainer.total_steps, progress)
    return trainer.models()
