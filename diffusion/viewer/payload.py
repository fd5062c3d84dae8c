"""The content of the viewer's page, computed with the networks of a run and packed small.

Timesteps are counted as in the papers: x_0 is a finished sample and x_T is noise, so the levels of
x_t have index t - 1 in the schedule's tables.
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
from ..metrics.excess_loss import best_noise
from ..models import ConditionalMLP
from ..palette import COLORS
from ..projection import Projection
from ..reverse_steps import timesteps
from ..saved_run import SavedRun

_FRAMES = 64  # of the animation
_FIELDS = 22  # timesteps at which the fields over the plane are computed
_GRID, _ARROWS = 88, 22  # cells of a map and arrows, along each axis
_MOST_DATA = 3000  # points that are drawn and that the exact density and score are computed from
_MOST_NUMBERS = 30_000_000  # coordinates of a whole recorded chain, to bound the memory
_CHUNK = 2**22

# Streams of random numbers, one for each part of a page that draws some.
_DDIM, _DDPM, _BY_CLASS, _SUBSET = range(100, 104)


@dataclass(frozen=True)
class Frame:
    """The square that is shown, and the map of points into it.

    Args:
        reach: the square spans -reach ... reach along each axis.
        projection: maps points to at most three dimensions.
    """

    reach: float
    projection: Projection

    @classmethod
    def of(cls, data: Tensor) -> "Frame":
        """Returns the frame that holds the data [n, d] and most of the noise."""
        frame = cls(0.0, Projection.of(data, 3))
        farthest = frame.project(data).abs().max().item()
        return cls(max(2.6, 1.15 * farthest), frame.projection)

    def project(self, x: Tensor) -> Tensor:
        """Maps points [..., d] to points [..., 2 or 3] to draw, adding a zero to one dimension."""
        x = self.projection(x)
        return torch.cat((x, torch.zeros_like(x)), dim=-1) if x.shape[-1] == 1 else x

    def grid(self, count: int) -> Tensor:
        """Returns the centres of count x count cells, [count^2, 2], by rows from the top left."""
        ends = (torch.arange(count) + 0.5) / count * 2 - 1
        y, x = torch.meshgrid(-ends * self.reach, ends * self.reach, indexing="ij")
        return torch.stack((x.flatten(), y.flatten()), dim=1)


def make_payload(run: SavedRun, samples: int, say: Callable[[str], None] = print) -> dict:
    """Returns everything that the page shows, ready for JSON.

    Args:
        run: the run.
        samples: number of samples shown without guidance; each class has a third as many.
        say: called with a line of text about the progress.
    """
    points, schedule = run.points, run.schedule
    frame = Frame.of(points.data)
    say("view: samples on their way from noise to data ...")
    chains, steps = _chains(run, samples, frame)
    payload = {
        "name": points.name,
        "dim": points.dim,
        "total": schedule.num_steps,
        "noise": [0.0, *(round(value, 6) for value in (schedule.noise / schedule.size).tolist())],
        "classes": [points.class_name(label) for label in range(points.num_classes)],
        "colors": COLORS,
        "reach": frame.reach,
        "steps": steps,
        "chains": chains,
        "data": _data(run, frame),
        "outlines": [pack(curve, 2**15 - 1) for curve in points.outlines if points.dim == 2],
    }
    if points.dim == 2:
        say("view: densities, scores and regions over the plane ...")
        payload["fields"] = _fields(run, frame, steps)
    return payload


def pack(x: Tensor, levels: int) -> dict:
    """Packs numbers as integers from -levels to levels times a scale, compressed, in base64.

    Args:
        x: finite numbers, any shape.
        levels: 127 for 8 bits or 32767 for 16 bits.
    """
    kind = np.dtype("<i2" if levels > 127 else "i1")
    scale = x.abs().max().clamp(min=1e-12).item() / levels
    whole = (x.double() / scale).round().cpu().numpy().astype(kind)
    content = base64.b64encode(zlib.compress(whole.tobytes(), 9)).decode()
    return {"shape": list(x.shape), "bits": 8 * kind.itemsize, "scale": scale, "content": content}


def _chains(run: SavedRun, samples: int, frame: Frame) -> tuple[list[dict], list[int]]:
    """Returns the recorded chains of each kind of sampling, and the timestep of each frame."""
    # Those of DDIM, which are all that both methods can visit.
    indices = timesteps(run.schedule, run.config["sampling_steps"], method="ddim")
    most = max(3, _MOST_NUMBERS // (len(indices) * run.points.dim))
    n = min(samples, most)
    steps = [*(indices + 1).tolist(), 0]
    # Most frames show the end of the way, where the shapes appear.
    way = 1 - torch.linspace(1, 0, _FRAMES, dtype=torch.float64).pow(1.7)
    shown = (way * (len(steps) - 1)).round().long().unique()

    def chain(title: str, stream: int, n: int, labels: Tensor | None = None, **options) -> dict:
        trajectory = run.trajectory(n, stream, len(indices), **options)
        x = frame.project(trajectory[shown.to(trajectory.device)].cpu())
        named = [] if labels is None else labels.tolist()
        return {"title": title, "x": pack(x, 2**15 - 1), "labels": named}

    chains = [
        chain("Deterministic (DDIM)", _DDIM, n, method="ddim"),
        chain("Ancestral (DDPM)", _DDPM, n),
    ]
    conditional = isinstance(run.denoiser, ConditionalMLP)
    if conditional or run.classifier is not None:
        classes = run.points.num_classes
        labels = torch.arange(classes).repeat(max(1, min(n // 3, most // classes)))
        title = "Conditioned on class" if conditional else "Guided by class"
        options = {"classifier": None if conditional else run.classifier, "label": labels}
        chains.append(chain(title, _BY_CLASS, len(labels), labels, **options))
    return chains, [steps[k] for k in shown.tolist()]


def _data(run: SavedRun, frame: Frame) -> dict:
    """Returns the points of the data that are drawn, and their labels."""
    rows = _subset(run)
    labels = run.points.labels
    return {
        "x": pack(frame.project(run.points.data[rows]), 2**15 - 1),
        "labels": [] if labels is None else labels[rows].tolist(),
    }


def _subset(run: SavedRun) -> Tensor:
    """Returns the rows of the data that are shown: all, or so many that the page stays small."""
    generator = torch.Generator().manual_seed(child_seed(run.seed, _SUBSET) % 2**63)
    order = torch.randperm(len(run.points), generator=generator)
    return order[:_MOST_DATA].sort().values


@torch.no_grad()
def _fields(run: SavedRun, frame: Frame, steps: list[int]) -> dict:
    """Computes densities, scores, errors and regions over the plane, at some of the timesteps.

    A place on the page is x_t / size, see :attr:`Schedule.size`. An arrow is the score times the
    noise level, -eps_hat. Where x_t is likely it is of the order of 1, while the score itself grows
    without bound as t falls.
    """
    visited = sorted({max(step, 1) for step in steps}, reverse=True)
    chosen = torch.linspace(0, len(visited) - 1, min(_FIELDS, len(visited))).round().long()
    shown = [visited[k] for k in chosen.tolist()]
    data, samples = run.points.data[_subset(run)], run.samples[:_MOST_DATA]
    cells, arrows = frame.grid(_GRID), frame.grid(_ARROWS)
    cell = 2 * frame.reach / _GRID
    exact = PointMasses(data)
    maps: dict[str, list[Tensor]] = {name: [] for name in ("data", "samples", "excess")}
    scores: dict[str, list[Tensor]] = {"network": [], "exact": []}
    regions = []
    for t in shown:
        size = run.schedule.size[t - 1].item()
        levels = run.schedule.signal[t - 1].item() / size, run.schedule.noise[t - 1].item() / size
        p = noised_density(data, levels, cells, cell)
        error = _eps_hat(run, size * cells, t) - best_noise(
            exact, run.schedule, size * cells, t - 1
        )
        maps["data"].append(p)
        maps["samples"].append(noised_density(samples, levels, cells, cell))
        maps["excess"].append(p * error.square().sum(dim=1))
        scores["network"].append(_arrows(_eps_hat(run, size * arrows, t)))
        best = best_noise(exact, run.schedule, size * arrows, t - 1)
        scores["exact"].append(_arrows(best))
        if run.classifier is not None:
            regions.append(_at(run, run.classifier, size * cells, t).softmax(dim=1))
    fields = {"steps": shown, "grid": _GRID, "arrows": _ARROWS}
    fields["maps"] = {name: _images(torch.stack(each)) for name, each in maps.items()}
    fields["scores"] = {name: pack(torch.stack(each), 127) for name, each in scores.items()}
    if regions:
        best, label = torch.stack(regions).max(dim=-1)
        floor = 1 / regions[0].shape[1]
        fields["regions"] = {"sure": pack((best - floor) / (1 - floor), 127),
                             "label": pack(label.double(), 127)}  # fmt: skip
    return fields


def _at(run: SavedRun, model, x: Tensor, t: int) -> Tensor:
    """Returns a network's output at points [n, 2] and timestep t."""
    return model(run.schedule.inputs(x.float(), t - 1))


