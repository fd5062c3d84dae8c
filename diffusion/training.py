"""Training of denoisers and noisy-point classifiers, the whole data set on the device."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import AdamWState, TrainingData, adamw_, adamw_state, train_step
from ..kernels.philox import child_seed
from .device import choose_device
from .errors import UserError, check_at_least
from .models import MLP, seeded_mlp
from .points import Points
from .schedules import Schedule

_TABLE_SIZE = 2**14


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: fresh noise in every step, one-cycle learning rate, AdamW, EMA.

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

    def __post_init__(self):
        check_at_least("steps", self.steps, 1)
        check_at_least("batch_size", self.batch_size, 1)
        check_at_least("weight_decay", self.weight_decay, 0)
        if not self.lr > 0:
            raise UserError(f"lr must be positive, got {self.lr}")
        for name in ("warmup", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.low_noise <= 1:
            raise UserError(f"low_noise must be from 0 to 1, got {self.low_noise}")

    def learning_rate(self, step: int) -> float:
        """Of step 0 ... steps - 1."""
        rise = self.warmup * self.steps
        if step < rise:
            return self.lr * (step + 1) / (rise + 1)
        return self.lr * (1 + math.cos(math.pi * (step - rise) / (self.steps - rise))) / 2


def timestep_table(schedule: Schedule, low_noise: float) -> Tensor:
    """int64 [K]: timesteps as often as a recipe with this ``low_noise`` draws them."""
    uniform = torch.arange(schedule.num_steps)
    if low_noise == 0:
        return uniform
    log_sigma = ((1 - schedule.alpha_bar) / schedule.alpha_bar).log() / 2
    first = (log_sigma[1] - log_sigma[0]) if schedule.num_steps > 1 else 1.0
    weight = log_sigma.diff(prepend=log_sigma[:1] - first)
    weight = low_noise * weight / weight.sum() + (1 - low_noise) / schedule.num_steps
    quantile = (torch.arange(_TABLE_SIZE, dtype=torch.float64) + 0.5) / _TABLE_SIZE
    return torch.searchsorted(weight.cumsum(0), quantile).clamp(max=schedule.num_steps - 1)


class Trainer:
    """Trains one network; :meth:`run` as many times as wanted, until ``recipe.steps`` are done.

    Args:
        points: the data set.
        schedule: of the forward process.
        recipe: how to train.
        classify: False trains a denoiser, True a classifier of noisy points, which needs labels.
        seed: of the initial weights and of everything drawn.
        device: None takes CUDA where there is one.

    Attributes:
        step: number of steps done.
        losses: float32 [recipe.steps] on the device; the first ``step`` are filled.

    Raises:
        ValueError: a classifier is asked for and the points have no labels.
    """

    def __init__(
        self,
        points: Points,
        schedule: Schedule,
        recipe: Recipe,
        *,
        classify: bool = False,
        seed: int = 0,
        device: str | torch.device | None = None,
    ):
        if classify and points.labels is None:
            raise UserError(f"{points.name}: a classifier needs labels, got none")
        self.recipe, self.classify = recipe, classify
        self.device = choose_device(device)
        features = schedule.time_features
        outputs = points.num_classes if classify else points.dim
        model = seeded_mlp(
            (points.dim + features.shape[1], *recipe.hidden_layers, outputs), child_seed(seed, 0)
        )
        self.shape = model.shape
        self.seed = child_seed(seed, 1)
        self.parameters = model.network().parameters.to(self.device)  # [1, P]
        self.grad = torch.empty_like(self.parameters)
        self.state = adamw_state(self.parameters)
        self.step = 0
        self.losses = torch.zeros(recipe.steps, device=self.device)

        def resident(tensor: Tensor) -> Tensor:
            return tensor.float()[None].to(self.device)

        self.data = TrainingData(
            points=resident(points.data),
            alpha_bar=resident(schedule.alpha_bar),
            time_features=resident(features),
            labels=points.labels[None].to(self.device) if classify else None,
            n_points=torch.tensor([len(points)], device=self.device),
            t_table=timestep_table(schedule, recipe.low_noise)[None].to(self.device),
        )

    @torch.no_grad()
    def run(self, steps: int, on_step: Callable[[int], None] | None = None) -> None:
        """Trains for so many steps, at most to the recipe's end.

        Args:
            steps: how many.
            on_step: called with the number of steps done after each.
        """
        recipe = self.recipe
        for _ in range(min(steps, recipe.steps - self.step)):
            loss, _ = train_step(
                self.parameters,
                self.shape,
                self.data,
                batch_size=recipe.batch_size,
                seed=self.seed,
                step=self.step,
                grad=self.grad,
            )
            adamw_(
                self.parameters,
                self.grad,
                self.state,
                lr=recipe.learning_rate(self.step),
                step=self.step + 1,
                weight_decay=recipe.weight_decay,
                ema_decay=recipe.ema_decay,
            )
            self.losses[self.step] = loss[0]
            self.step += 1
            if on_step is not None:
                on_step(self.step)

    def model(self) -> MLP:
        """The network with the averaged weights, on the CPU."""
        widths = self.shape.widths
        return MLP(widths[0], widths[-1], widths[1:-1]).load_flat(self.state.ema[0].cpu())

    def state_dict(self) -> dict[str, Tensor | int]:
        """Everything that a later :meth:`load_state_dict` needs to go on as if never stopped."""
        return {
            "step": self.step,
            "seed": self.seed,
            "parameters": self.parameters.cpu(),
            "losses": self.losses.cpu(),
            **{name: tensor.cpu() for name, tensor in self.state._asdict().items()},
        }

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Goes back to a saved state.

        Raises:
            ValueError: it is that of another network, seed or number of steps.
        """
        for name, here in (("parameters", self.parameters), ("losses", self.losses)):
            if state[name].shape != here.shape:
                raise UserError(
                    f"saved {name} have shape {list(state[name].shape)}, "
                    f"this run needs {list(here.shape)}"
                )
        if state["seed"] != self.seed:
            raise UserError("the saved state belongs to a run with another seed")
        self.step = state["step"]
        self.parameters.copy_(state["parameters"])
        self.losses.copy_(state["losses"])
        self.state = AdamWState(*(state[name].to(self.device) for name in AdamWState._fields))
