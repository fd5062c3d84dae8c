"""Reduces the sums of training steps to one gradient, in plain PyTorch.

A training step leaves sums [M, S, P + 2]: S parts, each with the gradients of all P parameters, the
loss, and the number of terms, summed over rows. They can be added up over parts, over chunks of a
batch and over ranks. Divided by the last column they are the mean gradient and the mean loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1024  # elements in one part of a squared norm
_LINE = 32  # floats in a line of the cache, 128 bytes


class ReducedGradient(NamedTuple):
    """The gradients of M models, and their squared norms in parts."""

    sums: Tensor  # float32 [M, 1, P + 2], added up over the parts
    squares: Tensor  # float32 [M, blocks], parts of the squared norm of the mean gradient

    @property
    def squared_norm(self) -> Tensor:
        """Squared norm of each model's mean gradient, [M]; infinite or NaN if a number of it is."""
        return self.squares.sum(dim=1)

    @property
    def finite(self) -> Tensor:
        """True for each model whose gradient has only finite numbers, bool [M]."""
        return self.squared_norm.isfinite()


def empty_parts(like: Tensor, models: int, splits: int, size: int) -> Tensor:
    """Returns parts [M, S, size], not yet written, in the dtype and on the device of a tensor.

    Each starts on a cache line of its own, so that kernels read 16 bytes at once.
    """
    stride = -(-size // _LINE) * _LINE
    return like.new_empty_strided((models, splits, size), (splits * stride, stride, 1))


def mean_of(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean gradient [M, P] and the mean loss [M] of sums [M, S, P + 2]."""
    total = sums.sum(dim=1) if sums.shape[1] > 1 else sums[:, 0]
    count = total[:, -1]
    return total[:, :-2] / count[:, None], total[:, -2] / count


def reduce_grad(sums: Tensor, reduced: ReducedGradient) -> None:
    """Writes ``reduced``, whose sums may be ``sums`` itself if there is one part."""
    torch.sum(sums.clone() if reduced.sums is sums else sums, dim=1, out=reduced.sums[:, 0])
    gradient, _ = mean_of(reduced.sums)
    reduced.squares.zero_()
    reduced.squares[:, 0] = gradient.square().sum(dim=1)
