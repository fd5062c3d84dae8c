"""From the sums that training steps leave to one gradient, in plain PyTorch.

A training step leaves sums [M, S, P + 2]: S parts, each with the gradients of all P parameters, the
loss, and the number of terms, summed over rows. All of it adds up: over parts, over chunks of a
batch, over ranks. The mean gradient and the mean loss are what the last column divides.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1024  # elements behind one part of a squared norm


class ReducedGradient(NamedTuple):
    """What :func:`reduce_grad` makes of the sums of M models."""

    sums: Tensor  # float32 [M, 1, P + 2], added up over the parts
    squares: Tensor  # float32 [M, blocks], parts of the squared norm of the mean gradient

    @property
    def squared_norm(self) -> Tensor:
        """Of each model's mean gradient, [M]; infinite or NaN if a number of it is."""
        return self.squares.sum(dim=1)

    @property
    def finite(self) -> Tensor:
        """Whether each model's gradient is, bool [M]."""
        return self.squared_norm.isfinite()


def mean_of(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean gradient [M, P] and mean loss [M] of sums [M, S, P + 2]."""
    total = sums.sum(dim=1) if sums.shape[1] > 1 else sums[:, 0]
    count = total[:, -1]
    return total[:, :-2] / count[:, None], total[:, -2] / count


def reduce_grad(sums: Tensor, reduced: ReducedGradient) -> None:
    """Writes ``reduced``, whose sums may be ``sums`` itself if that has one part."""
    torch.sum(sums.clone() if reduced.sums is sums else sums, dim=1, out=reduced.sums[:, 0])
    gradient, _ = mean_of(reduced.sums)
    reduced.squares.zero_()
    reduced.squares[:, 0] = gradient.square().sum(dim=1)
