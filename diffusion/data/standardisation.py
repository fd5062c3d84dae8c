"""The map between a user's points, in their own units, and points of order one to train on."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.default_state import methods_in_default_state
from ..errors import UserError

_MOST_SHOWN = 4  # dimensions that a message lists


@methods_in_default_state
@dataclass(frozen=True)
class Standardisation:
    """Maps points to mean 0 and standard deviation 1 in each dimension, and back.

    A diffusion model starts from N(0, I) and its noise has variance 1, so data must be of order
    one. Metres, years and pixels are not.

    Args:
        mean: d means, in units of the data.
        std: d standard deviations, in units of the data; 1 where all points agree.

    Raises:
        ValueError: they differ in number, are not finite, or a standard deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        try:
            for name in ("mean", "std"):
                object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        except (TypeError, ValueError) as error:
            raise UserError("mean and std must be numbers, one for each dimension") from error
        if not len(self.mean) == len(self.std) > 0:
            raise UserError(
                f"mean and std must be as many numbers, got {len(self.mean)} and {len(self.std)}"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise UserError(f"mean and std must be finite and std positive, got {self}")

    @classmethod
    def of(cls, data: Tensor) -> "Standardisation":
        """Returns the map for data like these points [N, d].

        Raises:
            ValueError: the points are so large or so close together that their variance is infinite
                or 0 in float64.
        """
        data = data.double()
        std, mean = torch.std_mean(data, dim=0, correction=0)
        if not (std.isfinite() & mean.isfinite()).all():
            raise UserError(
                f"points up to {data.abs().max().item():.3g} are too large to standardise"
            )
        constant = data.amin(dim=0) == data.amax(dim=0)  # whose std may be rounding, not 0
        if (~constant & (std == 0)).any():
            raise UserError("points lie too close together to standardise: enlarge their unit")
        std = std.where(~constant, 1)
        return cls(tuple(mean.where(~constant, data[0]).tolist()), tuple(std.tolist()))

    def check_dim(self, dim: int, name: str) -> None:
        """Raises :class:`UserError` unless it maps points of this dimension."""
        if dim != len(self.mean):
            raise UserError(f"{name} must have dimension {len(self.mean)}, got {dim}")

    def __str__(self) -> str:
        """Describes the map in a few words."""
        return f"mean {_listed(self.mean)}; std {_listed(self.std)}"

    def apply(self, x: Tensor) -> Tensor:
        """Returns points [..., d] in units of the data as float32 of order one.

        Raises:
            ValueError: they are of another dimension.
        """
        self._check(x)
        return ((x.double() - self._like(self.mean, x)) / self._like(self.std, x)).float()

    def undo(self, x: Tensor) -> Tensor:
        """Returns points [..., d] of order one in units of the data.

        The result is float64: near 4,649,776, as in UTM coordinates, float32 has steps of 0.5.

        Raises:
            ValueError: they are of another dimension.
        """
        self._check(x)
        return x.double() * self._like(self.std, x) + self._like(self.mean, x)

    def _check(self, x: Tensor) -> None:
        """Raises :class:`UserError` for points that would be repeated along the dimensions."""
        if not isinstance(x, Tensor) or x.shape[-1:] != (len(self.mean),):
            given = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise UserError(f"points must be a tensor [..., {len(self.mean)}], got {given}")

    @staticmethod
    def _like(numbers: tuple[float, ...], x: Tensor) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=x.device)


def _listed(numbers: tuple[float, ...]) -> str:
    shown = [f"{number:.7g}" for number in numbers[:_MOST_SHOWN]]
    return ", ".join([*shown, "..."] if len(numbers) > _MOST_SHOWN else shown)
