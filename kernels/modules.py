"""A multi-layer perceptron as an ``nn.Module``, interchangeable with plain PyTorch ones."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ._kinds import checked
from ._perceptrons import run_layers
from ._reading import has_hooks, read_layers
from ._validate import check_device, check_floating_dtype, check_positive, check_precision
from .mlp import MLPShape
from .mlp.activation import TABLE

DeviceLike = torch.device | str | int | None

ACTIVATION_MODULES = {
    name: activation.module for name, activation in TABLE.items() if activation.module is not None
}


def perceptron_layers(
    widths: Sequence[int],
    activation: nn.Module,
    *,
    bias: bool = True,
    linear_input: bool = False,
    device: DeviceLike = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Returns the layers of a perceptron, with one activation shared by all of them.

    Args:
        widths: (input, hidden ..., output).
        activation: the module after every Linear layer but the last.
        bias: True if the Linear layers have biases.
        linear_input: True for no activation after the first layer either.
        device, dtype: of the weights and biases, as for ``nn.Linear``.
    """
    options: Any = {"bias": bias, "device": device, "dtype": dtype}
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out, **options), activation]
    if linear_input:
        del layers[1]
    return nn.Sequential(*layers[:-1])


class FusedMLP(nn.Module):
    """Linear layers with one activation between them, run by :func:`~flashpoint.kernels.mlp`.

    The layers run one by one, as they are, where the kernels do not cover a call, where there is no
    GPU, and in the other cases that :func:`~flashpoint.kernels.accelerate` lists.

    The ``state_dict`` is that of the plain layout with one shared activation: ``act.weight``,
    ``model.0.weight``, ``model.0.bias``, ``model.1.weight`` (the slope again), and so on.

    Args:
        input_dim: width of x.
        output_dim: width of y.
        hidden_layers: widths of the hidden layers, possibly none.
        activation: one of :data:`ACTIVATION_MODULES`, such as ``relu``, ``silu`` or ``prelu`` with
            one slope shared by all layers.
        bias: True if the layers have biases.
        linear_input: True for no activation after the first layer either, which then only embeds
            the input. It needs a hidden layer, and ``prelu``, ``leaky_relu`` or ``relu``.
        precision: precision of the matrix products, as in :func:`~flashpoint.kernels.mlp`; None for
            the precision that PyTorch itself would use. float32 then runs layer by layer where that
            is faster.
        device, dtype: of the parameters, as for ``nn.Linear``.

    Raises:
        TypeError: an argument is of another kind, such as a dtype that is no floating-point one.
        ValueError: there is no such device, a width is less than 1, the activation or precision is
            unknown, or a linear input is impossible with the activation or without hidden layers.
    """

    @checked
    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        hidden_layers: Iterable[int],
        *,
        activation: str = "prelu",
        bias: bool = True,
        linear_input: bool = False,
        precision: str | None = None,
        device: DeviceLike = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_floating_dtype(dtype)
        check_device(device)
        if activation not in ACTIVATION_MODULES:
            allowed = ", ".join(ACTIVATION_MODULES)
            raise ValueError(f"activation must be one of {allowed}, got {activation!r}")
        widths = (input_dim, *hidden_layers, output_dim)
        check_positive("input_dim", input_dim)
        check_positive("output_dim", output_dim)
        MLPShape(widths, activation, bias=bias, linear_input=linear_input)
        self.act = ACTIVATION_MODULES[activation]().to(device, dtype)
        self.model = perceptron_layers(
            widths, self.act, bias=bias, linear_input=linear_input, device=device, dtype=dtype
        )
        self._set_precision(precision)
        self._plain: tuple[nn.Module] = (self.model,)

    @classmethod
    @checked
    def from_module(cls, module: nn.Module, *, precision: str | None = None) -> "FusedMLP":
        """Returns a fused module made of another's layers, which shares its Parameters.

        Args:
            module: an ``nn.Sequential`` of Linear layers with one kind of activation between
                them, or of residual blocks x + act(linear(x)) in place of some, or a module that
                does nothing but pass its input through such a ``module.model``.
            precision: as for the class.

        Raises:
            ValueError: the module is no perceptron that can be fused, and why, or the precision is
                unknown.
        """
        layers = module if isinstance(module, nn.Sequential) else _inner_layers(module)
        network = read_layers(layers)
        if isinstance(network, str):
            raise ValueError(f"module must be a multi-layer perceptron, but {network}")
        fused = cls.__new__(cls)
        nn.Module.__init__(fused)
        activations = [layer for layer in layers if not isinstance(layer, nn.Linear)]
        shared = activations and type(activations[0]) in ACTIVATION_MODULES.values()
        if shared and all(each is activations[0] for each in activations):
            fused.act = activations[0]
        fused.model = layers
        fused._set_precision(precision)
        fused._plain = (module,)
        fused.training = module.training
        return fused

    def _set_precision(self, precision: str | None) -> None:
        if precision is not None:
            check_precision(precision)  # now: on a CPU no forward pass would find the mistake
        self.precision = precision

    def to_module(self) -> nn.Module:
        """Returns the plain module with the same Parameters.

        It is the module that :meth:`from_module` was given, or else the ``nn.Sequential`` of the
        layers.
        """
        return self._plain[0]  # in a tuple, so that it is not a child of this module

    def forward(self, x: Tensor) -> Tensor:
        """Returns y [..., output_dim] of x [..., input_dim]."""
        layers = self.model
        return layers(x) if has_hooks(layers) else run_layers(layers, x, self.precision)


def _inner_layers(module: nn.Module) -> nn.Sequential:
    """Returns ``module.model``; raises ValueError if the module has layers outside it."""
    layers = getattr(module, "model", None)
    if not isinstance(layers, nn.Sequential):
        raise ValueError(
            f"module must be an nn.Sequential or have one as .model, got {type(module).__name__}"
        )
    inside = {id(each) for each in (module, *layers.modules())}
    outside = [name for name, each in module.named_modules() if id(each) not in inside]
    if outside or module._parameters:
        raise ValueError(
            "module must have all its layers and parameters in .model, "
            f"got {', '.join((*outside, *module._parameters))} outside it"
        )
    return layers
