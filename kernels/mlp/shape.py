"""The shape of a multi-layer perceptron and how its parameters lie in one flat buffer."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .._kinds import check_fields
from .activation import TABLE

ACTIVATIONS = tuple(TABLE)


class MLPParameters(NamedTuple):
    """Parameters of M networks of one shape, or of one network without the axis M."""

    weights: tuple[Tensor, ...]  # each [M, out, in]
    biases: tuple[Tensor, ...] | None  # each [M, out]
    slope: Tensor | None  # [M, slopes], PReLU only


@dataclass(frozen=True)
class MLPShape:
    """Widths and activation of a multi-layer perceptron.

    Attributes:
        widths: (input, hidden ..., output), each at least 1.
        activation: one of :data:`ACTIVATIONS`, after every layer but the last.
        slopes: number of PReLU slopes: 1, shared by all layers, or one per activation.
        negative_slope: the fixed slope of ``leaky_relu``.
        bias: True if the layers have biases.
        linear_input: True for no activation after the first layer either, which then only embeds
            the input. It needs a hidden layer, and ``prelu``, ``leaky_relu``, ``relu`` or ``none``.
        residual: True if every hidden layer after the first adds its input, h + act(W h + b). All
            hidden layers then have one width.

    Raises:
        TypeError: a field is of another kind.
        ValueError: a field is out of range.
    """

    widths: tuple[int, ...]
    activation: str = "prelu"
    slopes: int = 1
    negative_slope: float = 0.01
    bias: bool = True
    linear_input: bool = False
    residual: bool = False

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "widths", tuple(self.widths))  # of a list, say
        if len(self.widths) < 2 or any(width < 1 for width in self.widths):
            raise ValueError(
                f"widths must be (input, hidden ..., output) of at least 1, got {self.widths}"
            )
        if not abs(self.negative_slope) < math.inf:
            raise ValueError(f"negative_slope must be finite, got {self.negative_slope}")
        if self.activation not in TABLE:
            raise ValueError(
                f"activation must be one of {', '.join(TABLE)}, got {self.activation!r}"
            )
        if self.linear_input and not TABLE[self.activation].piecewise_linear:
            allowed = [name for name, entry in TABLE.items() if entry.piecewise_linear]
            raise ValueError(
                f"linear_input must be False unless activation is one of "
                f"{', '.join(allowed)}, got activation {self.activation!r}"
            )
        if self.linear_input and not self.hidden_layers:
            raise ValueError("linear_input must be False without hidden layers, got True")
        if self.residual and len(set(self.widths[1:-1])) > 1:
            raise ValueError(
                "residual must be False unless all hidden layers have one width, "
                f"got {self.widths[1:-1]}"
            )
        if self.slopes not in (1, max(1, self.activated_layers)):
            raise ValueError(
                f"slopes must be 1 or the number of activations ({self.activated_layers}), "
                f"got {self.slopes}"
            )

    @property
    def hidden_layers(self) -> int:
        """Number of hidden layers."""
        return len(self.widths) - 2

    @property
    def activated_layers(self) -> int:
        """Number of hidden layers that an activation follows: the last ones."""
        return self.hidden_layers - self.linear_input

    def adds_input(self, layer: int) -> bool:
        """Returns True if a layer is a residual one, which adds its input to its activation."""
        return self.residual and 0 < layer < self.hidden_layers

    @cached_property
    def num_parameters(self) -> int:
        """Length P of the flat buffer of one network."""
        # Widths may be symbolic, and some versions of PyTorch multiply those by no bool.
        layers = sum(o * (i + int(self.bias)) for i, o in pairwise(self.widths))
        return layers + self.slopes * int(self.activation == "prelu")

    @cached_property
    def _sizes(self) -> list[int]:
        """Lengths of the parts of the flat buffer."""
        sizes = []
        for width_in, width_out in pairwise(self.widths):
            sizes += [width_out * width_in, *([width_out] if self.bias else [])]
        return [*sizes, *([self.slopes] if self.activation == "prelu" else [])]

    def unpack(self, flat: Tensor) -> MLPParameters:
        """Returns views of a flat buffer: weight and bias of each layer in order, then the slopes.

        Args:
            flat: [M, P].
        """
        parts = iter(flat.split_with_sizes(self._sizes, dim=1))
        weights, biases = [], []
        for width_in, width_out in pairwise(self.widths):
            weights.append(next(parts).unflatten(1, (width_out, width_in)))
            if self.bias:
                biases.append(next(parts))
        slope = next(parts, None)
        return MLPParameters(tuple(weights), tuple(biases) if self.bias else None, slope)

    def pack(self, parameters: MLPParameters) -> Tensor:
        """Returns the flat buffer [M, P] of parameters with an axis M; inverts :meth:`unpack`."""
        weights, biases, slope = parameters
        parts = []
        for layer, weight in enumerate(weights):
            parts.append(weight.flatten(1))
            if biases is not None:
                parts.append(biases[layer])
        if slope is not None:
            parts.append(slope)
        return torch.cat(parts, dim=1)


def check_not_residual(name: str, shape: MLPShape) -> None:
    """Raises ValueError if a shape has residual layers, for operations that have none."""
    if shape.residual:
        raise ValueError(f"{name} must have no residual layers, which only mlp computes")
