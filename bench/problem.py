"""The task of ours and all peers: STATES, as plain tensors that any library can read."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..diffusion import MLP, RECIPES, Points, Schedule, Trainer, reverse_table, states_points
from ..diffusion.reverse_steps import timesteps

LEARNING_RATE, WEIGHT_DECAY, EMA_DECAY = 1e-3, 0.01, 0.998


class Batch(NamedTuple):
    """Rows of a training step."""

    x_0: Tensor  # float32 [B, 2]
    label: Tensor  # int64 [B]
    t: Tensor  # int64 [B]
    eps: Tensor  # float32 [B, 2]


class Chain(NamedTuple):
    """Coefficients of a reverse process, in the order in which the steps are taken."""

    table: Tensor  # float32 [S, 4]: coefficients of x, eps, z and the guidance
    features: Tensor  # float32 [S, 1]


@dataclass(frozen=True)
class Problem:
    """Data, schedule and networks at the start of training."""

    points: Points
    schedule: Schedule
    denoiser: MLP
    classifier: MLP

    def network(self, classify: bool) -> MLP:
        return self.classifier if classify else self.denoiser

    def chain(self, num_steps: int, method: str, guided: bool) -> Chain:
        """Returns steps of ``ddpm`` or of the noiseless ``ddim``; if guided, with scale 1."""
        steps = timesteps(self.schedule, num_steps)
        table = reverse_table(self.schedule, steps, method=method, scale=float(guided))
        return Chain(table.float(), self.schedule.time_features[steps].float())


def states_problem() -> Problem:
    """Returns 5,000 points of five states, 500 timesteps and the networks of a new Trainer."""
    points, schedule = states_points(), Schedule()
    denoiser, classifier = (
        Trainer(points, schedule, recipe, classify=classify, device="cpu").model()
        for recipe, classify in zip(RECIPES["fast"], (False, True), strict=True)
    )
    return Problem(points, schedule, denoiser, classifier)
