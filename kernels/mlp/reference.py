"""A multi-layer perceptron in plain PyTorch: forward, backward and input gradient.

    h_0 = x,   z_l = h_l W_l^T + b_l,   h_{l+1} = act(z_l),   y = the last z

(with a linear input h_1 = z_0; residual layers add their input, h_{l+1} = h_l + act(z_l)).

:func:`mlp` is differentiated by autograd. :func:`forward` and :func:`backward` are the same
function with its derivative written out, which spares a training step autograd's bookkeeping.
All functions take M networks at once: x [M, B, in], weights [M, out, in].
"""

import torch
from torch import Tensor

from .activation import TABLE
from .shape import MLPParameters, MLPShape


def mlp(x: Tensor, parameters: MLPParameters, shape: MLPShape) -> Tensor:
    """Returns y = MLP(x), differentiable any number of times.

    Args:
        x: [M, B, in].
        parameters: parameters of M networks.
        shape: shape of these networks.

    Returns:
        [M, B, out].
    """
    h = x  # only the last layer is kept, so that a chain's activations stay in cache
    for layer in range(shape.hidden_layers):
        z = _linear(h, parameters, layer)  # [M, B, width]
        h = _next(h, z, parameters, shape, layer)
    return _linear(h, parameters, shape.hidden_layers)


def forward(
    x: Tensor, parameters: MLPParameters, shape: MLPShape
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Returns y, the layers' inputs h_l, and the hidden pre-activations z_l."""
    inputs, preactivations = [x], []
    for layer in range(shape.hidden_layers):
        z = _linear(inputs[-1], parameters, layer)  # [M, B, width]
        preactivations.append(z)
        inputs.append(_next(inputs[-1], z, parameters, shape, layer))
    return _linear(inputs[-1], parameters, shape.hidden_layers), inputs, preactivations


def backward(
    grad_y: Tensor,
    inputs: list[Tensor],
    preactivations: list[Tensor],
    parameters: MLPParameters,
    shape: MLPShape,
    grad: MLPParameters,
) -> None:
    """Writes the gradients of sum(grad_y * y) with respect to all parameters into ``grad``.

    Args:
        grad_y: [M, B, out].
        inputs, preactivations: the lists that :func:`forward` returned.
        parameters, shape: as in :func:`mlp`.
        grad: receives the gradients, same shapes as ``parameters``.
    """
    if grad.slope is not None:
        grad.slope.zero_()
    grad_z, grad_h = grad_y, None
    for layer in range(shape.hidden_layers, -1, -1):
        torch.bmm(grad_z.mT, inputs[layer], out=grad.weights[layer])
        if grad.biases is not None:
            torch.sum(grad_z, dim=1, out=grad.biases[layer])
        if layer > 0:
            grad_h = _grad_h(grad_z, grad_h, parameters, shape, layer)  # [M, B, width]
            grad_z, grad_slope = _activate_backward(
                grad_h, preactivations[layer - 1], parameters, shape, layer - 1
            )
            if grad.slope is not None and grad_slope is not None:
                grad.slope[:, _slope_index(shape, layer - 1)] += grad_slope


def input_gradient(
    grad_y: Tensor, preactivations: list[Tensor], parameters: MLPParameters, shape: MLPShape
) -> Tensor:
    """Returns the gradient of sum(grad_y * y) with respect to x alone, [M, B, in]."""
    grad_z, grad_h = grad_y, None
    for layer in range(shape.hidden_layers, 0, -1):
        grad_h = _grad_h(grad_z, grad_h, parameters, shape, layer)
        grad_z, _ = _activate_backward(
            grad_h, preactivations[layer - 1], parameters, shape, layer - 1
        )
    return torch.bmm(grad_z, parameters.weights[0])


def _linear(h: Tensor, parameters: MLPParameters, layer: int) -> Tensor:
    weight = parameters.weights[layer].mT
    if parameters.biases is None:
        return torch.bmm(h, weight)
    return torch.baddbmm(parameters.biases[layer].unsqueeze(1), h, weight)


def _slope(parameters: MLPParameters, shape: MLPShape, layer: int) -> Tensor | float:
    """Returns the slope for z < 0 after hidden layer ``layer``, [M, 1, 1] for PReLU or a number."""
    if parameters.slope is not None:
        return parameters.slope[:, _slope_index(shape, layer), None, None]
    return shape.negative_slope


def _slope_index(shape: MLPShape, layer: int) -> int:
    return (layer - shape.linear_input) % shape.slopes


def _next(h: Tensor, z: Tensor, parameters: MLPParameters, shape: MLPShape, layer: int) -> Tensor:
    """Returns the output of hidden layer ``layer``, given its input h and its z."""
    output = _activate(z, parameters, shape, layer)
    return h + output if shape.adds_input(layer) else output


def _grad_h(
    grad_z: Tensor, grad_next: Tensor | None, parameters: MLPParameters, shape: MLPShape, layer: int
) -> Tensor:
    """Returns the gradient of the input of ``layer``, given those of its z and of its output."""
    weight = parameters.weights[layer]
    if grad_next is None or not shape.adds_input(layer):
        return torch.bmm(grad_z, weight)
    return torch.baddbmm(grad_next, grad_z, weight)


def _activate(z: Tensor, parameters: MLPParameters, shape: MLPShape, layer: int) -> Tensor:
    """Returns act(z) of hidden layer ``layer``, z itself after a linear input."""
    if shape.linear_input and layer == 0:
        return z
    return TABLE[shape.activation].function(z, _slope(parameters, shape, layer))


def _activate_backward(
    grad_h: Tensor, z: Tensor, parameters: MLPParameters, shape: MLPShape, layer: int
) -> tuple[Tensor, Tensor | None]:
    """Returns the gradient with respect to z, and for PReLU that with respect to the slope, [M].

    May overwrite ``grad_h``, unless layers are residual, where it is needed once more.
    """
    if shape.linear_input and layer == 0:
        return grad_h, None
    if shape.adds_input(layer):
        grad_h = grad_h.clone()
    return TABLE[shape.activation].backward(grad_h, z, _slope(parameters, shape, layer))
