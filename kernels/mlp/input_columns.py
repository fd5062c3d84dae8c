"""Writes columns of a tile's input from registers, as the first layer reads them."""

import triton
import triton.language as tl

from .arithmetic import divisor, operand, power_of_two


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
def store_features(
    features, live, FIRST: tl.constexpr, WIDTH: tl.constexpr, acts, NET: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Writes features into WIDTH columns of the input from FIRST on.

    Args:
        features: pointers to the first feature of each row [ROWS, 1], or of all rows [1, 1].
        live: bool [ROWS, 1], False for rows whose features are 0; None if there are none.
    """
    CHUNK: tl.constexpr = min(power_of_two(max(WIDTH, 1)), 64)
    for start in tl.range(0, WIDTH, CHUNK, num_stages=1):
        k = start + tl.arange(0, CHUNK)
        exists = (k < WIDTH)[None, :]
        if live is not None:
            exists &= live
        value = tl.load(features + k[None, :], mask=exists, other=0.0)
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
