"""STATES: points on the outlines of five US states.

Outlines: U.S. Census Bureau cartographic boundary files (public domain), by way of the npm
package us-atlas 3.0.1 (ISC); see ``state_outlines.json``.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor

from ...kernels.default_state import in_default_state
from ...kernels.philox import (
    Stream,
    normals,
    random_words,
    seed_tensor,
    uniform_integers,
)
from ..errors import check_integer
from .points import Points

STATE_NAMES = ("Michigan", "Idaho", "Ohio", "Oklahoma", "Wisconsin")

# Each state's place on a pentagon, its vertices counted from Ohio at the top.
_VERTEX = {"Ohio": 0, "Wisconsin": 1, "Oklahoma": 2, "Idaho": 3, "Michigan": 4}
_PENTAGON_RADIUS = 1.5
_STATE_RADIUS = 0.48  # root mean square distance of an outline from its centre
_JITTER = 0.03


@in_default_state
def states_points(n_points: int = 5000, seed: int = 0) -> Points:
    """Returns the STATES data set, standardised to mean 0 and standard deviation 1 per axis.

    Args:
        n_points: number of points, shared evenly between the five states.
        seed: seed of the draw.

    Returns:
        Points with labels 0 ... 4 in the order of :data:`STATE_NAMES`. Its ``redraw`` draws from
        the same distribution in the same coordinates, each point's state drawn at random too.

    Raises:
        ValueError: fewer points than states.
    """
    check_integer("n_points", n_points, len(STATE_NAMES))
    labels = torch.arange(len(STATE_NAMES)).repeat_interleave(-(-n_points // len(STATE_NAMES)))
    labels = labels[torch.arange(n_points) * len(labels) // n_points]
    raw = _scatter(labels, seed)
    mean, std = raw.mean(0), raw.std(0)
    return Points(
        ((raw - mean) / std).float(),
        labels,
        STATE_NAMES,
        "STATES",
        _Redraw(mean, std),
        tuple((ring - mean) / std for rings in _outlines() for ring in rings),
    )


@dataclass(frozen=True)
class _Redraw:
    """Draws new points as ``Points.redraw`` does; unlike a closure it can be pickled."""

    mean: Tensor
    std: Tensor

    def __call__(self, n: int, seed: int, label: int | None = None) -> tuple[Tensor, Tensor]:
        words = random_words(seed_tensor(seed), Stream.SEED, 1, torch.arange(n), 1)
        labels = uniform_integers(words[0, :, 0], len(STATE_NAMES))
        if label is not None:
            labels.fill_(label)
        return ((_scatter(labels, seed) - self.mean) / self.std).float(), labels


@cache
def _outlines() -> tuple[tuple[Tensor, ...], ...]:
    """Returns the closed rings [K, 2] of each state, placed on the pentagon."""
    text = files(__package__).joinpath("state_outlines.json").read_text(encoding="utf-8")
    rings = json.loads(text)["rings"]
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
    """Returns start and extent of each edge of closed rings, [K, 2] each."""
    start = torch.cat(rings)
    end = torch.cat([ring.roll(-1, dims=0) for ring in rings])
    return start, end - start


def _scatter(labels: Tensor, seed: int) -> Tensor:
    """Draws a point [N, 2] on each label's outline, uniform along it, with Gaussian jitter."""
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
