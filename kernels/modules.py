"""A multi-layer perceptron as an ``nn.Module``, interchangeable with plain PyTorch ones."""

from collections.abc import Iterable
from itertools import pairwise

from torch import Tensor, nn

from ._perceptrons import ACTIVATIONS, has_hooks, read_layers, run_layers
from ._validate import check_precision
from .mlp import MLPShape


class FusedMLP(nn.Module):
    """Linear layers with one activation between them, run by :func:`~flashpoint.kernels.mlp`.

    What the kernels do not cover its layers do one by one, as they are; so they do elsewhere than
    on a GPU, and wherever else :func:`~flashpoint.kernels.accelerate` says.

    The ``state_dict`` is that of the plain layout with one shared activation: ``act.weight``,
    ``model.0.weight``, ``model.0.bias``, ``model.1.weight`` (the slope again), and so on.

    Args:
        input_dim: width of x.
        output_dim: width of y.
        hidden_layers: widths of the hidden layers, none or more.
        activation: ``prelu`` (one slope shared by all layers), ``leaky_relu``, ``relu``,
            ``silu``, ``gelu`` or ``tanh``.
        bias: whether the layers have biases.
        linear_input: no activation after the first layer either, which then only embeds the input;
            for ``prelu``, ``leaky_relu`` and ``relu``, and at least one hidden layer.
        precision: of the matrix products, as in :func:`~flashpoint.kernels.mlp`; None for what
            PyTorch itself would use, where float32 runs layer by layer if that is faster.

    Raises:
        ValueError: unknown activation or precision, or an activation that a linear input does not
            go with.
    """

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
    ):
        super().__init__()
        modules = {name: module for module, name in ACTIVATIONS.items()}
        if activation not in modules:
            raise ValueError(f"activation must be one of {', '.join(modules)}, got {activation!r}")
        self.act = modules[activation]()
        widths = (input_dim, *hidden_layers, output_dim)
        MLPShape(widths, activation, bias=bias, linear_input=linear_input)
        layers = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out, bias=bias), self.act]
        if linear_input:
            del layers[1]
        self.model = nn.Sequential(*layers[:-1])
        self._set_precision(precision)
        self._plain: tuple[nn.Module] = (self.model,)

    @classmethod
    def from_module(cls, module: nn.Module, *, precision: str | None = None) -> "FusedMLP":
        """A fused module made of the layers of another; the Parameters are shared, not copied.

        Args:
            module: an ``nn.Sequential`` of Linear layers with one kind of activation between
                them, or a module that does nothing but pass its input through such a
                ``module.model``.
            precision: as for the class.

        Raises:
            ValueError: the module is no perceptron that can be fused, and why; or an unknown
                precision.
        """
        layers = module if isinstance(module, nn.Sequential) else _inner_layers(module)
        network = read_layers(layers)
        if isinstance(network, str):
            raise ValueError(f"module must be a multi-layer perceptron, but {network}")
        fused = cls.__new__(cls)
        nn.Module.__init__(fused)
        activations = [layer for layer in layers if not isinstance(layer, nn.Linear)]
        if activations and all(each is activations[0] for each in activations):
            fused.act = activations[0]
        fused.model = layers
        fused._set_precision(precision)
        fused._plain = (module,)
        fused.training = module.training
        return fused

    def _set_precision(self, precision: str | None) -> None:
        if precision is not None:
            check_precision(precision)  # here, because only a GPU's forward pass reads it
        self.precision = precision

    def to_module(self) -> nn.Module:
        """The plain module with the same Parameters.

        What :meth:`from_module` was given, or else the ``nn.Sequential`` of the layers.
        """
        return self._plain[0]  # in a tuple, so that it is not a child of this module

    def forward(self, x: Tensor) -> Tensor:
        """y [..., output_dim] of x [..., input_dim]."""
        if has_hooks(self.model):
            return self.model(x)
        return run_layers(self.model, x, self.precision)


def _inner_layers(module: nn.Module) -> nn.Sequential:
    """``module.model``, if that holds all that the module has."""
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
