"""One reverse update in Triton, its noise drawn in the kernel and its guidance fused.

Same contract as :mod:`.reference`, for M models at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import device_of, model_stride
from ..philox.kernel import NOISE, normal_pair
from . import reference

_ROWS = 256  # rows of a program
# Arguments that change from call to call: no kernel is compiled anew for a value of 1 or of 16.
_VARYING = ["step", "first_row", "rows"]
# Nor for where the caller's tensors start.
_UNALIGNED = [
    "x_ptr", "eps_ptr", "grad_ptr", "uncond_ptr", "z_ptr", "coefficients_ptr", "seed_ptr",
    "step_ptr",
]  # fmt: skip

_X = tl.constexpr(reference.X)
_EPS = tl.constexpr(reference.EPS)
_NOISE = tl.constexpr(reference.NOISE)
_GUIDE = tl.constexpr(reference.GUIDE)


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_UNALIGNED)
def reverse_kernel(
    x_ptr, eps_ptr, grad_ptr, uncond_ptr, z_ptr, coefficients_ptr, coefficients_stride,
    seed_ptr, step, step_ptr, first_row, rows, out_ptr, DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """x_{t-1} = c_x x_t + c_eps (eps - c_guide grad) + c_noise z of ``rows`` rows.

    Grid (row tiles, pairs of columns, M). z is read, or drawn for (seed, step, row), or 0; the
    step is read too if it has a pointer.
    Without the pointer of grad, or of eps without condition, there is no such guidance.
    """
    column = tl.program_id(1) * 2
    model = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    offset = (model * rows + row) * DIM
    grad = None if grad_ptr is None else grad_ptr + offset
    uncond = None if uncond_ptr is None else uncond_ptr + offset
    z = None if z_ptr is None else z_ptr + offset
    coefficients = coefficients_ptr + model * coefficients_stride
    drawn_0, drawn_1 = 0.0, 0.0
    if seed_ptr is not None:
        seed = tl.load(seed_ptr + model)
        if step_ptr is not None:
            step = tl.load(step_ptr)
        element = first_row + row.to(tl.int64)
        drawn_0, drawn_1 = normal_pair(seed, NOISE, step, element, tl.program_id(1))
    x, eps, out = x_ptr + offset, eps_ptr + offset, out_ptr + offset
    x_prev = updated(x, eps, grad, uncond, z, drawn_0, coefficients, live, column)
    tl.store(out + column, x_prev.to(out.dtype.element_ty), mask=live)
    if column + 1 < DIM:
        x_prev = updated(x, eps, grad, uncond, z, drawn_1, coefficients, live, column + 1)
        tl.store(out + column + 1, x_prev.to(out.dtype.element_ty), mask=live)


@triton.jit
def updated(x, eps, grad, uncond, z, drawn, coefficients, live, column):
    """One coordinate of x_{t-1} of a tile; the noise is read from z, or else it is ``drawn``."""
    eps_hat = tl.load(eps + column, mask=live, other=0.0).to(tl.float32)
    if grad is not None:
        guidance = tl.load(grad + column, mask=live, other=0.0).to(tl.float32)
        eps_hat -= tl.load(coefficients + _GUIDE) * guidance
    if uncond is not None:
        guidance = eps_hat - tl.load(uncond + column, mask=live, other=0.0).to(tl.float32)
        eps_hat += tl.load(coefficients + _GUIDE) * guidance
    if z is not None:
        drawn = tl.load(z + column, mask=live, other=0.0).to(tl.float32)
    x_t = tl.load(x + column, mask=live, other=0.0).to(tl.float32)
    x_prev = tl.load(coefficients + _X) * x_t + tl.load(coefficients + _EPS) * eps_hat
    return x_prev + tl.load(coefficients + _NOISE) * drawn


def reverse_step(
    x_t: Tensor,
    eps: Tensor,
    coefficients: Tensor,
    z: Tensor | None,
    grad_log_p: Tensor | None,
    eps_uncond: Tensor | None = None,
    seed: Tensor | None = None,
    step: int | Tensor = 0,
    first_row: int = 0,
) -> Tensor:
    """x_{t-1} from x_t [M, B, d], coefficients [M, 4] or [1, 4], and all others like x_t.

    Without z it is drawn for (seed [M], step, row), and without a seed it is 0.
    """
    models, rows, dim = x_t.shape
    x_prev = torch.empty_like(x_t, memory_format=torch.contiguous_format)
    x_t, eps, coefficients = x_t.contiguous(), eps.contiguous(), coefficients.contiguous()
    z, grad_log_p, eps_uncond, seed = (
        None if part is None else part.contiguous() for part in (z, grad_log_p, eps_uncond, seed)
    )
    number, numbers = (0, step) if isinstance(step, Tensor) else (step, None)
    if x_t.numel():
        with device_of(x_t):
            reverse_kernel[triton.cdiv(rows, _ROWS), triton.cdiv(dim, 2), models](
                x_t, eps, grad_log_p, eps_uncond, z, coefficients, model_stride(coefficients),
                seed, number, numbers, first_row, rows, x_prev, dim, _ROWS,
            )  # fmt: skip
    return x_prev
