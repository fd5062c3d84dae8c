"""Multi-layer perceptrons of any width and depth, M of them at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._validate import check_backend, check_float, check_last_dim, check_like
from . import reference
from .shape import ACTIVATIONS, MLPParameters, MLPShape

__all__ = ["ACTIVATIONS", "MLPParameters", "MLPShape", "mlp"]


def mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    slope: Tensor | None = None,
    *,
    activation: str = "prelu",
    negative_slope: float = 0.01,
    precision: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """y = W_n act(... act(W_0 x + b_0) ...) + b_n, differentiable in every tensor.

    Args:
        x: [..., in] for one network, or [M, B, in] for M networks.
        weights: one [out, in] per layer, or [M, out, in].
        biases: one [out] per layer, or [M, out]; None for no biases.
        slope: PReLU slopes, one shared or one per hidden layer: [1] or [layers], or with the
            model axis [M, 1] or [M, layers].
        activation: one of :data:`ACTIVATIONS`, after every layer but the last.
        negative_slope: the fixed slope of ``leaky_relu``.
        precision: of the kernels' matrix products, ``fp16``, ``bf16``, ``tf32`` or ``fp32``; None for what
            PyTorch would use: the autocast dtype, that of a half-precision x, else what
            ``torch.get_float32_matmul_precision()`` says. The reference always does what PyTorch
            would.
        backend: ``"torch"`` forces the plain PyTorch reference; None chooses.

    Returns:
        [..., out] or [M, B, out], the dtype of x, or under autocast its dtype.

    Raises:
        TypeError: x is no floating-point tensor, or another tensor has another dtype (under
            autocast x may differ).
        ValueError: shapes or devices do not fit, or an unknown activation, precision or backend.
    """
    check_backend(backend)
    check_float("x", x)
    if not weights:
        raise ValueError("weights must hold at least one layer, got none")
    many = weights[0].dim() == 3
    parameters = _with_model_axis(weights, biases, slope, activation, many)
    shape = _shape_of(parameters, activation, negative_slope)
    check_last_dim("x", x, shape.widths[0])
    _check_tensors(x, parameters)
    if many:
        if x.dim() != 3 or x.shape[0] != weights[0].shape[0]:
            raise ValueError(
                f"x must be [{weights[0].shape[0]}, B, {shape.widths[0]}] for weights with a "
                f"model axis, got {list(x.shape)}"
            )
        return reference.mlp(x, parameters, shape)
    y = reference.mlp(x.reshape(1, -1, x.shape[-1]), parameters, shape)
    return y.reshape(*x.shape[:-1], shape.widths[-1])


def _autocasts(x: Tensor) -> bool:
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def _check_tensors(x: Tensor, parameters: MLPParameters) -> None:
    """All are on one device and of one dtype, but for x under autocast."""
    weights, biases, slope = parameters
    dtype = weights[0].dtype if _autocasts(x) else x.dtype
    for layer, weight in enumerate(weights):
        check_like(f"weights[{layer}]", weight, x, dtype)
        if biases is not None:
            check_like(f"biases[{layer}]", biases[layer], x, dtype)
    if slope is not None:
        check_like("slope", slope, x, dtype)


def _with_model_axis(weights, biases, slope, activation, many) -> MLPParameters:
    if activation == "prelu" and slope is None and len(weights) > 1:
        raise ValueError("slope must be given for activation 'prelu', got None")
    if activation != "prelu":
        slope = None
    if biases is not None and len(biases) != len(weights):
        raise ValueError(f"biases must be {len(weights)}, one per layer, got {len(biases)}")

    def lift(tensor):
        return tensor if many else tensor.unsqueeze(0)

    return MLPParameters(
        tuple(map(lift, weights)),
        None if biases is None else tuple(map(lift, biases)),
        None if slope is None else lift(slope),
    )


def _shape_of(parameters: MLPParameters, activation: str, negative_slope: float) -> MLPShape:
    weights, biases, slope = parameters
    widths = [weights[0].shape[2]]
    for layer, weight in enumerate(weights):
        if weight.dim() != 3 or weight.shape[2] != widths[-1]:
            raise ValueError(
                f"weights[{layer}] must be [out, {widths[-1]}] to follow the layer before it, "
                f"got {list(weight.shape[1:])}"
            )
        widths.append(weight.shape[1])
        if biases is not None and biases[layer].shape != weight.shape[:2]:
            raise ValueError(
                f"biases[{layer}] must be [{weight.shape[1]}], got {list(biases[layer].shape[1:])}"
            )
    return MLPShape(
        widths=tuple(widths),
        activation=activation,
        slopes=1 if slope is None else slope.shape[1],
        negative_slope=negative_slope,
        bias=biases is not None,
    )
