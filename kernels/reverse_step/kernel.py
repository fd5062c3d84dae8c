"""One reverse update in Triton: the kernel also draws the noise and applies the guidance.

Same contract as :mod:`.reference`, for M models at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import model_stride, step_arguments
from ..cuda import device_of
from ..philox.kernel import NOISE, normal_pair
from . import reference

_ROWS = 256  # rows of a program
# Arguments that change from call to call. Triton would compile a kernel anew for a value of 1 or of
# a multiple of 16,
_VARYING = ["step", "first_row", "rows"]
# and for a tensor of the caller's that starts at a multiple of 16 bytes.
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
    """Writes x_{t-1} = c_x x_t + c_eps (eps - c_guide grad) + c_noise z.

    Grid (row tiles, pairs of columns, M). Tensors of points are floating-point [M, rows, DIM].

    Args:
        x_ptr, eps_ptr: x_t and the network's output.
        grad_ptr: gradient of log p(y | x_t), or None: no guidance by a classifier.
        uncond_ptr: its output without a class, or None: no classifier-free guidance.
        z_ptr: noise, or None: drawn for (seed, step, row), or 0 without ``seed_ptr``.
        coefficients_ptr, coefficients_stride: floating-point [M, 4], and elements from model to
            model.
        seed_ptr: int64 [M], or None.
        step, step_ptr: number of the step; read from int64 [1] if there is a pointer.
        first_row: global number of the first row.
        rows: rows of a model.
        out_ptr: x_{t-1}, output.
        DIM: dimension of a point.
        ROWS: rows of a program.
    """
    column = tl.program_id(1) * 2
    model = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    offset = (model * rows + row) * DIM + column
    coefficients = coefficients_ptr + model * coefficients_stride
    z_0, z_1 = 0.0, 0.0
    if z_ptr is None and seed_ptr is not None:
        seed = tl.load(seed_ptr + model)
        if step_ptr is not None:
            step = tl.load(step_ptr)
        element = first_row + row.to(tl.int64)
        z_0, z_1 = normal_pair(seed, NOISE, step, element, tl.program_id(1))
    _store_column(
        x_ptr, eps_ptr, grad_ptr, uncond_ptr, z_ptr, z_0, coefficients, out_ptr, offset, live
    )
    if column + 1 < DIM:
        offset += 1
        _store_column(
            x_ptr, eps_ptr, grad_ptr, uncond_ptr, z_ptr, z_1, coefficients, out_ptr, offset, live
        )


@triton.jit
def _store_column(x, eps, grad, uncond, z, drawn, coefficients, out, offset, live):
    """Writes one column of x_{t-1}; its noise is z, or ``drawn`` without z."""
    x_t, output = _load(x, offset, live), _load(eps, offset, live)
    if grad is not None:
        grad = _load(grad, offset, live)
    if uncond is not None:
        uncond = _load(uncond, offset, live)
    if z is not None:
        drawn = _load(z, offset, live)
    c_x, c_eps, c_noise, c_guide = load_coefficients(coefficients)
    x_prev = updated(x_t, output, grad, uncond, drawn, c_x, c_eps, c_noise, c_guide)
    tl.store(out + offset, x_prev.to(out.dtype.element_ty), mask=live)


@triton.jit
def _load(pointer, offset, live):
    return tl.load(pointer + offset, mask=live, other=0.0).to(tl.float32)


@triton.jit
def load_coefficients(coefficients):
    """Returns c_x, c_eps, c_noise and c_guide of a step."""
    c_x, c_eps = tl.load(coefficients + _X), tl.load(coefficients + _EPS)
    return c_x, c_eps, tl.load(coefficients + _NOISE), tl.load(coefficients + _GUIDE)


@triton.jit
def updated(x, eps, grad, uncond, z, c_x, c_eps, c_noise, c_guide):
    """Returns x_{t-1} of values in fp32; without a gradient, ``uncond`` or noise these are None."""
    if grad is not None:
        eps -= c_guide * grad
    if uncond is not None:
        eps += c_guide * (eps - uncond)
    x_prev = c_x * x + c_eps * eps
    if z is not None:
        x_prev += c_noise * z
    return x_prev


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
    """Returns x_{t-1} of x_t [M, B, d] and coefficients [M, 4] or [1, 4].

    All others are like x_t. Without z the noise is drawn for (seed [M], step, row), and without a
    seed there is none.
    """
    models, rows, dim = x_t.shape
    x_prev = torch.empty_like(x_t, memory_format=torch.contiguous_format)
    x_t, eps, coefficients = x_t.contiguous(), eps.contiguous(), coefficients.contiguous()
    z, grad_log_p, eps_uncond, seed = (
        None if part is None else part.contiguous() for part in (z, grad_log_p, eps_uncond, seed)
    )
    if x_t.numel():
        with device_of(x_t):
            reverse_kernel[triton.cdiv(rows, _ROWS), triton.cdiv(dim, 2), models](
                **step_arguments(step),
                x_ptr=x_t,
                eps_ptr=eps,
                grad_ptr=grad_log_p,
                uncond_ptr=eps_uncond,
                z_ptr=z,
                coefficients_ptr=coefficients,
                coefficients_stride=model_stride(coefficients),
                seed_ptr=seed,
                first_row=first_row,
                rows=rows,
                out_ptr=x_prev,
                DIM=dim,
                ROWS=_ROWS,
            )
    return x_prev
