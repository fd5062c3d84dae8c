"""The perceptron's passes, in the form that fits.

This module needs no triton. Each form is imported where it runs, and only there.
"""

from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .._dispatch import capability_of
from ..forms import chosen_form
from .chunks import gap_of_training, training_chunks_of
from .config import config_for
from .layout import Layout, Saved, layout_of
from .shape import MLPShape


def forward(
    x: Tensor, layers: tuple[Tensor, ...], shape: MLPShape, precision: str, **options: Any
) -> tuple[Tensor, Saved]:
    """Returns y and saved tensors; the arguments are those of :func:`.kernel.forward`."""
    launches = _module(_form(shape, precision, x.device))
    return launches.forward(x, layers, shape, precision, **options)


def write_gradients(
    grad_y: Tensor, saved: Saved, shape: MLPShape, precision: str, **gradients: Tensor | None
) -> None:
    """Writes gradients; the arguments are those of :func:`.kernel.write_gradients`."""
    launches = _module(_form_of(saved, shape, precision))
    launches.write_gradients(grad_y, saved, shape, precision, **gradients)


def zero_unwritten(saved: Saved, rows: int, shape: MLPShape, precision: str) -> None:
    """Writes zeros into the rows of saved tensors that no tile covers: two runs give equal bits."""
    models, device = saved.activations.shape[0], saved.activations.device
    config = config_for(precision, capability_of(device), rows, models, "perceptron")
    hopper = _form_of(saved, shape, precision) == "hopper"
    tile = config.hopper_rows if hopper else config.rows
    written = -(-rows // tile) * tile
    for tensor in (saved.activations, saved.preactivations):
        if tensor is not None and written < tensor.shape[1]:
            tensor[:, written:].zero_()


def saved_layout(shape: MLPShape, precision: str, device: torch.device) -> tuple[Layout, int]:
    """Returns the layout of saved rows, and the number of saved operand weights of a model."""
    net = layout_of(shape, precision)
    if _form(shape, precision, device) == "portable":
        return net, net.starts[-1]
    chunks = training_chunks_of(net)
    return chunks.rows, chunks.starts[-1]


def _form(shape: MLPShape, precision: str, device: torch.device) -> str:
    """Returns the name of the form of a call."""
    capability = capability_of(device)
    # All rows take the same form: compiled code must not depend on their number.
    config = config_for(precision, capability, 0, 1, "perceptron")
    return chosen_form(
        "a perceptron", config, capability,
        lambda: gap_of_training(layout_of(shape, precision)),
    )  # fmt: skip


def _form_of(saved: Saved, shape: MLPShape, precision: str) -> str:
    """Returns the name of the form whose operand weights have the size of the saved ones.

    In chunks they are always more: those between hidden layers are there twice.
    """
    portable = layout_of(shape, precision).starts[-1]
    return "portable" if saved.weights.shape[1] == portable else "hopper"


@cache
def _module(form: str) -> ModuleType:
    """Returns the module with the kernels of a form."""
    if form == "hopper":
        from . import hopper_kernel

        return hopper_kernel
    from . import kernel

    return kernel
