"""Batches on which float32 can be compared with float64, although derivatives jump."""

import torch
from torch import Tensor

from ..kernels import MLPShape, TrainingData
from ..kernels.mlp import reference
from ..kernels.mlp.activation import TABLE
from ..kernels.q_sample.reference import Draw
from ..kernels.train_step.reference import noisy_inputs

_ERRORS = 20  # errors of float32 that a z must be away from zero


def beside_a_kink(flat: Tensor, shape: MLPShape, x: Tensor) -> Tensor:
    """Returns which rows have a z that rounding may take across the kink of an activation.

    There the derivative jumps, and a result in float32 is as right on the one side as on the other.
    Another processor rounds differently; one in ten million z changes its side. So a row counts if
    one of its z is nearer to zero than 20 times the error of float32, the root mean square of all z
    of the layer. One without any error, such as 0 where all inputs are off, is the same everywhere.

    Args:
        flat: parameters [M, P].
        shape: shape of the networks.
        x: inputs [M, B, d].

    Returns:
        bool [M, B].
    """
    near = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    if TABLE[shape.activation].piecewise_linear and x.numel():
        single, double = (
            reference.forward(x.to(dtype), shape.unpack(flat.to(dtype)), shape)[2]
            for dtype in (torch.float32, torch.float64)
        )
        for rounded, z in list(zip(single, double, strict=True))[shape.linear_input :]:
            error = (rounded - z).square().mean().sqrt()
            near |= ((z.abs() <= _ERRORS * error) & (rounded != z)).any(dim=2)
    return near


def off_kinks(flat: Tensor, shape: MLPShape, x: Tensor) -> Tensor:
    """Returns x, or if rows are beside a kink a copy in which they are moved away from it."""
    while (near := beside_a_kink(flat, shape, x)).any():
        x = x + 1e-3 * near[..., None]
    return x


def data_off_kinks(
    parameters: Tensor, shape: MLPShape, data: TrainingData, draw: Draw
) -> TrainingData:
    """Returns the data, with features of timesteps moved until no drawn row is beside a kink.

    Only timesteps of rows beside a kink are moved: the more rows a batch has, the more of them
    would meet another kink if all were.
    """
    while (near := beside_a_kink(parameters, shape, noisy_inputs(data, draw))).any():
        model, row = near.nonzero(as_tuple=True)
        time_features = data.time_features.clone()  # [M, T, F]
        time_features[model, draw.t[model, row]] += 1e-3
        data = data._replace(time_features=time_features)
    return data
