"""The layout of operand weights that stream through shared memory in chunks.

Kernels that keep the activations of a tile in registers hold a hidden layer in parts of 128
columns, or of 64 in networks that are no wider. The operand weights of a model [size] are layer by
layer:

* the first one as [out, 2 * points]: the weights of x_t, once for the rounded coordinates and once
  for the rest of each. What a chain's other inputs contribute does not depend on x_t and comes as a
  bias;
* those between hidden layers in chunks [part, part], each contiguous in memory, in the order of
  their use: one part of the output after the other, and for each of these all parts of the input;
* the last one in blocks [points, part], a part of the input after the other.

All padding is zero.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise

from .config import Config
from .layout import Layout

# The widest hidden layers that registers hold, with their operands and the next layer's sums.
_MAX_WIDTH = 256
# The most coordinates of a point.
_MAX_POINTS = 32
_PART = 128
# Bytes of shared memory for weights; a program on a Hopper GPU may have 3 KiB more.
_SHARED = 224 * 1024
_BYTES = 2  # of an operand


@dataclass(frozen=True)
class ChunkLayout:
    """Chunks of networks of one shape in one precision; kernels take it as one constant.

    Attributes:
        net: layout of the same networks for the portable kernels; it has the flat parameters.
        dim: dimension of a point, which the first columns of the input are.
        points: columns of a tile of points, the dimension rounded up to a power of two from 8.
        part: columns of a part.
        parts: number of parts of each hidden layer.
    """

    net: Layout
    dim: int
    points: int
    part: int
    parts: tuple[int, ...]

    @cached_property
    def chunks(self) -> int:
        """Number of chunks that one evaluation of a network multiplies."""
        return sum(a * b for a, b in pairwise(self.parts))

    @cached_property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of a block of each layer that is contiguous in memory."""
        first = self.parts[0] * self.part, 2 * self.points
        hidden = ((self.part, self.part),) * (len(self.parts) - 1)
        return first, *hidden, (self.points, self.part)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Start of each layer in the operand weights, and their number."""
        first, *hidden, last = (rows * columns for rows, columns in self.blocks)
        counts = (a * b for a, b in pairwise(self.parts))
        middle = (count * size for count, size in zip(counts, hidden, strict=True))
        return tuple(accumulate((first, *middle, self.parts[-1] * last), initial=0))

    @property
    def size(self) -> int:
        """Number of operand weights of a model, a multiple of ``part``."""
        return self.starts[-1]


@lru_cache(maxsize=1024)
def chunks_of(net: Layout, dim: int) -> ChunkLayout:
    """Returns the chunks of networks, for points of a dimension; see :func:`gap_of_chunks`."""
    hidden = net.shape.widths[1:-1]
    part = _PART if max(hidden) > _PART // 2 else _PART // 2
    return ChunkLayout(
        net=net,
        dim=dim,
        points=max(8, 1 << (dim - 1).bit_length()),
        part=part,
        parts=tuple(-(-width // part) for width in hidden),
    )


def gap_of_chunks(net: Layout, dim: int) -> str | None:
    """Returns why no kernel keeps the activations of such networks in registers, or None."""
    hidden = net.shape.widths[1:-1]
    if net.precision not in ("fp16", "bf16"):
        return f"precision {net.precision}"
    if len(hidden) < 2:
        return f"{len(hidden)} hidden layers, fewer than 2"
    if max(hidden) > _MAX_WIDTH:
        return f"a hidden layer of {max(hidden)}, wider than {_MAX_WIDTH}"
    if dim > _MAX_POINTS:
        return f"points of {dim} coordinates, more than {_MAX_POINTS}"
    return None


def ring_of(net: ChunkLayout, config: Config) -> int:
    """Returns how many chunks lie in shared memory beside the first and the last layer."""
    resident = net.starts[1] + net.starts[-1] - net.starts[-2]
    return min(config.hopper_ring, (_SHARED // _BYTES - resident) // net.part**2)
