"""Adds up parts in Triton, always in the same order; same contract as :mod:`.reference`."""

import triton
import triton.language as tl
from torch import Tensor

from ..cuda import device_of
from .reference import BLOCK, ReducedGradient


@triton.jit(do_not_specialize=["splits"])
def reduce_kernel(
    parts_ptr, splits, size, out_ptr, out_stride_model, out_stride, squares_ptr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the sums of parts, and the squares of the mean gradient; grid (blocks, M).

    With ``squares_ptr`` the last element is the number of terms and the one before it the loss;
    each block divides its gradients by that number and writes the sum of their squares.

    Args:
        parts_ptr: float32 [M, splits, size].
        splits, size: numbers of parts, and of elements of a part.
        out_ptr: float32 [M, size], output.
        out_stride_model, out_stride: elements of ``out`` between models, and between elements.
        squares_ptr: float32 [M, blocks], output, or None.
        BLOCK: elements of a program.
    """
    block = tl.program_id(0)
    model = tl.program_id(1).to(tl.int64)
    element = block * BLOCK + tl.arange(0, BLOCK)
    live = element < size
    parts = parts_ptr + model * splits * size
    acc = tl.zeros((BLOCK,), tl.float32)
    count = 0.0
    for _ in range(splits):
        acc += tl.load(parts + element, mask=live, other=0.0)
        if squares_ptr is not None:
            count += tl.load(parts + size - 1)
        parts += size
    tl.store(out_ptr + model * out_stride_model + element * out_stride, acc, mask=live)
    if squares_ptr is not None:
        mean = tl.where(element < size - 2, acc, 0.0) / count
        tl.store(squares_ptr + model * tl.num_programs(0) + block, tl.sum(mean * mean))


def add_up(parts: Tensor, out: Tensor, squares: Tensor | None = None) -> None:
    """Writes the sum of parts [M, S, size] into out [M, size], which may have any strides."""
    models, splits, size = parts.shape
    with device_of(parts):
        reduce_kernel[triton.cdiv(size, BLOCK), models](
            parts_ptr=parts,
            splits=splits,
            size=size,
            out_ptr=out,
            out_stride_model=out.stride(0),
            out_stride=out.stride(1),
            squares_ptr=squares,
            BLOCK=BLOCK,
        )


def reduce_grad(sums: Tensor, reduced: ReducedGradient) -> None:
    """Writes ``reduced``; see :func:`..reduce_grad`."""
    add_up(sums, reduced.sums[:, 0], reduced.squares)
