"""Where the numbers of one network lie in the kernels' buffers.

Four buffers, besides the flat fp32 parameters of :class:`~.shape.MLPShape`:

* activations [M, rows, columns]: a row holds the input h_0 and then every h_l = act(z_{l-1}), as
  the matrix products read them;
* pre-activations [M, rows, columns]: a row holds every hidden z_l, if the backward pass needs it;
* gradients [M, rows, columns]: a row holds the gradient of every z_l and then that of y;
* packed weights [M, size]: each layer [out, in] in the precision of the tensor cores.

All widths are rounded up to what a tensor core multiplies. The padding is zero in the weights, so
it is zero in the activations and the gradients, and nothing that leaves the kernels reads it.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import torch

from .shape import MLPShape

# An input up to this wide is carried as a rounded part and the rest, so that coordinates keep the
# accuracy of fp32; beyond it the second half of the first layer would cost more than it gives.
_SPLIT_WIDTH = 64

# The widest hidden layers that the kernels do well, and the most classes of a softmax.
_MAX_HIDDEN = 512
_MAX_CLASSES = 256


@dataclass(frozen=True)
class Layout:
    """Networks of one shape in one precision; layer l maps padded[l] columns to padded[l + 1].

    Kernels take it as one compile-time constant.

    Attributes:
        shape: what is computed.
        precision: one of :data:`~.config.OPERAND_DTYPES`, of the matrix products.
        split: whether the input is carried in two parts, the rounded values and the rest.
        padded: rounded-up widths; the first holds both parts of the input.
        columns: where each of these widths starts in a row, and where the last one ends.
        packed: where each layer starts in the packed weights, and where the last one ends.
        flat: where each layer's weight starts in the flat parameters, and where the slopes start.
        run_starts, run_lengths: consecutive hidden layers of equal width, which share one loop.
    """

    shape: MLPShape
    precision: str
    split: bool
    padded: tuple[int, ...]
    columns: tuple[int, ...]
    packed: tuple[int, ...]
    flat: tuple[int, ...]
    run_starts: tuple[int, ...]
    run_lengths: tuple[int, ...]

    @property
    def layers(self) -> int:
        """Number of Linear layers."""
        return len(self.padded) - 1

    @property
    def activation_columns(self) -> int:
        """Width of a row of the activations: all but the output."""
        return self.columns[-2]

    @property
    def gradient_columns(self) -> int:
        """Width of a row of the gradients: all but the input."""
        return self.columns[-1] - self.columns[1]

    @property
    def keeps_z(self) -> bool:
        """Whether a backward pass needs z as well; of the other activations h tells the derivative.

        The slope of a PReLU may be negative, and then h does not tell on which side z was.
        """
        activation, slope = self.shape.activation, self.shape.negative_slope
        return activation not in ("relu", "leaky_relu", "none") or slope < 0

    @property
    def z_columns(self) -> int:
        """Width of a row of what the backward pass reads: pre-activations or activations."""
        return self.columns[-2] - (self.columns[1] if self.keeps_z else 0)

    @property
    def z_start(self) -> int:
        """Where z_{l-1} lies in such a row, less where h_l lies in the activations."""
        return -self.columns[1] if self.keeps_z else 0

    @property
    def input_precision(self) -> str:
        """What ``tl.dot`` does with fp32 operands; half precision ones it multiplies exactly."""
        return self.precision if self.precision in ("tf32", "tf32x3") else "ieee"


@lru_cache(maxsize=1024)
def layout_of(shape: MLPShape, precision: str) -> Layout:
    """The layout of networks of ``shape`` whose matrix products run in ``precision``."""
    widths = shape.widths
    split = precision not in ("fp32", "tf32x3") and widths[0] <= _SPLIT_WIDTH
    padded = (_round_up(widths[0] * (2 if split else 1)), *map(_round_up, widths[1:]))
    run_starts, run_lengths = _runs(widths)
    return Layout(
        shape=shape,
        precision=precision,
        split=split,
        padded=padded,
        columns=tuple(accumulate(padded, initial=0)),
        packed=tuple(accumulate((i * o for i, o in pairwise(padded)), initial=0)),
        flat=tuple(accumulate((i * o + o * shape.bias for i, o in pairwise(widths)), initial=0)),
        run_starts=run_starts,
        run_lengths=run_lengths,
    )


def gap_of(shape: MLPShape, dtype: torch.dtype, classifier: bool = False) -> str | None:
    """What the kernels do not cover of networks of ``shape`` and data of ``dtype``, if anything."""
    if dtype == torch.float64:
        return "float64"
    widest = max((0, *shape.widths[1:-1]))
    if widest > _MAX_HIDDEN:
        return f"a hidden layer of {widest}, wider than {_MAX_HIDDEN}"
    if classifier and shape.widths[-1] > _MAX_CLASSES:
        return f"{shape.widths[-1]} classes, more than {_MAX_CLASSES}"
    return None


def _round_up(width: int) -> int:
    """The next power of two from 16 to 128, above that the next multiple of 128."""
    if width <= 128:
        return max(16, 1 << (width - 1).bit_length())
    return -(-width // 128) * 128


def _runs(widths: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Starts and lengths of runs of layers that only the weights distinguish.

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
