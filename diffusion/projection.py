"""Maps of points to the few dimensions that can be drawn."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Projection:
    """A map of points to the few dimensions that can be drawn.

    Args:
        centre: [d], the mean of the data; None where points are drawn as they are.
        axes: [d, k], the principal axes of the data.
        shares: k shares of the data's variance that lie along the axes.
    """

    centre: Tensor | None = None
    axes: Tensor | None = None
    shares: tuple[float, ...] = ()

    @classmethod
    def of(cls, data: Tensor, dims: int) -> "Projection":
        """Returns the map of points like the data [n, d] to at most ``dims`` dimensions."""
        if data.shape[1] <= dims:
            return cls()
        centre = data.mean(dim=0)
        _, length, axes = torch.linalg.svd(data - centre, full_matrices=False)
        shares = length.square() / length.square().sum().clamp(min=1e-30)
        return cls(centre, axes[:dims].T, tuple(shares[:dims].tolist()))

    def __call__(self, x: Tensor) -> Tensor:
        """Maps points [..., d] to [..., k]."""
        if self.centre is None or self.axes is None:
            return x
        return (x.float() - self.centre) @ self.axes
