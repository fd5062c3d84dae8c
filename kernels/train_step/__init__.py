"""One training step of M denoisers, or of M classifiers of noisy points."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._dispatch import runs_in_pieces, use_triton
from .._kinds import checked
from .._validate import (
    check_backend,
    check_dtype,
    check_of_each_model,
    check_positive,
    check_precision,
    check_range,
    check_same_device,
    check_shape,
    check_step,
)
from ..adamw import Shadow
from ..default_state import in_default_state
from ..mlp import MLPShape
from ..mlp.layout import gap_of
from ..mlp.shape import check_not_residual
from ..overflow import observe
from ..philox import seed_of_each
from ..q_sample.reference import TrainingData, batch_draw
from ..reduce_grad import mean_of, reduce_grad
from ..reduce_grad.reference import empty_parts
from . import pieces, reference

__all__ = ["TrainingData", "Workspace", "train_step", "training_sums", "workspace_of"]


class Workspace(NamedTuple):
    """The memory of the steps of a training run, allocated once.

    Without ``shadow`` the steps run in PyTorch: in pieces, or without ``buffers`` as the reference.
    """

    sums: Tensor  # float32 [M, S, P + 2], the result of a step
    shadow: Shadow | None  # weights as the kernels read them, which adamw_ keeps up to date
    buffers: Any  # scratch memory of the kernels or of the pieces


@in_default_state
@checked
def workspace_of(
    parameters: Tensor,
    shape: MLPShape,
    data: TrainingData,
    rows: int,
    *,
    precision: str = "fp16",
    backend: str | None = None,
) -> Workspace:
    """Allocates a workspace for calls of :func:`training_sums` with up to ``rows`` rows.

    Args:
        parameters: float32 [M, P]; the shadow starts with their values.
        shape, data, precision, backend: as in :func:`train_step`.
        rows: largest number of rows of a call.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or a count, label or timestep is out of
            range.
    """
    check_backend(backend)
    check_precision(precision)
    check_positive("rows", rows, allow_zero=True)
    _check(parameters, shape, data)
    models, size = parameters.shape
    gap = gap_of(shape, parameters.dtype, classifier=data.classifies)
    if runs_in_pieces(backend, parameters):
        shares = pieces.Shares(shape, models, rows)
        return Workspace(empty_parts(parameters, models, 1, size + 2), None, shares)
    if not use_triton(backend, "parameters", parameters, gap, precision):
        return Workspace(parameters.new_empty(models, 1, size + 2), None, None)
    from . import launches

    shadow, buffers, splits = launches.prepared(parameters, shape, data, rows, precision)
    return Workspace(empty_parts(parameters, models, splits, size + 2), shadow, buffers)


@in_default_state
@checked
def training_sums(
    parameters: Tensor,
    shape: MLPShape,
    data: TrainingData,
    workspace: Workspace,
    *,
    batch_size: int,
    seed: Tensor,
    step: int | Tensor,
    refresh: int | None = None,
    first_row: int = 0,
    rows: int | None = None,
    add: bool = False,
) -> Tensor:
    """Computes gradients, losses and numbers of terms of a step, in S parts, summed over rows.

    :func:`train_step` is built on it. It allocates nothing, so that a CUDA graph can hold it, and
    :func:`~flashpoint.kernels.adamw_` takes its result as it is. Chunks of a batch are added up
    with ``add``; ranks, by an all-reduce of the result of :func:`~flashpoint.kernels.reduce_grad`.

    Args:
        parameters, shape, data: as in :func:`train_step`.
        workspace: made for this network and this data, and for at least ``rows`` rows.
        batch_size, step, refresh, first_row, rows: as in :func:`train_step`.
        seed: int64 [M].
        add: True adds to the workspace's sums, False overwrites them.

    Returns:
        ``workspace.sums``, [M, S, P + 2].

    Raises:
        ValueError: the workspace is of another network or for fewer rows, or shapes, dtypes or
            devices do not fit.
    """
    _check_rows(batch_size, refresh, first_row, rows)
    rows = batch_size - first_row if rows is None else rows
    _check_call(parameters, shape, workspace, seed, step, rows)
    if isinstance(workspace.buffers, pieces.Shares):
        pieces.training_sums(
            parameters, shape, data, workspace.buffers, workspace.sums, add,
            (seed, step, batch_size, refresh, first_row, rows),
        )  # fmt: skip
    elif workspace.shadow is None:
        draw = batch_draw(data, seed, step, batch_size, refresh, first_row, rows)
        with torch.no_grad():
            reference.training_sums(parameters, shape, data, draw, workspace.sums, add)
    else:
        from . import launches

        launches.training_sums(
            parameters, shape, data, workspace.sums, workspace.shadow, workspace.buffers,
            batch_size=batch_size, seed=seed, step=step, refresh=refresh, first_row=first_row,
            rows=rows, add=add,
        )  # fmt: skip
    return workspace.sums


@in_default_state
@checked
def train_step(
    parameters: Tensor,
    shape: MLPShape,
    data: TrainingData,
    *,
    batch_size: int,
    seed: int | Tensor,
    step: int | Tensor,
    refresh: int | None = None,
    first_row: int = 0,
    rows: int | None = None,
    grad: Tensor | None = None,
    precision: str = "fp16",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws and noises a batch, and returns the loss and its gradient.

    Source: Ho et al. 2020, algorithm 1. With labels but no class features in ``data`` the network
    is a classifier and the loss is the cross-entropy. Otherwise it predicts the target of the
    forward table and the loss is the weighted mean squared error over rows and coordinates.
    Checking labels and timesteps waits for the device; :func:`training_sums` does not check them.

    Args:
        parameters: float32 [M, P], flat parameters of M networks.
        shape: the shape of these networks; the input width is d plus the widths of the features.
        data: points, schedules, features and labels.
        batch_size: rows B of a step of each model.
        seed: one seed, or int64 [M].
        step: training step from 0, an int or an int64 scalar on the device; the batch is a function
            of (seed, step).
        refresh: None draws points, timesteps and noise anew at every step. A number makes the steps
            go through epochs over all N * T pairs of point and timestep: with S = ceil(N T / B),
            step s takes rows (s mod S) * B ... of the order of epoch s // S, fewer at its end; a
            pair keeps its noise for ``refresh`` epochs.
        first_row, rows: the part of the batch to do, a chunk of it or a rank's; all by default.
        grad: the gradient is written here, [M, P]; None allocates it.
        precision: precision of the kernels' matrix products, ``fp16``, ``bf16``, ``tf32``,
            ``tf32x3`` or ``fp32``; the reference always works in float32.
        backend: ``"torch"`` forces the plain PyTorch reference, ``"triton"`` the kernels; None
            chooses.

    Returns:
        loss float32 [M] and gradient float32 [M, P], means over the rows.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or a count, label or timestep is out of
            range.
    """
    check_precision(precision)
    _check_rows(batch_size, refresh, first_row, rows)
    rows = batch_size - first_row if rows is None else rows
    if grad is not None:
        check_shape("grad", grad, parameters.shape)
        check_same_device(parameters=parameters, grad=grad)
    flat = parameters.contiguous()
    workspace = workspace_of(flat, shape, data, rows, precision=precision, backend=backend)
    seed = seed_of_each(seed, len(parameters), parameters.device).contiguous()
    sums = training_sums(
        flat, shape, data, workspace, batch_size=batch_size, seed=seed, step=step, refresh=refresh,
        first_row=first_row, rows=rows,
    )  # fmt: skip
    if workspace.shadow is not None:
        sums = reduce_grad(sums, backend=backend).sums
    mean, loss = mean_of(sums)
    if grad is not None:
        mean = grad.copy_(mean)
    observe("train_step", precision, [parameters], [loss, mean])
    return loss, mean


