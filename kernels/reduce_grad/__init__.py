"""Reduces the sums of training steps to one gradient, its norm, and a check that it is finite."""

from torch import Tensor

from .._dispatch import use_triton
from .._kinds import checked
from .._validate import check_backend, check_float, check_same_device, check_shape
from ..default_state import in_default_state
from . import reference
from .reference import BLOCK, ReducedGradient, mean_of

__all__ = ["ReducedGradient", "mean_of", "reduce_grad"]


@in_default_state
@checked
def reduce_grad(
    sums: Tensor, *, out: ReducedGradient | None = None, backend: str | None = None
) -> ReducedGradient:
    """Adds up the parts of a gradient in a fixed order, and squares its mean for the norm.

    It stands between training steps and :func:`~flashpoint.kernels.adamw_` where a gradient is not
    only applied, but also clipped, added up over ranks, or checked to be finite.

    Args:
        sums: float32 [M, S, P + 2], from :func:`~flashpoint.kernels.training_sums`.
        out: the result is written here; its sums may be ``sums`` if S is 1. None allocates it.
        backend: ``"torch"`` forces the plain PyTorch reference, ``"triton"`` the kernel; None
            chooses.

    Returns:
        The total of the sums, and the parts of the squared norm of the mean gradient.

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
    gap = None if sums.stride(2) == 1 else "a gradient of scattered parts"
    if use_triton(backend, "sums", sums, gap):
        from . import kernel

        kernel.reduce_grad(sums, out)
    else:
        reference.reduce_grad(sums, out)
    return out
