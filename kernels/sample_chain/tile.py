"""Device functions of the chain for some columns of a tile of points, which stay in registers.

Names in these functions, besides those of :mod:`..mlp.tile`:

* DIM, COLUMNS: dimension of a point; columns that are computed at once, a power of two. Those from
  DIM on are padding;
* ``start``: the first of these columns.
"""

import triton
import triton.language as tl

from ..mlp.arithmetic import divisor, operand
from ..philox.kernel import NOISE, normal_pair


@triton.constexpr_function
def power_of_two(number):
    """Returns the smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


@triton.jit
def load_points(x, start, live, COLUMNS: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr):
    """Returns COLUMNS columns of a tile of points, fp32, 0 in the padding."""
    row, column = tl.arange(0, ROWS)[:, None], start + tl.arange(0, COLUMNS)[None, :]
    return tl.load(x + row * DIM + column, mask=live[:, None] & (column < DIM), other=0.0)


@triton.jit
def store_points(x, value, start, live, DIM: tl.constexpr, ROWS: tl.constexpr):
    """Writes columns of a tile of points."""
    row, column = tl.arange(0, ROWS)[:, None], start + tl.arange(0, value.shape[1])[None, :]
    tl.store(x + row * DIM + column, value, mask=live[:, None] & (column < DIM))


@triton.jit
def store_inputs(value, place, exists, acts, NET: tl.constexpr, ROWS: tl.constexpr):
    """Writes values as an operand into columns ``place`` of the input: rounded, and their rest.

    Args:
        value: fp32 [ROWS, columns] or [1, columns], the same for all rows.
        place, exists: int32 and bool [columns].
    """
    row = tl.arange(0, ROWS)[:, None]
    pointers = acts + row * NET.activation_columns + place[None, :]
    high = operand(value, acts.dtype.element_ty, NET)
    tl.store(pointers, high, mask=exists[None, :])
    if NET.split:
        rest = operand(value - high.to(tl.float32), acts.dtype.element_ty, NET)
        tl.store(pointers + NET.shape.widths[0], rest, mask=exists[None, :])


@triton.jit
def store_step(
    x, points, features, live, acts, FEATURES: tl.constexpr, COLUMNS: tl.constexpr,
    DIM: tl.constexpr, NET: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Writes x_t and the feature of t into a network's input.

    Args:
        x: fp32 [ROWS, COLUMNS], or None: read from ``points``, COLUMNS columns at once.
        features: pointer to the feature of t.
    """
    column = tl.arange(0, COLUMNS)
    if x is not None:
        store_inputs(x, column, column < DIM, acts, NET, ROWS)
    else:
        for start in tl.range(0, DIM, COLUMNS, num_stages=1):
            part = load_points(points, start, live, COLUMNS, DIM, ROWS)
            store_inputs(part, start + column, start + column < DIM, acts, NET, ROWS)
    if FEATURES > 0:
        store_features(features + tl.zeros((1, 1), tl.int32), DIM, FEATURES, acts, NET, ROWS)


@triton.jit
def store_features(
    features, FIRST: tl.constexpr, WIDTH: tl.constexpr, acts, NET: tl.constexpr, ROWS: tl.constexpr
):
    """Writes features into WIDTH columns of the input from FIRST on.

    Args:
        features: pointers to the first feature of each row [ROWS, 1], or of all rows [1, 1].
    """
    CHUNK: tl.constexpr = min(power_of_two(WIDTH), 64)
    for start in tl.range(0, WIDTH, CHUNK, num_stages=1):
        k = start + tl.arange(0, CHUNK)
        value = tl.load(features + k[None, :], mask=(k < WIDTH)[None, :], other=0.0)
        store_inputs(value, FIRST + k, k < WIDTH, acts, NET, ROWS)


@triton.jit
def clear_padding(acts, NET: tl.constexpr, ROWS: tl.constexpr):
    """Writes zeros into the columns of the input that hold nothing."""
    USED: tl.constexpr = NET.shape.widths[0] * (1 + NET.split)
    PADDED: tl.constexpr = NET.padded[0]
    CHUNK: tl.constexpr = divisor(PADDED, 64)
    row = tl.arange(0, ROWS)[:, None]
    for start in tl.range(0, PADDED, CHUNK, num_stages=1):
        column = start + tl.arange(0, CHUNK)[None, :]
        zero = tl.zeros((ROWS, CHUNK), acts.dtype.element_ty)
        tl.store(acts + row * NET.activation_columns + column, zero, mask=column >= USED)


@triton.jit
def noise(seed, step, row, start, COLUMNS: tl.constexpr, DIM: tl.constexpr):
    """Draws z for COLUMNS columns from ``start`` on, fp32 [rows, COLUMNS]; the padding repeats."""
    DRAWN: tl.constexpr = min(COLUMNS, power_of_two(max(DIM, 2)))
    pair = start // 2 + tl.arange(0, DRAWN // 2)[None, :]
    element = row[:, None] + tl.zeros((1, DRAWN // 2), tl.int64)
    z_0, z_1 = normal_pair(seed, NOISE, step, element, pair)
    z = tl.reshape(tl.join(z_0, z_1), (row.shape[0], 1, DRAWN))
    z = tl.broadcast_to(z, (row.shape[0], COLUMNS // DRAWN, DRAWN))
    return tl.reshape(z, (row.shape[0], COLUMNS))