def _check_rows(batch_size: int, refresh: int | None, first_row: int, rows: int | None) -> None:
    """Raises ValueError if these numbers do not go together."""
    check_positive("batch_size", batch_size)
    check_positive("first_row", first_row, allow_zero=True)
    if first_row > batch_size:
        raise ValueError(f"first_row must be at most {batch_size}, the batch, got {first_row}")
    if refresh is not None:
        check_positive("refresh", refresh)
    if rows is not None:
        check_positive("rows", rows, allow_zero=True)


def _check(parameters: Tensor, shape: MLPShape, data: TrainingData) -> None:
    """Raises ValueError if the network, its parameters and the data do not fit together."""
    check_not_residual("shape", shape)
    check_same_device(parameters=parameters, **data._asdict())
    check_shape("parameters", parameters, ("M", shape.num_parameters))
    if parameters.dtype != torch.float64:  # the reference also takes float64
        check_dtype(torch.float32, parameters=parameters)
    _check_data(data, len(parameters), parameters.dtype)
    if data.class_features is not None and (data.labels is None or data.p_uncond is None):
        raise ValueError("class_features need labels and p_uncond, got None")
    if shape.widths[0] != data.input_width:
        features = "point, timestep feature and class feature"
        if data.class_features is None:
            features = "point and timestep feature"
        raise ValueError(
            f"shape must have input width {data.input_width} ({features}), got {shape.widths[0]}"
        )
    outputs, dim = shape.widths[-1], data.points.shape[-1]
    if not data.classifies and outputs != dim:
        raise ValueError(f"shape must have {dim} outputs, as many as a point, got {outputs}")
    if data.labels is not None:
        # The last entry of the class features is for rows without a class.
        classes = outputs if data.class_features is None else data.class_features.shape[1]
        check_range("labels", data.labels, 0, classes)


