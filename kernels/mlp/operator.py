"""The perceptron as PyTorch operators, which autograd, `torch.compile` and CUDA graphs can use.

    flashpoint::mlp                  y, and the tensors that the backward pass needs
    flashpoint::mlp_backward         gradients with respect to x and to all parameters
    flashpoint::mlp_input_gradient   gradient with respect to x alone

Each has a fake implementation (shapes only) and its derivative registered under the autograd key.
The last two are differentiated through the reference, so that double backward works, at any order.
In forward mode (``torch.autograd.forward_ad``) the reference runs, whose steps carry tangents.

The derivatives are registered by hand, because at these sizes dispatch dominates the time of a
call: ``torch.library.register_autograd`` takes three times as long. Eager calls that nothing
watches do not come here, see :mod:`.eager`.

In this module x is [..., in] with weights [out, in], or [M, B, in] with weights [M, out, in]; all
tensors have one dtype and lie on one device. ``network`` stands for the arguments x, weights,
biases, slope, activation, negative_slope, linear_input, precision and residual. With a precision of
None the reference runs.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._dispatch import in_forward_mode
from ..overflow import observe
from . import launches, reference
from .config import OPERAND_DTYPES, saved_rows
from .layout import Saved
from .shape import MLPParameters, MLPShape

_NETWORK = (
    "Tensor x, Tensor[] weights, Tensor[] biases, Tensor? slope, "
    "str activation, float negative_slope, bool linear_input, str? precision, bool residual=False"
)
_BELOW_AUTOGRAD = torch._C._after_autograd_keyset

# "flashpoint", unless the kernels are loaded once more under another name, as from a hub.
_NAMESPACE = __name__.partition(".")[0]
_library = torch.library.Library(_NAMESPACE, "FRAGMENT")
for _schema in (
    f"mlp({_NETWORK}, *, bool save=False) -> (Tensor, Tensor[])",
    f"mlp_backward(Tensor grad_y, Tensor[] saved, bool needs_x, {_NETWORK}) -> (Tensor, Tensor)",
    f"mlp_input_gradient(Tensor grad_y, Tensor[] saved, {_NETWORK}) -> Tensor",
):
    _library.define(_schema, tags=torch.Tag.pt2_compliant_tag)
_operators = getattr(torch.ops, _NAMESPACE)
_mlp = _operators.mlp.default
_mlp_backward = _operators.mlp_backward.default
_mlp_input_gradient = _operators.mlp_input_gradient.default


def mlp(x: Tensor, parameters: MLPParameters, shape: MLPShape, precision: str | None) -> Tensor:
    """Returns y [..., out] in the dtype of x."""
    return _mlp(*network_of(x, parameters, shape, precision))[0]


def network_of(
    x: Tensor, parameters: MLPParameters, shape: MLPShape, precision: str | None
) -> tuple:
    """Returns the arguments that stand for a network."""
    weights, biases, slope = parameters
    return (
        x, weights, biases or (), slope,
        shape.activation, shape.negative_slope, shape.linear_input, precision, shape.residual,
    )  # fmt: skip


def parameters_of(layers: Sequence[Tensor], shape: MLPShape) -> MLPParameters:
    """Returns weights, then biases, then slopes in one tensor or several, as parameters."""
    count = len(shape.widths) - 1
    stop = 2 * count if shape.bias else count
    slopes = tuple(layers[stop:])
    slope = torch.cat(slopes, dim=-1) if len(slopes) > 1 else (*slopes, None)[0]
    biases = tuple(layers[count:stop]) if shape.bias else None
    return MLPParameters(tuple(layers[:count]), biases, slope)


def with_model_axis(x: Tensor, parameters: MLPParameters) -> tuple[Tensor, MLPParameters]:
    """Returns x as [M, B, in] and the parameters with a leading M, which is 1 if there was none."""
    weights, biases, slope = parameters
    if weights[0].dim() == 3:
        return x, parameters
    return x.reshape(1, -1, x.shape[-1]), MLPParameters(
        tuple(weight.unsqueeze(0) for weight in weights),
        None if biases is None else tuple(bias.unsqueeze(0) for bias in biases),
        None if slope is None else slope.unsqueeze(0),
    )


class _Call(NamedTuple):
    """A call with its model axis."""

    x: Tensor  # [M, B, in]
    parameters: MLPParameters
    shape: MLPShape
    precision: str | None

    @property
    def layers(self) -> tuple[Tensor, ...]:
        """Weights, then biases, then slopes, as the kernels read them."""
        weights, biases, slope = self.parameters
        return *weights, *(biases or ()), *(() if slope is None else (slope,))

    def rows_of(self, grad_y: Tensor) -> Tensor:
        """Returns grad_y as [M, B, out]."""
        return grad_y.reshape(*self.x.shape[:-1], self.shape.widths[-1])


def _call(
    x, weights, biases, slope, activation, negative_slope, linear_input, precision, residual=False
) -> _Call:
    shape = MLPShape(
        widths=(x.shape[-1], *(weight.shape[-2] for weight in weights)),
        activation=activation,
        slopes=1 if slope is None else slope.shape[-1],
        negative_slope=negative_slope,
        bias=bool(biases),
        linear_input=linear_input,
        residual=residual,
    )
    parameters = MLPParameters(tuple(weights), tuple(biases) or None, slope)
    return _Call(*with_model_axis(x, parameters), shape, precision)


# Implementations, below autograd.


def _forward(*network, save=False):
    call = _call(*network)
    kept: list[Tensor] = []
    if call.precision is None:
        with _no_autocast(call.x):
            y = reference.mlp(call.x, call.parameters, call.shape)
    else:
        y, saved = launches.forward(call.x, call.layers, call.shape, call.precision, save=save)
        if save:
            launches.zero_unwritten(saved, call.x.shape[1], call.shape, call.precision)
            kept = [tensor for tensor in saved if tensor is not None]
    observe("mlp", call.precision, [call.x, *network[1]], [y])
    return y.reshape(*network[0].shape[:-1], call.shape.widths[-1]), kept


def _backward(grad_y, saved, needs_x, *network):
    call = _call(*network)
    grad_y, shape = call.rows_of(grad_y), call.shape
    grad = call.x.new_empty((len(call.x), shape.num_parameters))
    if call.precision is None:
        with _no_autocast(call.x):
            _, inputs, z = reference.forward(call.x, call.parameters, shape)
            reference.backward(grad_y, inputs, z, call.parameters, shape, shape.unpack(grad))
            grad_x = reference.input_gradient(grad_y, z, call.parameters, shape)
        grad_x = grad_x.reshape(network[0].shape) if needs_x else call.x.new_empty(0)
    else:
        grad_x = call.x.new_empty(network[0].shape if needs_x else 0)
        launches.write_gradients(
            grad_y, Saved(*saved), shape, call.precision,
            grad_x=grad_x if needs_x else None, grad=grad,
        )  # fmt: skip
    observe("mlp_backward", call.precision, [grad_y, call.x, *network[1]], [grad_x, grad])
    return grad_x, grad


def _input_gradient(grad_y, saved, *network):
    call = _call(*network)
    grad_y = call.rows_of(grad_y)
    if call.precision is None:
        with _no_autocast(call.x):
            _, _, z = reference.forward(call.x, call.parameters, call.shape)
            grad_x = reference.input_gradient(grad_y, z, call.parameters, call.shape)
        grad_x = grad_x.reshape(network[0].shape)
    else:
        grad_x, saved = call.x.new_empty(network[0].shape), Saved(*saved)
        launches.write_gradients(
            grad_y, saved, call.shape, call.precision, grad_x=grad_x, grad=None
        )
    observe("mlp_input_gradient", call.precision, [grad_y, call.x, *network[1]], [grad_x])
    return grad_x


def _no_autocast(x: Tensor):
    """Turns autocast off: the caller has already applied it when choosing the precision."""
    return torch.autocast(x.device.type, enabled=False)


# Fake implementations: only shapes, which may be symbolic.


def _fake_forward(*network, save=False):
    call, x, weights = _call(*network), *network[:2]
    y = x.new_empty((*x.shape[:-1], weights[-1].shape[-2]))
    precision = call.precision
    if not save or precision is None:
        return y, []
    net, weights = launches.saved_layout(_concrete(call.shape), precision, x.device)
    models, rows, _ = call.x.shape
    rows = saved_rows(rows)
    dtype = OPERAND_DTYPES[precision]
    saved = [
        x.new_empty((models, rows, net.activation_columns), dtype=dtype),
        x.new_empty((models, weights), dtype=dtype),
        x.new_empty((models, net.shape.num_parameters), dtype=torch.float32),
    ]
    if net.keeps_z:
        saved.append(x.new_empty((models, rows, net.z_columns), dtype=dtype))
    return y, saved


def _concrete(shape: MLPShape) -> MLPShape:
    """Returns the shape without symbolic widths: kernels are compiled for each shape anyway."""
    return replace(shape, widths=tuple(map(int, shape.widths)), slopes=int(shape.slopes))


def _fake_backward(grad_y, saved, needs_x, *network):  # noqa: ARG001
    x = network[0]
    call = _call(*network)
    grad = x.new_empty((call.x.shape[0], call.shape.num_parameters))
    return x.new_empty(x.shape if needs_x else 0), grad


def _fake_input_gradient(grad_y, saved, x, *network):  # noqa: ARG001
    return x.new_empty(x.shape)


# Derivatives. A Function takes its tensors one by one, so the network is flattened.


class _Flat(NamedTuple):
    """The rest of a flattened network, from which its tensors make it whole again."""

    weights: int
    biases: int
    options: tuple[str, float, bool, str | None, bool]

    def network(self, x: Tensor, *layers: Tensor) -> tuple:
        stop = self.weights + self.biases
        slope = layers[stop] if len(layers) > stop else None
        return (x, layers[: self.weights], layers[self.weights : stop], slope, *self.options)


def _flatten(x, weights, biases, slope, *options):
    slopes = () if slope is None else (slope,)
    return _Flat(len(weights), len(biases), options), (x, *weights, *biases, *slopes)


class _Forward(torch.autograd.Function):
    """y and the saved tensors; the derivative is one of the gradient operators."""

    @staticmethod
    def forward(ctx, keyset, flat, *tensors):
        y, saved = _mlp.redispatch(keyset, *flat.network(*tensors), save=True)
        ctx.flat, ctx.tensors = flat, len(tensors)
        ctx.save_for_backward(*tensors, *saved)
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)  # else autograd makes zeros for every saved tensor
        return y, *saved

    @staticmethod
    def backward(ctx, grad_y, *_):
        if grad_y is None:
            return None, None, *(None for _ in range(ctx.tensors))
        # Read once: each read unpacks or recomputes all of them.
        kept = ctx.saved_tensors
        (x, *layers), saved = kept[: ctx.tensors], kept[ctx.tensors :]
        _, _, needs_x, *needs = ctx.needs_input_grad
        network = ctx.flat.network(x, *layers)
        grad_x, grads = gradients(grad_y, saved, network, layers, needs_x, any(needs))
        return None, None, grad_x, *(grads or (None for _ in layers))


def gradients(
    grad_y: Tensor, saved: Sequence[Tensor], network: tuple, layers: Sequence[Tensor],
    needs_x: bool, needs_layers: bool,
) -> tuple[Tensor | None, Sequence[Tensor] | None]:  # fmt: skip
    """Returns the gradients of x and of the layers, by an operator; None where not needed.

    Args:
        grad_y: gradient of y.
        saved: the tensors that the forward pass saved.
        network: the arguments that stand for the network.
        layers: its weights, biases and slopes, the latter in one tensor or several.
        needs_x, needs_layers: which gradients are needed.
    """
    if not needs_layers:
        return _mlp_input_gradient(grad_y, saved, *network), None
    grad_x, grad = _mlp_backward(grad_y, saved, needs_x, *network)
    _, weights, biases, *_ = network
    flat = grad if weights[0].dim() == 3 else grad[0]
    return grad_x if needs_x else None, unpack(flat, layers, len(weights), bool(biases))


def unpack(grad: Tensor, layers: Sequence[Tensor], count: int, bias: bool) -> list[Tensor]:
    """Returns the gradients of layers in their order and shapes, views of a flat one.

    Args:
        grad: flat gradient, [P], or [M, P] if the layers have a model axis.
        layers: ``count`` weights, then as many biases if ``bias``, then slopes.
    """
    stride = 2 if bias else 1  # in the flat order the bias of a layer follows its weight
    stop = stride * count
    order = list(layers)
    if bias:
        order[:stop:2], order[1:stop:2] = layers[:count], layers[count:stop]
    models = grad.shape[0] if grad.dim() == 2 else 1
    # To autograd the parts are no views, so each may be changed in place while others are saved. It
    # would not see a change of the whole ("unsafe"), but nothing makes one.
    sizes = [layer.numel() // models for layer in order]
    parts = grad.unsafe_split_with_sizes(sizes, dim=-1)
    weights = map(Tensor.view_as, parts[:stop:stride], layers)  # faster than with a shape
    return [*weights, *(parts[1:stop:2] if bias else ()), *parts[stop:]]


class _Gradient(torch.autograd.Function):
    """A gradient operator; autograd derives its derivative from the gradient of the reference."""

    @staticmethod
    def forward(ctx, run, flat, grad_y, *tensors):
        ctx.flat = flat
        ctx.save_for_backward(grad_y, *tensors)
        ctx.set_materialize_grads(False)
        return run(grad_y)

    @staticmethod
    def backward(ctx, *grad_outputs):
        if all(grad is None for grad in grad_outputs):
            return None, None, *(None for _ in ctx.needs_input_grad[2:])
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            leaves = [differentiable(tensor) for tensor in ctx.saved_tensors]
            outputs = _reference_gradient(leaves[0], ctx.flat.network(*leaves[1:]))
            pairs = [(o, g) for o, g in zip(outputs, grad_outputs, strict=False) if g is not None]
            found = torch.autograd.grad(
                [output for output, _ in pairs],
                leaves,
                [grad for _, grad in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
        return None, None, *found


def differentiable(tensor: Tensor) -> Tensor:
    """Returns a view that requires gradients, with the same values, tangents and history."""
    view = tensor.view_as(tensor)
    return view if view.requires_grad else view.requires_grad_()


def _reference_output(*network):
    """Returns y, computed in differentiable steps."""
    x, parameters, shape, _ = _call(*network)
    with _no_autocast(x):
        y = reference.mlp(x, parameters, shape)
    return y.reshape(*network[0].shape[:-1], shape.widths[-1])


def _reference_gradient(grad_y, network):
    """Returns grad_x and the flat gradient [M, P], computed in differentiable steps."""
    x, parameters, shape, _ = _call(*network)
    weights, biases, slope = parameters
    y = reference.mlp(x, parameters, shape)
    leaves = [x, *weights, *(biases or ()), *(() if slope is None else (slope,))]
    grad_x, *grads = torch.autograd.grad(
        y, leaves, grad_y.reshape(y.shape), create_graph=True, materialize_grads=True
    )
    layers = len(weights)
    gradients = MLPParameters(
        tuple(grads[:layers]),
        tuple(grads[layers : 2 * layers]) if biases else None,
        None if slope is None else grads[-1],
    )
    return grad_x.reshape(network[0].shape), shape.pack(gradients)


# Registration. Without gradients to record, the autograd implementation only passes the call on.


def _records(*network) -> bool:
    x, weights, biases, slope = network[:4]
    return torch.is_grad_enabled() and (
        x.requires_grad
        or any(weight.requires_grad for weight in weights)
        or any(bias.requires_grad for bias in biases)
        or (slope is not None and slope.requires_grad)
    )


def _autograd_forward(keyset, *network, save=False):
    if in_forward_mode():
        return _reference_output(*network), []
    keyset = keyset & _BELOW_AUTOGRAD
    if not _records(*network):
        return _mlp.redispatch(keyset, *network, save=save)
    flat, tensors = _flatten(*network)
    y, *saved = _Forward.apply(keyset, flat, *tensors)
    return y, saved


def _autograd_backward(keyset, grad_y, saved, needs_x, *network):
    def run(grad_y):
        return _mlp_backward.redispatch(keyset & _BELOW_AUTOGRAD, grad_y, saved, needs_x, *network)

    return _record_gradient(run, grad_y, network)


def _autograd_input_gradient(keyset, grad_y, saved, *network):
    def run(grad_y):
        keys = keyset & _BELOW_AUTOGRAD
        return (_mlp_input_gradient.redispatch(keys, grad_y, saved, *network),)

    return _record_gradient(run, grad_y, network)[0]


def _record_gradient(run, grad_y, network):
    """Runs a gradient operator, and records it if its own gradient may be needed."""
    recorded = _records(*network) or (torch.is_grad_enabled() and grad_y.requires_grad)
    if not recorded:
        return _carry_tangent(run, grad_y) if in_forward_mode() else run(grad_y)
    flat, tensors = _flatten(*network)
    if in_forward_mode():
        grad_y, *tensors = (differentiable(tensor) for tensor in (grad_y, *tensors))
        return _reference_gradient(grad_y, flat.network(*tensors))
    return _Gradient.apply(run, flat, grad_y, *tensors)


def _carry_tangent(run, grad_y):
    """Returns gradients with tangents: as they are linear in grad_y, its tangent gives theirs."""
    grad_y, tangent = forward_ad.unpack_dual(grad_y)
    if tangent is None:
        return run(grad_y)
    return tuple(map(forward_ad.make_dual, run(grad_y), run(tangent)))


for _name, _implementation, _fake, _autograd in (
    ("mlp", _forward, _fake_forward, _autograd_forward),
    ("mlp_backward", _backward, _fake_backward, _autograd_backward),
    ("mlp_input_gradient", _input_gradient, _fake_input_gradient, _autograd_input_gradient),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    _library.impl(_name, _autograd, "Autograd", with_keyset=True)
    torch.library.register_fake(f"{_NAMESPACE}::{_name}", _fake, lib=_library)
