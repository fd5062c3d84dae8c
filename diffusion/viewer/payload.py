"""What the viewer shows of a run, computed with its networks and packed small.

Timesteps are written as in the papers here: x_0 is a finished sample, x_T noise, so x_t has
alpha_bar of index t - 1 in the schedule's tables.
"""

import base64
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels.philox import child_seed
from ..metrics import PointMasses
from ..models import ConditionalMLP
from ..plots import COLORS
from ..report import Material
from ..sampling import sample, timesteps

_FRAMES = 64  # of the animation
_FIELDS = 22  # timesteps at which fields are known
_GRID, _ARROWS = 88, 22  # cells of a map and arrows, along each axis
_MOST_DATA = 3000  # points behind the exact density and score, and drawn
_MOST_NUMBERS = 30_000_000  # coordinates of a whole recorded chain: bounds the memory
_CHUNK = 2**22

# Parts of a page that draw random numbers of their own.
_DDIM, _DDPM, _BY_CLASS, _SUBSET = range(100, 104)


@dataclass(frozen=True)
class Frame:
    """The square that is shown, and how points come to lie in it."""

    reach: float  # it spans -reach ... reach along each axis
    centre: Tensor | None = None  # [d], of points of more than 3 dimensions
    axes: Tensor | None = None  # [d, 3], their principal axes

    def project(self, x: Tensor) -> Tensor:
        """Points [..., 2 or 3] to draw, of points [..., d]."""
        if self.centre is not None and self.axes is not None:
            return (x.float() - self.centre) @ self.axes
        return torch.cat((x, torch.zeros_like(x)), dim=-1) if x.shape[-1] == 1 else x

    def grid(self, count: int) -> Tensor:
        """Centres of count x count cells, [count^2, 2], row after row from the top left."""
        ends = (torch.arange(count) + 0.5) / count * 2 - 1
        y, x = torch.meshgrid(-ends * self.reach, ends * self.reach, indexing="ij")
        return torch.stack((x.flatten(), y.flatten()), dim=1)


def make_payload(material: Material, samples: int, say: Callable[[str], None] = print) -> dict:
    """All that the page shows, ready for JSON.

    Args:
        material: the run.
        samples: shown without guidance; of each class a third as many.
        say: takes a line of text about what is going on.
    """
    points, schedule = material.points, material.schedule
    frame = _frame(material)
    say("view: samples on their way from noise to data ...")
    chains, steps = _chains(material, samples, frame)
    payload = {
        "name": points.name,
        "dim": points.dim,
        "total": schedule.num_steps,
        "alphaBar": [1.0, *(round(value, 6) for value in schedule.alpha_bar.tolist())],
        "classes": [points.class_name(label) for label in range(points.num_classes)],
        "colors": COLORS,
        "reach": frame.reach,
        "steps": steps,
        "chains": chains,
        "data": _data(material, frame),
        "outlines": [pack(curve, 2**15 - 1) for curve in points.outlines if points.dim == 2],
    }
    if points.dim == 2:
        say("view: densities, scores and regions over the plane ...")
        payload["fields"] = _fields(material, frame, steps)
    return payload


def pack(x: Tensor, levels: int) -> dict:
    """Numbers as whole ones from -levels to levels times a scale, compressed, in base64.

    Args:
        x: any shape, finite.
        levels: 127 or 32767: 8 or 16 bits.
    """
    kind = np.dtype("<i2" if levels > 127 else "i1")
    scale = x.abs().max().clamp(min=1e-12).item() / levels
    whole = (x.double() / scale).round().cpu().numpy().astype(kind)
    content = base64.b64encode(zlib.compress(whole.tobytes(), 9)).decode()
    return {"shape": list(x.shape), "bits": 8 * kind.itemsize, "scale": scale, "content": content}


def _frame(material: Material) -> Frame:
    """Holds the data, and most of the noise."""
    points = material.points
    frame = Frame(0.0)
    if points.dim > 3:
        centre = points.data.mean(dim=0)
        axes = torch.linalg.svd(points.data - centre, full_matrices=False).Vh[:3].T
        frame = Frame(0.0, centre, axes)
    farthest = frame.project(points.data).abs().max().item()
    return Frame(max(2.6, 1.15 * farthest), frame.centre, frame.axes)