def _check_data(data: TrainingData, models: int, dtype: torch.dtype) -> None:
    """Raises ValueError if the parts of the data do not fit each other or M models."""
    floats = ("points", "forward_table", "time_features", "class_features", "p_uncond")
    for name, part in data._asdict().items():
        check_dtype(dtype if name in floats else torch.int64, **{name: part})
    check_of_each_model("points", data.points, models, ("N", "d"))
    check_of_each_model("forward_table", data.forward_table, models, ("T", 5))
    check_of_each_model("t_table", data.t_table, models, ("K",))
    count, steps, entries = (
        part.shape[1] for part in (data.points, data.forward_table, data.t_table)
    )
    check_of_each_model("time_features", data.time_features, models, (steps, "F"))
    if data.labels is not None:
        check_of_each_model("labels", data.labels, models, (count,))
    if data.class_features is not None:
        check_of_each_model("class_features", data.class_features, models, ("C + 1", "E"))
    if data.p_uncond is not None:
        check_shape("p_uncond", data.p_uncond, (models,))
    for name, most in (("n_points", count), ("n_steps", steps), ("n_entries", entries)):
        numbers = getattr(data, name)
        if numbers is not None:
            check_shape(name, numbers, (models,))
            check_range(name, numbers, 1, most + 1)
    check_range("t_table", data.t_table, 0, steps)


def _check_call(
    parameters: Tensor,
    shape: MLPShape,
    workspace: Workspace,
    seed: Tensor,
    step: int | Tensor,
    rows: int,
) -> None:
    """Raises ValueError if a call does not fit its workspace."""
    check_shape("parameters", parameters, ("M", shape.num_parameters))
    models, size = parameters.shape
    check_shape("workspace.sums", workspace.sums, (models, "S", size + 2))
    check_same_device(parameters=parameters, seed=seed)
    check_dtype(torch.int64, seed=seed)
    check_shape("seed", seed, (models,))
    check_step(step, parameters)
    if workspace.buffers is None:
        return
    made_for = (workspace.buffers if workspace.shadow is None else workspace.shadow).shape
    if made_for != shape:
        raise ValueError(f"workspace must be of {shape}, got that of {made_for}")
    if workspace.shadow is None:
        return
    room = workspace.buffers.target.shape[1]
    if rows > room:
        raise ValueError(f"rows must be at most {room}, which workspace has room for, got {rows}")
    for name, tensor in (("parameters", parameters), ("seed", seed)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")
