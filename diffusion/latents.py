"""Inversion of points to the noise they come from, and interpolation through that noise."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .device import choose_device
from .errors import UserError, check_at_least
from .models import ConditionalMLP, Perceptron, fused_copy
from .reverse_steps import reverse_table, timesteps
from .sampling import sample
from .schedules import Schedule


@torch.no_grad()
def invert(
    model: Callable[[Tensor], Tensor],
    schedule: Schedule,
    x: Tensor,
    *,
    label: int | Tensor | None = None,
    num_steps: int | None = None,
    iterations: int = 5,
    device: str | torch.device | None = None,
) -> Tensor:
    """Returns the x_T from which DDIM leads to these points (Song et al. 2021, section 4.3).

    A deterministic step of DDIM is x_prev = a x_t + b eps(x_t, t). It is inverted by solving it for
    x_t by fixed-point iteration::

        x_t <- (x_prev - b eps(x_t, t)) / a,    first with eps(x_prev, t)

    Args:
        model: denoiser of (point, timestep feature), and of the labels if there are any.
        schedule: the forward process that it was trained with.
        x: clean points [n, d].
        label: class for a conditional model, a number or int64 [n]; None for no class.
        num_steps: number of the T timesteps that are visited; None for all.
        iterations: iterations of each step's equation. 1 is the usual approximation; after a few,
            DDIM leads back to the points.
        device: None takes CUDA where there is one.

    Returns:
        float32 [n, d]; ``sample(..., method="ddim", x_T=...)`` leads back.

    Raises:
        ValueError: a number is out of range.
    """
    check_at_least("iterations", iterations, 1)
    device = choose_device(device)
    if x.dim() != 2:
        raise UserError(f"x must be [n, d], got {list(x.shape)}")
    x, steps = x.float().to(device), timesteps(schedule, num_steps, method="ddim")
    predict = fused_copy(model, device)
    labels = () if label is None else (torch.as_tensor(label, device=device).expand(len(x)),)
    table = reverse_table(schedule, steps, method="ddim")
    for t, (a, b, *_) in zip(steps.flip(0).tolist(), table.flip(0).tolist(), strict=True):
        x_t = x
        for _ in range(iterations):
            x_t = (x - b * predict(schedule.inputs(x_t, t), *labels)) / a
        x = x_t
    return x


def slerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Interpolates on the arc between a and b (Shoemake 1985): lengths stay those of noise.

    Args:
        a, b: [n, d].
        weight: position on the arc, [K], from 0 at a to 1 at b.

    Returns:
        [K, n, d].
    """
    angle = torch.acos(torch.nn.functional.cosine_similarity(a, b).clamp(-1, 1))[None, :, None]
    weight = weight[:, None, None].to(a)
    straight = torch.lerp(a[None], b[None], weight)
    arc = (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)
    return torch.where(torch.sin(angle) > 1e-4, arc, straight)


def interpolate(
    model: Perceptron,
    schedule: Schedule,
    a: Tensor,
    b: Tensor,
    *,
    count: int = 9,
    label: int | Tensor | None = None,
    num_steps: int | None = None,
    device: str | torch.device | None = None,
) -> Tensor:
    """Interpolates between a and b along the arc between the noise that they come from.

    As in figure 9 of Ho et al. 2020, but with DDIM, which is deterministic in both directions, so
    that the first and last points are a and b themselves.

    Args:
        model: denoiser.
        schedule: the forward process that it was trained with.
        a, b: clean points [n, d].
        count: number K of points, with both ends.
        label: class for a conditional model, a number or int64 [n]; None for no class.
        num_steps: number of the T timesteps that are visited; None for all.
        device: None takes CUDA where there is one.

    Returns:
        float32 [K, n, d].

    Raises:
        ValueError: a number is out of range, or a and b differ in shape.
    """
    check_at_least("count", count, 2)
    if a.shape != b.shape:
        raise UserError(f"a and b must have one shape, got {list(a.shape)} and {list(b.shape)}")
    options: dict[str, Any] = {"label": label, "num_steps": num_steps, "device": device}
    first, last = (invert(model, schedule, x, **options) for x in (a, b))
    x_T = slerp(first, last, torch.linspace(0, 1, count))  # [K, n, d]
    if label is not None:
        options["label"] = torch.as_tensor(label).expand(len(a)).repeat(count)
    if not isinstance(model, ConditionalMLP):
        options.pop("label")
    x = sample(
        model, schedule, x_T[..., 0].numel(), method="ddim", x_T=x_T.flatten(0, 1), **options
    )
    return x.x.unflatten(0, (count, len(a)))
