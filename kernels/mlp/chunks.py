"""The layout of operand weights that stream through shared memory in chunks.

Kernels that keep the activations of a tile in registers hold a hidden layer in parts of 128
columns, or of 64 in networks that are no wider. In wide networks (:attr:`ChunkLayout.wide`) they
hold the sums of one part at a time. The operand weights of a model [size] are layer by layer:

* the first one as [out, 2 * points]: the weights of x_t, once for the rounded coordinates and once
  for the rest of each. What a chain's other inputs contribute does not depend on x_t and comes as a
  bias;
* those between hidden layers in chunks [part, part], each contiguous in memory, in the order of
  their use: one part of the output after the other, and for each of these all parts of the input;
* the last one in blocks [points, part], or [outputs, part] in training, a part of the input after
  the other.

All padding is zero, also that of the biases, which are float32.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise

from .config import Config
from .layout import Layout, Piece, layout_of

# The widest hidden layers that registers hold as operands, with the sums of a part of the next one,
_MAX_WIDTH = 512
# and those whose sums they hold besides, with the sums of all of the next one.
_MAX_SUMS = 256
# The most coordinates of a point, the most classes of a guide, and its widest last hidden layer.
_MAX_POINTS = 32
_MAX_CLASSES = 64
_MAX_LAST = 512
# Runs of equal layers have code of their own, which takes time to compile: the most runs, and those
# of a guide with its last hidden layer, which is one by itself. Exponentials have longer code.
_MAX_RUNS = 6
_MAX_GUIDE_RUNS = 3
_MAX_EXPONENTIAL_RUNS = 2
# Threads of a program that takes most rows at once, 128.
_THREADS = 256
_PART = 128
# Columns of a guide's last hidden layer at a time.
SLICE = 64
# Bytes of shared memory for weights; a program on a Hopper GPU may have 3 KiB more.
_SHARED = 224 * 1024
_BYTES = 2  # of an operand
# Products with two chunks start before the buffer of the first is filled again,
_FEWEST = 2
# and in training with a third one: see :attr:`.config.Config.hopper_ring`.
_FEWEST_IN_TRAINING = 3


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
    def pieces(self) -> tuple[Piece, ...]:
        """The layers in the operand weights."""
        last = Piece(self.net.layers - 1, self.points, self.part, 1, self.parts[-1])
        return self.first, *self.forward, last

    @property
    def first(self) -> Piece:
        """The first layer."""
        return Piece(0, self.part, 2 * self.points, self.parts[0], 1)

    @property
    def forward(self) -> tuple[Piece, ...]:
        """The layers between hidden layers that are whole, as the way forward takes them."""
        return tuple(
            Piece(layer, self.part, self.part, down, across)
            for layer, (across, down) in enumerate(pairwise(self.parts), start=1)
        )

    @property
    def backward(self) -> tuple[Piece, ...]:
        """The same layers as the way back takes them."""
        return tuple(replace(piece, by_input=True) for piece in reversed(self.forward))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Start of each piece in the operand weights, and their number, a multiple of ``part``."""
        return tuple(accumulate((piece.size for piece in self.pieces), initial=0))

    @cached_property
    def outputs(self) -> tuple[int, ...]:
        """Outputs of each layer with its padding."""
        pieces = *self.pieces[: self.net.layers - 1], self.pieces[-1]
        return tuple(piece.height * piece.down for piece in pieces)

    @cached_property
    def bias_starts(self) -> tuple[int, ...]:
        """Start of each layer's bias in the biases of a model, and their number."""
        return tuple(accumulate(self.outputs, initial=0))

    @property
    def rest(self) -> int:
        """Column of the first layer that meets the rest of the first input."""
        return self.points

    @cached_property
    def largest_piece(self) -> int:
        """Number of operand weights of the largest piece."""
        return max(piece.size for piece in self.pieces)

    @property
    def chunks(self) -> int:
        """Number of chunks that one evaluation of a network multiplies."""
        return (self.starts[-2] - self.starts[1]) // self.part**2

    @property
    def resident(self) -> int:
        """Number of weights that stay in shared memory."""
        return self.starts[1] + self.starts[-1] - self.starts[-2]

    @property
    def wide(self) -> bool:
        """True if the parts of a hidden layer leave the registers as soon as they are complete."""
        return max(self.parts) * self.part > _MAX_SUMS

    @property
    def stashed(self) -> int:
        """Number of activations of a row that a chain keeps in shared memory between two layers."""
        return max(self.parts) * self.part if self.wide else 0


