"""Multi-layer perceptron in plain PyTorch: forward, backward and input gradient.

    h_0 = x,   z_l = h_l W_l^T + b_l,   h_{l+1} = act(z_l),   y = the last z

(with a linear input h_1 = z_0).

:func:`mlp` is what autograd differentiates. :func:`forward` and :func:`backward` are the same
function with its derivative written out, which spares a training step autograd's bookkeeping.
Everything takes M networks at once: x [M, B, in], weights [M, out, in].
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .shape import MLPParameters, MLPShape


def mlp(x: Tensor, parameters: MLPParameters, shape: MLPShape) -> Tensor:
    """y = MLP(x), differentiable any number of times.

    Args:
        x: [M, B, in].
        parameters: of M networks.
        shape: their shape.

    Returns:
        [M, B, out].
    """
    h = x  # nothing else is kept, so that a chain's activations stay in cache
    for layer in range(shape.hidden_layers):
        h = _activate(_linear(h, parameters, layer), parameters, shape, layer)  # [M, B, width]
    return _linear(h, parameters, shape.hidden_layers)


def forward(
    x: Tensor, parameters: MLPParameters, shape: MLPShape
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """y, with the layers' inputs h_l and the hidden pre-activations z_l."""
    inputs, preactivations = [x], []
    for layer in range(shape.hidden_layers):
        z = _linear(inputs[-1], parameters, layer)  # [M, B, width]
        preactivations.append(z)
        inputs.append(_activate(z, parameters, shape, layer))
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
        inputs, preactivations: what :func:`forward` returned.
        parameters, shape: of the networks.
        grad: where the gradients go, same shapes as ``parameters``; overwritten.
    """
    if grad.slope is not None:
        grad.slope.zero_()
    grad_z = grad_y
    for layer in range(shape.hidden_layers, -1, -1):
        torch.bmm(grad_z.mT, inputs[layer], out=grad.weights[layer])
        if grad.biases is not None:
            torch.sum(grad_z, dim=1, out=grad.biases[layer])
        if layer > 0:
            grad_h = torch.bmm(grad_z, parameters.weights[layer])  # [M, B, width]
            grad_z, grad_slope = _activate_backward(
                grad_h, preactivations[layer - 1], parameters, shape, layer - 1
            )
            if grad.slope is not None and grad_slope is not None:
                grad.slope[:, _slope_index(shape, layer - 1)] += grad_slope


def input_gradient(
    grad_y: Tensor, preactivations: list[Tensor], parameters: MLPParameters, shape: MLPShape
) -> Tensor:
    """Gradient of sum(grad_y * y) with respect to x alone, [M, B, in]; no weight gradients."""
    grad_z = grad_y
    for layer in range(shape.hidden_layers, 0, -1):
        grad_h = torch.bmm(grad_z, parameters.weights[layer])
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
    """The slope for z < 0 after hidden layer ``layer``: of PReLU [M, 1, 1], else a number."""
    if parameters.slope is not None:
        return parameters.slope[:, _slope_index(shape, layer), None, None]
    return shape.negative_slope


def _slope_index(shape: MLPShape, layer: int) -> int:
    return (layer - shape.linear_input) % shape.slopes


def _activate(z: Tensor, parameters: MLPParameters, shape: MLPShape, layer: int) -> Tensor:
    """What follows hidden layer ``layer``."""
    if shape.linear_input and layer == 0:
        return z
    slope = _slope(parameters, shape, layer)
    if isinstance(slope, Tensor):
        return (
            F.prelu(z, slope.flatten())
            if slope.shape[0] == 1
            else z.relu() + slope * z.clamp(max=0)
        )
    match shape.activation:
        case "leaky_relu":
            return F.leaky_relu(z, slope)
        case "none":
            return z
    return getattr(F, shape.activation)(z)


def _activate_backward(
    grad_h: Tensor, z: Tensor, parameters: MLPParameters, shape: MLPShape, layer: int
) -> tuple[Tensor, Tensor | None]:
    """The gradient with respect to z, and for PReLU with respect to the slope, [M].

    Overwrites ``grad_h``.
    """
    if shape.linear_input and layer == 0:
        return grad_h, None
    slope = _slope(parameters, shape, layer)
    match shape.activation:
        case "prelu" | "leaky_relu":
            # On a CPU torch.where with a mask takes some twenty times as long.
            positive = torch.ops.aten.threshold_backward(grad_h, z, 0)  # grad_h where z > 0
            negative = grad_h.sub_(positive)
            grad_slope = torch.einsum("mbh,mbh->m", negative, z)
            grad_z = positive.add_(negative.mul_(slope))
            return grad_z, grad_slope if shape.activation == "prelu" else None
        case "none":
            return grad_h, None
        case "relu":
            return torch.ops.aten.threshold_backward(grad_h, z, 0), None
        case "tanh":
            return torch.ops.aten.tanh_backward(grad_h, z.tanh()), None
    return getattr(torch.ops.aten, f"{shape.activation}_backward")(grad_h, z), None
