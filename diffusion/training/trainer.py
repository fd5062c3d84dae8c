"""Training of one denoiser or noisy-point classifier, the data set on the device."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.default_state import methods_in_default_state
from ..data import Points
from ..errors import UserError
from ..logs import Callback
from ..models import Perceptron
from ..progress import reported
from ..schedules import Schedule
from .distributed import Ranks
from .engine import Engine
from .module_engine import ModuleEngine
from .recipes import ClassicRecipe, Recipe
from .reports import Reports
from .task import Task, check_initial
from .validation import validation_loss

_logger = logging.getLogger("flashpoint")


@methods_in_default_state
class Trainer:
    """Trains one network; :meth:`run` may be called until ``total_steps`` are done.

    Args:
        points: the data set.
        schedule: the forward process.
        recipe: the settings of the training.
        classify: False trains a denoiser, True a classifier of noisy points, which needs labels.
        model: a network of your own in place of the recipe's perceptron: a module of (x_t, t), or
            of (x_t, t, y) if the recipe has ``p_uncond``, that returns what the schedule's
            ``prediction`` says, or the logits of a classifier. It is trained in place, from its
            own weights, and moved to the device. See :mod:`flashpoint.diffusion.own_networks`.
        compile: True runs the model through ``torch.compile``.
        seed: seed of the initial weights and of everything drawn.
        device: None takes CUDA where there is one.
        precision: precision of the matrix products on CUDA: ``fp16``, ``bf16``, ``tf32``,
            ``tf32x3`` or ``fp32``; None is ``fp16``. Those of a model of your own are PyTorch's.
        ranks: the processes that share each batch.
        initial: a trained network whose weights the training starts from, in place of random ones:
            of the same shape, for the same prediction and the same classes. It is copied.

    Attributes:
        engine: the loop that trains, with all tensors on the device.
        module: the network being trained, the ``model`` if it was given. Its Parameters are views
            of one flat buffer, and changes made to them count from the next :meth:`run` on; one
            that is no longer a view, say after ``module.double()``, is made one again, with its
            values.

    Raises:
        ValueError: a classifier or a conditional denoiser is asked for and the points have no
            labels; or the model is no such network, or ``initial`` does not fit; or an argument has
            no effect.
    """

    def __init__(
        self,
        points: Points,
        schedule: Schedule,
        recipe: Recipe | ClassicRecipe,
        *,
        classify: bool = False,
        model: nn.Module | None = None,
        compile: bool = False,
        seed: int = 0,
        device: str | torch.device | None = None,
        precision: str | None = None,
        ranks: Ranks | None = None,
        initial: Perceptron | None = None,
    ):
        task = Task(points, schedule, recipe, classify, seed)
        if model is None and compile:
            raise UserError("compile must be left out without a model of your own")
        if model is not None:
            _check_left_out(precision=precision, initial=initial)
        if initial is not None:
            check_initial(initial, task)
        self.engine: Engine
        self.module: Any
        if model is None:
            precision = "fp16" if precision is None else precision
            self.engine = Engine([task], device=device, precision=precision, ranks=ranks)
            if initial is not None:
                self.engine.start_from(0, initial.network().parameters[0])
            self.module = task.initial().to(self.engine.device)
            for owner, name, view in self._views():
                getattr(owner, name).data = view
        else:
            self.engine = ModuleEngine(task, model, device=device, ranks=ranks, compile=compile)
            self.module = model
        self.module.register_state_dict_post_hook(_detach_saved)

    @property
    def task(self) -> Task:
        """The network to train: its data, schedule, recipe and seed."""
        return self.engine.tasks[0]

    @property
    def schedule(self) -> Schedule:
        """The forward process, which says what a denoiser predicts; samplers take this one."""
        return self.task.schedule

    @property
    def device(self) -> torch.device:
        """The device that the training runs on."""
        return self.engine.device

    @property
    def step(self) -> int:
        """Number of steps done."""
        return self.engine.step

    @property
    def total_steps(self) -> int:
        """Number of steps of the recipe."""
        return self.engine.total_steps

    @property
    def parameters(self) -> Tensor:
        """The network being trained as one flat tensor, float32 [P] on the device."""
        return self.engine.parameters[0]

    @property
    def losses(self) -> Tensor:
        """The loss of every step done, float32 [steps] on the device.

        Of a run of more than 100,000 steps they are that many, evenly spread.
        """
        return self.engine.losses.until(0, self.step)

    @property
    def losses_on_host(self) -> Tensor:
        """The losses that have reached the host, which may lack those of the latest steps."""
        return self.engine.losses.on_host(0)

    @property
    def epoch_losses(self) -> Tensor:
        """The mean loss of each epoch of a classic recipe, float32 [epochs] on the device."""
        return self.engine.epoch_losses[0]

    def run(
        self,
        steps: int,
        progress: bool | Callable[[int], None] = False,
        *,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Trains for so many steps, at most to the end of the recipe.

        Args:
            steps: number of steps.
            progress: True shows a bar on stderr; a function is called with the number of steps done
                after each step, or each graph of them.
            callbacks: objects that are told how the training goes, see :class:`.Callback`.

        Raises:
            ValueError: a callback has failed. What was trained by then stays, and the next call
                goes on.
        """
        self._take_back_parameters()
        title, last = f"train {self.task.role}", min(self.step + steps, self.total_steps)
        with (
            reported(progress, title, last, "steps", start=self.step) as show,
            Reports(self, callbacks) as reports,
        ):

            def on_step(done: int) -> None:
                show(done)
                reports.to(done)

            self.engine.run(steps, on_step)

    def model(self) -> Any:
        """Returns the network with the averaged weights, on the CPU: an MLP, or a copy of yours.

        A copy of your own is in ``eval()`` mode, with the buffers of the last step.
        """
        return self.engine.averaged(0)

    def validation_loss(self, points: Points) -> float:
        """Returns the mean loss of the averaged network on held-out points.

        It is the loss of the training, with noise that is the same in every call. Where it rises
        while the training loss falls, the network learns the training points by heart.

        Args:
            points: points that are not trained on, like those of the training.

        Raises:
            ValueError: the points are of another dimension or other classes.
        """
        return validation_loss(self.model(), self.task, points, self.device)

    def bad_step(self, *, wait: bool = True) -> int | None:
        """Returns the first step, counted from 1, whose loss or gradient was not finite, if any.

        Args:
            wait: waits for the device; False looks only at the losses that have reached the host.
                Only waiting sees a gradient of the very last step, in the weights.
        """
        return self.engine.bad_step(0, wait=wait)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that :meth:`load_state_dict` needs to go on as if never stopped."""
        return self.engine.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to a saved state, perhaps that of a longer or shorter recipe.

        The learning rates of the steps to come are those of this trainer's recipe. After the last
        step of a :class:`Recipe` of 1000 steps, whose rate has fallen to zero, one of 2000 steps
        goes on at the rate of its step 1000. Where a rate does not depend on the number of steps,
        as that of :class:`.PlainRecipe`, a training that was made longer is the same as a long one.

        Raises:
            ValueError: it is the state of another network, seed, recipe or schedule, or more steps
                are done than the recipe has.
        """
        self.engine.load_state_dict(state)

    def _views(self) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """Yields owner and name of each Parameter of the module, and its view of the buffer."""
        if isinstance(self.engine, ModuleEngine):
            yield from self.engine.views()
            return
        weights, biases, slope = self.engine.shape.unpack(self.engine.parameters)
        assert biases is not None  # every layer here has one
        for linear, weight, bias in zip(self.module.linears(), weights, biases, strict=True):
            yield linear, "weight", weight[0]
            yield linear, "bias", bias[0]
        if slope is not None:
            yield self.module.act, "weight", slope[0]

    @torch.no_grad()
    def _take_back_parameters(self) -> None:
        """Copies Parameters that are no longer views into the buffer, and makes them views."""
        if isinstance(self.engine, ModuleEngine):
            self.engine.check_module(self.module)
        strayed = [
            (getattr(owner, name), view)
            for owner, name, view in self._views()
            if not _is_same(getattr(owner, name), view)
        ]
        for parameter, view in strayed:
            view.copy_(parameter.detach())
            parameter.data = view
        if strayed:
            _logger.info(
                "%d parameters had left the trainer's buffer; their values were copied back",
                len(strayed),
            )


def _check_left_out(precision: str | None, initial: Perceptron | None) -> None:
    """Raises :class:`UserError` for an argument that does nothing with a model of the user's."""
    if precision is not None:
        raise UserError(
            f"precision must be left out with a model of your own, got {precision!r}: use "
            "torch.autocast in its forward"
        )
    if initial is not None:
        raise UserError(
            "initial must be left out with a model of your own, which starts from its own weights"
        )


def _is_same(parameter: Tensor, view: Tensor) -> bool:
    """Returns True if both are the same numbers in the same memory."""
    return (
        parameter.device == view.device
        and parameter.dtype == view.dtype
        and parameter.shape == view.shape
        and parameter.stride() == view.stride()
        and parameter.data_ptr() == view.data_ptr()
    )


def _detach_saved(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:  # noqa: ARG001
    """Copies saved tensors: a view of the buffer would be saved with the whole buffer."""
    for name, value in state.items():
        if isinstance(value, Tensor):  # a module of the user's may have other state besides
            state[name] = value.detach().clone()
