"""Inversion of points to the noise they come from, and interpolation through that noise."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels.default_state import in_default_state
from .chains import check_finite, labels_of, points
from .device import choose_device
from .errors import UserError, check_integer
from .models import ConditionalMLP, Perceptron, check_prediction, fused_copy
from .reverse_steps import levels_of, of_output, timesteps
from .sampling import sample
from .schedules import Schedule, check_schedule


@in_default_state
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

    A deterministic step of DDIM is x_prev = signal_prev x0_hat(x_t) + noise_prev eps_hat(x_t). It
    is inverted by solving it for x_t by fixed-point iteration, in terms of eps_hat where there is
    little noise, and of x0_hat where there is much or where no data is left::

        x_t <- a x_prev + b eps_hat(x_t),    a = signal / signal_prev, b = noise - a noise_prev
        x_t <- a x_prev + b x0_hat(x_t),     a = noise / noise_prev, b = signal - a signal_prev

    first with x_prev in place of x_t. It is the same whatever the network predicts.

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
        ValueError: an argument is of a wrong type or out of range, or the result is not finite.
    """
    check_integer("iterations", iterations, 1)
    check_schedule(schedule)
    check_prediction(model, schedule)
    device = choose_device(device)
    x = points("x", x, (None, _dim(model))).to(device)
    steps = timesteps(schedule, num_steps, method="ddim")
    predict = fused_copy(model, device)
    labels = _labels(model, label, len(x), device)
    table = _inversion_table(schedule, steps).flip(0).tolist()
    for t, (c_prev, c_x, c_output) in zip(steps.flip(0).tolist(), table, strict=True):
        x_t = x
        for _ in range(iterations):
            output = predict(schedule.inputs(x_t, t), *labels)
            x_t = c_prev * x + c_x * x_t + c_output * output
        x = x_t
    check_finite("the points of noise", x)
    return x


def _inversion_table(schedule: Schedule, steps: Tensor) -> Tensor:
    """Returns weights of x_prev, x_t and the network's output in the next x_t, float64 [S, 3]."""
    signal, noise, signal_prev, noise_prev = levels_of(schedule, steps)
    # Of data with variance 1, the step's term in x0_hat changes with x_t by sigma_prev sigma times
    # less than that in eps_hat.
    noisy = noise * noise_prev > signal * signal_prev
    c_prev = torch.where(noisy, noise / noise_prev, signal / signal_prev)
    x0 = torch.where(noisy, signal - signal_prev * c_prev, 0.0)
    eps = torch.where(noisy, 0.0, noise - noise_prev * c_prev)
    return torch.stack((c_prev, *of_output(schedule, steps, x0, eps)), dim=1)


def _dim(model: Callable[..., Tensor]) -> int | None:
    """Returns the dimension of a network's points; None for any other function."""
    return model.shape.widths[-1] if isinstance(model, Perceptron) else None


def _labels(
    model: Callable[..., Tensor], label: int | Tensor | None, n: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Returns what a denoiser takes after its inputs: the label of each point [n], or nothing."""
    if label is None:
        return ()
    if isinstance(model, Perceptron) and not isinstance(model, ConditionalMLP):
        raise UserError(f"label must be left out for a model without classes, got {label!r}")
    classes = model.num_classes + 1 if isinstance(model, ConditionalMLP) else 2**62
    return (labels_of(label, n, classes, device),)


@in_default_state
def slerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Interpolates on the arc between a and b (Shoemake 1985): lengths stay those of noise.

    Args:
        a, b: [n, d].
        weight: position on the arc, [K], from 0 at a to 1 at b.

    Returns:
        [K, n, d].

    Raises:
        ValueError: a and b are no points of one shape, or the weight is no tensor [K].
    """
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, Tensor) or x.dim() != 2:
            raise UserError(f"{name} must be a tensor [n, d], got {x!r}")
    if a.shape != b.shape:
        raise UserError(f"a and b must have one shape, got {list(a.shape)} and {list(b.shape)}")
    if not isinstance(weight, Tensor) or weight.dim() != 1:
        raise UserError(f"weight must be a tensor [K], got {weight!r}")
    angle = torch.acos(torch.nn.functional.cosine_similarity(a, b).clamp(-1, 1))[None, :, None]
    weight = weight[:, None, None].to(a)
    straight = torch.lerp(a[None], b[None], weight)
    arc = (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)
    return torch.where(torch.sin(angle) > 1e-4, arc, straight)


@in_default_state
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
        ValueError: an argument is of a wrong type or out of range, or a and b differ in shape.
    """
    check_integer("count", count, 2)
    a, b = (points(name, x, (None, None)) for name, x in (("a", a), ("b", b)))
    if a.shape != b.shape:
        raise UserError(f"a and b must have one shape, got {list(a.shape)} and {list(b.shape)}")
    options: dict[str, Any] = {"label": label, "num_steps": num_steps, "device": device}
    first, last = (invert(model, schedule, x, **options) for x in (a, b))
    x_T = slerp(first, last, torch.linspace(0, 1, count))  # [K, n, d]
    if label is not None:
        options["label"] = torch.as_tensor(label).expand(len(a)).repeat(count)
    x = sample(
        model, schedule, x_T[..., 0].numel(), method="ddim", x_T=x_T.flatten(0, 1), **options
    )
    return x.x.unflatten(0, (count, len(a)))
