"""STATES: points on the outlines of five US states.

Outlines: U.S. Census Bureau cartographic boundary files (public domain), by way of the npm
package us-atlas 3.0.1 (ISC); see ``state_outlines.json``.
"""

import json
import math
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..kernels.philox import (
    Stream,
    normals,
    permute,
    random_words,
    seed_tensor,
    uniform_integers,
)
from .device import choose_device
from .errors import check_at_least
from .points import Points, load_points
from .schedules import Schedule

STATE_NAMES = ("Michigan", "Idaho", "Ohio", "Oklahoma", "Wisconsin")

# Each state's place on a pentagon, its vertices counted from Ohio at the top.
_VERTEX = {"Ohio": 0, "Wisconsin": 1, "Oklahoma": 2, "Idaho": 3, "Michigan": 4}
_PENTAGON_RADIUS = 1.5
_STATE_RADIUS = 0.48  # root mean square distance of an outline from its centre
_JITTER = 0.03


def states_points(n_points: int = 5000, seed: int = 0) -> Points:
    """The STATES data set, standardised to mean 0 and standard deviation 1 per axis.

    Args:
        n_points: number of points, shared evenly between the five states.
        seed: of the draw.

    Returns:
        Points with labels 0 ... 4 in the order of :data:`STATE_NAMES`. Its ``redraw`` draws from
        the same distribution in the same coordinates, each point's state drawn at random too.

    Raises:
        ValueError: fewer points than states.
    """
    check_at_least("n_points", n_points, len(STATE_NAMES))
    labels = torch.arange(len(STATE_NAMES)).repeat_interleave(-(-n_points // len(STATE_NAMES)))
    labels = labels[torch.arange(n_points) * len(labels) // n_points]
    raw = _scatter(labels, seed)
    mean, std = raw.mean(0), raw.std(0)

    def redraw(n: int, seed: int, label: int | None = None) -> tuple[Tensor, Tensor]:
        words = random_words(seed_tensor(seed), Stream.SEED, 1, torch.arange(n), 1)
        labels = uniform_integers(words[0, :, 0], len(STATE_NAMES))
        if label is not None:
            labels.fill_(label)
        return ((_scatter(labels, seed) - mean) / std).float(), labels

    return Points(
        ((raw - mean) / std).float(),
        labels,
        STATE_NAMES,
        "STATES",
        redraw,
        tuple((ring - mean) / std for rings in _outlines() for ring in rings),
    )


@cache
def _outlines() -> tuple[tuple[Tensor, ...], ...]:
    """The closed rings [K, 2] of each state, placed on the pentagon."""
    rings = json.loads(files(__package__).joinpath("state_outlines.json").read_text())["rings"]
    placed = []
    for name in STATE_NAMES:
        degrees = [torch.tensor(ring, dtype=torch.float64) for ring in rings[name]]
        latitude = torch.cat(degrees)[:, 1].mean()
        flat = [ring * torch.tensor([math.cos(math.radians(latitude)), 1.0]) for ring in degrees]
        corners = torch.cat(flat)
        centre = (corners.amin(0) + corners.amax(0)) / 2
        start, edge = _edges(flat)
        length = edge.norm(dim=1)
        distance = (start + edge / 2 - centre).norm(dim=1)
        radius = ((distance**2 * length).sum() / length.sum()).sqrt()
        angle = math.pi / 2 - 2 * math.pi * _VERTEX[name] / 5
        vertex = _PENTAGON_RADIUS * torch.tensor([math.cos(angle), math.sin(angle)])
        placed.append(tuple((ring - centre) / radius * _STATE_RADIUS + vertex for ring in flat))
    return tuple(placed)


def _edges(rings) -> tuple[Tensor, Tensor]:
    """Where each edge of closed rings starts and how far it goes, [K, 2] each."""
    start = torch.cat(rings)
    end = torch.cat([ring.roll(-1, dims=0) for ring in rings])
    return start, end - start


def _scatter(labels: Tensor, seed: int) -> Tensor:
    """A point [N, 2] on each label's outline, uniform along its length, with Gaussian jitter."""
    words = random_words(seed_tensor(seed), Stream.SEED, 0, torch.arange(len(labels)), 4)[0]
    place = (words[:, 0].double() + 0.5) / 2**32
    points = 0.0 * words[:, :2].double() + _JITTER * normals(words[:, 2:])
    for label, rings in enumerate(_outlines()):
        mine = (labels == label).nonzero()[:, 0]
        start, edge = _edges(rings)
        ends = edge.norm(dim=1).cumsum(0)
        along = place[mine] * ends[-1]
        number = torch.searchsorted(ends, along)
        fraction = 1 - (ends[number] - along) / edge[number].norm(dim=1)
        points[mine] += start[number] + fraction[:, None] * edge[number]
    return points


class States(Dataset):
    """STATES under a linear schedule as a ``torch.utils.data.Dataset`` of all (point, t) pairs.

    Item t * n_points + i is point i noised to timestep t. Its noise is a function of the item and
    of how often :meth:`refresh_eps` was called, so nothing is stored until a member that holds the
    whole table is asked for.

    Args:
        num_steps: number of timesteps T.
        data: path of a file that :func:`load_points` reads; None for the packaged points.
        seed: of the noise and of :meth:`shuffle`.
        device: of all tensors; None takes CUDA where there is one.

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
        """(x_t, t, eps, x_0, y) of an int, a slice, or an array of indices; t is its feature."""
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
        dim = self.data.shape[1]
        words = random_words(self._seed, Stream.DRAW, self._refreshes, flat, dim + dim % 2)[0]
        return normals(words[:, : dim + dim % 2])[:, :dim]

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
        """New noise for every item."""
        self._refreshes += 1
        self._forget()

    def mix_data(self) -> None:
        """New noise for every item, and with it new ``all_data``."""
        self.refresh_eps()

    def shuffle(self) -> None:
        """A new random order of the items, the same for every member."""
        self._shuffles += 1
        self._forget()

    def show(
        self, samples: Tensor | np.ndarray | None = None, save_to: str | Path | None = None
    ) -> None:
        """Draws samples [n, 2] (the data itself by default), into a file if one is named."""
        from .plots import scatter

        scatter(self.data if samples is None else samples, save_to=save_to)

    def calc_nll(self, samples: Tensor | np.ndarray) -> float:
        """Mean -log density of samples [n, d] under a Gaussian KDE of the data."""
        from .metrics import kde_nll

        return kde_nll(torch.as_tensor(samples), self.data)
