"""Inversion of points to the noise they come from, and interpolation through that noise."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.default_state import in_default_state
from ..kernels.reverse_step.reference import EPS, X
from .device import choose_device
from .errors import UserError, check_integer
from .given import check_finite, labels_of, points
from .models import ConditionalMLP, Perceptron, check_prediction
from .own_networks import predictor, takes_timesteps
from .progress import reported
from .reverse_steps import levels_of, of_output, reverse_table, timesteps
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
    progress: bool | Callable[[int], None] = False,
) -> Tensor:
    """Returns the x_T from which DDIM leads to these points (Song et al. 2021, section 4.3).

    A deterministic step of DDIM is x_prev = signal_prev x0_hat(x_t) + noise_prev eps_hat(x_t). It
    is inverted by solving it for x_t by fixed-point iteration, first with x_prev in place of x_t::

        x_t <- a x_prev + b eps_hat(x_t),    a = signal / signal_prev, b = noise - a noise_prev
        x_t <- a x_prev + b x0_hat(x_t),     a = noise / noise_prev, b = signal - a signal_prev

    It is the same whatever the network predicts. The first form is taken where there is little
    noise, the second where no data is left. Elsewhere the second is the faster for a good network
    and may diverge for a bad one, so both are tried, and of each point the x_t is kept from which
    the step leads closest to x_prev.

    Args:
        model: denoiser of (point, timestep feature), and of the labels if there are any; or a
            network of your own, see :mod:`.own_networks`.
        schedule: the forward process that it was trained with.
        x: clean points [n, d].
        label: class for a conditional model, a number or int64 [n]; None for no class.
        num_steps: number of the T timesteps that are visited; None for all.
        iterations: iterations of each step's equation. 1 is the usual approximation; after a few,
            DDIM leads back to the points.
        device: None takes CUDA where there is one.
        progress: True shows a bar on stderr; a function is called with the number of steps done.

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
    dim = x.shape[1]
    predict = predictor(model, schedule, device, dim, labelled=label is not None)
    labels = _labels(model, label, len(x), device)
    forms = [form.flip(0).tolist() for form in _inversion_tables(schedule, steps)]
    ddim = reverse_table(schedule, steps, method="ddim").flip(0).tolist()

    def output(x_t: Tensor, t: int) -> Tensor:
        return predict(x_t, t, *labels)

    def solved(x: Tensor, t: int, form: list[float]) -> Tensor:
        c_prev, c_x, c_output = form
        x_t = x
        for _ in range(iterations):
            x_t = c_prev * x + c_x * x_t + c_output * output(x_t, t)
        return x_t

    steps_up = zip(steps.flip(0).tolist(), ddim, *forms, strict=True)
    with reported(progress, "invert", len(steps), "steps") as show:
        for done, (t, step, *both) in enumerate(steps_up, start=1):
            found = [solved(x, t, form) for form in both if math.isfinite(form[0])]
            if len(found) == 2:
                errors = [(step[X] * y + step[EPS] * output(y, t) - x).norm(dim=1) for y in found]
                found = [torch.where((errors[1] < errors[0])[:, None], found[1], found[0])]
            x = found[0]
            show(done)
    check_finite("the points of noise", x)
    return x


def _inversion_tables(schedule: Schedule, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Returns weights of x_prev, x_t and the network's output in the next x_t, float64 [S, 3].

    They are those of the form in eps_hat, and of the form in x0_hat; the numbers of one that is not
    to be tried at a step are infinite.
    """
    signal, noise, signal_prev, noise_prev = levels_of(schedule, steps)
    zero, infinite = torch.zeros_like(signal), torch.full((len(steps), 3), math.inf).double()
    # Of data with variance 1, the step's term in x0_hat changes with x_t by sigma_prev sigma times
    # less than that in eps_hat.
    noisy = (noise * noise_prev > signal * signal_prev)[:, None]
    a = signal / signal_prev
    in_eps = torch.stack((a, *of_output(schedule, steps, zero, noise - a * noise_prev)), dim=1)
    a = noise / noise_prev
    in_x0 = torch.stack((a, *of_output(schedule, steps, signal - a * signal_prev, zero)), dim=1)
    return (
        torch.where(noisy & (signal == 0)[:, None], infinite, in_eps),
        torch.where(noisy, in_x0, infinite),
    )


def _dim(model: Callable[..., Tensor]) -> int | None:
    """Returns the dimension of a network's points; None for any other function."""
    if isinstance(model, Perceptron):
        return model.shape.widths[-1]
    return getattr(model, "point_dim", None)


def _labels(
    model: Callable[..., Tensor], label: int | Tensor | None, n: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Returns what a denoiser takes after its inputs: the label of each point [n], or nothing."""
    if label is None:
        return ()
    if isinstance(model, Perceptron) and not isinstance(model, ConditionalMLP):
        raise UserError(f"label must be left out for a model without classes, got {label!r}")
    knows = isinstance(model, ConditionalMLP) or takes_timesteps(model, labelled=True)
    classes = getattr(model, "num_classes", None) if knows else None
    classes = 2**62 if classes is None else classes + 1
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
    model: nn.Module,
    schedule: Schedule,
    a: Tensor,
    b: Tensor,
    *,
    count: int = 9,
    label: int | Tensor | None = None,
    num_steps: int | None = None,
    device: str | torch.device | None = None,
    progress: bool | Callable[[int], None] = False,
) -> Tensor:
    """Interpolates between a and b along the arc between the noise that they come from.

    As in figure 9 of Ho et al. 2020, but with DDIM, which is deterministic in both directions, so
    that the first and last points are a and b themselves.

    Args:
        model: denoiser, of this package or your own.
        schedule: the forward process that it was trained with.
        a, b: clean points [n, d].
        count: number K of points, with both ends.
        label: class for a conditional model, a number or int64 [n]; None for no class.
        num_steps: number of the T timesteps that are visited; None for all.
        device: None takes CUDA where there is one.
        progress: True shows a bar on stderr; a function is called with the number of the S steps
            done, of 2 S to the noise, which take nearly all the time.

    Returns:
        float32 [K, n, d].

    Raises:
        ValueError: an argument is of a wrong type or out of range, or a and b differ in shape.
    """
    check_integer("count", count, 2)
    check_schedule(schedule)
    a, b = (points(name, x, (None, None)) for name, x in (("a", a), ("b", b)))
    if a.shape != b.shape:
        raise UserError(f"a and b must have one shape, got {list(a.shape)} and {list(b.shape)}")
    options: dict[str, Any] = {"label": label, "num_steps": num_steps, "device": device}
    each = len(timesteps(schedule, num_steps, method="ddim"))
    with reported(progress, "interpolate", 2 * each, "steps") as show:
        first = invert(model, schedule, a, progress=show, **options)
        last = invert(model, schedule, b, progress=lambda done: show(each + done), **options)
    x_T = slerp(first, last, torch.linspace(0, 1, count))  # [K, n, d]
    if label is not None:
        options["label"] = torch.as_tensor(label).expand(len(a)).repeat(count)
    x = sample(
        model, schedule, x_T[..., 0].numel(), method="ddim", x_T=x_T.flatten(0, 1), **options
    )
    return x.x.unflatten(0, (count, len(a)))
