"""Points and labels that a user gives, as tensors, and results, checked."""

from typing import Any

import torch
from torch import Tensor

from .errors import UserError


def labels_of(label: Any, n: int, classes: int, device: torch.device) -> Tensor:
    """Returns the label of each of n points, int64 [n].

    Args:
        label: a number, or one for each point.
        n: number of points.
        classes: number of allowed labels.
        device: device of the result.

    Raises:
        ValueError: a label is not a whole number, of no class, or there are not n.
    """
    allowed = f"label must be a whole number or int64 [{n}]"
    try:
        labels = torch.as_tensor(label, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{allowed}, got {label!r}") from error
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole or labels.shape not in ((), (n,)):
        raise UserError(f"{allowed}, got {labels.dtype} {list(labels.shape)}")
    unknown = labels[(labels < 0) | (labels >= classes)]
    if len(unknown):
        raise UserError(f"label must be from 0 to {classes - 1}, got {unknown[0].item()}")
    return labels.long().expand(n)


def points(
    name: str,
    given: Any,
    shape: tuple[int | None, int | None],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Returns points [n, d] where they are.

    Args:
        name: name of the argument.
        given: a tensor, an array or lists of numbers.
        shape: n and d; None allows any.
        dtype: dtype of the result.

    Raises:
        ValueError: they are no finite numbers, or of another shape.
    """
    wanted = f"[{', '.join(str(size or symbol) for size, symbol in zip(shape, 'nd', strict=True))}]"
    try:
        x = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} must be {wanted} numbers, got {type(given).__name__}") from error
    if x.dim() != 2 or any(
        size not in (None, had) for size, had in zip(shape, x.shape, strict=True)
    ):
        raise UserError(f"{name} must be {wanted}, got {list(x.shape)}")
    if x.is_complex() or x.dtype == torch.bool:
        raise UserError(f"{name} must be real numbers, got {x.dtype}")
    x = x.detach().to_dense().to(dtype)
    if not x.isfinite().all():
        rows = (~x.isfinite()).any(dim=1).sum().item()
        raise UserError(f"{name} must be finite, got NaN or infinity in {rows} of {len(x)} rows")
    return x


def check_finite(name: str, x: Tensor) -> None:
    """Raises :class:`UserError` if one of many results [n, ...] is not finite."""
    bad = (~x.isfinite()).flatten(1).any(dim=1).sum().item()  # waits for the device
    if bad:
        raise UserError(
            f"{name} are not finite: {bad} of {len(x)} rows hold NaN or infinity; the network's "
            "values are too large, as of one whose training diverged"
        )
