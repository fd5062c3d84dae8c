"""A multi-layer perceptron on a CPU, in pieces of few rows that stay in the cache.

The function of :mod:`.reference` in float32. The multiplications are the same, and the time beside
them is that of passes over memory. So a piece goes through all layers before the next one, in
buffers that are allocated once; biases are put where a product begins, activations and derivatives
take one pass each, in place, and products add up the gradients of weights by themselves.

Here the axis M of :mod:`.reference` is missing where there is one network, because PyTorch takes
less time to start a product of matrices than one of batches.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .activation import TABLE
from .shape import MLPParameters, MLPShape

_FLOATS = 2**18  # numbers in the activations of a layer of a piece for each thread, 1 MiB
_LEAST_ROWS = 256  # so that products stay efficient where layers are very wide
# A product with a result of so few columns takes long, its transpose does not.
_FEW_COLUMNS = 16


def pieces_of(shape: MLPShape, models: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Yields models and rows of each piece, at least one; the caller's threads share each."""
    width, floats = max(shape.widths), torch.get_num_threads() * _FLOATS
    for some_models in split(models, max(1, floats // (width * max(1, rows)))):
        for some_rows in split(rows, max(_LEAST_ROWS, floats // width)):
            yield some_models, some_rows


def split(count: int, most: int) -> list[slice]:
    """Returns slices of ``count`` elements, as even as can be and of at most ``most``, or one."""
    parts = max(1, -(-count // most))
    return [slice(*pair) for pair in pairwise(count * part // parts for part in range(parts + 1))]


def some(tensor: Tensor, models: slice, rows: slice = slice(None)) -> Tensor:
    """Returns some rows [..., B, d] of some models; of a single model without the axis M."""
    chosen = tensor[models, rows]
    return chosen[0] if len(chosen) == 1 else chosen


def layers_of(flat: Tensor, shape: MLPShape, models: slice) -> MLPParameters:
    """Returns views of the layers of some models in a flat buffer [M, P]; one has no axis M."""
    weights, biases, slope = shape.unpack(flat)
    return MLPParameters(
        tuple(some(weight, models) for weight in weights),
        None if biases is None else tuple(some(bias, models) for bias in biases),
        None if slope is None else some(slope, models),
    )


class Piece:
    """Memory for the activations of one piece, and the passes through the network.

    Args:
        shape: shape of the networks.
        keep: True keeps what derivatives need; False keeps the latest layer alone.
    """

    def __init__(self, shape: MLPShape, *, keep: bool):
        self.shape, self.keep = shape, keep
        self._activation = TABLE[shape.activation]
        self._memory: dict[str, Tensor] = {}  # by place, flat
        self._views: dict[tuple[str, tuple[int, ...]], Tensor] = {}  # by place and size
        # Of the latest forward pass: inputs of the layers, and hidden z where h does not tell it.
        self._inputs: list[Tensor] = []
        self._z: list[Tensor | None] = []

    def forward(self, x: Tensor, layers: MLPParameters) -> Tensor:
        """Returns y [..., B, out] of x [..., B, in], in memory of this piece."""
        self._inputs, self._z, h = [x], [], x
        slopes = self._slopes(layers)
        for layer in range(self.shape.hidden_layers):
            place = layer if self.keep else layer % 2
            z = h = self._linear(h, layers, layer, f"z {place}")  # [..., B, width]
            if self._is_activated(layer):
                slope = slopes[self._slope_index(layer)]
                in_place = not self.keep or self._activation.h_tells(slope)
                out = z if in_place else self._room(tuple(z.shape), f"h {place}")
                h = self._activation.function_out(z, slope, out)
            self._z.append(None if h is z else z)
            self._inputs.append(h)
        return self._linear(h, layers, self.shape.hidden_layers, "y")

    def backward(self, grad_y: Tensor, layers: MLPParameters, grad: MLPParameters) -> None:
        """Adds the gradients of sum(grad_y * y) to ``grad``, after :meth:`forward`."""
        grad_z, slopes = grad_y, self._slopes(layers)
        for layer in range(self.shape.hidden_layers, -1, -1):
            _add_product(grad.weights[layer], grad_z, self._inputs[layer])
            if grad.biases is not None:
                grad.biases[layer].add_(grad_z.sum(dim=-2))
            if layer > 0:
                grad_z = self._layer_before(grad_z, layers, layer, slopes, grad.slope)

    def input_gradient(self, grad_y: Tensor, layers: MLPParameters) -> Tensor:
        """Returns the gradient of sum(grad_y * y) with respect to x, after :meth:`forward`.

        It is [..., B, in], in memory of this piece.
        """
        grad_z, slopes = grad_y, self._slopes(layers)
        for layer in range(self.shape.hidden_layers, 0, -1):
            grad_z = self._layer_before(grad_z, layers, layer, slopes)
        return self._product(grad_z, layers.weights[0], "grad 0")

    def _layer_before(
        self,
        grad_z: Tensor,
        layers: MLPParameters,
        layer: int,
        slopes: list,
        grad_slope: Tensor | None = None,
    ) -> Tensor:
        """Returns the gradient of z of the layer before, and adds that of its slope if wanted."""
        grad_h = self._product(grad_z, layers.weights[layer], f"grad {layer % 2}")
        if not self._is_activated(layer - 1):
            return grad_h
        index = self._slope_index(layer - 1)
        z, h, slope = self._z[layer - 1], self._inputs[layer], slopes[index]
        if grad_slope is not None:
            scratch = self._room(tuple(h.shape), "scratch")
            grad_slope[..., index] += _slope_gradient(grad_h, z, h, slope, scratch)
        self._activation.backward_(grad_h, h if z is None else z, h, slope)
        return grad_h

    def _linear(self, h: Tensor, layers: MLPParameters, layer: int, place: str) -> Tensor:
        weight = layers.weights[layer].mT  # [..., in, out]
        out = self._room((*h.shape[:-1], weight.shape[-1]), place)
        one = weight.dim() == 2
        if layers.biases is None:
            return torch.mm(h, weight, out=out) if one else torch.bmm(h, weight, out=out)
        bias = layers.biases[layer]
        if one:
            return torch.addmm(bias, h, weight, out=out)
        return torch.baddbmm(bias.unsqueeze(1), h, weight, out=out)

    def _product(self, grad_z: Tensor, weight: Tensor, place: str) -> Tensor:
        """Returns grad_z W [..., B, in]."""
        out = self._room((*grad_z.shape[:-1], weight.shape[-1]), place)
        product = torch.mm if weight.dim() == 2 else torch.bmm
        return product(grad_z, weight, out=out)

    def _room(self, size: tuple[int, ...], place: str) -> Tensor:
        """Returns memory of this piece, which keeps its content until the place is used again."""
        view = self._views.get((place, size))
        if view is None:
            count = math.prod(size)
            if place not in self._memory or len(self._memory[place]) < count:
                self._memory[place] = torch.empty(count)
                self._views = {key: kept for key, kept in self._views.items() if key[0] != place}
            view = self._views[place, size] = self._memory[place][:count].view(size)
        return view

    def _slopes(self, layers: MLPParameters) -> list:
        """Returns the slopes for z < 0: numbers, or [M, 1, 1] each for PReLU of M networks."""
        if layers.slope is None:
            return [self.shape.negative_slope]
        if layers.slope.dim() == 1:
            return layers.slope.tolist()
        return list(layers.slope[:, :, None, None].unbind(1))

    def _is_activated(self, layer: int) -> bool:
        return not (self.shape.linear_input and layer == 0)

    def _slope_index(self, layer: int) -> int:
        return (layer - self.shape.linear_input) % self.shape.slopes


def _slope_gradient(
    grad_h: Tensor, z: Tensor | None, h: Tensor, slope: Any, scratch: Tensor
) -> Tensor:
    """Returns the sum of grad_h * min(z, 0) of each network, [M] or []."""
    if z is None:  # where z < 0, h is the slope times z
        return _slope_gradient(grad_h, h, h, slope, scratch) / slope
    negative = torch.clamp_max(z, 0, out=scratch)
    if z.dim() == 2:
        return torch.dot(grad_h.view(-1), negative.view(-1))
    return negative.mul_(grad_h).sum(dim=(1, 2))


def _add_product(total: Tensor, grad_z: Tensor, h: Tensor) -> None:
    """Adds grad_z^T h to the gradient of a weight, ``total`` [..., out, in]."""
    if h.shape[-1] < min(_FEW_COLUMNS, grad_z.shape[-1]):
        total.add_(torch.matmul(h.mT, grad_z).mT)
    elif total.dim() == 2:
        total.addmm_(grad_z.mT, h)
    else:
        total.baddbmm_(grad_z.mT, h)
