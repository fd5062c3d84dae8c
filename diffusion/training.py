"""Training of denoisers and noisy-point classifiers, the whole data set on the device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels import AdamWState, MLPShape, TrainingData, adamw_, adamw_state, train_step
from ..kernels.philox import child_seed
from .device import choose_device
from .errors import UserError
from .models import MLP, class_table, new_mlp, seeded_mlp
from .points import Points
from .recipes import ClassicRecipe, Recipe
from .schedules import Schedule

_TABLE_SIZE = 2**14  # entries of a table of timesteps
_CURVE = 100_000  # losses kept of a long run


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


def _class_features(points: Points, recipe: Recipe | ClassicRecipe) -> Tensor | None:
    """What a conditional denoiser is told of each class, [C + 1, E]; None for any other."""
    if recipe.p_uncond is None:
        return None
    if points.labels is None:
        raise UserError(f"{points.name}: a conditional denoiser needs labels, got none")
    return class_table(points.num_classes, recipe.class_embedding)


class Trainer:
    """Trains one network; :meth:`run` as many times as wanted, until ``total_steps`` are done.

    Args:
        points: the data set.
        schedule: of the forward process.
        recipe: how to train.
        classify: False trains a denoiser, True a classifier of noisy points. The latter needs
            labels, and so does a conditional denoiser, one whose recipe has a ``p_uncond``.
        seed: of the initial weights and of everything drawn.
        device: None takes CUDA where there is one.

    Attributes:
        step: number of steps done.
        total_steps: number of steps that the recipe has.
        losses: float32 on the device, the loss of every step; of a run of more than 100,000 steps,
            of that many steps evenly spread.
        epoch_losses: float32 [epochs] on the device, the mean loss of each epoch of a classic
            recipe.

    Raises:
        ValueError: labels are needed and the points have none.
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
    ):
        if classify and points.labels is None:
            raise UserError(f"{points.name}: a classifier needs labels, got none")
        self.recipe, self.classify = recipe, classify
        self.device = choose_device(device)
        features = schedule.time_features
        outputs = points.num_classes if classify else points.dim
        self.class_features = None if classify else _class_features(points, recipe)  # [C + 1, E]
        told = 0 if self.class_features is None else self.class_features.shape[1]
        widths = (points.dim + features.shape[1] + told, *recipe.hidden_layers, outputs)
        self.shape = MLPShape(widths, recipe.activation, linear_input=recipe.linear_input)
        model = seeded_mlp(self.shape, child_seed(seed, 0))
        self.seed = child_seed(seed, 1)
        self.parameters = model.network().parameters.to(self.device)  # [1, P]
        self.grad = torch.empty_like(self.parameters)
        self.state = adamw_state(self.parameters)
        self.step = 0
        self.pairs = len(points) * schedule.num_steps
        self.total_steps = recipe.total_steps(self.pairs)
        self.losses = torch.zeros(min(self.total_steps, _CURVE), device=self.device)
        epochs = recipe.epochs if isinstance(recipe, ClassicRecipe) else 0
        self.epoch_losses = torch.zeros(epochs, device=self.device)
        self._epoch_rate: tuple[int, float] | None = None

        def resident(tensor: Tensor) -> Tensor:
            return tensor.float()[None].to(self.device)

        classes = self.class_features
        conditional = classes is not None
        labels = points.labels if classify or conditional else None
        self.data = TrainingData(
            points=resident(points.data),
            alpha_bar=resident(schedule.alpha_bar),
            time_features=resident(features),
            labels=None if labels is None else labels[None].to(self.device),
            n_points=torch.tensor([len(points)], device=self.device),
            t_table=timestep_table(schedule, recipe.low_noise)[None].to(self.device),
            class_features=None if classes is None else resident(classes),
            p_uncond=torch.tensor([recipe.p_uncond], device=self.device) if conditional else None,
        )

    @torch.no_grad()
    def run(self, steps: int, on_step: Callable[[int], None] | None = None) -> None:
        """Trains for so many steps, at most to the recipe's end.

        Args:
            steps: how many.
            on_step: called with the number of steps done after each.
        """
        recipe = self.recipe
        for _ in range(min(steps, self.total_steps - self.step)):
            loss, _ = train_step(
                self.parameters,
                self.shape,
                self.data,
                batch_size=recipe.batch_size,
                seed=self.seed,
                step=self.step,
                refresh=recipe.refresh,
                grad=self.grad,
            )
            adamw_(
                self.parameters,
                self.grad,
                self.state,
                lr=self._learning_rate(),
                step=self.step + 1,
                weight_decay=recipe.weight_decay,
                decoupled=recipe.optimizer == "adamw",
                ema_decay=recipe.ema_decay,
            )
            self._record(loss[0], recipe.epoch(self.step, self.pairs))
            self.step += 1
            if on_step is not None:
                on_step(self.step)

    def _record(self, loss: Tensor, epoch: int | None) -> None:
        self.losses[self._place(self.step)] = loss
        if epoch is not None and isinstance(self.recipe, ClassicRecipe):
            self.epoch_losses[epoch] += loss / self.recipe.steps_per_epoch(self.pairs)

    def _place(self, step: int) -> int:
        return step * len(self.losses) // self.total_steps

    def curve(self) -> Tensor:
        """The losses recorded so far, on the device; never empty once a step is done."""
        return self.losses[: self._place(self.step - 1) + 1]

    def _learning_rate(self) -> float:
        """Of the step about to be taken; looks at past losses once an epoch."""
        recipe, step = self.recipe, self.step
        epoch = recipe.epoch(step, self.pairs)
        if epoch is None:
            return recipe.learning_rate(step, self.pairs, ())
        if self._epoch_rate is None or self._epoch_rate[0] != epoch:
            losses = self.epoch_losses[:epoch].tolist()
            self._epoch_rate = epoch, recipe.learning_rate(step, self.pairs, losses)
        return self._epoch_rate[1]

    def model(self) -> MLP:
        """The network with the averaged weights, on the CPU."""
        return new_mlp(self.shape, self.class_features).load_flat(self.state.ema[0].cpu())

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later :meth:`load_state_dict` needs to go on as if never stopped."""
        return {
            "step": self.step,
            "seed": self.seed,
            "parameters": self.parameters.cpu(),
            "losses": self.losses.cpu(),
            "epoch_losses": self.epoch_losses.cpu(),
            **{name: tensor.cpu() for name, tensor in self.state._asdict().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
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
        self.epoch_losses.copy_(state["epoch_losses"])
        self.state = AdamWState(*(state[name].to(self.device) for name in AdamWState._fields))
