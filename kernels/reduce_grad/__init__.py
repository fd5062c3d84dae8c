"""From the sums that training steps leave to one gradient, its norm, and whether it is finite."""

from torch import Tensor

from .._dispatch import use_triton
from .._validate import check_backend, check_float, check_same_device, check_shape
from . import reference
from .reference import BLOCK, ReducedGradient, mean_of

__all__ = ["ReducedGradient", "mean_of", "reduce_grad"]


def reduce_grad(
    sums: Tensor, *, out: ReducedGradient | None = None, backend: str | None = None
) -> ReducedGradient:
    """Adds up the parts of a gradient in a fixed order, and measures it.

    Between training steps and :func:`~flashpoint.kernels.adamw_` where more is asked of a gradient
    than to be applied: clipping, adding up over ranks, stopping at one that is not finite.

    Args:
        sums: float32 [M, S, P + 2], of :func:`~flashpoint.kernels.training_sums`.
        out: where the result goes; its sums may be ``sums`` if S is 1. None allocates it.
        backend: ``"torch"`` forces the plain PyTorch reference, ``"triton"`` the kernel; None
            chooses.

    Returns:
        The added-up sums and the parts of the squared norm of the mean gradient.

    Raises:
        ValueError: shapes or devices do not fit.
    """
    check_backend(backend)
    check_float("sums", sums)
    if sums.dim() != 3 or sums.shape[2] < 2:
        raise ValueError(f"sums must be [M, S, P + 2], got {list(sums.shape)}")
    models, _, size = sums.shape
    if out is None:
        blocks = -(-size // BLOCK)
        out = ReducedGradient(sums.new_empty(models, 1, size), sums.new_empty(models, blocks))
    check_shape("out.sums", out.sums, (models, 1, size))
    check_shape("out.squares", out.squares, (models, -(-size // BLOCK)))
    check_same_device(sums=sums, out=out.sums)
    gap = None if sums.is_contiguous() else "a gradient of scattered parts"
    if use_triton(backend, "sums", sums, gap):
        from . import kernel

        kernel.reduce_grad(sums, out)
    else:
        reference.reduce_grad(sums, out)
    return out
