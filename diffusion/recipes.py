"""How a network is trained: what each step draws and at which learning rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels import MLPShape
from .errors import UserError, check_at_least, check_choice
from .models import ACTIVATIONS, CLASS_EMBEDDINGS

OPTIMIZERS = ("adamw", "adam")


@dataclass(frozen=True)
class Recipe:
    """The fast recipe: fresh noise in every step, one-cycle learning rate, AdamW, EMA.

    Args:
        steps: number of optimiser steps.
        hidden_layers: widths of the network's hidden layers.
        batch_size: rows per step.
        lr: peak learning rate; it rises to it over the first ``warmup`` of the steps and falls to
            zero along a cosine (Smith and Topin 2018).
        warmup: fraction of the steps.
        weight_decay: of AdamW.
        ema_decay: of the averaged weights, which are the result.
        low_noise: fraction of the rows whose timestep is drawn uniformly in the logarithm of the
            noise level sqrt((1 - alpha_bar) / alpha_bar) rather than uniformly in t. The finest
            detail of the samples is decided in the few least noisy timesteps, which a uniform draw
            visits too rarely (compare Karras et al. 2022, section 5).
        activation, linear_input: of the network, see :class:`flashpoint.diffusion.MLP`.
        p_uncond: how often a row's class is withheld from a conditional denoiser (Ho and Salimans
            2022, algorithm 1); None trains one that is told no classes.
        class_embedding: of a conditional denoiser, see :func:`flashpoint.diffusion.class_table`.
        clip_norm: largest norm of the gradient; None does not clip.
        chunk_rows: rows that go through the network at once, their gradients add up; None for as
            many as stay in a GPU's cache where that is less than half of a batch.

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
    activation: str = "prelu"
    linear_input: bool = False
    p_uncond: float | None = None
    class_embedding: str = "learned"
    clip_norm: float | None = None
    chunk_rows: int | None = None

    optimizer = "adamw"
    refresh = None  # nothing is kept from step to step
    depends_on_losses = False

    def __post_init__(self):
        check_at_least("steps", self.steps, 1)
        _check_common(self)
        for name in ("warmup", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.low_noise <= 1:
            raise UserError(f"low_noise must be from 0 to 1, got {self.low_noise}")

    def total_steps(self, pairs: int) -> int:  # noqa: ARG002
        """Number of optimiser steps, whatever the number of (point, timestep) pairs."""
        return self.steps

    def steps_per_rate(self, pairs: int) -> int:  # noqa: ARG002
        """Every step has its own learning rate."""
        return 1

    def rates(self, pairs: int) -> Tensor:  # noqa: ARG002
        """Learning rates, float64 [steps]."""
        step, rise = torch.arange(self.steps, dtype=torch.float64), self.warmup * self.steps
        fall = self.lr * (1 + (math.pi * (step - rise) / (self.steps - rise)).cos()) / 2
        return torch.where(step < rise, self.lr * (step + 1) / (rise + 1), fall)

    def learning_rate(self, step: int, pairs: int, losses: Sequence[float]) -> float:  # noqa: ARG002
        """Of step 0 ...; does not depend on the losses."""
        return self.rates(pairs)[step].item()


@dataclass(frozen=True)
class PlainRecipe(Recipe):
    """The plain recipe of course work: Adam at a constant rate, all timesteps equally often.

    The result is the last weights.
    """

    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.0
    ema_decay: float = 0.0
    low_noise: float = 0.0

    optimizer = "adam"

    def rates(self, pairs: int) -> Tensor:  # noqa: ARG002
        """The same rate for every step, float64 [steps]."""
        return torch.full((self.steps,), self.lr, dtype=torch.float64)


@dataclass(frozen=True)
class StepDecay:
    """Times ``factor`` after every ``every`` epochs; ``torch.optim.lr_scheduler.StepLR``."""

    every: int = 2
    factor: float = 0.99

    def scale(self, epoch: int, epochs: int, lr: float, losses: Sequence[float]) -> float:  # noqa: ARG002
        """What the learning rate is multiplied with in an epoch, counted from 0."""
        return self.factor ** (epoch // self.every)


@dataclass(frozen=True)
class CosineDecay:
    """Along a cosine to ``floor``; ``torch.optim.lr_scheduler.CosineAnnealingLR``."""

    floor: float = 5e-6

    def scale(self, epoch: int, epochs: int, lr: float, losses: Sequence[float]) -> float:  # noqa: ARG002
        """What the learning rate is multiplied with in an epoch, counted from 0."""
        low = self.floor / lr
        return low + (1 - low) * (1 + math.cos(math.pi * epoch / epochs)) / 2


@dataclass(frozen=True)
class PlateauDecay:
    """Times ``factor`` when the loss has not fallen by 1e-4 of itself for ``patience`` epochs.

    ``torch.optim.lr_scheduler.ReduceLROnPlateau``, as a function of the past losses.
    """

    factor: float = 0.5
    patience: int = 3

    def scale(self, epoch: int, epochs: int, lr: float, losses: Sequence[float]) -> float:  # noqa: ARG002
        """What the learning rate is multiplied with in an epoch, counted from 0."""
        scale, best, bad = 1.0, math.inf, 0
        for loss in losses[:epoch]:
            if loss < best * (1 - 1e-4):
                best, bad = loss, 0
            else:
                bad += 1
            if bad > self.patience:
                scale, bad = scale * self.factor, 0
        return scale


@dataclass(frozen=True)
class ClassicRecipe:
    """The classic recipe: epochs over all pairs of point and timestep, in random order.

    A pair keeps its noise for ``refresh`` epochs. Nothing that grows with the number of pairs is
    ever stored.

    Args:
        epochs: passes over all pairs.
        hidden_layers: widths of the network's hidden layers.
        batch_size: rows per step; the last batch of an epoch may be smaller.
        lr: learning rate of the first epoch.
        decay: how it falls from epoch to epoch.
        optimizer: ``adamw``, or ``adam`` with the weight decay in the gradient.
        weight_decay: of the optimiser.
        refresh: epochs between two draws of the noise.
        activation, linear_input: of the network, see :class:`flashpoint.diffusion.MLP`.
        p_uncond: how often a row's class is withheld from a conditional denoiser (Ho and Salimans
            2022, algorithm 1); None trains one that is told no classes.
        class_embedding: of a conditional denoiser, see :func:`flashpoint.diffusion.class_table`.
        clip_norm: largest norm of the gradient; None does not clip.
        chunk_rows: rows that go through the network at once, their gradients add up; None for as
            many as stay in a GPU's cache where that is less than half of a batch.

    Raises:
        ValueError: a count or rate is out of range, or an unknown optimiser.
    """

    epochs: int
    hidden_layers: tuple[int, ...] = (256, 256, 256, 256)
    batch_size: int = 10_000
    lr: float = 1e-3
    decay: StepDecay | CosineDecay | PlateauDecay = field(default_factory=StepDecay)
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    refresh: int = 25
    activation: str = "prelu"
    linear_input: bool = False
    p_uncond: float | None = None
    class_embedding: str = "learned"
    clip_norm: float | None = None
    chunk_rows: int | None = None

    ema_decay = 0.0  # the result is the last weights
    low_noise = 0.0

    def __post_init__(self):
        check_at_least("epochs", self.epochs, 1)
        check_at_least("refresh", self.refresh, 1)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_common(self)

    @property
    def depends_on_losses(self) -> bool:
        """Whether the rate of an epoch is known only when the one before is over."""
        return isinstance(self.decay, PlateauDecay)

    def steps_per_rate(self, pairs: int) -> int:
        """An epoch has one learning rate; its steps, the last of which may be smaller."""
        return -(-pairs // self.batch_size)

    def total_steps(self, pairs: int) -> int:
        """Number of optimiser steps over ``pairs`` (point, timestep) pairs."""
        return self.epochs * self.steps_per_rate(pairs)

    def rates(self, pairs: int) -> Tensor:
        """Learning rates, float64 [epochs], as far as they do not depend on losses."""
        every = self.steps_per_rate(pairs)
        rates = [self.learning_rate(epoch * every, pairs, ()) for epoch in range(self.epochs)]
        return torch.tensor(rates, dtype=torch.float64)

    def learning_rate(self, step: int, pairs: int, losses: Sequence[float]) -> float:
        """Of step 0 ..., given the mean loss of each epoch before it."""
        epoch = step // self.steps_per_rate(pairs)
        return self.lr * self.decay.scale(epoch, self.epochs, self.lr, losses)


def _check_common(recipe: Recipe | ClassicRecipe) -> None:
    check_at_least("batch_size", recipe.batch_size, 1)
    check_at_least("weight_decay", recipe.weight_decay, 0)
    check_choice("activation", recipe.activation, ACTIVATIONS)
    check_choice("class_embedding", recipe.class_embedding, CLASS_EMBEDDINGS)
    if recipe.p_uncond is not None and not 0 <= recipe.p_uncond <= 1:
        raise UserError(f"p_uncond must be from 0 to 1, got {recipe.p_uncond}")
    if recipe.clip_norm is not None and not recipe.clip_norm > 0:
        raise UserError(f"clip_norm must be positive, got {recipe.clip_norm}")
    if recipe.chunk_rows is not None:
        check_at_least("chunk_rows", recipe.chunk_rows, 1)
    if not recipe.lr > 0:
        raise UserError(f"lr must be positive, got {recipe.lr}")
    if any(width < 1 for width in recipe.hidden_layers):
        raise UserError(f"hidden_layers must be widths of at least 1, got {recipe.hidden_layers}")
    try:
        MLPShape((1, *recipe.hidden_layers, 1), recipe.activation, linear_input=recipe.linear_input)
    except ValueError as error:
        raise UserError(str(error)) from error


# Denoiser and classifier, by name. The classic ones are two published settings for STATES.
_CLASSIFIER, _SMALL = (100, 200, 500), (128, 128, 128)
RECIPES: dict[str, tuple[Recipe | ClassicRecipe, Recipe | ClassicRecipe]] = {
    "fast": (
        Recipe(),
        Recipe(steps=2500, hidden_layers=_CLASSIFIER, lr=5e-3, low_noise=0.0),
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
