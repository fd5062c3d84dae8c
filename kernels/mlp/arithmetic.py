"""Arithmetic of a tile in Triton: operands of matrix products, the product, scales, softmax."""

import triton
import triton.language as tl

# Gradients of the order of 1 are multiplied by this, as by :func:`power_of_two_scale`.
UNIT_SCALE = tl.constexpr(16.0)


@triton.constexpr_function
def divisor(width, limit):
    """Returns the largest power of two that divides ``width``, at most ``limit``.

    ``limit`` is a power of two itself.
    """
    return min(width & -width, limit)


@triton.constexpr_function
def power_of_two(number):
    """Returns the smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


@triton.jit
def operand(x, DTYPE: tl.constexpr, NET: tl.constexpr):
    """Rounds x in fp32 to nearest, as matrix products read it; see :func:`.to_operand`."""
    if NET.precision == "tf32":
        # tf32 has the upper 10 of the 23 bits of a mantissa; tensor cores would cut the others off.
        bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    else:
        return x.to(DTYPE)


@triton.jit
def linear(
    a_ptrs, w_ptrs, acc, WIDTH: tl.constexpr, W_STRIDE: tl.constexpr, NET: tl.constexpr,
    CONFIG: tl.constexpr,
):  # fmt: skip
    """Returns A W + ``acc`` of a tile, fp32.

    Both operands go from memory to the tensor cores as they are. Whatever the loop computed between
    load and product would pass through registers, which costs more than the product, and which
    triton 3.6 overwrites on Hopper while a product still reads them (its issue 9433).

    Args:
        a_ptrs: [rows, k], the first columns of A.
        w_ptrs: [k, out], the first rows of W.
        acc: [rows, out], fp32.
        WIDTH: columns of A, a multiple of k.
        W_STRIDE: elements between the rows of W.
    """
    REDUCE: tl.constexpr = w_ptrs.shape[0]
    for k in tl.range(0, WIDTH, REDUCE, num_stages=CONFIG.stages):
        a = tl.load(a_ptrs + k)
        w = tl.load(w_ptrs + k * W_STRIDE)
        acc = tl.dot(a, w, acc, input_precision=NET.input_precision)
    return acc


@triton.jit
def power_of_two_scale(abs_max):
    """Returns s = 2^k that brings ``abs_max`` to [16, 32), and 1 / s, both normal fp32 numbers.

    fp16 then has ten bits for a gradient a hundred thousand times smaller than the largest, and
    room for it to grow a thousandfold on its way to the first layer.
    """
    exponent = (abs_max.to(tl.int32, bitcast=True) >> 23) & 0xFF
    biased = tl.minimum(tl.maximum(258 - exponent, 1), 253)
    scale = (biased << 23).to(tl.float32, bitcast=True)
    inverse = ((254 - biased) << 23).to(tl.float32, bitcast=True)
    return scale, inverse


@triton.jit
def gradient_scale(abs_max_ptr, model, NET: tl.constexpr):
    """Returns the factor that a model's gradients carry on their way back, and its inverse."""
    if NET.precision == "fp16" and abs_max_ptr is not None:
        scale, inverse = power_of_two_scale(tl.load(abs_max_ptr + model))
    else:
        scale, inverse = 1.0, 1.0
    return scale, inverse


@triton.jit
def largest_magnitude(pointer, stride_row, stride_column, size, block, WIDTH: tl.constexpr):
    """Returns the largest magnitude among ``size`` numbers in rows of WIDTH, fp32, or NaN.

    Args:
        block: int32, the numbers from 0 on, as many as are read at once.
    """
    BLOCK: tl.constexpr = block.shape[0]
    most = block * 0  # in its layout, which a caller in Gluon has chosen
    for start in range(0, size, 4 * BLOCK):
        for i in tl.static_range(4):  # loads go out side by side
            element = start + i * BLOCK + block
            row, column = (element // WIDTH).to(tl.int64), (element % WIDTH).to(tl.int64)
            x = tl.load(
                pointer + row * stride_row + column * stride_column, mask=element < size, other=0.0
            )
            # The bits of magnitudes are in the order of the magnitudes, those of NaN come last.
            bits = x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
            most = tl.maximum(most, bits)
    return tl.max(most, axis=0).to(tl.float32, bitcast=True)


@triton.jit
def softmax(y, column, WIDTH: tl.constexpr):
    """Returns probabilities and their logarithms of the first WIDTH columns.

    The probabilities in the other columns are 0.
    """
    y = tl.where((column < WIDTH)[None, :], y, -1e30)
    y -= tl.max(y, axis=1)[:, None]
    exponential = tl.exp(y)
    total = tl.sum(exponential, axis=1)[:, None]
    return exponential / total, y - tl.log(total)


@triton.jit
def sum_of(pointer, length, BLOCK: tl.constexpr):
    """Returns the sum of ``length`` numbers from ``pointer`` on, fp32."""
    acc = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        element = start + tl.arange(0, BLOCK)
        acc += tl.load(pointer + element, mask=element < length, other=0.0)
    return tl.sum(acc)
