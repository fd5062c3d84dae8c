"""The activations of a perceptron in one table, which everything else reads.

To add an activation, give it an entry in :data:`TABLE`, and a branch in each of the two functions
of :mod:`.activation_kernel`, for Triton, and of :mod:`.activation_on_cpu`, for TorchScript. The
Triton code stands apart because this module is imported where there is no triton. Tests run over
the table and fail where a branch is missing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ATEN = torch.ops.aten


def _same_function(module: nn.Module) -> None:  # noqa: ARG001
    return None


@dataclass(frozen=True)
class Activation:
    """One activation in plain PyTorch.

    Attributes:
        function: maps z and the slope to h = act(z). The slope multiplies z for z < 0: [M, 1, 1]
            for ``prelu``, a number for ``leaky_relu``; other activations ignore it.
        backward: maps the gradient of h, z and the slope to the gradient of z, and for ``prelu``
            that of the slope, [M], else None. May overwrite the gradient of h.
        module: the class of PyTorch's module for it; None if it has no module.
        difference: returns why a given module of that class computes another function, say with an
            option; None if it does not.
        piecewise_linear: True if act(z) is z for z > 0 and a multiple of z for z < 0. Only such an
            activation allows a linear input, and only such a one computes no exponentials.
        reads_z: True if the derivative needs z; False if h tells it, for slopes of at least 0.
    """

    function: Callable[[Tensor, Any], Tensor]
    backward: Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor | None]]
    module: type[nn.Module] | None
    difference: Callable[[Any], str | None] = _same_function
    piecewise_linear: bool = False
    reads_z: bool = True


def _prelu(z: Tensor, slope: Tensor) -> Tensor:
    if slope.shape[0] == 1:
        return F.prelu(z, slope.flatten())
    # One pass over z: a slope for each entry of the second axis is what F.prelu takes.
    return F.prelu(z.transpose(0, 1), slope.flatten()).transpose(0, 1)


def _sides(grad_h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Splits grad_h into its part for z > 0 and the rest, each zero elsewhere."""
    # On a CPU torch.where with a mask takes some twenty times as long.
    positive = _ATEN.threshold_backward(grad_h, z, 0)
    return positive, grad_h.sub_(positive)


def _prelu_backward(grad_h: Tensor, z: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    positive, negative = _sides(grad_h, z)
    grad_slope = torch.einsum("mbh,mbh->m", negative, z)
    return positive.add_(negative.mul_(slope)), grad_slope


def _leaky_relu_backward(grad_h: Tensor, z: Tensor, slope: float) -> tuple[Tensor, None]:
    positive, negative = _sides(grad_h, z)
    return positive.add_(negative.mul_(slope)), None


TABLE: dict[str, Activation] = {
    "prelu": Activation(
        function=_prelu,
        backward=_prelu_backward,
        module=nn.PReLU,
        difference=lambda prelu: (
            "has a slope for each column" if prelu.num_parameters != 1 else None
        ),
        piecewise_linear=True,
        reads_z=True,  # with a negative slope, which may be learned, h does not tell the sign of z
    ),
    "leaky_relu": Activation(
        function=F.leaky_relu,
        backward=_leaky_relu_backward,
        module=nn.LeakyReLU,
        piecewise_linear=True,
        reads_z=False,
    ),
    "relu": Activation(
        function=lambda z, _: F.relu(z),
        backward=lambda grad_h, z, _: (_ATEN.threshold_backward(grad_h, z, 0), None),
        module=nn.ReLU,
        piecewise_linear=True,
        reads_z=False,
    ),
    "silu": Activation(
        function=lambda z, _: F.silu(z),
        backward=lambda grad_h, z, _: (_ATEN.silu_backward(grad_h, z), None),
        module=nn.SiLU,
    ),
    "gelu": Activation(
        function=lambda z, _: F.gelu(z),
        backward=lambda grad_h, z, _: (_ATEN.gelu_backward(grad_h, z), None),
        module=nn.GELU,
        difference=lambda gelu: "is an approximation" if gelu.approximate != "none" else None,
    ),
    "tanh": Activation(
        function=lambda z, _: F.tanh(z),
        backward=lambda grad_h, z, _: (_ATEN.tanh_backward(grad_h, z.tanh()), None),
        module=nn.Tanh,
    ),
    "none": Activation(
        function=lambda z, _: z,
        backward=lambda grad_h, *_: (grad_h, None),
        module=None,
        piecewise_linear=True,
        reads_z=False,
    ),
}
