"""What tests of several processes run in each of them and in their own."""

from dataclasses import replace

import torch

from flashpoint.diffusion import ClassicRecipe, Points, Recipe, Schedule, Trainer
from flashpoint.diffusion.sweeps import Sweep
from flashpoint.diffusion.training import Task

GENERATOR = torch.Generator().manual_seed(0)
POINTS = Points(torch.randn(40, 2, generator=GENERATOR), torch.arange(40) % 3)
SCHEDULE = Schedule(11)
# An odd batch: one rank has a row more than the other; 440 pairs end with a batch of 50.
FAST = Recipe(steps=20, hidden_layers=(16, 16), batch_size=65, lr=1e-2, activation="silu")
RECIPES = {
    "fast": FAST,
    "clipped": replace(FAST, clip_norm=0.1),
    "chunks": replace(FAST, chunk_rows=10),
    "classic": ClassicRecipe(3, (16, 16), 65, lr=1e-2, activation="silu"),
    "one row": replace(FAST, batch_size=1),
}
TASKS = [Task(POINTS, SCHEDULE, replace(FAST, lr=lr), seed=2) for lr in (1e-2, 1e-3, 1e-4)]


class OwnNetwork(torch.nn.Module):
    """A network of one's own, whose weights and frequencies are random."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(8))
        self.first, self.last = torch.nn.Linear(2, 8), torch.nn.Linear(8, 2)

    def forward(self, x, t):
        return self.last(torch.sin(self.first(x) + t[:, None] * self.frequencies))


def own_trainer(seed, **options):
    """Returns a trainer of an OwnNetwork, which starts with weights of this seed."""
    torch.manual_seed(seed)
    return Trainer(POINTS, SCHEDULE, FAST, model=OwnNetwork(), seed=1, **options)


FACTORS = {
    "lr": "1e-3,3e-3", "hidden": "8x2,12x2", "seed": "0..2", "steps": 20, "timesteps": 20,
    "beta_end": 0.4, "batch_size": 32,
}  # fmt: skip


def sweep():
    """Returns a sweep of twelve small models."""
    return Sweep("moons", FACTORS, n_samples=60, metrics=("sliced_wasserstein",), real_draws=12)
