"""Perceptrons for tests of accelerate()."""

import copy

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
