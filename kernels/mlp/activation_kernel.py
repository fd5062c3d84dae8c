"""The activations in Triton: a branch for each entry of :data:`.activation.TABLE`."""

import triton
import triton.language as tl


@triton.constexpr_function
def has_slope(shape):
    """Returns True if the activation is z * slope for z < 0; a linear input has a slope of 1."""
    return shape.activation in ("prelu", "leaky_relu") or (
        shape.activation == "relu" and shape.linear_input
    )


@triton.jit
def activate(z, slope, NET: tl.constexpr):
    """Returns act(z) of z in fp32; NaN stays NaN, so that an overflow reaches the output."""
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
    else:
        tl.static_assert(ACTIVATION == "none", "activate() has no branch for it")
    return z


@triton.jit
def activate_backward(grad_h, z, slope, NET: tl.constexpr):
    """Returns the gradient with respect to z, given that with respect to h = act(z).

    Where ``NET.keeps_z`` is false, h may take the place of z.
    """
    ACTIVATION: tl.constexpr = NET.shape.activation
    if has_slope(NET.shape):
        grad_h = tl.where(z > 0, grad_h, grad_h * slope)
    elif ACTIVATION == "relu":
        grad_h = tl.where(z <= 0, 0.0, grad_h)
    elif ACTIVATION == "silu":
        s = tl.sigmoid(z)
        grad_h = grad_h * s * (1 + z * (1 - s))
    elif ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        grad_h = grad_h * (0.5 * (1 + tl.erf(z * 0.7071067811865476)) + z * density)
    elif ACTIVATION == "tanh":
        h = 2 * tl.sigmoid(2 * z) - 1
        grad_h = grad_h * (1 - h * h)
    else:
        tl.static_assert(ACTIVATION == "none", "activate_backward() has no branch for it")
    return grad_h


@triton.jit
def slope_of(slope_ptr, hidden_layer, NET: tl.constexpr):
    """Returns the slope for z < 0 after a hidden layer."""
    SLOPES: tl.constexpr = NET.shape.slopes
    LINEAR: tl.constexpr = NET.shape.linear_input
    if NET.shape.activation == "prelu":  # its first slope belongs to the first activation
        slope = tl.load(slope_ptr + (hidden_layer + (SLOPES - LINEAR)) % SLOPES)
    elif NET.shape.activation == "relu":
        slope = tl.cast(0.0, tl.float32)
    else:
        slope = tl.cast(NET.shape.negative_slope, tl.float32)
    if LINEAR:
        slope = tl.where(hidden_layer == 0, 1.0, slope)
    return slope
