"""The perceptron in eager PyTorch: one autograd Function around the kernels.

A network this small takes less time on a GPU than a call through PyTorch's dispatcher takes in
Python. So a call that nothing watches goes from here to the kernels, which read the layers where
they lie and write y, and the gradient of each parameter, in its final dtype. Whatever must see an
operator takes those of :mod:`.operator`: compilers, dispatch modes, and second derivatives. Modes
that watch functions (``TorchFunctionMode``) see none.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._dispatch import onlooker
from ..overflow import observe
from . import launches, operator, reference
from .layout import Saved
from .shape import MLPShape


class Call(NamedTuple):
    """A call but for its tensors; ``layers`` are weights, then biases, then slopes of a network."""

    shape: MLPShape
    precision: str
    dtype: torch.dtype  # of the parameters
    y_dtype: torch.dtype

    def __call__(self, x: Tensor, layers: tuple[Tensor, ...]) -> Tensor:
        """Returns y [..., out] of x [..., in], or with a model axis [M, B, out] of [M, B, in]."""
        if torch.is_grad_enabled() and (
            x.requires_grad or any(layer.requires_grad for layer in layers)
        ):
            return _apply(self, x, *layers)
        return self.forward(x, layers, save=False)[0]

    def forward(self, x: Tensor, layers: tuple[Tensor, ...], save: bool) -> tuple:
        """Returns y and the tensors that :meth:`backward` needs."""
        shape = self.shape
        y = x.new_empty((*x.shape[:-1], shape.widths[-1]), dtype=self.y_dtype)
        _, saved = launches.forward(_rows(x, layers), layers, shape, self.precision, save=save, y=y)
        observe("mlp", self.precision, [x, *layers[: len(shape.widths) - 1]], [y])
        return y, saved

    def backward(
        self, grad_y: Tensor, x: Tensor, layers: tuple[Tensor, ...], saved: tuple[Tensor, ...],
        needs_x: bool, needs_layers: bool,
    ) -> tuple:  # fmt: skip
        """Returns the gradient of x and those of the layers, None if they are not needed."""
        shape = self.shape
        grad_x = x.new_empty(x.shape) if needs_x else None
        grad = flat = None
        if needs_layers:
            axis = layers[0].shape[:-2]  # [] or [M]
            grad = layers[0].new_empty((*axis, shape.num_parameters))
            flat = grad if axis else grad.view(1, -1)
        launches.write_gradients(
            _rows(grad_y, layers), Saved(*saved), shape, self.precision,
            grad_x=grad_x, grad=flat,
        )  # fmt: skip
        gradients = [each for each in (grad_x, grad) if each is not None]
        name = "mlp_backward" if needs_layers else "mlp_input_gradient"
        observe(name, self.precision, [grad_y, x, *layers[: len(shape.widths) - 1]], gradients)
        if grad is None:
            return grad_x, None
        return grad_x, operator.unpack(grad, layers, len(shape.widths) - 1, shape.bias)

    def backward_by_operators(
        self, grad_y: Tensor, x: Tensor, layers: tuple[Tensor, ...], saved: tuple[Tensor, ...],
        needs_x: bool, needs_layers: bool,
    ) -> tuple:  # fmt: skip
        """Returns what :meth:`backward` does, in differentiable steps that may be watched."""
        parameters = operator.parameters_of(layers, self.shape)
        network = operator.network_of(x.to(self.dtype), parameters, self.shape, self.precision)
        grad_x, gradients = operator.gradients(
            grad_y.to(self.dtype), saved, network, layers, needs_x, needs_layers
        )
        return None if grad_x is None else grad_x.to(x.dtype), gradients

    def backward_by_reference(
        self, grad_y: Tensor, x: Tensor, layers: tuple[Tensor, ...], saved: tuple[Tensor, ...],  # noqa: ARG002
        needs_x: bool, needs_layers: bool,
    ) -> tuple:  # fmt: skip
        """Returns what :meth:`backward` does, in steps of PyTorch.

        They take the batches of grad_y of ``is_grads_batched``, for which no operator has a rule.
        """
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            leaves = [operator.differentiable(each) for each in (x, *layers)]
            parameters = operator.parameters_of(leaves[1:], self.shape)
            rows, parameters = operator.with_model_axis(leaves[0].to(self.dtype), parameters)
            y = reference.mlp(rows, parameters, self.shape).to(self.y_dtype)
            y = y.reshape(*x.shape[:-1], self.shape.widths[-1])
        wanted = leaves if needs_x else leaves[1:]
        found = torch.autograd.grad(
            y, wanted, grad_y, create_graph=torch.is_grad_enabled(), materialize_grads=True
        )
        return (found[0] if needs_x else None), (found[-len(layers) :] if needs_layers else None)


def _rows(x: Tensor, layers: tuple[Tensor, ...]) -> Tensor:
    """Returns [..., d] as [B, d], unless there is a model axis."""
    return x if x.dim() == 2 or layers[0].dim() == 3 else x.reshape(-1, x.shape[-1])


def is_watched(*tensors: Tensor) -> bool:
    """Returns True if a compiler, a dispatch mode or a transform has to see the operators.

    Tensors whose memory does not hold their numbers need PyTorch's dispatcher, too: those that a
    transform left over when it ended, and those that are still to be negated or stand for zeros.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or onlooker() is not None
        or not all(map(torch._C._has_storage, tensors))
        or any(map(Tensor.is_neg, tensors))
        or any(map(Tensor._is_zerotensor, tensors))
    )


class _Perceptron(torch.autograd.Function):
    """A :class:`Call`; tensors that are given are guarded against changes, as by any operator."""

    @staticmethod
    def forward(ctx, call, x, *layers):
        y, saved = call.forward(x, layers, save=True)
        ctx.call, ctx.layers = call, len(layers)
        ctx.save_for_backward(x, *layers, *[each for each in saved if each is not None])
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        nothing = (None,) * ctx.layers
        if grad_y is None:
            return None, None, *nothing
        kept = ctx.saved_tensors  # read once: each read unpacks or recomputes all of them
        x, layers, saved = kept[0], kept[1 : 1 + ctx.layers], kept[1 + ctx.layers :]
        _, needs_x, *needs = ctx.needs_input_grad
        run = ctx.call.backward
        if torch._C._functorch.is_legacy_batchedtensor(grad_y):
            run = ctx.call.backward_by_reference
        elif torch.is_grad_enabled() or is_watched(grad_y):
            run = ctx.call.backward_by_operators
        grad_x, gradients = run(grad_y, x, layers, saved, needs_x, any(needs))
        return None, grad_x, *(nothing if gradients is None else gradients)


# Function.apply first unwraps what transforms have left over, of which there is none here: that
# takes a third of its time.
_apply = super(torch.autograd.Function, _Perceptron).apply
