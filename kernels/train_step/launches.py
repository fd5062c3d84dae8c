"""The sums of a training step in the form that fits.

The form for Hopper GPUs is imported where it runs, and only there.
"""

from types import ModuleType
from typing import Any

from torch import Tensor

from .._dispatch import capability_of
from ..adamw import Shadow, shadow_of
from ..forms import chosen_form
from ..mlp import MLPShape
from ..mlp.chunks import gap_of_training
from ..mlp.config import config_for
from ..mlp.layout import layout_of
from ..q_sample.reference import TrainingData


def prepared(
    parameters: Tensor, shape: MLPShape, data: TrainingData, rows: int, precision: str
) -> tuple[Shadow, Any, int]:
    """Returns what steps of up to ``rows`` rows need, and the number of parts of a gradient.

    They need the weights as their kernels read them, and scratch memory.
    """
    models, capability = len(parameters), capability_of(parameters.device)
    form = chosen_form(
        "a training step", config_for(precision, capability, rows, models), capability,
        lambda: gap_of_training(layout_of(shape, precision)),
    )  # fmt: skip
    shadow = shadow_of(parameters, shape, precision, chunked=form == "hopper")
    buffers, splits = _module_for(shadow).buffers_of(data, shape, models, rows, precision)
    return shadow, buffers, splits


def training_sums(
    parameters: Tensor,
    shape: MLPShape,
    data: TrainingData,
    sums: Tensor,
    shadow: Shadow,
    buffers: Any,
    **rows_and_steps: Any,
) -> None:
    """Writes sums [M, S, P + 2]; the arguments are those of :func:`.kernel.training_sums`."""
    launches = _module_for(shadow)
    launches.training_sums(parameters, shape, data, sums, shadow, buffers, **rows_and_steps)


def _module_for(shadow: Shadow) -> ModuleType:
    """Returns the module whose kernels read the weights of a shadow."""
    if shadow.chunked:
        from . import hopper

        return hopper
    from . import kernel

    return kernel
