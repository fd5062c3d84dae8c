"""The interface of the classic STATES exercise: its data set class and its network.

Scripts written for it run after a change of their imports. New code takes
:func:`~flashpoint.diffusion.states_points` and :class:`~flashpoint.diffusion.MLP`.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...kernels import MLPShape
from ...kernels.philox import Stream, normal_rows, permute, seed_tensor
from ..data import load_points, states_points
from ..device import choose_device
from ..errors import UserError
from ..models import MLP, Perceptron
from ..schedules import Schedule


class States(Dataset):
    """STATES under a linear schedule as a ``torch.utils.data.Dataset`` of all (point, t) pairs.

    Item t * n_points + i is point i noised to timestep t. Its noise is a function of the item and
    of how often :meth:`refresh_eps` was called, so nothing is stored until a member that holds the
    whole table is asked for.

    Args:
        num_steps: number of timesteps T.
        data: path of a file that :func:`load_points` reads; None for the packaged points.
        seed: seed of the noise and of :meth:`shuffle`.
        device: device of all tensors; None takes CUDA where there is one.

    Attributes:
        data: float32 [N, 2]. labels: int64 [N]. n_points: N. num_steps, n_steps: T.
        steps: float32 [T], linspace(-1, 1, T). beta, alpha, alpha_bar: float32 [T].
    """

    def __init__(
        self,
        num_steps: int = 500,
        data: str | Path | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
    ):
        self.points = states_points() if data is None else load_points(data)
        self.schedule = Schedule(num_steps)
        self.device = choose_device(device)
        self.data = self.points.data.to(self.device)
        self.labels = None if self.points.labels is None else self.points.labels.to(self.device)
        self.n_points = len(self.data)
        self.num_steps = self.n_steps = num_steps
        self.steps = self._table(self.schedule.time_features[:, 0])
        self.beta = self._table(self.schedule.beta)
        self.alpha = self._table(self.schedule.alpha)
        self.alpha_bar = self._table(self.schedule.alpha_bar)
        self._seed = seed_tensor(seed, self.device)
        self._refreshes = self._shuffles = 0

    def _table(self, values: Tensor) -> Tensor:
        return values.float().to(self.device)

    def __len__(self) -> int:
        return self.n_points * self.num_steps

    def __getitem__(self, item):
        """Returns (x_t, t, eps, x_0, y) of an int, a slice or indices; t is its feature."""
        if isinstance(item, slice):
            item = torch.arange(*item.indices(len(self)), device=self.device)
        index = torch.as_tensor(item, device=self.device)
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        if index.numel() and not (-len(self) <= index.min() and index.max() < len(self)):
            raise IndexError(f"index must be from {-len(self)} to {len(self) - 1}, got {item}")
        flat = self._order(index.reshape(-1) % len(self))
        step, point = flat // self.n_points, flat % self.n_points
        x_0, eps = self.data[point], self._eps(flat)
        a = self.alpha_bar[step, None]
        x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
        y = torch.zeros_like(point) if self.labels is None else self.labels[point]
        parts = (x_t, self.steps[step], eps, x_0, y)
        return tuple(part.reshape(index.shape + part.shape[1:]) for part in parts)

    def _order(self, index: Tensor) -> Tensor:
        if self._shuffles == 0:
            return index
        return permute(index, len(self), self._seed, self._shuffles)[0]

    def _eps(self, flat: Tensor) -> Tensor:
        return normal_rows(self._seed, Stream.DRAW, self._refreshes, flat, self.data.shape[1])[0]

    @cached_property
    def eps(self) -> Tensor:
        """The noise of every item, [N * T, d]."""
        return self._whole[2]

    @cached_property
    def all_data(self) -> Tensor:
        """x_t of every item, [N * T, d]."""
        return self._whole[0]

    @cached_property
    def all_steps(self) -> Tensor:
        """The timestep feature of every item, [N * T]."""
        return self._whole[1]

    @cached_property
    def all_labels(self) -> Tensor:
        """The label of every item, [N * T]."""
        return self._whole[4]

    @cached_property
    def _whole(self) -> tuple[Tensor, ...]:
        return self[:]

    def _forget(self) -> None:
        for name in ("eps", "all_data", "all_steps", "all_labels", "_whole"):
            self.__dict__.pop(name, None)

    def refresh_eps(self) -> None:
        """Draws new noise for every item."""
        self._refreshes += 1
        self._forget()

    def mix_data(self) -> None:
        """Draws new noise for every item, and with it new ``all_data``."""
        self.refresh_eps()

    def shuffle(self) -> None:
        """Puts the items in a new random order, the same for every member."""
        self._shuffles += 1
        self._forget()

    def show(
        self, samples: Tensor | np.ndarray | None = None, save_to: str | Path | None = None
    ) -> None:
        """Plots samples [n, 2] (the data itself by default), into a file if one is named."""
        from ..plots import scatter

        scatter(self.data if samples is None else samples, save_to=save_to)

    def calc_nll(self, samples: Tensor | np.ndarray) -> float:
        """Returns the mean -log density of samples [n, d] under a Gaussian KDE of the data."""
        from ..metrics import kde_nll

        return kde_nll(torch.as_tensor(samples), self.data)


class _Block(nn.Module):
    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(h).relu()


class BlockMLP(Perceptron):
    """The classic network: a linear layer, ReLU blocks, a linear layer.

    The same function as ``MLP(..., activation="relu", linear_input=True)``, with the ``state_dict``
    of the classic course code: ``inblock.weight``, ``midblocks.0.linear.weight``, ...,
    ``outblock.weight`` and their biases. :meth:`to_mlp` and :meth:`from_mlp` convert.

    Args:
        input_dim: width of the input, the point and its timestep feature together.
        output_dim: width of the output.
        hidden_layers: widths of the input layer and of each block; at least one.

    Raises:
        ValueError: a width is less than 1, or there is none.
    """

    def __init__(self, input_dim: int, output_dim: int, hidden_layers: Sequence[int] = (128,) * 6):
        super().__init__()
        widths = (input_dim, *hidden_layers, output_dim)
        self.shape = MLPShape(widths, "relu", linear_input=True)
        self.act = nn.ReLU()
        self.inblock = nn.Linear(widths[0], widths[1])
        self.midblocks = nn.ModuleList([_Block(*pair) for pair in pairwise(widths[1:-1])])
        self.outblock = nn.Linear(widths[-2], widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Returns y [..., output_dim] for x [..., input_dim]."""
        h = self.inblock(x)
        for block in self.midblocks:
            h = block(h)
        return self.outblock(h)

    def to_mlp(self) -> MLP:
        """Returns a copy in the layout of :class:`~flashpoint.diffusion.MLP`."""
        dim, *hidden, out = self.shape.widths
        model = MLP(dim, out, hidden, activation="relu", linear_input=True)
        return model.load_flat(self.network().parameters[0])

    @classmethod
    def from_mlp(cls, model: MLP) -> "BlockMLP":
        """Returns a copy of an MLP with ReLU and a linear input in this layout.

        Raises:
            ValueError: the MLP is another function.
        """
        if not (model.shape.activation == "relu" and model.shape.linear_input):
            raise UserError("model must have ReLU and a linear input to be written in blocks")
        dim, *hidden, out = model.shape.widths
        return cls(dim, out, hidden).load_flat(model.network().parameters[0])
