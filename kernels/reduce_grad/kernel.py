"""Adds up parts in Triton, always in the same order; same contract as :mod:`.reference`."""

import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import model_stride
from ..cuda import device_of
from ..dependent_launch import dependent_launch, wait_for_last_kernel
from .reference import BLOCK, ReducedGradient

_WARPS = BLOCK // (32 * 4)  # each thread has four elements, which are 16 bytes


@triton.jit(do_not_specialize=["splits"])
def reduce_kernel(
    parts_ptr, parts_stride_model, parts_stride, splits, size,
    out_ptr, out_stride_model, out_stride, squares_ptr,
    BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Writes the sums of parts, and the squares of the mean gradient; grid (blocks, M).

    With ``squares_ptr`` the last element is the number of terms and the one before it the loss;
    each block divides its gradients by that number and writes the sum of their squares.

    Args:
        parts_ptr: float32 [M, splits, size].
        parts_stride_model, parts_stride: elements of ``parts`` between models, and between parts.
        splits, size: numbers of parts, and of elements of a part.
        out_ptr: float32 [M, size], output.
        out_stride_model, out_stride: elements of ``out`` between models, and between elements.
        squares_ptr: float32 [M, blocks], output, or None.
        BLOCK: elements of a program.
        DEPENDENT: True for a dependent launch.
    """
    wait_for_last_kernel(DEPENDENT)
    block = tl.program_id(0)
    model = tl.program_id(1).to(tl.int64)
    parts = parts_ptr + model * parts_stride_model
    out = out_ptr + model * out_stride_model
    element = block * BLOCK + tl.arange(0, BLOCK)
    if (block + 1) * BLOCK <= size:  # all elements exist, and no mask divides their 16 bytes
        acc = sum_of_parts(parts, parts_stride, splits, element, None)
        tl.store(out + element * out_stride, acc)
    else:
        acc = sum_of_parts(parts, parts_stride, splits, element, element < size)
        tl.store(out + element * out_stride, acc, mask=element < size)
    if squares_ptr is not None:
        inverse = 1 / sum_of_column(parts + size - 1, parts_stride, splits)
        mean = tl.where(element < size - 2, acc, 0.0) * inverse
        tl.store(squares_ptr + model * tl.num_programs(0) + block, tl.sum(mean * mean))


@triton.jit
def sum_of_parts(parts, stride, splits, element, live):
    """Returns the sum of ``splits`` parts of some elements, in their order.

    Eight loads go out side by side. All elements exist if ``live`` is None.
    """
    acc = tl.zeros(element.shape, tl.float32)
    for first in range(0, splits, 8):
        for i in tl.static_range(8):
            mask = tl.full(element.shape, first + i, tl.int32) < splits
            if live is not None:
                mask &= live
            acc += tl.load(parts + i * stride + element, mask=mask, other=0.0)
        parts += 8 * stride
    return acc


@triton.jit
def sum_of_column(column, stride, splits):
    """Returns the sum over ``splits`` parts of one element, in a fixed order."""
    acc = tl.zeros((32,), tl.float32)
    for first in range(0, splits, 32):
        part = first + tl.arange(0, 32).to(tl.int64)
        acc += tl.load(column + part * stride, mask=part < splits, other=0.0)
    return tl.sum(acc)


def add_up(parts: Tensor, out: Tensor, squares: Tensor | None = None) -> None:
    """Writes the sum of parts [M, S, size] into out [M, size], which may have any strides.

    The elements of a part lie side by side; models and parts have any strides.
    """
    models, splits, size = parts.shape
    stride_model, stride = strides_of(parts)
    with device_of(parts):
        reduce_kernel[-(-size // BLOCK), models](
            parts_ptr=parts,
            parts_stride_model=stride_model,
            parts_stride=stride,
            splits=splits,
            size=size,
            out_ptr=out,
            out_stride_model=model_stride(out),
            out_stride=out.stride(1),
            squares_ptr=squares,
            BLOCK=BLOCK,
            num_warps=_WARPS,
            **dependent_launch(parts),
        )


def strides_of(parts: Tensor) -> tuple[int, int]:
    """Returns the elements of parts [M, S, size] between models, and between parts.

    Of a single model or part it is 0, which is a multiple of 16 bytes whatever the size.
    """
    return model_stride(parts), parts.stride(1) if parts.shape[1] > 1 else 0


def reduce_grad(sums: Tensor, reduced: ReducedGradient) -> None:
    """Writes ``reduced``; see :func:`..reduce_grad`."""
    add_up(sums, reduced.sums[:, 0], reduced.squares)
