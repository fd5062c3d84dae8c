"""One update of the reverse process: DDPM or DDIM, with or without guidance."""

import torch
from torch import Tensor

from .._dispatch import elementwise_gap, use_triton
from .._kinds import checked
from .._validate import (
    check_backend,
    check_float,
    check_last_dim,
    check_positive,
    check_same_device,
    check_step,
)
from ..default_state import in_default_state
from ..philox import Stream, normal_rows, seed_of_each
from . import reference

__all__ = ["reverse_step"]


@in_default_state
@checked
def reverse_step(
    x_t: Tensor,
    eps: Tensor,
    coefficients: Tensor,
    *,
    z: Tensor | None = None,
    grad_log_p: Tensor | None = None,
    eps_uncond: Tensor | None = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    first_row: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Returns x_{t-1} = c_x x_t + c_eps (eps - c_guide grad_log_p) + c_noise z.

    With the coefficients of DDPM this is line 4 of algorithm 2 of Ho et al. 2020; with those of
    DDIM, equation 12 of Song et al. 2021. The guidance is equation 14 of Dhariwal and Nichol 2021,
    or equation 6 of Ho and Salimans 2022, (1 + c_guide) eps - c_guide eps_uncond in place of eps.
    There eps is the network's output, the noise or anything else that is linear in x_0 and noise;
    ``flashpoint.diffusion.reverse_table`` computes the coefficients that fit it.

    Args:
        x_t: float [B, d], or [M, B, d] for M models.
        eps: the network's output, the shape of x_t.
        coefficients: float [4] or [M, 4]: c_x, c_eps, c_noise and c_guide.
        z: standard normal noise, the shape of x_t; None draws it if there is a seed.
        grad_log_p: gradient of log p(y | x_t) with respect to x_t, the shape of x_t; None for
            no guidance by a classifier.
        eps_uncond: the network's output without its condition, the shape of x_t; None for no
            classifier-free guidance.
        seed: one seed, or int64 [M]; the noise is a function of (seed, step, row). Without z and
            seed there is no noise.
        step: number of the step in [0, 2**32), an int, or a tensor of one int64 number, so that a
            captured CUDA graph can count.
        first_row: global number of the first row.
        backend: ``"torch"`` forces the plain PyTorch reference, ``"triton"`` the kernels; None
            chooses.

    Returns:
        x_{t-1}, the shape of x_t.

    Raises:
        TypeError: x_t is not floating-point.
        ValueError: shapes or devices do not fit, or both guidances were given.
    """
    check_backend(backend)
    _check(x_t, coefficients, eps=eps, z=z, grad_log_p=grad_log_p, eps_uncond=eps_uncond)
    x, eps = _with_model_axis(x_t), _with_model_axis(eps)
    z, grad_log_p, eps_uncond = (
        None if a is None else _with_model_axis(a) for a in (z, grad_log_p, eps_uncond)
    )
    coefficients = coefficients.reshape(-1, 4)
    if len(coefficients) not in (1, len(x)):
        raise ValueError(
            f"coefficients must be 4, or 4 for each of {len(x)} models, got {len(coefficients)} x 4"
        )
    check_positive("first_row", first_row, allow_zero=True)
    check_step(step, x_t)
    seeds = None if seed is None else seed_of_each(seed, len(x), x.device)
    if z is not None:
        seeds = None  # there is nothing to draw
    if use_triton(backend, "x_t", x_t, elementwise_gap(x, eps, z, grad_log_p, eps_uncond)):
        from . import kernel

        x_prev = kernel.reverse_step(
            x, eps, coefficients, z, grad_log_p, eps_uncond, seeds, step, first_row
        )
    else:
        if seeds is not None:
            rows = torch.arange(first_row, first_row + x.shape[1], device=x.device)
            step = step.reshape(1) if isinstance(step, Tensor) else step
            z = normal_rows(seeds, Stream.NOISE, step, rows, x.shape[2]).to(x.dtype)
        x_prev = reference.reverse_step(x, eps, coefficients, z, grad_log_p, eps_uncond)
    return x_prev.reshape(x_t.shape)


def _check(x_t: Tensor, coefficients: Tensor, **others: Tensor | None) -> None:
    """Raises an error if x_t, the coefficients and the tensors like x_t do not fit together."""
    check_float("x_t", x_t)
    if x_t.dim() not in (2, 3):
        raise ValueError(f"x_t must be [B, d] or [M, B, d], got {list(x_t.shape)}")
    check_last_dim("coefficients", coefficients, 4)
    if others["grad_log_p"] is not None and others["eps_uncond"] is not None:
        raise ValueError("eps_uncond must be None with grad_log_p, got both")
    check_same_device(x_t=x_t, coefficients=coefficients, **others)
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != x_t.shape:
            raise ValueError(
                f"{name} must have the shape of x_t, {list(x_t.shape)}, got {list(tensor.shape)}"
            )


def _with_model_axis(x: Tensor) -> Tensor:
    return x if x.dim() == 3 else x.unsqueeze(0)
