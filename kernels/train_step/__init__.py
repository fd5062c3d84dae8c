"""One training step of M diffusion models or noisy-point classifiers."""

import torch
from torch import Tensor

from .._dispatch import use_triton
from .._validate import (
    check_backend,
    check_positive,
    check_precision,
    check_same_device,
    check_shape,
)
from ..mlp import MLPShape
from ..mlp.layout import gap_of
from ..overflow import observe
from ..philox import seed_tensor
from ..q_sample.reference import Draw, draw_epoch, draw_fresh
from . import reference
from .reference import TrainingData

__all__ = ["TrainingData", "train_step"]


def train_step(
    parameters: Tensor,
    shape: MLPShape,
    data: TrainingData,
    *,
    batch_size: int,
    seed: int | Tensor,
    step: int,
    epoch: int | None = None,
    refresh: int = 0,
    first_row: int = 0,
    grad: Tensor | None = None,
    precision: str = "fp16",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws a batch, noises it, returns the loss and its gradient (Ho et al. 2020, algorithm 1).

    With labels in ``data`` the network is a classifier and the loss the cross-entropy; without,
    it predicts the noise and the loss is the mean squared error over rows and coordinates.

    Args:
        parameters: float32 [M, P], flat parameters of M networks.
        shape: the shape of these networks; the input width is d plus the width of the features.
        data: points, schedules, features and labels.
        batch_size: rows B of each model.
        seed: one seed, or int64 [M].
        step: training step; the batch is a function of (seed, step).
        epoch: None draws points, timesteps and noise anew at every step. A number takes rows
            [step * B, (step + 1) * B) of that epoch's order over all N * T pairs instead.
        refresh: with ``epoch``, which noise; a pair keeps its noise until this changes.
        first_row: global number of the first row.
        grad: where the gradient goes, [M, P]; None allocates it.
        precision: of the matrix products of the kernels, ``fp16``, ``bf16``, ``tf32`` or ``fp32``;
            the reference works in float32 always.
        backend: ``"torch"`` forces the plain PyTorch reference, ``"triton"`` the kernels; None
            chooses.

    Returns:
        loss float32 [M] and gradient float32 [M, P].

    Raises:
        ValueError: shapes or devices do not fit, or a count is out of range.
    """
    check_backend(backend)
    check_precision(precision)
    check_positive("batch_size", batch_size)
    check_positive("step", step, allow_zero=True)
    check_same_device(parameters=parameters, points=data.points, alpha_bar=data.alpha_bar)
    models = parameters.shape[0]
    check_shape("parameters", parameters, (models, shape.num_parameters))
    grad = torch.empty_like(parameters) if grad is None else grad
    check_shape("grad", grad, parameters.shape)
    width = data.points.shape[-1] + data.time_features.shape[-1]
    if shape.widths[0] != width:
        raise ValueError(
            f"shape must have input width {width} (point and timestep feature), "
            f"got {shape.widths[0]}"
        )
    seeds = seed_tensor(seed, parameters.device).expand(models)
    gap = gap_of(shape, parameters.dtype, classifier=data.labels is not None)
    if use_triton(backend, "parameters", parameters, gap):
        from . import kernel

        loss = kernel.train_step(
            parameters,
            shape,
            data,
            grad,
            precision,
            batch_size=batch_size,
            seed=seeds,
            step=step,
            epoch=epoch,
            refresh=refresh,
            first_row=first_row,
        )
    else:
        draw = _draw(data, seeds, batch_size, step, epoch, refresh, first_row)
        loss = reference.train_step(parameters, shape, data, draw, grad)
    observe("train_step", precision, [parameters], [loss, grad])
    return loss, grad


def _draw(
    data: TrainingData,
    seed: Tensor,
    batch_size: int,
    step: int,
    epoch: int | None,
    refresh: int,
    first_row: int,
) -> Draw:
    device, dim = data.points.device, data.points.shape[-1]
    rows = torch.arange(first_row, first_row + batch_size, device=device)
    if epoch is None:
        return draw_fresh(seed, step, rows, data.n_points, data.t_table, dim)
    n_points, n_steps = data.points.shape[1], data.alpha_bar.shape[1]
    rows = rows + step * batch_size
    return draw_epoch(seed, epoch, refresh, rows[rows < n_points * n_steps], n_points, n_steps, dim)
