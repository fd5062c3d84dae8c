"""AdamW and weight averaging over one flat parameter buffer."""

import torch
from torch import Tensor

from .._dispatch import use_triton
from .._validate import check_backend, check_positive, check_same_device, check_shape
from . import reference
from .reference import AdamWState

__all__ = ["AdamWState", "adamw_", "adamw_state"]


def adamw_state(parameters: Tensor) -> AdamWState:
    """Fresh state: zero moments, and the average starting at the parameters [M, P]."""
    return AdamWState(
        torch.zeros_like(parameters), torch.zeros_like(parameters), parameters.detach().clone()
    )


def adamw_(
    parameters: Tensor,
    grad: Tensor,
    state: AdamWState,
    *,
    lr: float | Tensor,
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    decoupled: bool = True,
    ema_decay: float = 0.998,
    backend: str | None = None,
) -> None:
    """One AdamW update (Loshchilov and Hutter 2019, algorithm 2) and ema += (1 - d)(p - ema).

    Args:
        parameters: float32 [M, P], updated in place.
        grad: float32 [M, P].
        state: moments and average, updated in place.
        lr: learning rate, a number or float32 [M].
        step: number of this update, from 1.
        betas, eps, weight_decay: as in ``torch.optim.AdamW``.
        decoupled: False adds the weight decay to the gradient, as ``torch.optim.Adam`` does
            (Kingma and Ba 2015).
        ema_decay: d above, in [0, 1).
        backend: ``"torch"`` forces the plain PyTorch reference, ``"triton"`` the kernel; None
            chooses.

    Raises:
        ValueError: shapes or devices do not fit, or step is less than 1.
    """
    check_backend(backend)
    check_positive("step", step)
    check_shape("grad", grad, parameters.shape)
    check_shape("state.exp_avg", state.exp_avg, parameters.shape)
    check_same_device(parameters=parameters, grad=grad, exp_avg=state.exp_avg)
    models = len(parameters)
    options = (step, betas, eps, weight_decay, decoupled, ema_decay)
    if isinstance(lr, Tensor):
        lr = lr.to(parameters).reshape(-1).expand(models)
    buffers = (parameters, grad, *state)
    if use_triton(backend, "parameters", parameters, _gap(buffers)):
        from . import kernel

        kernel.adamw_(parameters, grad, state, lr, *options)
    else:
        lr = torch.as_tensor(lr, dtype=parameters.dtype, device=parameters.device).reshape(-1, 1)
        reference.adamw_(parameters, grad, state, lr, *options)


def _gap(buffers: tuple[Tensor, ...]) -> str | None:
    """What the kernel does not cover, if anything."""
    if any(buffer.dtype != torch.float32 for buffer in buffers):
        return "an optimiser of other than float32"
    if not all(buffer.is_contiguous() for buffer in buffers):
        return "an optimiser of scattered parameters"
    return None