def _eps_hat(run: SavedRun, x: Tensor, t: int) -> Tensor:
    """Returns the noise that the denoiser predicts at points [n, 2] and timestep t."""
    return run.schedule.eps_hat(x, _at(run, run.denoiser, x, t), t - 1)


def _arrows(eps: Tensor) -> Tensor:
    """Returns arrows -eps [n, 2], their lengths L shortened to tanh(L / 2), which is below 1."""
    length = eps.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return -eps * (length / 2).tanh() / length


def _images(maps: Tensor) -> dict:
    """Packs maps [F, cells], each as the square root of its values over its own maximum."""
    top = maps.amax(dim=1).clamp(min=1e-30)
    packed = pack((maps / top[:, None]).sqrt(), 127)
    return {**packed, "top": [float(f"{value:.4g}") for value in top]}


def noised_density(x_0: Tensor, levels: tuple[float, float], at: Tensor, cell: float) -> Tensor:
    """Returns p(x_t) of points x_0 with noise: a mixture of Gaussians, one for each point.

    Args:
        x_0: [n, d].
        levels: weights of x_0 and of the noise in x_t.
        at: the places where it is computed, [m, d].
        cell: width of a cell. The variance of a uniform density over a cell is added, so that
            details finer than the grid are blurred rather than missed.

    Returns:
        float64 [m].
    """
    dim = x_0.shape[1]
    signal, noise = levels
    variance = noise**2 + cell**2 / 12
    means = signal * x_0.float()
    norm = len(x_0) * (2 * torch.pi * variance) ** (dim / 2)
    parts = [
        torch.cdist(part, means).square_().mul_(-0.5 / variance).exp_().sum(dim=1)
        for part in at.float().split(max(1, _CHUNK // len(means)))
    ]
    return torch.cat(parts).double() / norm
