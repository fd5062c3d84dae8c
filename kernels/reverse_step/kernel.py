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

_X = tl.constexpr(reference.X)
_EPS = tl.constexpr(reference.EPS)
_NOISE = tl.constexpr(reference.NOISE)
_GUIDE = tl.constexpr(reference.GUIDE)


@triton.jit(do_not_specialize=_VARYING)
def reverse_kernel(
    x_ptr, x_stride, eps_ptr, grad_ptr, grad_stride, z_ptr, coefficients_ptr, coefficients_stride,
    seed_ptr, step, first_row, rows, features_ptr, features_stride, out_ptr, out_stride,
    DIM: tl.constexpr, FEATURES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """x_{t-1} = c_x x_t + c_eps (eps - c_guide grad) + c_noise z of ``rows`` rows.

    Grid (row tiles, pairs of columns, M); x, grad and out have rows of their own width. z is read,
    or drawn for (seed, step, row), or 0, and grad is 0 without its pointer. After the pairs of
    coordinates come those of FEATURES features, copied behind them for the network that sees
    x_{t-1} next.
    """
    PAIRS: tl.constexpr = (DIM + 1) // 2
    pair = tl.program_id(1)
    model = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    position = model * rows + row
    out = out_ptr + position * out_stride
    if pair < PAIRS:
        column = pair * 2
        x = x_ptr + position * x_stride + column
        eps = eps_ptr + position * DIM + column
        grad = None if grad_ptr is None else grad_ptr + position * grad_stride + column
        z = None if z_ptr is None else z_ptr + position * DIM + column
        coefficients = coefficients_ptr + model * coefficients_stride
        drawn_0, drawn_1 = 0.0, 0.0
        if seed_ptr is not None:
            seed = tl.load(seed_ptr + model)
            element = first_row + row.to(tl.int64)
            drawn_0, drawn_1 = normal_pair(seed, NOISE, step, element, pair)
        update(x, eps, grad, z, drawn_0, coefficients, out + column, live, 0)
        if column + 1 < DIM:
            update(x, eps, grad, z, drawn_1, coefficients, out + column, live, 1)
    elif FEATURES > 0:
        first = (pair - PAIRS) * 2
        features = features_ptr + model * features_stride
        for column in range(first, tl.minimum(first + 2, FEATURES)):
            feature = tl.load(features + column)
            tl.store(out + DIM + column, tl.where(live, feature, 0.0), mask=live)


@triton.jit
def update(x, eps, grad, z, drawn, coefficients, out, live, column):
    """One coordinate of a tile of rows; the noise is read from z, or else it is ``drawn``."""
    eps_hat = tl.load(eps + column, mask=live, other=0.0).to(tl.float32)
    if grad is not None:
        guidance = tl.load(grad + column, mask=live, other=0.0).to(tl.float32)
        eps_hat -= tl.load(coefficients + _GUIDE) * guidance
    if z is not None:
        drawn = tl.load(z + column, mask=live, other=0.0).to(tl.float32)
    x_t = tl.load(x + column, mask=live, other=0.0).to(tl.float32)
    x_prev = tl.load(coefficients + _X) * x_t + tl.load(coefficients + _EPS) * eps_hat
    x_prev += tl.load(coefficients + _NOISE) * drawn
    tl.store(out + column, x_prev.to(out.dtype.element_ty), mask=live)


def reverse_step(
    x_t: Tensor,
    eps: Tensor,
    coefficients: Tensor,
    z: Tensor | None,
    grad_log_p: Tensor | None,
) -> Tensor:
    """x_{t-1} from x_t [M, B, d], eps [M, B, d], coefficients [M, 4], and z, grad like x_t."""
    x_prev = torch.empty_like(x_t, memory_format=torch.contiguous_format)
    x_t, eps, z, grad_log_p = (
        None if part is None else part.contiguous() for part in (x_t, eps, z, grad_log_p)
    )
    _launch(x_t, eps, coefficients.contiguous(), x_prev, grad=grad_log_p, z=z)
    return x_prev


def _launch(
    x: Tensor,
    eps: Tensor,
    coefficients: Tensor,
    out: Tensor,
    *,
    grad: Tensor | None = None,
    z: Tensor | None = None,
    features: Tensor | None = None,
    seed: Tensor | None = None,
    step: int = 0,
    first_row: int = 0,
) -> None:
    models, rows, dim = eps.shape
    width = 0 if features is None else features.shape[-1]
    pairs = triton.cdiv(dim, 2) + triton.cdiv(width, 2)
    if not eps.numel():
        return
    with device_of(x):
        reverse_kernel[triton.cdiv(rows, _ROWS), pairs, models](
            x, x.stride(1), eps, grad, 0 if grad is None else grad.stride(1), z,
            coefficients, model_stride(coefficients), seed, step, first_row, rows,
            features, 0 if features is None else model_stride(features), out, out.stride(1),
            dim, width, _ROWS,
        )  # fmt: skip
