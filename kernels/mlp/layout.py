"""The layout of one network's numbers in the kernels' buffers.

There are four buffers, besides the flat fp32 parameters of :class:`~.shape.MLPShape`:

* activations [M, rows, columns]: a row holds the input h_0 and then every h_l = act(z_{l-1}), as
  the matrix products read them;
* pre-activations [M, rows, columns]: a row holds every hidden z_l, if the backward pass needs it;
* gradients [M, rows, columns]: a row holds the gradient of every z_l and then that of y; with
  residual layers also those of the last two h_l, the one of an even l first;
* operand weights [M, size]: each layer [out, in] in the precision of the matrix products.

All widths are rounded up to multiples that tensor cores take. The padding is zero in the weights,
so it is zero in the activations and the gradients, and no result depends on it.

Kernels that keep the activations of a tile in registers leave those of hidden layers, and their
gradients, in fragment order. Of each 32 columns a thread holds 8 a + 2 b and 8 a + 2 b + 1, for one
b and all a from 0 to 3 (PTX ISA, wgmma register fragments). In memory they come side by side: the
column 8 b + 2 a has the feature 8 a + 2 b, and the next column the next feature.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .activation import TABLE
from .shape import MLPShape

# An input up to this wide is carried as a rounded part and the rest, so that coordinates keep twice
# the bits of an operand; beyond it the second half of the first layer costs more than it gives.
_SPLIT_WIDTH = 64

# The widest hidden layers that the kernels do well, and the most classes of a softmax.
_MAX_HIDDEN = 512
_MAX_CLASSES = 256


@dataclass(frozen=True)
class Piece:
    """Some of a model's operand weights: blocks of a layer, each [height, width] and contiguous."""

    layer: int
    height: int
    width: int
    down: int  # blocks for all outputs of the layer
    across: int  # blocks for all its inputs
    by_input: bool = False  # the order of the blocks: all outputs of one input, or the other way

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.height * self.width * self.down * self.across


