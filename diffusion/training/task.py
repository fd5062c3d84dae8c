"""The network to train: its data, its schedule, its recipe and its seed."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels import MLPShape
from ...kernels.default_state import methods_in_default_state
from ...kernels.philox import child_seed
from ..data import Points
from ..errors import UserError
from ..models import (
    MLP,
    Perceptron,
    check_prediction,
    check_weights,
    class_table,
    seeded_mlp,
)
from ..own_networks import check_is_own, describe
from ..schedules import Schedule
from .recipes import ClassicRecipe, Recipe


def check_maker(model: object) -> None:
    """Raises :class:`UserError` unless it is a function that makes a network, and no network."""
    if isinstance(model, nn.Module) or not callable(model):
        raise UserError(
            f"model must be a function of the task that makes a network, got {type(model).__name__}"
        )


@methods_in_default_state
@dataclass(frozen=True, eq=False)
class Task:
    """One network to train.

    Args:
        points: the data set.
        schedule: the forward process. If the recipe of a denoiser says what to predict, the task's
            schedule does, too.
        recipe: the settings of the training.
        classify: False trains a denoiser, True a classifier of noisy points, which needs labels.
        seed: seed of the initial weights and of everything drawn.
        model: function of the task that makes a network of your own, with weights that it draws
            from PyTorch's generator, which the seed sets; None for the recipe's perceptron. See
            :mod:`~flashpoint.diffusion.own_networks`.

    Raises:
        ValueError: labels are needed and the points have none, or the model is no function.
    """

    points: Points
    schedule: Schedule
    recipe: Recipe | ClassicRecipe
    classify: bool = False
    seed: int = 0
    model: "Callable[[Task], nn.Module] | None" = None

    def __post_init__(self):
        if self.model is not None:
            check_maker(self.model)
        if (self.classify or self.conditional) and self.points.labels is None:
            network = "classifier" if self.classify else "conditional denoiser"
            raise UserError(f"{self.points.name}: a {network} needs labels, got none")
        prediction = self.recipe.prediction
        if prediction not in (None, self.schedule.prediction) and not self.classify:
            object.__setattr__(self, "schedule", self.schedule.predicting(str(prediction)))

    @property
    def role(self) -> str:
        """What is trained: ``denoiser`` or ``classifier``."""
        return "classifier" if self.classify else "denoiser"

    @property
    def conditional(self) -> bool:
        """True for a denoiser that takes the class as an input."""
        return self.recipe.p_uncond is not None and not self.classify

    @property
    def pairs(self) -> int:
        """Number of (point, timestep) pairs."""
        return len(self.points) * self.schedule.num_steps

    @property
    def total_steps(self) -> int:
        """Number of steps of the recipe."""
        return self.recipe.total_steps(self.pairs)

    @cached_property
    def num_parameters(self) -> int:
        """Number of parameters of the network."""
        if self.model is None:
            return self.shape().num_parameters
        return sum(p.numel() for p in self.initial().parameters())

    @property
    def initial_seed(self) -> int:
        """Seed of the initial weights."""
        return child_seed(self.seed, 0)

    @property
    def draw_seed(self) -> int:
        """Seed of the points, timesteps and noise that the steps draw."""
        return child_seed(self.seed, 1)

    def class_features(self) -> Tensor | None:
        """Returns the inputs that stand for each class, float32 [C + 1, E]; None without any."""
        if not self.conditional:
            return None
        return class_table(self.points.num_classes, self.recipe.class_embedding)

    def shape(self) -> MLPShape:
        """Returns the shape of the recipe's perceptron."""
        recipe, class_features = self.recipe, self.class_features()
        width = self.points.dim + self.schedule.time_features.shape[1]
        width += 0 if class_features is None else class_features.shape[1]
        outputs = self.points.num_classes if self.classify else self.points.dim
        widths = (width, *recipe.hidden_layers, outputs)
        return MLPShape(widths, recipe.activation, linear_input=recipe.linear_input)

    def initial(self) -> Any:
        """Returns the network before training: an MLP that says what it predicts, or your own."""
        if self.model is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.initial_seed)
                network = copy.deepcopy(self.model(self))  # it may be the same for all tasks
            self.describe(network)
            return network
        network = seeded_mlp(self.shape(), self.initial_seed, self.class_features())
        network.prediction = None if self.classify else self.schedule.prediction
        return network

    def describe(self, network: nn.Module) -> None:
        """Makes a network of your own say what it predicts, and its points' dimension and classes.

        Raises:
            ValueError: it is no such network, or says something else.
        """
        check_is_own("model", network)
        prediction = None if self.classify else self.schedule.prediction
        classes = self.points.num_classes if self.conditional else None
        describe(network, prediction, self.points.dim, classes)

    def trained(self, parameters: Tensor) -> MLP:
        """Returns the recipe's perceptron with these weights, float32 [P]."""
        return self.initial().load_flat(parameters)

    def kind(self) -> tuple:
        """Returns the properties that tasks must share to be trained in the same launches."""
        if self.model is not None:  # no other network has its layers
            return ("own", id(self))
        recipe, class_features = self.recipe, self.class_features()
        return (
            self.shape(), self.points.dim, self.classify,
            None if class_features is None else class_features.shape, recipe.batch_size,
            recipe.refresh, recipe.optimizer, recipe.chunk_rows, recipe.clip_norm is None,
        )  # fmt: skip


def check_initial(initial: Perceptron, task: Task) -> None:
    """Raises :class:`UserError` unless a training can start from the weights of a network.

    Args:
        initial: the network.
        task: what is to be trained.
    """
    if not isinstance(initial, Perceptron):
        raise UserError(f"initial must be a network, got {type(initial).__name__}")
    if initial.shape != task.shape():
        raise UserError(
            f"initial must be of the shape of the recipe, {_described(task.shape())}, got "
            f"{_described(initial.shape)}"
        )
    own, given = task.class_features(), getattr(initial, "class_features", None)
    same = given is None if own is None else given is not None and torch.equal(own, given.to(own))
    if not same:
        raise UserError(
            "initial must take the class as the recipe says: class_embedding "
            f"{task.recipe.class_embedding!r} of {task.points.num_classes} classes, p_uncond "
            f"{task.recipe.p_uncond}"
        )
    if not task.classify:
        check_prediction(initial, task.schedule)
    check_weights("initial", *initial.parameters())


def _described(shape: MLPShape) -> str:
    first = ", no activation after the first layer" if shape.linear_input else ""
    return f"{'-'.join(map(str, shape.widths))} with {shape.activation}{first}"
