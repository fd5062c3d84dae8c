"""Device functions of the fused multi-layer perceptron: activations, operands, scaling."""

import triton
import triton.language as tl

# What a gradient of the order of 1 is multiplied by, in the spirit of :func:`power_of_two_scale`.
UNIT_SCALE = tl.constexpr(16.0)


@triton.constexpr_function
def divisor(width, limit):
    """The largest power of two that divides ``width``, at most ``limit`` (a power of two)."""
    return min(width & -width, limit)


@triton.constexpr_function
def columns_at_once(activation, limit):
    """How many columns of a hidden layer, or of its gradient, are computed at once.

    At most ``limit``: exponentials need registers of their own, and with more columns they spill.
    """
    return min(limit, 128) if activation in ("silu", "gelu", "tanh") else limit


@triton.constexpr_function
def has_slope(shape):
    """Whether the activation is z * slope for z < 0; a linear input is a slope of 1."""
    return shape.activation in ("prelu", "leaky_relu") or (
        shape.activation == "relu" and shape.linear_input
    )


@triton.jit
def activate(z, slope, NET: tl.constexpr):
    """act(z) of z in fp32; NaN stays NaN, so that an overflow reaches the output."""
    ACTIVATION: tl.constexpr = NET.shape.activation
    if has_slope(NET.shape):
        z = tl.where(z > 0, z, z * slope)
    elif ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "silu":
        z = z * tl.sigmoid(z)
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "tanh":
        z = 2 * tl.sigmoid(2 * z) - 1
    return z


@triton.jit
def activate_backward(grad_h, z, slope, NET: tl.constexpr):
    """The gradient with respect to z of what has gradient ``grad_h`` with respect to act(z).

    Where ``NET.keeps_z`` is false, act(z) may take the place of z.
    """
    ACTIVATION: tl.constexpr = NET.shape.activation
    if has_slope(NET.shape):
        grad_h = tl.where(z > 0, grad_h, grad_h * slope)
    elif ACTIVATION == "relu":
        grad_h = tl.where(z > 0, grad_h, 0.0)
    elif ACTIVATION == "silu":
        s = tl.sigmoid(z)
        grad_h = grad_h * s * (1 + z * (1 - s))
    elif ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        grad_h = grad_h * (0.5 * (1 + tl.erf(z * 0.7071067811865476)) + z * density)
    elif ACTIVATION == "tanh":
        h = 2 * tl.sigmoid(2 * z) - 1
        grad_h = grad_h * (1 - h * h)
    return grad_h


@triton.jit
def softmax(y, column, WIDTH: tl.constexpr):
    """Probabilities and their logarithms of the first WIDTH columns, 0 in the others."""
    y = tl.where((column < WIDTH)[None, :], y, -1e30)
    y -= tl.max(y, axis=1)[:, None]
    exponential = tl.exp(y)
    total = tl.sum(exponential, axis=1)[:, None]
    return exponential / total, y - tl.log(total)


@triton.jit
def slope_of(slope_ptr, hidden_layer, NET: tl.constexpr):
    """The slope for z < 0 after a hidden layer."""
    SLOPES: tl.constexpr = NET.shape.slopes
    LINEAR: tl.constexpr = NET.shape.linear_input
    if NET.shape.activation == "prelu":  # the first of them is that of the first activation
        slope = tl.load(slope_ptr + (hidden_layer + (SLOPES - LINEAR)) % SLOPES)
    elif NET.shape.activation == "relu":
        slope = tl.full((), 0.0, tl.float32)
    else:
        slope = tl.full((), NET.shape.negative_slope, tl.float32)
    if LINEAR:
        slope = tl.where(hidden_layer == 0, 1.0, slope)
    return slope


@triton.jit
def operand(x, DTYPE: tl.constexpr, NET: tl.constexpr):
    """x in fp32 as the matrix products read it, rounded to nearest; see :func:`.to_operand`."""
    if NET.precision == "tf32":
        # tf32 has the upper 10 of the 23 bits of a mantissa; tensor cores would cut the others off.
        bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    else:
        return x.to(DTYPE)


@triton.jit
def power_of_two_scale(abs_max):
    """s = 2^k that brings ``abs_max`` to [16, 32), and 1 / s; both are normal fp32 numbers.

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
    """What a model's gradients are multiplied by on their way through it, and the inverse."""
    if NET.precision == "fp16" and abs_max_ptr is not None:
        scale, inverse = power_of_two_scale(tl.load(abs_max_ptr + model))
    else:
        scale, inverse = 1.0, 1.0
    return scale, inverse


@triton.jit
def linear(
    a_ptrs, w_ptrs, WIDTH: tl.constexpr, W_STRIDE: tl.constexpr, NET: tl.constexpr,
    CONFIG: tl.constexpr,
):  # fmt: skip
    """A W of a tile, fp32.

    Both operands go from memory to the tensor cores as they are. What the loop computed between
    load and product would pass through registers, which costs more than the product, and which
    triton 3.6 overwrites on Hopper while a product still reads them (its issue 9433).

    Args:
        a_ptrs: [rows, k], the first columns of A.
        w_ptrs: [k, out], the first rows of W.
        WIDTH: columns of A, a multiple of k.
        W_STRIDE: between the rows of W.
    """
    REDUCE: tl.constexpr = w_ptrs.shape[0]
    acc = tl.zeros((a_ptrs.shape[0], w_ptrs.shape[1]), tl.float32)
    for k in tl.range(0, WIDTH, REDUCE, num_stages=CONFIG.stages):
        a = tl.load(a_ptrs + k)
        w = tl.load(w_ptrs + k * W_STRIDE)
        acc = tl.dot(a, w, acc, input_precision=NET.input_precision)
    return acc
