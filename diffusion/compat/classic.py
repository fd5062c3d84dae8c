"""The interface of the classic STATES exercise: its data set class and its network.

Scripts written for it run after a change of their imports. New code takes
:func:`~flashpoint.diffusion.states_points` and :class:`~flashpoint.diffusion.MLP`.
"""

import warnings
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...kernels import MLPShape
from ...kernels.default_state import in_default_state, methods_in_default_state
from ...kernels.philox import (
    Stream,
    normal_row,
    normal_rows,
    order_keys,
    permute,
    permute_one,
    seed_tensor,
)
from ..data import load_points, states_points
from ..device import choose_device
from ..errors import UserError, shown
from ..models import MLP, Perceptron, layer_widths, new_mlp
from ..schedules import Schedule
from . import checks


@methods_in_default_state
class States(Dataset):
    """STATES under a linear schedule as a ``torch.utils.data.Dataset`` of all (point, t) pairs.

    Item t * n_points + i is point i noised to timestep t. Its noise is a function of the item and
    of how often :meth:`refresh_eps` was called, so nothing is stored until a member that holds the
    whole table is asked for.

    **The noise of an item stays the same, epoch after epoch, until** :meth:`refresh_eps` **is
    called**: call it at the start of each epoch of a ``DataLoader`` for fresh noise. Workers that
    persist keep the noise that they started with; without ``persistent_workers`` they follow.

    It can be pickled, for workers that are spawned and for ``torch.save``; whoever reads such a
    file needs ``torch.load(..., weights_only=False)``, which runs what the file says. ``data`` and
    ``seed`` are enough to make the same data set again.

    Args:
        num_steps: number of timesteps T.
        data: path of a file that :func:`load_points` reads; None for the packaged points. A
            ``states.pt`` in the working folder is read only if it is named here.
        seed: seed of the noise and of :meth:`shuffle`.
        device: device of all tensors; None takes CUDA where there is one. ``DataLoader`` workers
            that are forked need ``"cpu"``.
        short_items: True makes an item (x_t, t, eps, y) with t [1], and None as ``device`` the CPU,
            as one public version of the exercise has it; False makes it (x_t, t, eps, x_0, y).

    Attributes:
        data: float32 [N, 2]. labels: int64 [N]. n_points: N. num_steps, n_steps: T.
        steps: float32 [T], linspace(-1, 1, T). beta, alpha, alpha_bar: float32 [T].

    Raises:
        ValueError: an argument is of the wrong type or out of range, or the file cannot be read.
    """

    def __init__(
        self,
        num_steps: int = 500,
        data: str | Path | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
        short_items: bool = False,
    ):
        num_steps = checks.integer("num_steps", num_steps, 1)
        self._seed = checks.integer("seed", seed, 0, 2**63 - 1)
        self.short_items = checks.flag("short_items", short_items)
        if data is None:
            _warn_of_files_not_read()
        self.points = states_points() if data is None else load_points(checks.path("data", data))
        self.schedule = Schedule(num_steps)
        self.device = choose_device("cpu" if device is None and short_items else device)
        self.data = self.points.data.to(self.device)
        self.labels = None if self.points.labels is None else self.points.labels.to(self.device)
        self.n_points = len(self.data)
        self.num_steps = self.n_steps = num_steps
        self.steps = self._table(self.schedule.time_features[:, 0])
        self.beta = self._table(self.schedule.beta)
        self.alpha = self._table(self.schedule.alpha)
        self.alpha_bar = self._table(self.schedule.alpha_bar)
        self._signal, self._noise = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
        self._no_label = torch.zeros((), dtype=torch.int64, device=self.device)
        self._refreshes = self._shuffles = 0

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the whole tables, which follow from the rest."""
        return {name: x for name, x in self.__dict__.items() if name not in _WHOLE}

    def _table(self, values: Tensor) -> Tensor:
        return values.float().to(self.device)

    def __len__(self) -> int:
        return self.n_points * self.num_steps

    def __getitem__(self, item: Any) -> tuple[Tensor, ...]:
        """Returns (x_t, t, eps, x_0, y) of an int, a slice, indices or a mask; t is its feature."""
        whole = isinstance(item, int | np.integer) and not isinstance(item, bool)
        if whole or (isinstance(item, Tensor) and item.dim() == 0 and item.dtype == torch.int64):
            return self._one(int(item))
        index = self._indices(item)
        parts = self._rows(index.reshape(-1))
        return tuple(part.reshape(index.shape + part.shape[1:]) for part in parts)

    def __getitems__(self, items: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """Returns the items of a batch, which a ``DataLoader`` asks for at once."""
        parts = self._rows(self._indices(items))
        return list(zip(*(part.unbind() for part in parts), strict=True))

    def generate_sample(self, idx: Any) -> tuple[Tensor, ...]:
        """Returns the same as indexing."""
        return self[idx]

    def _one(self, item: int) -> tuple[Tensor, ...]:
        """Returns an item, computed where it can be in Python: a tensor costs more than its sum."""
        size, dim = len(self), self.data.shape[1]
        if not -size <= item < size:
            raise IndexError(f"index must be from {-size} to {size - 1}, got {item}")
        flat = item % size
        if self._shuffles:
            flat = permute_one(flat, size, self._order_keys)
        step, point = divmod(flat, self.n_points)
        eps = normal_row(self._seed, Stream.DRAW, self._refreshes, flat, dim, self.device)
        x_0 = self.data[point]
        x_t = self._signal[step] * x_0 + self._noise[step] * eps
        y = self._no_label if self.labels is None else self.labels[point]
        t = self.steps[step]
        return (x_t, t[None], eps, y) if self.short_items else (x_t, t, eps, x_0, y)

    def _rows(self, index: Tensor) -> tuple[Tensor, ...]:
        """Returns the items at indices [n]."""
        flat = self._order(index % len(self))
        step, point = flat // self.n_points, flat % self.n_points
        x_0, eps = self.data[point], self._eps(flat)
        x_t = self._signal[step, None] * x_0 + self._noise[step, None] * eps
        y = torch.zeros_like(point) if self.labels is None else self.labels[point]
        t = self.steps[step]
        return (x_t, t[:, None], eps, y) if self.short_items else (x_t, t, eps, x_0, y)

    def _indices(self, item: Any) -> Tensor:
        """Returns what may stand in brackets as int64 indices of any shape."""
        size = len(self)
        if isinstance(item, slice):
            item = range(*item.indices(size))
        try:
            index = torch.as_tensor(item, device=self.device)
        except (TypeError, ValueError, RuntimeError):
            index = torch.tensor(0.5)
        if not index.numel():
            return index.long()
        if index.dtype == torch.bool and index.shape == (size,):
            return index.nonzero()[:, 0]
        if index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
            raise UserError(
                f"an index must be an integer, a slice, integers or a mask of {size}, "
                f"got {shown(item)}"
            )
        low, high = torch.stack(index.aminmax()).tolist()
        if low < -size or high >= size:
            raise IndexError(f"index must be from {-size} to {size - 1}, got {low} to {high}")
        return index.long()

    def _order(self, index: Tensor) -> Tensor:
        if self._shuffles == 0:
            return index
        return permute(index, len(self), seed_tensor(self._seed, self.device), self._shuffles)[0]

    @cached_property
    def _order_keys(self) -> list[int]:
        return order_keys(self._seed, self._shuffles)

    def _eps(self, flat: Tensor) -> Tensor:
        seed, dim = seed_tensor(self._seed, self.device), self.data.shape[1]
        return normal_rows(seed, Stream.DRAW, self._refreshes, flat, dim)[0]

    def calculate_noisy_data(self, x: Tensor, t: int | float | Tensor, e: Tensor) -> Tensor:
        """Returns sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) e.

        Args:
            x: points, float [..., d].
            t: timesteps as integers from 0 to T - 1, or as the features in ``steps``; one for all
                or [...].
            e: noise, the shape of x.

        Raises:
            ValueError: shapes do not fit, or t is no timestep.
        """
        x = checks.points("x", x)
        checks.like("e", e, "x", x)
        step = self._step_of(t)
        if step.numel() > 1 and step.numel() != x[..., 0].numel():
            raise UserError(
                f"t must be one timestep or one for each of the points {list(x.shape)}, "
                f"got {list(step.shape)}"
            )
        step = step.reshape(x.shape[:-1] if step.numel() > 1 else ())[..., None]
        return self._signal[step].to(x) * x + self._noise[step].to(x) * e

    def _step_of(self, t: Any) -> Tensor:
        """Returns timesteps, given as such or as features, as int64."""
        last = self.num_steps - 1
        try:
            given = torch.as_tensor(t, device=self.device)
        except (TypeError, ValueError, RuntimeError):
            given = torch.tensor(-2.0)
        step = ((given + 1) / 2 * last).round() if given.is_floating_point() else given
        known = given.dtype != torch.bool and ((step >= 0) & (step <= last)).all()
        if known and given.is_floating_point():
            known = ((self.steps[step.long()] - given).abs() <= 0.1 / max(last, 1)).all()
        if not known:
            raise UserError(
                f"t must be integers from 0 to {last} or features in steps, got {shown(t)}"
            )
        return step.long()

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
        """The timestep feature of every item, [N * T], or [N * T, 1] with short items."""
        return self._whole[1]

    @property
    def all_times(self) -> Tensor:
        """The same as ``all_steps``."""
        return self.all_steps

    @cached_property
    def all_labels(self) -> Tensor:
        """The label of every item, [N * T]."""
        return self._whole[-1]

    @cached_property
    def idx_map(self) -> Tensor:
        """For every item its place t * n_points + i before any :meth:`shuffle`, int64 [N * T]."""
        return self._order(torch.arange(len(self), device=self.device))

    @cached_property
    def _whole(self) -> tuple[Tensor, ...]:
        return self._rows(torch.arange(len(self), device=self.device))

    def _forget(self) -> None:
        for name in _WHOLE:
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

        x = self.data.cpu() if samples is None else self._samples("samples", samples)
        scatter(x, save_to=None if save_to is None else checks.path("save_to", save_to))

    def calc_nll(self, generated: Tensor | np.ndarray) -> float:
        """Returns the mean -log density of samples [n, d] under a Gaussian KDE of the data.

        Raises:
            ValueError: they are no samples of the data's dimension, or not finite.
        """
        from ..metrics import kde_nll

        return kde_nll(self._samples("generated", generated), self.data.cpu())

    def _samples(self, name: str, samples: Any) -> Tensor:
        """Returns samples [n, d], whatever they lie in, on the CPU and without a gradient."""
        try:
            x = torch.as_tensor(samples).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            x = torch.empty(0)
        dim = self.data.shape[1]
        if x.dim() != 2 or x.shape[1] != dim or len(x) == 0 or x.is_complex():
            raise UserError(f"{name} must be numbers [n, {dim}], got {shown(samples)}")
        x = x if x.dtype == torch.float64 else x.float()
        checks.finite(**{name: x})
        return x


# What is computed from the rest when it is asked for.
_WHOLE = ("eps", "all_data", "all_steps", "all_labels", "idx_map", "_whole", "_order_keys")
_NOT_READ = ("states.pt", "data/states.pt", "code/states.pt")


def _warn_of_files_not_read() -> None:
    """Warns of the file that the exercise comes with: its own class reads it unasked."""
    for name in _NOT_READ:
        if Path(name).is_file():
            warnings.warn(
                f"{name} is not read: States() takes the packaged points, States(data={name!r}) "
                "those of the file",
                stacklevel=4,
            )


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
        widths = layer_widths(input_dim, output_dim, hidden_layers)
        if len(widths) == 2:
            raise UserError("hidden_layers must be at least one width, got none")
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
        copy = new_mlp(self.shape).load_flat(self.network().parameters[0])
        copy.prediction = self.prediction
        return copy

    @classmethod
    @in_default_state
    @torch.random.fork_rng(devices=[])
    def from_mlp(cls, model: MLP) -> "BlockMLP":
        """Returns a copy of an MLP with ReLU and a linear input in this layout.

        Raises:
            ValueError: the MLP is another function.
        """
        if not isinstance(model, Perceptron):
            raise UserError(f"model must be an MLP, got {type(model).__name__}")
        if not (model.shape.activation == "relu" and model.shape.linear_input):
            raise UserError("model must have ReLU and a linear input to be written in blocks")
        dim, *hidden, out = model.shape.widths
        copy = cls(dim, out, hidden).load_flat(model.network().parameters[0])
        copy.prediction = model.prediction
        return copy
