"""One step of the reverse process in plain PyTorch.

DDPM, DDIM and their guided forms are all linear in x_t, the network's output and z, whatever the
network predicts: eps, x_0 or a velocity. So a step is three coefficients and a guidance scale,
which the caller computes in float64 from the schedule::

    output = output - guide * grad log p(y | x_t)                    guided by a classifier
    output = (1 + guide) output(x_t, y) - guide output(x_t)          or by the network itself
    x_prev = x * x_t + eps * output + noise * z

Arguments and columns have the name of the classic output, eps.
"""

import torch
from torch import Tensor

# Columns of a coefficient table.
X, EPS, NOISE, GUIDE = range(4)
# Further columns of a chain with memory, see :func:`memory_coefficients`.
MEMORY, MEMORY_X, MEMORY_EPS = range(4, 7)


def reverse_step(
    x_t: Tensor,
    eps: Tensor,
    coefficients: Tensor,
    z: Tensor | None,
    grad_log_p: Tensor | None,
    eps_uncond: Tensor | None = None,
) -> Tensor:
    """Returns x_{t-1} of x_t [M, B, d] and coefficients [M, 4]; all others are like x_t."""
    coefficients = coefficients.unsqueeze(-1).unsqueeze(-1)  # [M, 4, 1, 1]
    if grad_log_p is not None:
        eps = eps - coefficients[:, GUIDE] * grad_log_p
    if eps_uncond is not None:
        eps = eps + coefficients[:, GUIDE] * (eps - eps_uncond)
    x_prev = coefficients[:, X] * x_t + coefficients[:, EPS] * eps
    return x_prev if z is None else x_prev + coefficients[:, NOISE] * z


def memory_coefficients(coefficients: Tensor) -> Tensor:
    """Returns the coefficients [M, 4] of the memory that a step leaves, given [M, 7].

    A linear multistep method also remembers m = MEMORY_X x_t + MEMORY_EPS output at each step, and
    adds MEMORY times what the step before remembered to x_prev.
    """
    # In slices: a list of columns would be copied to the device, which no CUDA graph can capture.
    kept = torch.cat((coefficients[:, MEMORY_X:], coefficients[:, NOISE:MEMORY]), dim=1)
    kept[:, NOISE] = 0
    return kept
