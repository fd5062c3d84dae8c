"""Multi-layer perceptrons of any width and depth, M of them at once."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._dispatch import onlooker, run_by_compiler, use_triton
from .._kinds import checked
from .._validate import (
    PRECISIONS,
    check_backend,
    check_float,
    check_last_dim,
    check_like,
    check_precision,
)
from . import eager, operator, reference
from .layout import gap_of
from .shape import ACTIVATIONS, MLPParameters, MLPShape

__all__ = ["ACTIVATIONS", "PRECISIONS", "MLPParameters", "MLPShape", "mlp"]

_HALF = {torch.float16: "fp16", torch.bfloat16: "bf16"}
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PLAIN_TENSORS = (Tensor, nn.Parameter)


@checked
def mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    slope: Tensor | None = None,
    *,
    activation: str = "prelu",
    negative_slope: float = 0.01,
    linear_input: bool = False,
    residual: bool = False,
    precision: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Returns y = W_n act(... act(W_0 x + b_0) ...) + b_n, differentiable in every tensor.

    Args:
        x: [..., in] for one network, or [M, B, in] for M networks.
        weights: one [out, in] per layer, or [M, out, in].
        biases: one [out] per layer, or [M, out]; None for no biases.
        slope: PReLU slopes, one shared or one per activation: [1] or [activations], or with the
            model axis [M, 1] or [M, activations].
        activation: one of :data:`ACTIVATIONS`, after every layer but the last.
        negative_slope: the fixed slope of ``leaky_relu``.
        linear_input: True for no activation after the first layer either, which then only embeds
            the input; for ``prelu``, ``leaky_relu``, ``relu`` and ``none``.
        residual: True if every hidden layer after the first adds its input, h + act(W h + b); all
            hidden layers must have one width. The kernels keep h in the precision of the products.
        precision: precision of the kernels' matrix products, one of :data:`PRECISIONS`. None takes
            the precision that PyTorch would use: the autocast dtype, or the dtype of a
            half-precision x, or else, by ``torch.get_float32_matmul_precision()``, ``tf32`` or
            ``tf32x3``. The latter is nearly float32, with three products on tensor cores for each;
            ``fp32`` is IEEE arithmetic without tensor cores. The reference always has the precision
            of PyTorch.
        backend: ``"torch"`` forces the plain PyTorch reference, ``"triton"`` the kernels; None
            chooses. The reference always runs for calls that the kernels do not cover, for
            subclasses of ``Tensor``, ``torch.func`` transforms, forward-mode differentiation and
            tracing. With neither ``backend`` nor ``precision`` given, it also runs where PyTorch
            multiplies float32 faster: at full precision, and in tf32 unless under
            ``torch.no_grad()``.

    Returns:
        [..., out] or [M, B, out], in the dtype of x, or under autocast in autocast's dtype.

    Raises:
        TypeError: x is no floating-point tensor, or another tensor has another dtype (under
            autocast x may differ).
        ValueError: shapes or devices do not fit, or the activation, precision or backend is
            unknown, or ``"triton"`` is asked for bf16 in Triton's interpreter.
    """
    check_backend(backend)
    if precision is not None:
        check_precision(precision)
    slopes = () if slope is None else (slope,)
    arguments = read_arguments(
        x, weights, biases, slopes, activation, negative_slope, linear_input, residual
    )
    gap = onlooker() or _subclass_gap(arguments) or gap_of_arguments(arguments)
    if backend is None and precision is None:
        gap = gap or faster_in_pytorch(arguments.y_dtype)
    if use_triton(backend, "x", x, gap, precision_of(arguments, precision)):
        return run_kernels(arguments, precision)
    return _run_reference(x, arguments.parameters, arguments.shape)


class Arguments(NamedTuple):
    """Arguments of :func:`mlp` that fit together."""

    x: Tensor
    layers: tuple[Tensor, ...]  # weights, then biases, then slopes, in one tensor or several
    shape: MLPShape
    dtype: torch.dtype  # of the layers
    autocast_dtype: torch.dtype | None  # what autocast casts to, if it is on where x lies

    @property
    def y_dtype(self) -> torch.dtype:
        """Dtype of y."""
        return self.autocast_dtype or self.x.dtype

    @property
    def parameters(self) -> MLPParameters:
        """The layers, with all slopes in one tensor."""
        return operator.parameters_of(self.layers, self.shape)


def read_arguments(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    slopes: Sequence[Tensor],
    activation: str,
    negative_slope: float,
    linear_input: bool,
    residual: bool = False,
) -> Arguments:
    """Checks the arguments of :func:`mlp`; raises TypeError or ValueError as it does."""
    check_float("x", x)
    if len(weights) == 0:
        raise ValueError("weights must hold at least one layer, got none")
    weights, biases = tuple(weights), None if biases is None else tuple(biases)
    slopes = tuple(slopes) if activation == "prelu" and len(weights) > 1 else ()
    shape = _shape_of(weights, biases, slopes, activation, negative_slope, linear_input, residual)
    autocast_dtype = autocast_dtype_of(x)
    dtype = x.dtype if autocast_dtype is None else weights[0].dtype  # autocast casts x
    _check_x(x, weights[0], shape)
    for name, tensors in (("weights", weights), ("biases", biases or ()), ("slope", slopes)):
        for layer, tensor in enumerate(tensors):
            check_like(name if name == "slope" else f"{name}[{layer}]", tensor, x, dtype)
    return Arguments(x, (*weights, *(biases or ()), *slopes), shape, dtype, autocast_dtype)


