"""A multi-layer perceptron on a CPU, in pieces of few rows that stay in the cache.

The function of :mod:`.reference` for one network in float32. The multiplications are the same, and
the time beside them is that of passes over memory. So a piece goes through all layers before the
next one, in buffers that are allocated once; biases are put where a product begins, activations and
derivatives take one pass each, in place, and products add up the gradients of weights by
themselves. Functions of tensors are TorchScript, see :mod:`..scripts`.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .activation import TABLE
from .activation_on_cpu import activate, activate_backward_
from .shape import MLPShape

_FLOATS = 2**18  # numbers in the activations of a layer of a piece for each thread, 1 MiB
_LEAST_ROWS = 256  # so that products stay efficient where layers are very wide
# Multiplications in one call of a script, about 0.1 s, after which an interrupt is answered.
_CALL = 4e9


def pieces_of(shape: MLPShape, rows: int) -> Iterator[slice]:
    """Yields the rows of each piece, at least one piece; the caller's threads share each."""
    floats = torch.get_num_threads() * _FLOATS
    yield from split(rows, max(_LEAST_ROWS, floats // max(shape.widths)))


def split(count: int, most: int) -> list[slice]:
    """Returns slices of ``count`` elements, as even as can be and of at most ``most``, or one."""
    parts = max(1, -(-count // most))
    return [slice(*pair) for pair in pairwise(count * part // parts for part in range(parts + 1))]


def steps_of_call(shape: MLPShape, rows: int) -> int:
    """Returns how many times rows may pass a network in one call, at least once."""
    return max(1, int(_CALL / (max(1, rows) * shape.num_parameters)))


class Form(NamedTuple):
    """The shape of a network, in types that TorchScript knows."""

    widths: list[int]
    activation: str
    slopes: int
    negative_slope: float
    bias: bool
    linear_input: bool
    # Then h tells the sign of z, if the slope is positive, and z need not be kept.
    piecewise_linear: bool


class Rooms(NamedTuple):
    """Memory for the activations of one piece.

    With ``keep`` each layer has its own, so that there can be a backward pass.
    """

    keep: bool
    z: list[Tensor]  # of each hidden layer, [B, width]
    h: list[Tensor]  # likewise, where z is needed afterwards
    y: Tensor  # [B, out]
    grad: list[Tensor]  # of the input of each layer, [B, width]; every other one shares memory
    scratch: list[Tensor]  # like z, all in the same memory, for the gradient of slopes


class Layers(NamedTuple):
    """Views of the parameters of one network, or of their gradients."""

    weights: list[Tensor]  # each [out, in]
    biases: list[Tensor]  # each [out]; none if the shape has none
    slopes: Tensor  # [slopes]; none but for PReLU


class Passed(NamedTuple):
    """What a forward pass leaves, in the memory of a piece."""

    y: Tensor  # [B, out]
    inputs: list[Tensor]  # of each layer, [B, width]
    z: list[Tensor]  # of each hidden layer, [B, width]; h itself where h tells the sign
    slopes: list[float]


def form_of(shape: MLPShape) -> Form:
    """Returns the form of networks of a shape."""
    return Form(
        list(shape.widths), shape.activation, shape.slopes, shape.negative_slope, shape.bias,
        shape.linear_input, TABLE[shape.activation].piecewise_linear,
    )  # fmt: skip


class Memory:
    """Memory for pieces of networks of one shape, which keeps its content until the next piece.

    Args:
        shape: shape of the networks.
        keep: True keeps what derivatives need; False keeps the latest layer alone.
    """

    def __init__(self, shape: MLPShape, *, keep: bool):
        *inputs, out = shape.widths
        hidden = list(enumerate(inputs[1:]))
        learned = shape.activation == "prelu"
        needs_z = learned or shape.negative_slope <= 0 or not form_of(shape).piecewise_linear
        self._keep = keep
        # Each room has a place in memory and a width.
        self._z = [(f"z {layer if keep else layer % 2}", width) for layer, width in hidden]
        self._h = [(f"h {layer}", width) for layer, width in hidden if keep and needs_z]
        self._y = [("y", out)]
        self._grad = [(f"grad {layer % 2}", width) for layer, width in enumerate(inputs) if keep]
        self._scratch = [("scratch", width) for _, width in hidden if keep and learned]
        self._rows = -1
        self._places: dict[str, Tensor] = {}
        self._rooms: dict[int, Rooms] = {}

    def rooms(self, rows: int) -> Rooms:
        """Returns rooms for a piece of so many rows."""
        if rows > self._rows:
            self._enlarge(rows)
        if rows not in self._rooms:
            z, h, y, grad, scratch = (
                [self._places[place][: rows * width].view(rows, width) for place, width in each]
                for each in (self._z, self._h, self._y, self._grad, self._scratch)
            )
            self._rooms[rows] = Rooms(self._keep, z, h, y[0], grad, scratch)
        return self._rooms[rows]

    def _enlarge(self, rows: int) -> None:
        widths: dict[str, int] = {}
        for place, width in (*self._z, *self._h, *self._y, *self._grad, *self._scratch):
            widths[place] = max(width, widths.get(place, 0))
        self._rows, self._rooms = rows, {}
        self._places = {place: torch.empty(rows * width) for place, width in widths.items()}


def layers_of(flat: Tensor, form: Form) -> Layers:
    """Returns views of the layers in a flat buffer [P], in the order of MLPShape.unpack."""
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    start = 0
    for layer in range(len(form.widths) - 1):
        width_in, width_out = form.widths[layer], form.widths[layer + 1]
        size = width_out * width_in
        weights.append(flat[start : start + size].view(width_out, width_in))
        start += size
        if form.bias:
            biases.append(flat[start : start + width_out])
            start += width_out
    slopes = form.slopes if form.activation == "prelu" else 0
    return Layers(weights, biases, flat[start : start + slopes])


def forward(x: Tensor, layers: Layers, form: Form, rooms: Rooms) -> Passed:
    """Runs a piece x [B, in] through the network."""
    slopes = _slopes_of_layers(layers, form)
    inputs = [x]
    kept: list[Tensor] = []
    h = x
    for layer in range(len(form.widths) - 2):
        z = _linear(h, layers, form, layer, rooms.z[layer])
        h = z
        if _is_activated(form, layer):
            in_place = not rooms.keep or (form.piecewise_linear and slopes[layer] > 0)
            out = z if in_place else rooms.h[layer]
            h = activate(z, slopes[layer], form.activation, out)
            z = h if in_place else z
        kept.append(z)
        inputs.append(h)
    y = _linear(h, layers, form, len(form.widths) - 2, rooms.y)
    return Passed(y, inputs, kept, slopes)


def backward(
    grad_y: Tensor, passed: Passed, layers: Layers, form: Form, rooms: Rooms, grad: Layers
) -> None:
    """Adds the gradients of sum(grad_y * y) to those of the layers."""
    grad_z = grad_y
    for layer in range(len(form.widths) - 2, -1, -1):
        _add_product(grad.weights[layer], grad_z, passed.inputs[layer])
        if form.bias:
            grad.biases[layer].add_(grad_z.sum(0))
        if layer > 0:
            grad_h = torch.mm(grad_z, layers.weights[layer], out=rooms.grad[layer])
            if form.activation == "prelu" and _is_activated(form, layer - 1):
                _add_slope_gradient(grad.slopes, grad_h, passed, form, layer - 1, rooms)
            grad_z = _before_activation_(grad_h, passed, form, layer - 1)


def input_gradient(
    grad_y: Tensor, passed: Passed, layers: Layers, form: Form, rooms: Rooms
) -> Tensor:
    """Returns the gradient [B, in] of sum(grad_y * y) with respect to x, in memory of the piece."""
    grad_z = grad_y
    for layer in range(len(form.widths) - 2, 0, -1):
        grad_h = torch.mm(grad_z, layers.weights[layer], out=rooms.grad[layer])
        grad_z = _before_activation_(grad_h, passed, form, layer - 1)
    return torch.mm(grad_z, layers.weights[0], out=rooms.grad[0])


def _is_activated(form: Form, layer: int) -> bool:
    """Returns True if an activation follows a hidden layer."""
    return layer > 0 or not form.linear_input


def _slope_index(form: Form, layer: int, slopes: int) -> int:
    """Returns which of the slopes is that of a hidden layer."""
    return (layer - (1 if form.linear_input else 0)) % slopes


def _slopes_of_layers(layers: Layers, form: Form) -> list[float]:
    """Returns the slope for z < 0 of each hidden layer."""
    slopes: list[float] = layers.slopes.tolist()
    if len(slopes) == 0:
        slopes = [form.negative_slope]
    hidden = len(form.widths) - 2
    return [slopes[_slope_index(form, layer, len(slopes))] for layer in range(hidden)]


def _linear(h: Tensor, layers: Layers, form: Form, layer: int, out: Tensor) -> Tensor:
    """Returns h W^T + b in ``out``."""
    weight = layers.weights[layer].t()
    if form.bias:
        return torch.addmm(layers.biases[layer], h, weight, out=out)
    return torch.mm(h, weight, out=out)


def _before_activation_(grad_h: Tensor, passed: Passed, form: Form, layer: int) -> Tensor:
    """Turns the gradient of a hidden layer's h into that of its z in place and returns it."""
    if not _is_activated(form, layer):
        return grad_h
    z, h, slope = passed.z[layer], passed.inputs[layer + 1], passed.slopes[layer]
    return activate_backward_(grad_h, z, h, slope, form.activation)


def _add_slope_gradient(
    total: Tensor, grad_h: Tensor, passed: Passed, form: Form, layer: int, rooms: Rooms
) -> None:
    """Adds the sum of grad_h * min(z, 0) of a hidden layer to the gradient of its slope."""
    z = passed.z[layer]
    negative = torch.clamp_max(z, 0, out=rooms.scratch[layer])
    gradient = torch.dot(grad_h.view(-1), negative.view(-1))
    if z is passed.inputs[layer + 1]:  # where z < 0, h is the slope times z
        gradient = gradient / passed.slopes[layer]
    total[_slope_index(form, layer, len(total))].add_(gradient)


def _add_product(total: Tensor, grad_z: Tensor, h: Tensor) -> None:
    """Adds grad_z^T h to the gradient of a weight, ``total`` [out, in]."""
    # A product with a result of so few columns takes long, its transpose does not.
    if h.shape[1] < min(16, grad_z.shape[1]):
        total.add_(torch.mm(h.t(), grad_z).t())
    else:
        total.addmm_(grad_z.t(), h)
