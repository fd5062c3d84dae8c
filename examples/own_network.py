"""Train networks of your own: a residual one, and a conditional one with FiLM; sample and measure.

    python examples/own_network.py            a minute or two on two CPU cores
    python examples/own_network.py --quick    seconds, with samples of poor quality

A network takes x_t [B, d] and t [B], and a conditional one the class y [B] too, where C, the number
of classes, stands for none. It returns what the schedule's ``prediction`` says, [B, d].
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import flashpoint.diffusion as fd
from flashpoint.diffusion import plots


class Sines(nn.Module):
    """Sines and cosines of numbers [B], at frequencies that fall by a constant factor."""

    def __init__(self, size: int, scale: float = 1.0):
        super().__init__()
        frequency = torch.exp(-math.log(10_000) * torch.arange(size // 2) / (size // 2 - 1))
        self.register_buffer("frequency", scale * frequency)

    def forward(self, number: Tensor) -> Tensor:
        angle = number[:, None] * self.frequency
        return torch.cat((angle.sin(), angle.cos()), dim=1)  # [B, size]


class Residual(nn.Module):
    """Embeds each coordinate and t, and adds what each of some layers finds."""

    def __init__(self, dim: int = 2, width: int = 128, blocks: int = 3, size: int = 128):
        super().__init__()
        self.of_x, self.of_t = Sines(size, scale=25.0), Sines(size)
        self.first = nn.Linear(size * (dim + 1), width)
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(blocks)])
        self.last = nn.Linear(width, dim)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        embedded = [self.of_x(column) for column in x_t.unbind(dim=1)]
        h = nn.functional.gelu(self.first(torch.cat((*embedded, self.of_t(t)), dim=1)))
        for block in self.blocks:
            h = h + nn.functional.gelu(block(h))
        return self.last(h)


class FiLM(nn.Module):
    """Scales and shifts each hidden layer by the timestep and the class (Perez et al. 2018)."""

    def __init__(self, classes: int, dim: int = 2, width: int = 128, blocks: int = 3):
        super().__init__()
        self.of_t, self.of_class = Sines(width), nn.Embedding(classes + 1, width)
        self.first, self.last = nn.Linear(dim, width), nn.Linear(width, dim)
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(blocks)])
        self.films = nn.ModuleList([nn.Linear(width, 2 * width) for _ in range(blocks)])

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen = nn.functional.silu(self.of_t(t) + self.of_class(y))
        h = self.first(x_t)
        for block, film in zip(self.blocks, self.films, strict=True):
            scale, shift = film(seen).chunk(2, dim=1)
            h = h + nn.functional.silu(block(h) * (1 + scale) + shift)
        return self.last(h)


def train(
    model: nn.Module, points: fd.Points, schedule: fd.Schedule, recipe: fd.Recipe, out: Path
) -> nn.Module:
    """Trains a network in place; returns a copy with averaged weights, which is saved too."""
    trainer = fd.Trainer(points, schedule, recipe, model=model)
    trainer.run(trainer.total_steps // 2)
    torch.save(trainer.state_dict(), out / "state.pt")  # a new Trainer goes on from it
    trainer.load_state_dict(torch.load(out / "state.pt", weights_only=True))
    trainer.run(trainer.total_steps)
    name = type(model).__name__
    print(f"{name}: loss {trainer.losses[-50:].mean().item():.4f} after {trainer.step} steps")
    averaged = trainer.model()
    torch.save(averaged.state_dict(), out / f"{name.lower()}.pt")
    return averaged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and samples")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/own_network"), help="folder of the results"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    points, schedule = fd.dataset("moons"), fd.Schedule(num_steps=500)
    recipe = fd.Recipe(steps=3000, batch_size=1024, lr=2e-3)
    n, num_steps = 2000, None
    if arguments.quick:
        recipe = replace(recipe, steps=60, batch_size=128, ema_decay=0.9)
        n, num_steps = 200, 10

    torch.manual_seed(0)  # of the initial weights, which are the model's own
    residual = train(Residual(points.dim), points, schedule, recipe, arguments.out)
    x = fd.sample(residual, schedule, n, num_steps=num_steps).x.cpu()
    print(fd.evaluate(x, points, repeats=20).table())

    film = FiLM(points.num_classes, points.dim)
    film = train(film, points, schedule, replace(recipe, p_uncond=0.1), arguments.out)
    labels = torch.arange(n) % points.num_classes
    x = fd.sample(film, schedule, n, label=labels, num_steps=num_steps).x.cpu()
    groups = [x[labels == label] for label in range(points.num_classes)]
    for label, group in enumerate(groups):
        result = fd.evaluate(group, points, label=label, repeats=20)
        print(f"{points.class_name(label)}: {result.purity:.1%} of its samples are of its class")
    plots.conditional(groups, points, arguments.out / "samples.png")
    print(f"weights and the picture of the samples of each class are in {arguments.out}")


if __name__ == "__main__":
    main()
