"""The loss of a network on held-out points, with draws that stay the same from call to call."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...kernels import Draw, TrainingData
from ...kernels.philox import child_seed, seed_tensor
from ...kernels.q_sample.reference import (
    draw_condition,
    fresh_rows,
    gather_points,
    q_sample,
    target_and_weight,
)
from ...kernels.train_step.reference import label_loss, target_loss
from ..data import Points
from ..errors import UserError
from ..models import fused_copy
from ..own_networks import is_own, own_copy
from .on_device import training_data
from .task import Task

# Noisy points behind a loss at least: its draws are off by about 2%, the same in every call.
_ROWS = 4096
_CHUNK = 2**15  # rows that are held at once
_STREAM = 2  # of random numbers of a task's seed; 0 and 1 are initial weights and draws


@torch.no_grad()
def validation_loss(
    model: Callable[..., Tensor], task: Task, points: Points, device: torch.device
) -> float:
    """Returns the mean training loss of a network on other points than those of its task.

    Every point is used equally often. Timesteps and noise are drawn as in the training, those of a
    classic recipe uniformly, and are the same in every call.

    Args:
        model: the network; it is copied to the device.
        task: its task.
        points: the other points, like those of the task.
        device: where it is computed.

    Raises:
        ValueError: the points are of another dimension or other classes than those of the task.
    """
    _check_like(points, task)
    data = training_data([replace(task, points=points)], device)
    own = is_own(model)
    network: Callable[..., Tensor] = (
        own_copy("model", model, device) if is_own(model) else fused_copy(model, device)
    )
    total, terms = 0.0, 0
    for draw in _draws(data, child_seed(task.seed, _STREAM), len(points), device):
        y = network(*_inputs(data, draw, own=own))[None].float()
        if task.classify:
            assert data.labels is not None
            loss, _, count = label_loss(y, data.labels[0][draw.index])
        else:
            x_0 = gather_points(data.points, draw.index)
            target, weight = target_and_weight(x_0, data.forward_table, draw.t, draw.eps)
            loss, _, count = target_loss(y, target, weight)
        total, terms = total + loss.double().item(), terms + int(count)
    return total / terms


def _check_like(points: Points, task: Task) -> None:
    if not isinstance(points, Points):
        raise UserError(f"points must be Points, got {type(points).__name__}")
    if points.dim != task.points.dim:
        raise UserError(f"points must have dimension {task.points.dim}, got {points.dim}")
    classes = task.points.num_classes
    if (task.classify or task.conditional) and points.num_classes != classes:
        raise UserError(f"points must have {classes} classes, got {points.num_classes}")


def _draws(data: TrainingData, seed: int, count: int, device: torch.device) -> Iterator[Draw]:
    """Yields draws in which each of the points is used equally often, [1, B] at a time."""
    seeds, rows = seed_tensor(seed).to(device), count * -(-_ROWS // count)
    for first in range(0, rows, _CHUNK):
        element = torch.arange(first, min(first + _CHUNK, rows), device=device)
        index = (element % count)[None]
        draw = fresh_rows(data, seeds, 0, element)._replace(index=index)
        if data.class_features is not None:
            draw = draw._replace(condition=draw_condition(data, seeds, 0, element, index))
        yield draw


def _inputs(data: TrainingData, draw: Draw, *, own: bool) -> list[Tensor]:
    """Returns what a network sees of the rows of a draw: an own one (x_t, t, y), others one input.

    The input of this package's networks is [B, d + F], a point with its timestep feature, and they
    take the class beside it as own ones do, if at all.
    """
    x_t = q_sample(gather_points(data.points, draw.index), data.forward_table, draw.t, draw.eps)
    features = gather_points(data.time_features, draw.t)
    seen = [x_t, draw.t] if own else [torch.cat((x_t, features), dim=-1)]
    return [each[0] for each in (*seen, draw.condition) if each is not None]
