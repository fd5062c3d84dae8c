"""Networks of a user's own for tests, among them copies of this package's perceptrons."""

import torch
from torch import nn


class Copied(nn.Module):
    """A perceptron of this package that takes the time feature itself."""

    def __init__(self, mlp, schedule):
        super().__init__()
        self.mlp, self.schedule = mlp, schedule

    def forward(self, x, t, y=None):
        if t.is_floating_point():
            features = self.schedule.features_of(t).float()
        else:
            features = self.schedule.time_features.float()[t]
        inputs = torch.cat((x, features), dim=1)
        return self.mlp(inputs) if y is None else self.mlp(inputs, y)


class Residual(nn.Module):
    """A small residual network of (x_t, t)."""

    def __init__(self, dim=2, width=16, outputs=None, steps=50):
        super().__init__()
        self.first = nn.Linear(dim + 1, width)
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.last = nn.Linear(width, outputs or dim)
        self.steps = steps

    def forward(self, x, t):
        h = self.first(torch.cat((x, t[:, None] / self.steps), dim=1))
        for block in self.blocks:
            h = h + nn.functional.gelu(block(h))
        return self.last(h)


class Conditional(Residual):
    """A network of (x_t, t, y), with an embedding of the class."""

    def __init__(self, classes, **options):
        super().__init__(**options)
        self.of_class = nn.Embedding(classes + 1, 2 * self.first.out_features)

    def forward(self, x, t, y):
        scale, shift = self.of_class(y).chunk(2, dim=1)
        h = self.first(torch.cat((x, t[:, None] / self.steps), dim=1)) * (1 + scale) + shift
        return self.last(h + nn.functional.gelu(self.blocks[0](h)))


class Changing(Residual):
    """A network with statistics, dropout, a frozen layer, a layer used twice and an idle one."""

    def __init__(self, **options):
        super().__init__(**options)
        width = self.first.out_features
        self.norm, self.drop = nn.BatchNorm1d(width), nn.Dropout(0.3)
        self.blocks[1] = self.blocks[0]
        self.frozen, self.idle = nn.Linear(width, width), nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x, t):
        self.calls += self.training
        h = self.drop(self.norm(self.first(torch.cat((x, t[:, None] / self.steps), dim=1))))
        for block in self.blocks:
            h = h + nn.functional.gelu(block(h))
        return self.last(self.frozen(h))


class Extra(Residual):
    """A network that keeps more in its state_dict than tensors."""

    def get_extra_state(self):
        return {"width": 16}

    def set_extra_state(self, state):
        assert state == {"width": 16}
