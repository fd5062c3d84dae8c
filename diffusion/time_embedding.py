"""Embeddings of a timestep as other code computes them, for networks that were trained with one."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from ..kernels.default_state import methods_in_default_state
from .errors import UserError, check_choice

ORDERS = ("sin-cos", "cos-sin", "interleaved")


@methods_in_default_state
@dataclass(frozen=True)
class TimeEmbedding:
    """Sines and cosines of the timestep, or the timestep itself, as the features of a network.

    Feature pair i of ``dim`` / 2 is the sine and the cosine of the angle
    (``scale`` t + ``shift``) ``base`` ** (-i / (``dim`` / 2 - ``frequency_shift``)).
    ``TimeEmbedding()`` is the ``"sinusoidal"`` time feature of a ``Schedule``.

    Args:
        dim: number of features: even, or 1 for the number ``scale`` t + ``shift`` itself.
        order: ``sin-cos`` is all sines, then all cosines (Ho et al. 2020); ``cos-sin`` the reverse
            (``flip_sin_to_cos`` in diffusers); ``interleaved`` is sine, cosine, sine, cosine ...
            (Vaswani et al. 2017, 3.5).
        base: the longest period is about 2 pi times this; ``max_period`` or ``theta`` elsewhere.
        scale: factor of t; 1 / T for networks that see t / T.
        shift: added to the scaled t; 1 for networks that count timesteps from 1.
        frequency_shift: 1 where the last frequency is 1 / ``base`` exactly, which code divides by
            ``dim // 2 - 1`` for; ``downscale_freq_shift`` in diffusers.

    Raises:
        ValueError: a number is not finite or out of range, or the order is unknown.
    """

    dim: int = 16
    order: str = "sin-cos"
    base: float = 10_000.0
    scale: float = 1.0
    shift: float = 0.0
    frequency_shift: float = 0.0

    def __post_init__(self) -> None:
        whole = isinstance(self.dim, Integral) and not isinstance(self.dim, bool)
        if not whole or self.dim < 1 or (self.dim > 1 and self.dim % 2):
            raise UserError(f"dim must be 1 or a positive even number, got {self.dim!r}")
        object.__setattr__(self, "dim", int(self.dim))  # for files, which take no numbers of numpy
        if not isinstance(self.order, str):
            raise UserError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")
        check_choice("order", self.order, ORDERS)
        for name in ("base", "scale", "shift", "frequency_shift"):
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or (name == "base" and value <= 0):
                above = " above 0" if name == "base" else ""
                raise UserError(f"{name} must be a finite number{above}, got {value!r}")
            object.__setattr__(self, name, float(value))
        if self.dim > 1 and self.frequency_shift >= self.dim / 2:
            raise UserError(
                f"frequency_shift must be less than dim / 2 = {self.dim // 2}, "
                f"got {self.frequency_shift}"
            )

    def features(self, t: Tensor) -> Tensor:
        """Returns the features float64 [..., dim] of timesteps t of any shape."""
        number = self.scale * t[..., None].double() + self.shift
        if self.dim == 1:
            return number
        half = self.dim // 2
        place = torch.arange(half, dtype=torch.float64, device=t.device)
        angle = number * self.base ** (-place / (half - self.frequency_shift))
        pair = (angle.cos(), angle.sin()) if self.order == "cos-sin" else (angle.sin(), angle.cos())
        if self.order == "interleaved":
            return torch.stack(pair, dim=-1).flatten(-2)
        return torch.cat(pair, dim=-1)
