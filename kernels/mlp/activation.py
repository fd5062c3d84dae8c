"""The activations of a perceptron in one table, which everything else reads.

To add an activation, give it an entry in :data:`TABLE`, and a branch in each of the two functions
of :mod:`.activation_kernel`. The Triton code stands apart because this module is imported where
there is no triton. Tests run over the table; a kernel without the branch does not compile.
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
        function_out: returns act(z) in its last argument, which may be z, or in new memory. The
            slope is as for ``function``, or a number for a single network.
        backward_: turns the gradient of h into that of z in place, given z, h and the slope. If
            ``reads_z`` is False and the slope positive, h will do in place of z.
        module: the class of PyTorch's module for it; None if it has no module.
        difference: returns why a given module of that class computes another function, say with an
            option; None if it does not.
        piecewise_linear: True if act(z) is z for z > 0 and a multiple of z for z < 0. Only such an
            activation allows a linear input, and only such a one computes no exponentials.
        reads_z: True if the derivative needs z; False if h tells it, for slopes of at least 0.
    """

    function: Callable[[Tensor, Any], Tensor]
    backward: Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor | None]]
    function_out: Callable[[Tensor, Any, Tensor], Tensor]
    backward_: Callable[[Tensor, Tensor, Tensor, Any], object]
    module: type[nn.Module] | None
    difference: Callable[[Any], str | None] = _same_function
    piecewise_linear: bool = False
    reads_z: bool = True

    def h_tells(self, slope: Tensor | float) -> bool:
        """Returns True if h tells the sign of z, so that z need not be kept."""
        return self.piecewise_linear and not isinstance(slope, Tensor) and slope > 0


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


def _leaky_relu_out(z: Tensor, slope: Tensor | float, out: Tensor) -> Tensor:
    if isinstance(slope, Tensor):
        return _prelu(z, slope)
    return _ATEN.leaky_relu.out(z, slope, out=out)


def _leaky_relu_backward_(grad_h: Tensor, z: Tensor, _: Tensor, slope: Tensor | float) -> None:
    if isinstance(slope, Tensor):
        torch.lerp(_ATEN.threshold_backward(grad_h, z, 0), grad_h, slope, out=grad_h)
    else:
        _ATEN.leaky_relu_backward.grad_input(grad_h, z, slope, False, grad_input=grad_h)


TABLE: dict[str, Activation] = {
    "prelu": Activation(
        function=_prelu,
        backward=_prelu_backward,
        function_out=_leaky_relu_out,
        backward_=_leaky_relu_backward_,
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
        function_out=_leaky_relu_out,
        backward_=_leaky_relu_backward_,
        module=nn.LeakyReLU,
        piecewise_linear=True,
        reads_z=False,
    ),
    "relu": Activation(
        function=lambda z, _: F.relu(z),
        backward=lambda grad_h, z, _: (_ATEN.threshold_backward(grad_h, z, 0), None),
        function_out=lambda z, _, out: torch.clamp_min(z, 0, out=out),
        backward_=lambda grad_h, z, *_: _ATEN.threshold_backward.grad_input(
            grad_h, z, 0, grad_input=grad_h
        ),
        module=nn.ReLU,
        piecewise_linear=True,
        reads_z=False,
    ),
    "silu": Activation(
        function=lambda z, _: F.silu(z),
        backward=lambda grad_h, z, _: (_ATEN.silu_backward(grad_h, z), None),
        function_out=lambda z, _, out: _ATEN.silu.out(z, out=out),
        backward_=lambda grad_h, z, *_: _ATEN.silu_backward.grad_input(
            grad_h, z, grad_input=grad_h
        ),
        module=nn.SiLU,
    ),
    "gelu": Activation(
        function=lambda z, _: F.gelu(z),
        backward=lambda grad_h, z, _: (_ATEN.gelu_backward(grad_h, z), None),
        function_out=lambda z, _, out: _ATEN.gelu.out(z, out=out),
        backward_=lambda grad_h, z, *_: _ATEN.gelu_backward.grad_input(
            grad_h, z, grad_input=grad_h
        ),
        module=nn.GELU,
        difference=lambda gelu: "is an approximation" if gelu.approximate != "none" else None,
    ),
    "tanh": Activation(
        function=lambda z, _: F.tanh(z),
        backward=lambda grad_h, z, _: (_ATEN.tanh_backward(grad_h, z.tanh()), None),
        function_out=lambda z, _, out: torch.tanh(z, out=out),
        backward_=lambda grad_h, _, h, __: _ATEN.tanh_backward.grad_input(
            grad_h, h, grad_input=grad_h
        ),
        module=nn.Tanh,
    ),
    "none": Activation(
        function=lambda z, _: z,
        backward=lambda grad_h, *_: (grad_h, None),
        function_out=lambda z, *_: z,
        backward_=lambda *_: None,
        module=None,
        piecewise_linear=True,
        reads_z=False,
    ),
}
