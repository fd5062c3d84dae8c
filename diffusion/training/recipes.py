"""Recipes: the draws, the learning rates and the optimiser that train a network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ...kernels import MLPShape
from ...kernels.default_state import methods_in_default_state
from ..choices import CLASS_EMBEDDINGS, OPTIMIZERS, T_DENSITIES
from ..errors import UserError, check_choice, check_integer, check_number, shown
from ..models import ACTIVATIONS, layer_widths
from ..predictions import PREDICTIONS, WEIGHTINGS


@dataclass(frozen=True)
class _Common:
    """The fields that recipes of both kinds have."""

    activation: str = field(default="prelu", kw_only=True)
    linear_input: bool = field(default=False, kw_only=True)
    p_uncond: float | None = field(default=None, kw_only=True)
    class_embedding: str = field(default="learned", kw_only=True)
    clip_norm: float | None = field(default=None, kw_only=True)
    chunk_rows: int | None = field(default=None, kw_only=True)
    prediction: str | None = field(default=None, kw_only=True)
    weighting: str = field(default="uniform", kw_only=True)


@methods_in_default_state
@dataclass(frozen=True)
class Recipe(_Common):
    """The fast recipe: fresh noise in every step, one-cycle learning rate, AdamW, EMA.

    The defaults suit networks that predict eps, v, flow or edm: after as many steps, and in units
    of the noise, their errors are within 1.5 times that of eps (``python -m flashpoint.bench
    parametrisations``). One that predicts x0 has to reproduce its input where there is little
    noise, to within a thousandth, and has no skip connection to do it; its error is about 200 times
    that of eps, with ``min-snr`` about 50 times. The network of ``edm`` predicts x0 through a skip
    connection. Leave ``low_noise`` as it is with ``logit-normal``, which alone hardly ever draws
    the timesteps that decide the finest detail. ``log-normal`` needs none with the ``edm``
    schedule, whose sigma it was made for.

    Args:
        steps: number of optimiser steps.
        hidden_layers: widths of the network's hidden layers.
        batch_size: rows per step.
        lr: peak learning rate. The rate rises to it over the first ``warmup`` of the steps and
            falls to zero along a cosine (Smith and Topin 2018).
        warmup: fraction of the steps.
        weight_decay: weight decay of AdamW.
        ema_decay: decay of the moving average of the weights, which is the result.
        low_noise: fraction of the rows whose timestep is drawn uniformly in the logarithm of the
            noise level sqrt((1 - alpha_bar) / alpha_bar) rather than uniformly in t. The finest
            detail of the samples is decided in the few least noisy timesteps, which a uniform draw
            visits too rarely (compare Karras et al. 2022, section 5).
        activation, linear_input: options of the network, see :class:`flashpoint.diffusion.MLP`.
        p_uncond: probability that a row's class is withheld from a conditional denoiser (Ho and
            Salimans 2022, algorithm 1); None trains a denoiser that takes no class.
        class_embedding: embedding of the class in a conditional denoiser, see
            :func:`flashpoint.diffusion.class_table`.
        clip_norm: largest norm of the gradient; None does not clip.
        chunk_rows: number of rows that go through the network at once; the gradients of the chunks
            of a batch add up. None takes as many as stay in a GPU's cache if that is less than half
            of a batch, else the whole batch.
        prediction: what the denoiser predicts, ``eps``, ``x0``, ``v``, ``flow`` or ``edm``, see
            :class:`flashpoint.diffusion.Schedule`; None leaves it to the schedule.
        weighting: how much an error counts at each timestep: ``uniform`` takes that of what the
            network predicts as it is, ``min-snr`` (Hang et al. 2023), ``p2`` (Choi et al. 2022) and
            ``edm`` (Karras et al. 2022) weight it by the signal-to-noise ratio.
        t_density: density of the timesteps of the rows that are not ``low_noise``: ``uniform`` in
            t, or normal in log(sigma), ``logit-normal`` with mean 0 and standard deviation 1 as for
            flow matching (Esser et al. 2024, section 3.1), ``log-normal`` with -1.2 and 1.2 (Karras
            et al. 2022, table 1). A classifier's are uniform.
        p_mean, p_std: mean and standard deviation of log(sigma) in a normal ``t_density``, in place
            of those. Most rows should have the noise in which the finest detail appears.

    Raises:
        ValueError: a count or rate is out of range.
    """

    steps: int = 5000
    hidden_layers: tuple[int, ...] = (256, 256, 256, 256)
    batch_size: int = 2048
    lr: float = 6e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    ema_decay: float = 0.998
    low_noise: float = 0.75
    t_density: str = field(default="uniform", kw_only=True)
    p_mean: float | None = field(default=None, kw_only=True)
    p_std: float | None = field(default=None, kw_only=True)

    optimizer = "adamw"
    refresh = None  # nothing is kept from step to step
    depends_on_losses = False

    def __post_init__(self):
        _check_common(self, "steps")
        for name in ("warmup", "ema_decay"):
            share = getattr(self, name)
            if not (_is_number(share) and 0 <= share < 1):
                raise UserError(f"{name} must be in [0, 1), got {shown(share)}")
        check_number("low_noise", self.low_noise, 0, 1)
        check_choice("t_density", self.t_density, T_DENSITIES)
        self._check_normal()

    def _check_normal(self) -> None:
        """Checks mean and standard deviation of a normal density of timesteps."""
        given = {"p_mean": self.p_mean, "p_std": self.p_std}
        for name, value in given.items():
            if value is None:
                continue
            if self.t_density == "uniform":
                normal = " or ".join(T_DENSITIES[1:])
                raise UserError(
                    f"{name} must be left out unless t_density is {normal}, got {shown(value)}"
                )
            check_number(name, value)
        if self.p_std is not None and self.p_std <= 0:
            raise UserError(f"p_std must be positive, got {shown(self.p_std)}")

    def total_steps(self, pairs: int) -> int:  # noqa: ARG002
        """Returns the number of optimiser steps, whatever the number of (point, timestep) pairs."""
        return self.steps

    def lasting(self, steps: int, pairs: int) -> "Recipe":  # noqa: ARG002
        """Returns the recipe with another number of optimiser steps."""
        return replace(self, steps=steps)

    def steps_per_rate(self, pairs: int) -> int:  # noqa: ARG002
        """Returns 1: every step has its own learning rate."""
        return 1

    def rates(self, pairs: int) -> Tensor:  # noqa: ARG002
        """Returns the learning rates, float64 [steps]."""
        step, rise = torch.arange(self.steps, dtype=torch.float64), self.warmup * self.steps
        fall = self.lr * (1 + (math.pi * (step - rise) / (self.steps - rise)).cos()) / 2
        return torch.where(step < rise, self.lr * (step + 1) / (rise + 1), fall)

    def learning_rate(self, step: int, pairs: int, losses: Sequence[float]) -> float:  # noqa: ARG002
        """Returns the learning rate of a step, counted from 0; it does not depend on losses."""
        return self.rates(pairs)[step].item()


@methods_in_default_state
@dataclass(frozen=True)
class PlainRecipe(Recipe):
    """The plain recipe of course work: Adam at a constant rate, all timesteps equally often.

    The last weights are the result.
    """

    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.0
    ema_decay: float = 0.0
    low_noise: float = 0.0

    optimizer = "adam"

    def rates(self, pairs: int) -> Tensor:  # noqa: ARG002
        """Returns the same rate for every step, float64 [steps]."""
        return torch.full((self.steps,), self.lr, dtype=torch.float64)


@dataclass(frozen=True)
class StepDecay:
    """Multiplies the rate by ``factor`` after every ``every`` epochs, as PyTorch's ``StepLR``."""

    every: int = 2
    factor: float = 0.99

    def scale(self, epoch: int, epochs: int, lr: float, losses: Sequence[float]) -> float:  # noqa: ARG002
        """Returns the factor of the learning rate in an epoch, counted from 0."""
        return self.factor ** (epoch // self.every)


@dataclass(frozen=True)
class CosineDecay:
    """Lowers the rate along a cosine to ``floor``, as PyTorch's ``CosineAnnealingLR``."""

    floor: float = 5e-6

    def scale(self, epoch: int, epochs: int, lr: float, losses: Sequence[float]) -> float:  # noqa: ARG002
        """Returns the factor of the learning rate in an epoch, counted from 0."""
        low = self.floor / lr
        return low + (1 - low) * (1 + math.cos(math.pi * epoch / epochs)) / 2


@dataclass(frozen=True)
class PlateauDecay:
    """Multiplies the rate by ``factor`` when the loss has stopped falling.

    The loss has stopped when it has not fallen by 1e-4 of itself for ``patience`` epochs. The same
    as PyTorch's ``ReduceLROnPlateau``, as a function of the past losses.
    """

    factor: float = 0.5
    patience: int = 3

    def scale(self, epoch: int, epochs: int, lr: float, losses: Sequence[float]) -> float:  # noqa: ARG002
        """Returns the factor of the learning rate in an epoch, counted from 0."""
        scale, best, bad = 1.0, math.inf, 0
        for loss in losses[:epoch]:
            if loss < best * (1 - 1e-4):
                best, bad = loss, 0
            else:
                bad += 1
            if bad > self.patience:
                scale, bad = scale * self.factor, 0
        return scale


@methods_in_default_state
@dataclass(frozen=True)
class ClassicRecipe(_Common):
    """The classic recipe: epochs over all pairs of point and timestep, in random order.

    A pair keeps its noise for ``refresh`` epochs. Nothing that grows with the number of pairs is
    ever stored.

    Args:
        epochs: number of passes over all pairs.
        hidden_layers: widths of the network's hidden layers.
        batch_size: rows per step; the last batch of an epoch may be smaller.
        lr: learning rate of the first epoch.
        decay: rule by which the rate falls from epoch to epoch.
        optimizer: ``adamw``, or ``adam`` with the weight decay in the gradient.
        weight_decay: weight decay of the optimiser.
        refresh: number of epochs between two draws of the noise.
        activation, linear_input, p_uncond, class_embedding, clip_norm, chunk_rows, prediction,
            weighting: see :class:`Recipe`.

    Raises:
        ValueError: a count or rate is out of range, or the optimiser is unknown.
    """

    epochs: int
    hidden_layers: tuple[int, ...] = (256, 256, 256, 256)
    batch_size: int = 10_000
    lr: float = 1e-3
    decay: StepDecay | CosineDecay | PlateauDecay = field(default_factory=StepDecay)
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    refresh: int = 25

    ema_decay = 0.0  # the last weights are the result
    low_noise = 0.0
    t_density = "uniform"
    p_mean = p_std = None

    def __post_init__(self):
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_common(self, "epochs", "refresh")

    @property
    def depends_on_losses(self) -> bool:
        """True if the rate of an epoch depends on the losses of the epochs before."""
        return isinstance(self.decay, PlateauDecay)

    def steps_per_rate(self, pairs: int) -> int:
        """Returns the number of steps of an epoch, which has one learning rate."""
        return -(-pairs // self.batch_size)

    def total_steps(self, pairs: int) -> int:
        """Returns the number of optimiser steps over ``pairs`` (point, timestep) pairs."""
        return self.epochs * self.steps_per_rate(pairs)

    def lasting(self, steps: int, pairs: int) -> "ClassicRecipe":
        """Returns the recipe with as many epochs as so many optimiser steps make, at least one."""
        return replace(self, epochs=max(1, steps // self.steps_per_rate(pairs)))

    def rates(self, pairs: int) -> Tensor:
        """Returns the learning rates, float64 [epochs], as far as they do not depend on losses."""
        every = self.steps_per_rate(pairs)
        rates = [self.learning_rate(epoch * every, pairs, ()) for epoch in range(self.epochs)]
        return torch.tensor(rates, dtype=torch.float64)

    def learning_rate(self, step: int, pairs: int, losses: Sequence[float]) -> float:
        """Returns the learning rate of a step, counted from 0, given the losses before it.

        Args:
            step: number of the step.
            pairs: number of (point, timestep) pairs.
            losses: mean loss of each epoch before the step's.
        """
        epoch = step // self.steps_per_rate(pairs)
        return self.lr * self.decay.scale(epoch, self.epochs, self.lr, losses)


def _check_common(recipe: Recipe | ClassicRecipe, *counts: str) -> None:
    """Checks the fields that both kinds have, and makes integers of numpy those of Python.

    Args:
        recipe: the recipe.
        *counts: names of its further fields that count something.

    Raises:
        ValueError: a field is of a wrong type or out of range.
    """
    for name in ("batch_size", *counts):
        check_integer(name, getattr(recipe, name), 1)
        object.__setattr__(recipe, name, int(getattr(recipe, name)))
    check_number("weight_decay", recipe.weight_decay, 0)
    check_choice("activation", recipe.activation, ACTIVATIONS)
    check_choice("class_embedding", recipe.class_embedding, CLASS_EMBEDDINGS)
    if recipe.prediction is not None:
        check_choice("prediction", recipe.prediction, PREDICTIONS)
    check_choice("weighting", recipe.weighting, WEIGHTINGS)
    if recipe.p_uncond is not None:
        check_number("p_uncond", recipe.p_uncond, 0, 1)
    clip_norm = recipe.clip_norm
    if clip_norm is not None and not (_is_number(clip_norm) and clip_norm > 0):
        raise UserError(f"clip_norm must be positive, got {shown(clip_norm)}")
    if recipe.chunk_rows is not None:
        check_integer("chunk_rows", recipe.chunk_rows, 1)
    if not (_is_number(recipe.lr) and 0 < recipe.lr < math.inf):
        raise UserError(f"lr must be positive and finite, got {shown(recipe.lr)}")
    widths = layer_widths(1, 1, recipe.hidden_layers)
    object.__setattr__(recipe, "hidden_layers", widths[1:-1])
    try:
        MLPShape(widths, recipe.activation, linear_input=recipe.linear_input)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def with_own_mean(changes: dict[str, Any]) -> dict[str, Any]:
    """Returns changes of a recipe in which another ``t_density`` has its source's mean."""
    return {"p_mean": None, "p_std": None} | changes if "t_density" in changes else changes


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


# Recipes of denoiser and classifier, by name. The classic ones are published settings for STATES.
_CLASSIFIER, _SMALL = (100, 200, 500), (128, 128, 128)
RECIPES: dict[str, tuple[Recipe | ClassicRecipe, Recipe | ClassicRecipe]] = {
    "fast": (
        Recipe(),
        Recipe(steps=2500, hidden_layers=_CLASSIFIER, lr=5e-3, low_noise=0.0),
    ),
    "states": (  # most rows at the noise that hides the finest outlines; more steps, fewer rows
        Recipe(
            20_000, batch_size=512, lr=4.5e-3, low_noise=0.35, t_density="log-normal",
            p_mean=-3.2, p_std=0.8,
        ),
        Recipe(1500, _CLASSIFIER, 1024, lr=5e-3, ema_decay=0.99, low_noise=0.0),
    ),
    "long": (  # learns classes in fine stripes, as those of helix are
        Recipe(steps=10_000),
        Recipe(steps=5000, hidden_layers=_CLASSIFIER, lr=5e-3, low_noise=0.0),
    ),
    "small": (  # reaches what real points score on the data sets of two and three dimensions
        Recipe(3000, _SMALL, 1024, lr=5e-3),
        Recipe(1500, _SMALL, 1024, lr=5e-3, low_noise=0.0),
    ),
    "classic-a": (
        ClassicRecipe(300, weight_decay=1e-7, refresh=25, decay=StepDecay(2, 0.99)),
        ClassicRecipe(
            50, _CLASSIFIER, optimizer="adam", weight_decay=1e-4, refresh=100,
            decay=PlateauDecay(0.5, 3),
        ),
    ),
    "classic-b": (
        ClassicRecipe(
            500, optimizer="adam", weight_decay=1e-4, refresh=50, decay=CosineDecay(5e-6)
        ),
        ClassicRecipe(
            10, _CLASSIFIER, 20_000, optimizer="adam", weight_decay=1e-5, refresh=50,
            decay=CosineDecay(1e-5),
        ),
    ),
}  # fmt: skip
