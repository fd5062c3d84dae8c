"""Perceptrons for tests of accelerate()."""

import copy

import torch
from torch import nn

from flashpoint.kernels import accelerate


def perceptron(activation=nn.ReLU):
    return nn.Sequential(
        nn.Linear(3, 16), activation(), nn.Linear(16, 8), activation(), nn.Linear(8, 2)
    )


class Model(nn.Module):
    """Two perceptrons among other things."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.first = perceptron()
        self.rest = nn.ModuleList([perceptron(nn.PReLU), nn.Sequential(nn.Flatten())])

    def forward(self, x):
        x = self.norm(x)
        return self.first(x) + self.rest[0](x)


def build_sequential(activation):
    model = perceptron(activation)
    plain = copy.deepcopy(model)
    assert accelerate(model).accelerated == [""]
    return model, plain


class Block(nn.Module):
    """A residual block, as the networks of small diffusion models have them."""

    def __init__(self, size, activation=nn.GELU):
        super().__init__()
        self.ff = nn.Linear(size, size)
        self.act = activation()

    def forward(self, x):
        return x + self.act(self.ff(x))


def residual(activation=nn.GELU, blocks=3, width=16):
    """Returns a perceptron with residual blocks."""
    return nn.Sequential(
        nn.Linear(6, width), activation(), *(Block(width, activation) for _ in range(blocks)),
        nn.Linear(width, 2),
    )  # fmt: skip


class Sines(nn.Module):
    """Embeds a column of numbers as sines and cosines."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        angles = x[:, None] * torch.arange(1, self.size + 1, device=x.device)
        return torch.cat((angles.sin(), angles.cos()), dim=1)


class ResidualDenoiser(nn.Module):
    """Embeddings of both coordinates and of the timestep, concatenated, then a residual net."""

    def __init__(self, size=1, width=16):
        super().__init__()
        self.time_mlp, self.input_mlp1, self.input_mlp2 = (Sines(size) for _ in range(3))
        self.joint_mlp = residual(width=width)

    def forward(self, x, t):
        embedded = (self.input_mlp1(x[:, 0]), self.input_mlp2(x[:, 1]), self.time_mlp(t))
        return self.joint_mlp(torch.cat(embedded, dim=1))


class FiLM(nn.Module):
    """A layer whose features are scaled and shifted by a condition."""

    def __init__(self, size, condition):
        super().__init__()
        self.fc = nn.Linear(size, size)
        self.scale_shift = nn.Linear(condition, 2 * size)

    def forward(self, x, condition):
        scale, shift = self.scale_shift(condition).chunk(2, dim=-1)
        return nn.functional.silu(self.fc(x) * (1 + scale) + shift)


class ConditionalDenoiser(nn.Module):
    """A perceptron embeds timestep and class, and scales the features of the others."""

    def __init__(self, width=16):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, 8))
        self.first = nn.Linear(2, width)
        self.blocks = nn.ModuleList(FiLM(width, 8) for _ in range(2))
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x, condition):
        condition, h = self.embed(condition), self.first(x)
        for block in self.blocks:
            h = block(h, condition)
        return self.head(h)