@dataclass(frozen=True)
class Layout:
    """Networks of one shape in one precision; layer l maps padded[l] columns to padded[l + 1].

    Kernels take it as one compile-time constant.

    Attributes:
        shape: shape of the networks.
        precision: precision of the matrix products, one of :data:`~.config.OPERAND_DTYPES`.
        split: True if the input is carried in two parts, the rounded values and the rest.
        padded: rounded-up widths; the first holds both parts of the input.
        columns: first column of each of these widths in a row, and the end of the last one.
        weights: start of each layer in the operand weights, and the end of the last one.
        flat: start of each layer's weight in the flat parameters, and the start of the slopes.
        run_starts, run_lengths: consecutive hidden layers of equal width, which share one loop.
        fragments: True if the columns of hidden layers are in fragment order.
    """

    shape: MLPShape
    precision: str
    split: bool
    padded: tuple[int, ...]
    columns: tuple[int, ...]
    weights: tuple[int, ...]
    flat: tuple[int, ...]
    run_starts: tuple[int, ...]
    run_lengths: tuple[int, ...]
    fragments: bool = False

    @property
    def layers(self) -> int:
        """Number of Linear layers."""
        return len(self.padded) - 1

    @property
    def net(self) -> "Layout":
        """This layout: those of other operand weights have it besides."""
        return self

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The layers in the operand weights; piece i starts at ``starts[i]``."""
        sizes = enumerate(pairwise(self.padded))
        return tuple(Piece(layer, height, width, 1, 1) for layer, (width, height) in sizes)

    @property
    def starts(self) -> tuple[int, ...]:
        """Start of each piece in the operand weights, and their number."""
        return self.weights

    @property
    def rest(self) -> int | None:
        """Column of the first layer that meets the rest of the first input; None if none does."""
        return self.shape.widths[0] if self.split else None

    @property
    def dim(self) -> int:
        """Inputs of the first layer that its operand weights are for: all."""
        return self.shape.widths[0]

    @cached_property
    def largest_piece(self) -> int:
        """Number of operand weights of the largest layer."""
        return max(piece.size for piece in self.pieces)

    @property
    def activation_columns(self) -> int:
        """Width of a row of the activations: all but the output."""
        return self.columns[-2]

    @property
    def gradient_columns(self) -> int:
        """Width of a row of the gradients: all but the input."""
        return self.stream + (2 * self.padded[1] if self.shape.residual else 0)

    @property
    def stream(self) -> int:
        """First column of the gradients where residual layers keep those of two h, in turn."""
        return self.columns[-1] - self.columns[1]

    @property
    def keeps_z(self) -> bool:
        """True if a backward pass needs z as well; otherwise h tells the derivative.

        With a negative slope h does not tell the sign of z, nor does it in a residual layer.
        """
        shape = self.shape
        return TABLE[shape.activation].reads_z or shape.negative_slope < 0 or shape.residual

    @property
    def exponential(self) -> bool:
        """True if the activation computes exponentials, which need registers of their own."""
        return not TABLE[self.shape.activation].piecewise_linear

    @property
    def z_columns(self) -> int:
        """Width of a row that the backward pass reads, of pre-activations or of activations."""
        return self.columns[-2] - (self.columns[1] if self.keeps_z else 0)

    @property
    def z_start(self) -> int:
        """Column of z_{l-1} in such a row, minus the column of h_l in the activations."""
        return -self.columns[1] if self.keeps_z else 0

    @property
    def input_precision(self) -> str:
        """The ``input_precision`` of ``tl.dot``; products of half-precision operands are exact."""
        return self.precision if self.precision in ("tf32", "tf32x3") else "ieee"


class Saved(NamedTuple):
    """Tensors of the forward pass that the backward pass needs; autograd may keep them."""

    activations: Tensor  # [M, rows rounded up, columns]: the input and every h, operand dtype
    weights: Tensor  # [M, size], operand weights, operand dtype
    flat: Tensor  # float32 [M, P]
    preactivations: Tensor | None = None  # [M, rows rounded up, columns]: every z, if kept


@lru_cache(maxsize=1024)
def layout_of(shape: MLPShape, precision: str, part: int = 0) -> Layout:
    """Returns the layout of networks of ``shape`` whose matrix products run in ``precision``.

    Args:
        shape, precision: as said.
        part: columns of a part of a hidden layer, in kernels that keep parts in registers and leave
            them in fragment order; 0 for other kernels.
    """
    widths = shape.widths
    split = precision not in ("fp32", "tf32x3") and widths[0] <= _SPLIT_WIDTH
    padded = [_round_up(widths[0] * (2 if split else 1)), *map(_round_up, widths[1:])]
    if part:
        padded[1:-1] = (-(-width // part) * part for width in widths[1:-1])
    run_starts, run_lengths = _runs(widths)
    return Layout(
        shape=shape,
        precision=precision,
        split=split,
        padded=tuple(padded),
        columns=tuple(accumulate(padded, initial=0)),
        weights=tuple(accumulate((i * o for i, o in pairwise(padded)), initial=0)),
        flat=tuple(accumulate((i * o + o * shape.bias for i, o in pairwise(widths)), initial=0)),
        run_starts=run_starts,
        run_lengths=run_lengths,
        fragments=part > 0,
    )


def gap_of(shape: MLPShape, dtype: torch.dtype, classifier: bool = False) -> str | None:
    """Returns why the kernels do not cover networks of ``shape`` and data of ``dtype``, or None.

    Args:
        shape: shape of the networks.
        dtype: dtype of the data.
        classifier: True if a softmax over the outputs follows.
    """
    if dtype == torch.float64:
        return "float64"
    widest = max((0, *shape.widths[1:-1]))
    if widest > _MAX_HIDDEN:
        return f"a hidden layer of {widest}, wider than {_MAX_HIDDEN}"
    if classifier and shape.widths[-1] > _MAX_CLASSES:
        return f"{shape.widths[-1]} classes, more than {_MAX_CLASSES}"
    return None


def _round_up(width: int) -> int:
    """Rounds up to a power of two from 16 to 128, and above 128 to a multiple of 128."""
    if width <= 128:
        return max(16, 1 << (width - 1).bit_length())
    return -(-width // 128) * 128


def _runs(widths: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns starts and lengths of runs of layers that differ in their weights alone.

    The first and the last layer are in no run: they read the input and write the output.
    """
    starts: list[int] = []
    lengths: list[int] = []
    for layer in range(1, len(widths) - 2):
        square = widths[layer - 1] == widths[layer] == widths[layer + 1]
        if square and layer > 1:
            lengths[-1] += 1
        else:
            starts.append(layer)
            lengths.append(1)
    return tuple(starts), tuple(lengths)