@dataclass(frozen=True)
class GuideLayout(ChunkLayout):
    """The same of classifiers that guide a chain, whose last hidden layer may be wider.

    That layer is never whole: a slice of its columns at a time goes into the logits, and on the way
    back from the gradient of the logits into that of the layer below. Two blocks [slice, part] of
    its weights make a chunk. After the chunks of the way forward come those of the way back.

    Attributes:
        parts: number of parts of each hidden layer but the last.
        slices: number of slices of the last hidden layer.
        classes: number of classes, rounded up to a power of two from 16.
    """

    slices: int
    classes: int

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The layers in the operand weights, those between the first and the last twice."""
        last = self.net.layers - 1
        wide = Piece(last - 1, SLICE, self.part, self.slices, self.parts[-1])
        logits = Piece(last, self.classes, SLICE, 1, self.slices)
        return self.first, *self.forward, wide, wide, *self.backward, logits

    @property
    def chunks_of_slices(self) -> int:
        """Number of chunks of the last hidden layer, once."""
        return self.slices * self.parts[-1] // 2

    @property
    def slices_of_chunk(self) -> int:
        """Number of slices in a chunk."""
        return 2 // self.parts[-1]

    @cached_property
    def run_starts(self) -> tuple[int, ...]:
        """First layers of runs of equal layers, of those between hidden layers that are whole."""
        return tuple(start for start in self.net.run_starts if start < len(self.parts))

    @cached_property
    def run_lengths(self) -> tuple[int, ...]:
        """Number of layers of each run; a run ends before the last hidden layer."""
        ends = *self.run_starts[1:], len(self.parts)
        return tuple(end - start for start, end in zip(self.run_starts, ends, strict=False))

    @property
    def keeps_z(self) -> bool:
        """True if the way back needs all pre-activations; otherwise their signs are enough."""
        return self.net.exponential

    @property
    def signs(self) -> int:
        """Number of parts and slices of hidden layers, whose signs a chain keeps."""
        return 0 if self.keeps_z else sum(self.parts) + self.slices

    @property
    def z_columns(self) -> int:
        """Width of a row of pre-activations that a chain keeps."""
        return sum(self.parts) * self.part + self.slices * SLICE if self.keeps_z else 0


@dataclass(frozen=True)
class TrainingLayout(ChunkLayout):
    """The same in training: after the chunks of the way forward come those of the way back.

    ``dim`` and ``points`` are those of the whole input, all of which differs from row to row.

    Attributes:
        rows: layout of the rows that a training step leaves to its weight gradients.
    """

    rows: Layout

    @property
    def bias_columns(self) -> int:
        """Columns that shared memory has for the biases of a part: one for each thread or more."""
        return max(self.part, _THREADS)

    @property
    def stashed(self) -> int:
        """0: those that it leaves to its weight gradients serve the next layer as well."""
        return 0

    @property
    def resident(self) -> int:
        """Number of weights that stay in shared memory; a hidden layer's bias counts twice."""
        return super().resident + 2 * self.bias_columns * sum(self.parts)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The layers in the operand weights, those between the first and the last twice."""
        last = Piece(self.net.layers - 1, self.rows.padded[-1], self.part, 1, self.parts[-1])
        return self.first, *self.forward, *self.backward, last


@lru_cache(maxsize=1024)
def chunks_of(net: Layout, dim: int, guided: bool = False) -> ChunkLayout:
    """Returns the chunks of networks, for points of a dimension; see :func:`gap_of_chunks`.

    A guided chain takes the chunks of both networks through one ring: their parts are equal.
    """
    hidden = net.shape.widths[1:-1]
    part = _PART if guided or max(hidden) > _PART // 2 else _PART // 2
    return ChunkLayout(
        net=net,
        dim=dim,
        points=_points(dim),
        part=part,
        parts=tuple(-(-width // part) for width in hidden),
    )


@lru_cache(maxsize=1024)
def guide_chunks_of(net: Layout, dim: int) -> GuideLayout:
    """Returns the chunks of classifiers of points of a dimension; see :func:`gap_of_guide`."""
    *hidden, wide = net.shape.widths[1:-1]
    parts = tuple(-(-width // _PART) for width in hidden)
    return GuideLayout(
        net=net,
        dim=dim,
        points=_points(dim),
        part=_PART,
        parts=parts,
        slices=-(-wide // _PART) * (_PART // SLICE),
        classes=max(16, 1 << (net.shape.widths[-1] - 1).bit_length()),
    )


@lru_cache(maxsize=1024)
def training_chunks_of(net: Layout) -> TrainingLayout:
    """Returns the chunks of networks in training; see :func:`gap_of_training`."""
    chunks = chunks_of(net, net.shape.widths[0])
    return TrainingLayout(
        net=net,
        dim=chunks.dim,
        points=chunks.points,
        part=chunks.part,
        parts=chunks.parts,
        rows=layout_of(net.shape, net.precision, chunks.part),
    )


def _points(dim: int) -> int:
    return max(8, 1 << (dim - 1).bit_length())


def gap_of_chunks(net: Layout, dim: int) -> str | None:
    """Returns why no kernel keeps the activations of such networks in registers, or None."""
    hidden = net.shape.widths[1:-1]
    return _gap(net, dim, hidden, max(hidden, default=0), _MAX_WIDTH)


def gap_of_guide(net: Layout, dim: int) -> str | None:
    """Returns why no kernel keeps the activations of such classifiers in registers, or None."""
    hidden, classes = net.shape.widths[1:-1], net.shape.widths[-1]
    if classes > _MAX_CLASSES:
        return f"{classes} classes, more than {_MAX_CLASSES}"
    runs = 1 + sum(start < len(hidden) - 1 for start in net.run_starts)
    most = _MAX_EXPONENTIAL_RUNS if net.exponential else _MAX_GUIDE_RUNS
    if runs > most:
        named = f"{net.shape.activation} and " if net.exponential else ""
        return f"a classifier with {named}{runs} runs of equal layers, more than {most}"
    if hidden and hidden[-1] > _MAX_LAST:
        return f"a hidden layer of {hidden[-1]}, wider than {_MAX_LAST}"
    return _gap(net, dim, hidden, max(hidden[:-1], default=0), _MAX_SUMS)


def gap_of_training(net: Layout) -> str | None:
    """Returns why no kernel trains such networks with activations in registers, or None."""
    width, *hidden, outputs = net.shape.widths
    if width > _MAX_POINTS:
        return f"{width} inputs, more than {_MAX_POINTS}"
    if outputs > _MAX_CLASSES:
        return f"{outputs} outputs, more than {_MAX_CLASSES}"
    gap = _gap(net, width, tuple(hidden), max(hidden, default=0), _MAX_WIDTH)
    return gap or _gap_of_room(_room(training_chunks_of(net)), _FEWEST_IN_TRAINING)


def _gap(net: Layout, dim: int, hidden: tuple[int, ...], widest: int, limit: int) -> str | None:
    """Returns why a network is not covered, of whose layers the ``widest`` has a limit."""
    if net.precision not in ("fp16", "bf16"):
        return f"precision {net.precision}"
    if net.shape.residual:
        return "residual layers"
    if len(hidden) < 2:
        return f"fewer than 2 hidden layers, {len(hidden)}"
    if widest > limit:
        return f"a hidden layer of {widest}, wider than {limit}"
    if len(net.run_starts) > _MAX_RUNS:
        return f"{len(net.run_starts)} runs of equal layers, more than {_MAX_RUNS}"
    if dim > _MAX_POINTS:
        return f"points of {dim} coordinates, more than {_MAX_POINTS}"
    return None


def gap_of_chain(net: Layout, guide: Layout | None, dim: int, config: Config) -> str | None:
    """Returns why no kernel takes points through a whole chain in registers, or None.

    Args:
        net, guide: layouts of the denoisers and of the classifiers that guide them, if any.
        dim: dimension of a point.
        config: configuration of the call.
    """
    gap = gap_of_chunks(net, dim) or (None if guide is None else gap_of_guide(guide, dim))
    if gap is not None:
        return gap
    chunks = chunks_of(net, dim, guided=guide is not None)
    judge = None if guide is None else guide_chunks_of(guide, dim)
    return _gap_of_room(ring_of(config, chunks, judge), _FEWEST)


def _gap_of_room(chunks: int, fewest: int) -> str | None:
    """Returns why shared memory has too little room for the chunks of a network, or None."""
    if chunks >= fewest:
        return None
    return f"shared memory has room for {chunks} of the {fewest} chunks of weights that it needs"


def ring_of(config: Config, net: ChunkLayout, guide: GuideLayout | None) -> int:
    """Returns how many chunks lie in shared memory beside all that stays there."""
    taken = _BYTES * net.stashed * config.hopper_rows
    if guide is not None:
        signs = 4 * 4 * guide.signs * config.hopper_rows  # four words for each row
        taken += _BYTES * guide.resident + signs
    return min(config.hopper_ring, _room(net, taken))


def _room(net: ChunkLayout, taken: int = 0) -> int:
    """Returns for how many chunks shared memory has room, if other things take so many bytes."""
    return max(0, _SHARED - _BYTES * net.resident - taken) // (_BYTES * net.part**2)