def _chains(material: Material, samples: int, frame: Frame) -> tuple[list[dict], list[int]]:
    """The recorded chains of each kind of sampling, and the timestep of each frame."""
    schedule = material.schedule
    indices = timesteps(schedule, material.config["sampling_steps"])
    most = max(3, _MOST_NUMBERS // (len(indices) * material.points.dim))
    n = min(samples, most)
    steps = [*(indices + 1).tolist(), 0]
    # Most frames show the end of the way, where the shapes appear.
    way = 1 - torch.linspace(1, 0, _FRAMES, dtype=torch.float64).pow(1.7)
    shown = (way * (len(steps) - 1)).round().long().unique()

    def chain(title: str, part: int, n: int, labels: Tensor | None = None, **options) -> dict:
        made = sample(
            material.denoiser,
            schedule,
            n,
            seed=child_seed(material.seed, part),
            num_steps=len(indices),
            keep_every=1,
            device=material.device,
            **options,
        )
        x = frame.project(made.trajectory[shown.to(made.trajectory.device)].cpu())
        named = [] if labels is None else labels.tolist()
        return {"title": title, "x": pack(x, 2**15 - 1), "labels": named}

    chains = [
        chain("Deterministic (DDIM)", _DDIM, n, method="ddim"),
        chain("Ancestral (DDPM)", _DDPM, n),
    ]
    told = isinstance(material.denoiser, ConditionalMLP)
    if told or material.classifier is not None:
        classes = material.points.num_classes
        labels = torch.arange(classes).repeat(max(1, min(n // 3, most // classes)))
        title = "Told the class" if told else "Guided by class"
        guide = None if told else material.classifier
        options = {"classifier": guide, "label": labels}
        chains.append(chain(title, _BY_CLASS, len(labels), labels, **options))
    return chains, [steps[k] for k in shown.tolist()]


def _data(material: Material, frame: Frame) -> dict:
    rows = _subset(material)
    labels = material.points.labels
    return {
        "x": pack(frame.project(material.points.data[rows]), 2**15 - 1),
        "labels": [] if labels is None else labels[rows].tolist(),
    }


def _subset(material: Material) -> Tensor:
    """Rows of the data, at most so many that the page stays small; all of them if few."""
    generator = torch.Generator().manual_seed(child_seed(material.seed, _SUBSET) % 2**63)
    order = torch.randperm(len(material.points), generator=generator)
    return order[:_MOST_DATA].sort().values


@torch.no_grad()
def _fields(material: Material, frame: Frame, steps: list[int]) -> dict:
    """Densities, scores, errors and regions over the plane, at some of the frames' timesteps.

    An arrow is the score times the noise level, -eps, which is of the order of 1 where x_t is
    likely, while the score itself grows without bound as t falls.
    """
    visited = sorted({max(step, 1) for step in steps}, reverse=True)
    chosen = torch.linspace(0, len(visited) - 1, min(_FIELDS, len(visited))).round().long()
    shown = [visited[k] for k in chosen.tolist()]
    data, made = material.points.data[_subset(material)], material.samples[:_MOST_DATA]
    cells, arrows = frame.grid(_GRID), frame.grid(_ARROWS)
    cell = 2 * frame.reach / _GRID
    exact = PointMasses(data)
    maps: dict[str, list[Tensor]] = {name: [] for name in ("data", "samples", "excess")}
    scores: dict[str, list[Tensor]] = {"network": [], "exact": []}
    regions = []
    for t in shown:
        alpha_bar = material.schedule.alpha_bar[t - 1].item()
        p = noised_density(data, alpha_bar, cells, cell)
        error = _at(material, material.denoiser, cells, t) - exact.optimal_noise(cells, alpha_bar)
        maps["data"].append(p)
        maps["samples"].append(noised_density(made, alpha_bar, cells, cell))
        maps["excess"].append(p * error.square().sum(dim=1))
        scores["network"].append(_arrows(_at(material, material.denoiser, arrows, t)))
        scores["exact"].append(_arrows(exact.optimal_noise(arrows, alpha_bar)))
        if material.classifier is not None:
            regions.append(_at(material, material.classifier, cells, t).softmax(dim=1))
    fields = {"steps": shown, "grid": _GRID, "arrows": _ARROWS}
    fields["maps"] = {name: _images(torch.stack(each)) for name, each in maps.items()}
    fields["scores"] = {name: pack(torch.stack(each), 127) for name, each in scores.items()}
    if regions:
        best, label = torch.stack(regions).max(dim=-1)
        floor = 1 / regions[0].shape[1]
        fields["regions"] = {"sure": pack((best - floor) / (1 - floor), 127),
                             "label": pack(label.double(), 127)}  # fmt: skip
    return fields


def _at(material: Material, model, x: Tensor, t: int) -> Tensor:
    """A network's output at points [n, 2] and timestep t."""
    feature = material.schedule.time_features[t - 1].float().expand(len(x), -1)
    return model(torch.cat((x.float(), feature), dim=1))


def _arrows(eps: Tensor) -> Tensor:
    """-eps [n, 2], its length L as tanh(L / 2): no arrow is longer than 1."""
    length = eps.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return -eps * (length / 2).tanh() / length


def _images(maps: Tensor) -> dict:
    """Maps [F, cells]; each is stored as the square root of its share of its own maximum."""
    top = maps.amax(dim=1).clamp(min=1e-30)
    packed = pack((maps / top[:, None]).sqrt(), 127)
    return {**packed, "top": [float(f"{value:.4g}") for value in top]}


def noised_density(x_0: Tensor, alpha_bar: float, at: Tensor, cell: float) -> Tensor:
    """p(x_t) of points x_0 that are noised: a mixture of Gaussians, one for each point.

    Args:
        x_0: [n, d].
        alpha_bar: of the timestep.
        at: where, [m, d].
        cell: width of a cell; the variance of a uniform density over it is added, so that what is
            finer than the grid is blurred rather than missed.

    Returns:
        float64 [m].
    """
    dim = x_0.shape[1]
    variance = 1 - alpha_bar + cell**2 / 12
    means = alpha_bar**0.5 * x_0.float()
    norm = len(x_0) * (2 * torch.pi * variance) ** (dim / 2)
    parts = [
        torch.cdist(part, means).square_().mul_(-0.5 / variance).exp_().sum(dim=1)
        for part in at.float().split(max(1, _CHUNK // len(means)))
    ]
    return torch.cat(parts).double() / norm
