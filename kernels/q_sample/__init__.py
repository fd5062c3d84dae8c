"""The forward process q(x_t | x_0): noises given points, or draws a whole training batch."""

import torch
from torch import Tensor

from .._dispatch import elementwise_gap, use_triton
from .._kinds import checked
from .._validate import (
    check_backend,
    check_dtype,
    check_float,
    check_of_each_model,
    check_positive,
    check_range,
    check_same_device,
    check_shape,
    check_step,
)
from ..default_state import in_default_state
from ..philox import seed_of_each
from . import reference
from .reference import Draw, TrainingData

__all__ = ["Draw", "TrainingData", "eps_table", "q_sample", "q_sample_batch"]


@in_default_state
@checked
def eps_table(alpha_bar: Tensor) -> Tensor:
    """Returns the forward table of networks that predict eps in a variance-preserving process.

    Source: Ho et al. 2020, equations 4 and 14: x_t = sqrt(alpha_bar_t) x_0 +
    sqrt(1 - alpha_bar_t) eps, and all errors count alike.

    Args:
        alpha_bar: float [T], or [M, T], from 0 to 1.

    Returns:
        [T, 5], or [M, T, 5]: of each timestep the weights of x_0 and of eps in x_t, their weights
        in what the network predicts, and the weight of its squared error.

    Raises:
        TypeError: alpha_bar is not floating-point.
    """
    check_float("alpha_bar", alpha_bar)
    zero, one = torch.zeros_like(alpha_bar), torch.ones_like(alpha_bar)
    return torch.stack((alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), zero, one, one), dim=-1)


@in_default_state
@checked
def q_sample(
    x_0: Tensor, forward_table: Tensor, t: Tensor, eps: Tensor, *, backend: str | None = None
) -> Tensor:
    """Returns x_t, a combination of x_0 and eps with the signal and noise level of t.

    Source: Ho et al. 2020, equation 4: with the table of :func:`eps_table`,
    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.

    Args:
        x_0: float [B, d], or [M, B, d] for M models.
        forward_table: float [T, 5], or [M, T, 5]; the first two numbers of each timestep are its
            signal and noise level. ``flashpoint.diffusion.Schedule`` computes it.
        t: int64 [B], or [M, B]; 0 is the least noisy timestep.
        eps: the shape of x_0.
        backend: ``"torch"`` forces the plain PyTorch reference, ``"triton"`` the kernels; None
            chooses.

    Returns:
        x_t, the shape and dtype of x_0.

    Raises:
        TypeError: x_0 is not floating-point or t is not integer.
        ValueError: shapes or devices do not fit, or a timestep is outside [0, T).
    """
    check_backend(backend)
    check_float("x_0", x_0)
    check_float("forward_table", forward_table)
    if x_0.dim() not in (2, 3):
        raise ValueError(f"x_0 must be [B, d] or [M, B, d], got {list(x_0.shape)}")
    check_same_device(x_0=x_0, forward_table=forward_table, t=t, eps=eps)
    if eps.shape != x_0.shape:
        raise ValueError(
            f"eps must have the shape of x_0, {list(x_0.shape)}, got {list(eps.shape)}"
        )
    if t.shape != x_0.shape[:-1]:
        raise ValueError(f"t must be {list(x_0.shape[:-1])}, got {list(t.shape)}")
    many = x_0.dim() == 3
    models = x_0.shape[0] if many else 1
    table = forward_table if forward_table.dim() == 3 else forward_table[None]
    check_of_each_model("forward_table", table, models, ("T", 5))
    check_range("t", t, 0, table.shape[1])
    check_dtype(torch.int64, t=t)
    lifted = x_0.reshape(models, -1, x_0.shape[-1])
    table, t = table.expand(models, -1, -1), t.reshape(models, -1)
    eps = eps.reshape(lifted.shape)
    if use_triton(backend, "x_0", x_0, elementwise_gap(x_0, eps)):
        from . import kernel

        return kernel.q_sample(lifted, table, t, eps).reshape(x_0.shape)
    x_t = reference.q_sample(lifted, table.to(x_0.dtype), t, eps)
    return x_t.to(x_0.dtype).reshape(x_0.shape)


@in_default_state
@checked
def q_sample_batch(
    points: Tensor,
    forward_table: Tensor,
    batch_size: int,
    *,
    seed: int | Tensor,
    step: int,
    t_table: Tensor | None = None,
    first_row: int = 0,
    backend: str | None = None,
) -> tuple[Tensor, Draw]:
    """Draws a training batch by Philox: data index, timestep and noise, and the x_t they give.

    Args:
        points: float32 [N, d], or [M, N, d] for M models.
        forward_table: float [T, 5], or [M, T, 5], see :func:`q_sample`.
        batch_size: number of rows B, at least 0.
        seed: one seed, or int64 [M], one per model.
        step: training step in [0, 2**32).
        t_table: int64 [K] or [M, K], timesteps to draw from, each entry equally likely; None for
            0 ... T - 1.
        first_row: global number of the first row; the ranks of a distributed run share one
            numbering.
        backend: ``"torch"`` forces the plain PyTorch reference, ``"triton"`` the kernels; None
            chooses.

    Returns:
        x_t float32 [M, B, d], and the :class:`Draw` behind it.

    Raises:
        TypeError: points are not floating-point.
        ValueError: shapes or devices do not fit, or a count is negative.
    """
    check_backend(backend)
    check_float("points", points)
    check_positive("batch_size", batch_size, allow_zero=True)
    check_step(step, points)
    check_positive("first_row", first_row, allow_zero=True)
    check_float("forward_table", forward_table)
    check_same_device(points=points, forward_table=forward_table, t_table=t_table)
    points = points if points.dim() == 3 else points[None]
    check_shape("points", points, ("M", "N", "d"))
    models, n_points, _ = points.shape
    table = forward_table if forward_table.dim() == 3 else forward_table[None]
    check_of_each_model("forward_table", table, models, ("T", 5))
    seeds = seed_of_each(seed, models, points.device)
    if t_table is None:
        t_table = torch.arange(table.shape[1], device=points.device)
    else:
        check_range("t_table", t_table, 0, table.shape[1])
        check_dtype(torch.int64, t_table=t_table)
    t_table = t_table if t_table.dim() == 2 else t_table[None]
    check_of_each_model("t_table", t_table, models, ("K",))
    table = table.to(points.dtype).expand(models, -1, -1)
    t_table = t_table.expand(models, -1)
    data = reference.TrainingData(
        points=points,
        forward_table=table,
        time_features=points.new_empty((1, table.shape[1], 0)),
        labels=None,
        n_points=torch.full((models,), n_points, device=points.device),
        t_table=t_table,
    )
    if use_triton(backend, "points", points, elementwise_gap(points)):
        from . import kernel

        return kernel.draw(data, seeds, step, batch_size, None, first_row, batch_size)
    draw = reference.batch_draw(data, seeds, step, batch_size, None, first_row, batch_size)
    x_0 = reference.gather_points(points, draw.index)
    return reference.q_sample(x_0, table, draw.t, draw.eps), draw
