"""The networks: a plain MLP with one shared PReLU, and its flat form that the kernels take."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..kernels import MLPParameters, MLPShape, Network
from .errors import UserError


class MLP(nn.Module):
    """Linear layers with one PReLU, its slope shared by all of them, in between.

    The ``state_dict`` has the keys ``act.weight``, ``model.0.weight``, ``model.0.bias``,
    ``model.1.weight`` (the shared slope again), ``model.2.weight`` and so on.

    Args:
        input_dim: width of the input, the point and its timestep feature together.
        output_dim: width of the output.
        hidden_layers: widths of the hidden layers, possibly none.

    Raises:
        ValueError: a width is less than 1.
    """

    def __init__(self, input_dim: int, output_dim: int, hidden_layers: Sequence[int] = ()):
        super().__init__()
        self.shape = MLPShape((input_dim, *hidden_layers, output_dim))
        self.act = nn.PReLU()
        layers: list[nn.Module] = []
        for width_in, width_out in zip(self.shape.widths[:-1], self.shape.widths[1:], strict=True):
            layers += [nn.Linear(width_in, width_out), self.act]
        self.model = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """y [..., output_dim] of x [..., input_dim]."""
        return self.model(x)

    def network(self) -> Network:
        """A copy of the parameters in the flat form [1, P] that ``flashpoint.kernels`` takes."""
        linears = [layer for layer in self.model if isinstance(layer, nn.Linear)]
        parameters = MLPParameters(
            tuple(layer.weight.detach()[None] for layer in linears),
            tuple(layer.bias.detach()[None] for layer in linears),
            self.act.weight.detach()[None],
        )
        return Network(self.shape.pack(parameters), self.shape)

    @torch.no_grad()
    def load_flat(self, flat: Tensor) -> "MLP":
        """Copies flat parameters [P] into this module; returns the module."""
        if flat.shape != (self.shape.num_parameters,):
            raise UserError(
                f"flat must be [{self.shape.num_parameters}] for widths {self.shape.widths}, "
                f"got {list(flat.shape)}"
            )
        weights, biases, slope = self.shape.unpack(flat[None])
        linears = [layer for layer in self.model if isinstance(layer, nn.Linear)]
        for layer, weight, bias in zip(linears, weights, biases, strict=True):
            layer.weight.copy_(weight[0])
            layer.bias.copy_(bias[0])
        self.act.weight.copy_(slope[0])
        return self


def seeded_mlp(widths: Sequence[int], seed: int) -> MLP:
    """An MLP of widths (input, hidden ..., output), initialised as PyTorch does, from a seed.

    The global random state stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLP(widths[0], widths[-1], widths[1:-1])
