"""The map between a user's points, in their own units, and points of order one to train on."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Standardisation:
    """Maps points to mean 0 and standard deviation 1 in each dimension, and back.

    A diffusion model starts from N(0, I) and its noise has variance 1, so data must be of order
    one. Metres, years and pixels are not.

    Args:
        mean: d means, in units of the data.
        std: d standard deviations, in units of the data; 1 where all points agree.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, data: Tensor) -> "Standardisation":
        """Returns the map for data like these points [N, d]."""
        std, mean = torch.std_mean(data.double(), dim=0, correction=0)
        return cls(tuple(mean.tolist()), tuple(std.where(std > 0, 1).tolist()))

    def apply(self, x: Tensor) -> Tensor:
        """Returns points [..., d] in units of the data as float32 of order one."""
        return ((x.double() - self._like(self.mean, x)) / self._like(self.std, x)).float()

    def undo(self, x: Tensor) -> Tensor:
        """Returns points [..., d] of order one in units of the data.

        The result is float64: near 4,649,776, as in UTM coordinates, float32 has steps of 0.5.
        """
        return x.double() * self._like(self.std, x) + self._like(self.mean, x)

    @staticmethod
    def _like(numbers: tuple[float, ...], x: Tensor) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=x.device)
