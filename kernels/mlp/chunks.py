"""The layout of operand weights that stream through shared memory in chunks.

Kernels that keep the activations of a tile in registers hold a hidden layer in parts of 128
columns, or of 64 in networks that are no wider. The weights between two parts are a chunk
[part, part], contiguous in memory. The operand weights of a model [size] are:

* the chunks of all products between hidden layers, in the order of their use: layer by layer, in a
  layer one part of its output after the other, and for each of these all parts of its input;
* the first layer [out, 2 * points]: the weights of x_t, once for the rounded coordinates and once
  for the rest of each. What a chain's other inputs contribute does not depend on x_t and comes as a
  bias;
* the last layer in parts of its input, each [points, part].

All padding is zero.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise

from .layout import Layout

# The widest hidden layers that registers hold, with their operands and the next layer's sums.
MAX_WIDTH = 256
# The most coordinates of a point.
MAX_POINTS = 32
_PART = 128


@dataclass(frozen=True)
class ChunkLayout:
    """Chunks of networks of one shape in one precision; kernels take it as one constant.

    Attributes:
        net: layout of the same networks for the portable kernels; it has the flat parameters.
        dim: dimension of a point, which the first columns of the input are.
        points: columns of a tile of points, their dimension rounded up to a power of two from 8.
        part: columns of a part.
        parts: number of parts of each hidden layer.
        starts: first chunk of the products after each hidden layer, and the number of chunks.
    """

    net: Layout
    dim: int
    points: int
    part: int
    parts: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def chunks(self) -> int:
        """Number of chunks that one evaluation of a network multiplies."""
        return self.starts[-1]

    @property
    def first_layer(self) -> int:
        """Start of the first layer in the operand weights."""
        return self.chunks * self.part**2

    @property
    def last_layer(self) -> int:
        """Start of the last layer in the operand weights."""
        return self.first_layer + self.parts[0] * self.part * 2 * self.points

    @cached_property
    def size(self) -> int:
        """Number of operand weights of a model, a multiple of ``part``."""
        return self.last_layer + self.parts[-1] * self.part * self.points


@lru_cache(maxsize=1024)
def chunks_of(net: Layout, dim: int) -> ChunkLayout:
    """Returns the chunks of networks, for points of a dimension; see :func:`gap_of_chunks`."""
    hidden = net.shape.widths[1:-1]
    part = _PART if max(hidden) > _PART // 2 else _PART // 2
    parts = tuple(-(-width // part) for width in hidden)
    return ChunkLayout(
        net=net,
        dim=dim,
        points=max(8, 1 << (dim - 1).bit_length()),
        part=part,
        parts=parts,
        starts=tuple(accumulate((a * b for a, b in pairwise(parts)), initial=0)),
    )


def gap_of_chunks(net: Layout, dim: int) -> str | None:
    """Returns why no kernel keeps the activations of such networks in registers, or None."""
    hidden = net.shape.widths[1:-1]
    if net.precision not in ("fp16", "bf16"):
        return f"precision {net.precision}"
    if len(hidden) < 2:
        return f"{len(hidden)} hidden layers, fewer than 2"
    if max(hidden) > MAX_WIDTH:
        return f"a hidden layer of {max(hidden)}, wider than {MAX_WIDTH}"
    if dim > MAX_POINTS:
        return f"points of {dim} coordinates, more than {MAX_POINTS}"
    return None
