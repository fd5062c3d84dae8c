"""Device functions of the chain for some columns of a tile of points, which stay in registers.

Names in these functions, besides those of :mod:`..mlp.tile`:

* DIM, COLUMNS: dimension of a point; columns that are computed at once, a power of two. Those from
  DIM on are padding;
* ``start``: the first of these columns.
"""

import triton
import triton.language as tl

from ..mlp.arithmetic import power_of_two
from ..mlp.input_columns import store_features, store_inputs
from ..philox.kernel import NOISE, normal_columns


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
        store_features(features + tl.zeros((1, 1), tl.int32), None, DIM, FEATURES, acts, NET, ROWS)


@triton.jit
def noise(seed, step, row, start, COLUMNS: tl.constexpr, DIM: tl.constexpr):
    """Draws z for COLUMNS columns from ``start`` on, fp32 [rows, COLUMNS]; the padding repeats."""
    DRAWN: tl.constexpr = min(COLUMNS, power_of_two(max(DIM, 2)))
    z = normal_columns(seed, NOISE, step, row, start // 2, DRAWN // 2)
    z = tl.reshape(z, (row.shape[0], 1, DRAWN))
    z = tl.broadcast_to(z, (row.shape[0], COLUMNS // DRAWN, DRAWN))
    return tl.reshape(z, (row.shape[0], COLUMNS))