def gap_of_arguments(arguments: Arguments) -> str | None:
    """Returns why the operator does not cover a call, None if it does."""
    x, layers, shape, dtype, autocast_dtype = arguments
    gap = gap_of_dtype(dtype) or gap_of(shape, dtype)
    if gap is not None:
        return gap
    if layers[0].dim() == 3 and layers[0].shape[0] == 0:
        return "no models"
    if autocast_dtype is not None:
        if dtype not in (torch.float32, autocast_dtype):
            return f"parameters of {dtype} where autocast casts to {autocast_dtype}"
        gap = gap_of_dtype(x.dtype)
    for tensor in (x, *layers):
        if tensor.layout is not torch.strided:
            return "sparse tensors"
    return gap


def faster_in_pytorch(dtype: torch.dtype) -> str | None:
    """Returns why PyTorch multiplies faster than the kernels in a dtype, None if it does not.

    PyTorch was faster on an H200 in float32 at full precision, and in tf32 if gradients may follow,
    with many rows or in a CUDA graph, that is, where Python does not decide the time. Tensor cores
    read both operands of tf32 along the sum alone, and the kernels transpose the operands of a
    backward pass in registers.
    """
    if dtype != torch.float32:
        return None
    if _float32_precision() != "tf32":
        return "float32 at full precision"
    return "gradients in tf32" if torch.is_grad_enabled() else None


def gap_of_dtype(dtype: torch.dtype) -> str | None:
    """Returns why the operator does not cover tensors of ``dtype``, None if it does."""
    return None if dtype in _DTYPES else str(dtype).removeprefix("torch.")


def precision_of(arguments: Arguments, precision: str | None) -> str:
    """Returns the precision of the kernels' products: the one given, or the one PyTorch has."""
    if precision is not None:
        return precision
    return _HALF.get(arguments.autocast_dtype or arguments.dtype) or _float32_precision()


def run_kernels(arguments: Arguments, precision: str | None) -> Tensor:
    """Returns y of :func:`mlp`, computed by the kernels, which must cover the call."""
    x, layers, shape, dtype, autocast_dtype = arguments
    precision = precision_of(arguments, precision)
    if dtype != torch.float32 and x.dtype != dtype:
        x = x.to(dtype)
    if not eager.is_watched(x, *layers):
        return eager.Call(shape, precision, dtype, autocast_dtype or dtype)(x, layers)
    y = operator.mlp(x.to(dtype), arguments.parameters, shape, precision)
    return y.to(autocast_dtype or dtype)


def _run_reference(x: Tensor, parameters: MLPParameters, shape: MLPShape) -> Tensor:
    rows, parameters = operator.with_model_axis(x, parameters)
    return reference.mlp(rows, parameters, shape).reshape(*x.shape[:-1], shape.widths[-1])


def _subclass_gap(arguments: Arguments) -> str | None:
    """Names a subclass of Tensor among the arguments, which may redefine PyTorch's operations."""
    for tensor in (arguments.x, *arguments.layers):
        if type(tensor) not in PLAIN_TENSORS:
            return f"tensors of class {type(tensor).__name__}"
    return None


def autocast_dtype_of(x: Tensor) -> torch.dtype | None:
    """Returns the dtype that autocast casts to, None if it is off on the device of x."""
    kind = x.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return None
    return torch.get_autocast_dtype(kind)


@run_by_compiler  # compiled code is guarded by this setting anyway
def _float32_precision() -> str:
    # Unlike torch.get_float32_matmul_precision(), this attribute can be read after either of
    # PyTorch's interfaces has set the precision.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def _check_x(x: Tensor, first: Tensor, shape: MLPShape) -> None:
    check_last_dim("x", x, shape.widths[0])
    if first.dim() == 3 and (x.dim() != 3 or x.shape[0] != first.shape[0]):
        raise ValueError(
            f"x must be [{first.shape[0]}, B, {shape.widths[0]}] for weights with a "
            f"model axis, got {list(x.shape)}"
        )


def _shape_of(
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor, ...] | None,
    slopes: tuple[Tensor, ...],
    activation: str,
    negative_slope: float,
    linear_input: bool,
    residual: bool,
) -> MLPShape:
    if activation == "prelu" and not slopes and len(weights) > 1:
        raise ValueError("slope must be given for activation 'prelu', got None")
    if weights[0].dim() not in (2, 3):
        raise ValueError(
            f"weights[0] must be [out, in] or [M, out, in], got {list(weights[0].shape)}"
        )
    if biases is not None and len(biases) != len(weights):
        raise ValueError(f"biases must be {len(weights)}, one per layer, got {len(biases)}")
    axis = weights[0].shape[:-2]  # [] or [M]
    for slope in slopes:
        check_float("slope", slope)
        if slope.dim() == 0 or slope.shape[:-1] != axis:
            raise ValueError(f"slope must be {[*axis, 'slopes']}, got {list(slope.shape)}")
    widths = [weights[0].shape[-1]]
    for layer, weight in enumerate(weights):
        if (
            weight.dim() not in (2, 3)
            or weight.shape[:-2] != axis
            or weight.shape[-1] != widths[-1]
        ):
            raise ValueError(
                f"weights[{layer}] must be {[*axis, 'out', widths[-1]]} to follow the layer before "
                f"it, got {list(weight.shape)}"
            )
        widths.append(weight.shape[-2])
        if biases is not None and biases[layer].shape != weight.shape[:-1]:
            raise ValueError(
                f"biases[{layer}] must be {list(weight.shape[:-1])}, "
                f"got {list(biases[layer].shape)}"
            )
    shape = MLPShape(
        widths=tuple(widths),
        activation=activation,
        slopes=sum(slope.shape[-1] for slope in slopes) or 1,
        negative_slope=negative_slope,
        bias=biases is not None,
        linear_input=linear_input,
        residual=residual,
    )
    return shape if shape.hidden_layers else replace(shape, activation="none")
