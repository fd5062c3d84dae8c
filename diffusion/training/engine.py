"""Training of M networks of one shape in the same launches, without waiting for the host.

:mod:`.module_engine` trains a user's own network in the same loop.

The step counter, the learning rates and the losses live on the device. On CUDA some fifty steps are
captured in one graph and replayed, and the host stays two replays ahead; elsewhere the same steps
run one by one.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...kernels import (
    MLPShape,
    ReducedGradient,
    Workspace,
    adamw_,
    adamw_state,
    reduce_grad,
    training_sums,
    workspace_of,
)
from ...kernels.adamw import update_shadow
from ...kernels.cuda import capture, device_of
from ...kernels.default_state import methods_in_default_state
from ..device import choose_device
from ..errors import UserError
from .distributed import Ranks
from .losses import LossRecord
from .on_device import MOST_LOSSES, course_of, training_data
from .task import Task
from .written import written

GRAPH_STEPS = 50  # steps of a CUDA graph
# Rows that go through the networks at once: one program of 128 rows for each multiprocessor of a
# large GPU. Half of them would fit into its cache, but as programs of 64 rows read more weights.
_CHUNK_ROWS = 128 * 132


@methods_in_default_state
class Engine:
    """Trains the networks of M tasks of one kind.

    :class:`~.trainer.Trainer` is for one network, :class:`~.many.ManyTrainer` for tasks of any
    kind.

    Args:
        tasks: the networks to train, all of one :meth:`~.task.Task.kind`.
        device: None takes CUDA where there is one.
        precision: precision of the matrix products on CUDA.
        ranks: the processes that share each batch.

    Attributes:
        parameters: float32 [M, P] on the device, the networks being trained.
        state: moments and averaged weights.
        course: learning rates and losses, on the device.
        losses: the losses of each network by step.
        seeds: int64 [M] on the device, seeds of the draws.
        step: number of steps done.
        total_steps: number of steps of the longest recipe.

    Raises:
        ValueError: there is no task, or the tasks are of different kinds.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        device: str | torch.device | None = None,
        precision: str = "fp16",
        ranks: Ranks | None = None,
    ):
        if len({task.kind() for task in tasks}) != 1:
            raise UserError("tasks must be at least one, and all of one kind")
        self.tasks, self.recipe = tuple(tasks), tasks[0].recipe
        self.device, self.ranks = choose_device(device), ranks or Ranks()
        self.precision = precision
        self.parameters = self._initial_parameters()
        self.state = adamw_state(self.parameters)
        self.data = training_data(tasks, self.device)
        self.course = course_of(tasks, self.device)
        self.losses = LossRecord(self.course.losses, [task.total_steps for task in tasks])
        self.seeds = torch.tensor([task.draw_seed for task in tasks], device=self.device)
        self.total_steps = max(task.total_steps for task in tasks)
        self.step = 0
        self._options = self._optimizer_options()
        self._chunks = _chunks(*self.ranks.share(self.recipe.batch_size), self.recipe.chunk_rows)
        self.workspace = self._new_workspace()
        self._gradient = self._reduced_gradient()
        # The numbers of the steps to come: a captured step reads its own on the device.
        self._step_numbers = torch.arange(GRAPH_STEPS + 1, device=self.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rates_until = 0  # the step before which the rates must be set anew from the losses

    def _initial_parameters(self) -> Tensor:
        """Returns the networks before training, float32 [M, P] on the device."""
        self.shape: MLPShape = self.tasks[0].shape()
        initial = [task.initial().network().parameters for task in self.tasks]
        return torch.cat(initial).to(self.device)

    def _new_workspace(self) -> Workspace:
        """Returns the memory of the steps."""
        return workspace_of(
            self.parameters, self.shape, self.data, self._chunks[0][1], precision=self.precision
        )

    def _optimizer_options(self) -> dict[str, Any]:
        """Returns the options of :func:`adamw_`: a number where all tasks agree, else [M]."""
        recipes = [task.recipe for task in self.tasks]

        def option(name: str) -> float | Tensor:
            values = [getattr(recipe, name) for recipe in recipes]
            return values[0] if len(set(values)) == 1 else torch.tensor(values, device=self.device)

        return {
            "weight_decay": option("weight_decay"),
            "ema_decay": option("ema_decay"),
            "clip_norm": option("clip_norm"),
            "decoupled": self.recipe.optimizer == "adamw",
        }

    def _reduced_gradient(self) -> ReducedGradient | None:
        """Returns room for the whole gradient, which clipping and several ranks need."""
        if self.recipe.clip_norm is None and self.ranks.size == 1:
            return None
        return reduce_grad(torch.zeros_like(self.workspace.sums))

    @torch.no_grad()
    def run(self, steps: int, on_step: Callable[[int], None] | None = None) -> None:
        """Trains for so many steps, at most to the end of the longest recipe.

        Args:
            steps: number of steps.
            on_step: called with the number of steps done after each step, or each graph of them.
        """
        if self.workspace.shadow is not None:  # the parameters may have been changed from outside
            update_shadow(self.parameters, self.workspace.shadow)
        last = min(self.step + steps, self.total_steps)
        while self.step < last:
            with device_of(self.parameters):  # streams and events are those of the current device
                self._set_rates_from_losses()
                done = self._advance(min(last, self._rates_until) - self.step)
                self.losses.copy_to_host(self.step, self.step + done)
            self.step += done
            if on_step is not None:
                on_step(self.step)

    def _advance(self, most: int) -> int:
        """Does a graph of steps, or one step; returns how many were done."""
        if not self._captures or self.ranks.size > 1 or most < GRAPH_STEPS:
            self._do_steps(1)
            return 1
        if self._graph is None:
            self._capture()
            return 1
        self._graph.replay()
        return GRAPH_STEPS

    @property
    def _captures(self) -> bool:
        """True if steps are captured in a graph: on CUDA, where kernels do all of a step."""
        return self.device.type == "cuda" and self.workspace.shadow is not None

    def _capture(self) -> None:
        """Does one step, and captures a graph of those to come."""
        self._do_steps(1)  # loads the kernels, which must not happen while a graph is captured
        self._graph = capture(lambda: self._do_steps(GRAPH_STEPS))

    def _do_steps(self, count: int) -> None:
        for step, next_step in pairwise(self._step_numbers[: count + 1]):
            self._do_step(step, next_step)
        self._step_numbers += count

    def _do_step(self, step: Tensor, next_step: Tensor) -> None:
        """Does one step. Its number, counted from 0, and the next one are on the device."""
        sums, squares = self._sums(step), None
        if self._gradient is not None:
            sums, squares = reduce_grad(sums, out=self._gradient)
            if self.ranks.size > 1:
                self.ranks.add_up(sums)
                sums, squares = reduce_grad(sums, out=self._gradient)
        adamw_(
            self.parameters, sums, self.state, lr=self.course, step=next_step, squares=squares,
            shadow=self.workspace.shadow, **self._options,
        )  # fmt: skip

    def _sums(self, step: Tensor) -> Tensor:
        """Returns gradients, losses and numbers of terms of a step, [M, S, P + 2]."""
        recipe = self.recipe
        for first, rows in self._chunks:
            sums = training_sums(
                self.parameters, self.shape, self.data, self.workspace,
                batch_size=recipe.batch_size, seed=self.seeds, step=step, refresh=recipe.refresh,
                first_row=first, rows=rows, add=first > self._chunks[0][0],
            )  # fmt: skip
        return sums

    def _set_rates_from_losses(self) -> None:
        """Sets the learning rate of an epoch where it depends on the losses of those before."""
        if self.step < self._rates_until:
            return
        until = [self.total_steps]
        for model, task in enumerate(self.tasks):
            if not task.recipe.depends_on_losses or self.step >= task.total_steps:
                continue
            steps_per_epoch = task.recipe.steps_per_rate(task.pairs)
            epoch = self.step // steps_per_epoch
            losses = self.epoch_losses[model, :epoch].tolist()
            rate = task.recipe.learning_rate(self.step, task.pairs, losses)
            self.course.rates[model, epoch] = rate
            until.append((epoch + 1) * steps_per_epoch)
        self._rates_until = min(until)

    @property
    def epoch_losses(self) -> Tensor:
        """The mean loss of each epoch, [M, epochs] on the device; [M, 0] if there are no epochs."""
        means = self.course.means
        return self.parameters[:, :0] if means is None else means

    def bad_step(self, model: int, *, wait: bool = True) -> int | None:
        """Returns the first step, counted from 1, whose loss or gradient was not finite, if any.

        Args:
            model: number of the network.
            wait: waits for the device; False looks only at the losses that have reached the host.
                Only waiting sees a gradient of the very last step, in the weights.
        """
        losses = self.losses.until(model, self.step) if wait else self.losses.on_host(model)
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            return self.losses.step_of(model, int(bad[0]))
        overflowed = wait and not self.parameters[model].isfinite().all()
        return self.step if overflowed else None

    def start_from(self, model: int, flat: Tensor) -> None:
        """Replaces the initial weights of a network by others, float32 [P]."""
        for tensor in (self.parameters, self.state.ema):
            tensor[model].copy_(flat)

    def averaged(self, model: int) -> Any:
        """Returns a network with its averaged weights, on the CPU."""
        return self.tasks[model].trained(self.state.ema[model].cpu())

    def _changing(self) -> dict[str, Tensor]:
        """Returns all tensors that change from step to step."""
        return {
            "parameters": self.parameters,
            "losses": self.course.losses,
            "epoch_losses": self.epoch_losses,
            **self.state._asdict(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that :meth:`load_state_dict` needs to go on as if never stopped."""
        tensors = {name: _saved(tensor) for name, tensor in self._changing().items()}
        state = {"step": self.step, "seed": _saved(self.seeds), "total": _saved(self.course.total)}
        return {**state, **self._settings(self.course.total.tolist()), **tensors}

    def _settings(self, totals: Sequence[int]) -> dict[str, Tensor]:
        """Returns digests of the recipes, were they so many steps long, and schedules, [M, 32].

        What a recipe asks the network to predict is in the task's schedule.
        """
        recipes = [
            replace(task.recipe.lasting(total, task.pairs), prediction=None)
            for task, total in zip(self.tasks, totals, strict=True)
        ]
        schedules = [task.schedule for task in self.tasks]
        return {"recipe": _digests(recipes), "schedule": _digests(schedules)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to a saved state, perhaps of recipes that were longer or shorter.

        From here on the learning rates are those of the recipes of now.

        Raises:
            ValueError: it is no such state, or that of other networks, seeds, recipes or schedules,
                or more steps are done than the recipes have.
        """
        missing = {"step", "seed", *self._changing()} - set(state)
        if missing:
            raise UserError(f"the saved state is none of a training: it lacks {min(missing)}")
        tensors = self._changing()
        loaded = {name: _with_model_axis(state[name], here) for name, here in tensors.items()}
        step, totals = int(state["step"]), self._saved_totals(state, loaded["losses"])
        self._check_length(step, totals)
        for name, here in tensors.items():
            # Of records only the number of models is given: their length is that of the recipe.
            axes = 1 if name in ("losses", "epoch_losses") else here.dim()
            if loaded[name].shape[:axes] != here.shape[:axes]:
                raise UserError(
                    f"saved {name} have shape {list(loaded[name].shape)}, "
                    f"this run needs {list(here.shape)}"
                )
        if not torch.equal(_with_model_axis(state["seed"], self.seeds), self.seeds.cpu()):
            raise UserError("the saved state belongs to a run with another seed")
        for name, digests in self._settings(totals).items():
            if not torch.equal(state.get(name, digests), digests):  # older states lack them
                settings = ", ".join(sorted({str(getattr(task, name)) for task in self.tasks}))
                raise UserError(
                    f"the saved state belongs to a run with another {name}, not {settings}"
                )
        for name in tensors.keys() - {"losses", "epoch_losses"}:
            tensors[name].copy_(loaded[name])
        epochs = min(each["epoch_losses"].shape[1] for each in (tensors, loaded))
        tensors["epoch_losses"][:, :epochs] = loaded["epoch_losses"][:, :epochs]
        self.step = self._rates_until = step
        self.losses.take_over(loaded["losses"], totals, step)
        self._step_numbers.copy_(torch.arange(self.step, self.step + GRAPH_STEPS + 1))

    def _saved_totals(self, state: dict[str, Any], losses: Tensor) -> list[int]:
        """Returns the number of steps of each recipe of a saved state.

        Older states do not say it. There are as many losses [1, K] as steps in a state of one
        network, unless they were too many to keep; of several the recipes were those of now.
        """
        if "total" in state:
            return state["total"].tolist()
        if len(self.tasks) == 1 and losses.shape[1] < MOST_LOSSES:
            return [losses.shape[1]]
        return self.course.total.tolist()

    def _check_length(self, step: int, totals: Sequence[int]) -> None:
        """Checks that every recipe can go on after so many steps of those that were saved."""
        for before, now in zip(totals, self.course.total.tolist(), strict=True):
            if now < min(step, before):
                raise UserError(
                    f"the recipe must have at least the {min(step, before):,} steps that are done "
                    f"in the saved state, got {now:,}"
                )
            if now > before and step > before:
                raise UserError(
                    f"a network that ended at step {before:,}, before the others, cannot go on to "
                    f"{now:,}"
                )


def _chunks(first: int, rows: int, most: int | None) -> list[tuple[int, int]]:
    """Returns first row and number of rows of each chunk that goes through the networks at once.

    There is at least one chunk, perhaps without rows.
    """
    if most is None:
        most = _CHUNK_ROWS if rows > 2 * _CHUNK_ROWS else max(1, rows)
    starts = range(first, first + max(1, rows), most)
    return [(start, min(most, first + rows - start)) for start in starts]


def _digests(settings: Sequence[object]) -> Tensor:
    """Returns the SHA-256 of the text of each setting, uint8 [M, 32]."""
    return torch.tensor(
        [[*hashlib.sha256(written(each).encode()).digest()] for each in settings]
    ).byte()


def _saved(tensor: Tensor) -> Tensor:
    """Returns a copy on the CPU that shares its memory with nothing."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _with_model_axis(saved: Tensor | int, here: Tensor) -> Tensor:
    """Returns a saved tensor with its axis M, which states of one network used to lack."""
    tensor = torch.as_tensor(saved)
    return tensor[None] if tensor.dim() < here.dim() else tensor
