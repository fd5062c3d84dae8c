"""Reverse steps that are linear in x_t, eps and z, as tables of coefficients: DDPM and DDIM."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.default_state import in_default_state
from .errors import UserError, check_choice, check_number
from .schedules import Schedule, check_schedule

VARIANCES = ("beta", "posterior", "none")

GuidanceScale = float | Callable[[Tensor], Tensor]
Coefficients = tuple[Tensor, Tensor, Tensor]  # of x_t, eps and z, float64 [S] each


class Step(NamedTuple):
    """A reverse step that is linear in x_t, eps and z; an entry of :data:`STEPS`."""

    title: str  # in figures and reports
    # of alpha_bar and alpha_bar_prev, float64 [S], variance and eta; see reverse_table
    coefficients: Callable[[Tensor, Tensor, str, float], Coefficients]


def _posterior_variance(alpha_bar: Tensor, prev: Tensor) -> Tensor:
    """Returns the variance of q(x_prev | x_t, x_0) (Ho et al. 2020, equation 7)."""
    return (1 - alpha_bar / prev) * (1 - prev) / (1 - alpha_bar)


def _ddpm(alpha_bar: Tensor, prev: Tensor, variance: str, eta: float) -> Coefficients:  # noqa: ARG001
    alpha = alpha_bar / prev
    beta = 1 - alpha
    sigma_squared = {
        "beta": beta,
        "posterior": _posterior_variance(alpha_bar, prev),
        "none": torch.zeros_like(beta),
    }[variance]
    sigma = sigma_squared.sqrt()
    sigma[-1] = 0
    return alpha.rsqrt(), -beta / ((1 - alpha_bar) * alpha).sqrt(), sigma


def _ddim(alpha_bar: Tensor, prev: Tensor, variance: str, eta: float) -> Coefficients:  # noqa: ARG001
    sigma = eta * _posterior_variance(alpha_bar, prev).sqrt()
    x = (prev / alpha_bar).sqrt()
    eps = (1 - prev - sigma**2).clamp(min=0).sqrt() - x * (1 - alpha_bar).sqrt()
    return x, eps, sigma


STEPS = {"ddpm": Step("DDPM", _ddpm), "ddim": Step("DDIM", _ddim)}


@in_default_state
def timesteps(
    schedule: Schedule, num_steps: int | None, *, start: int | None = None, method: str = "ddpm"
) -> Tensor:
    """Returns the timesteps that a chain of S steps visits: int64 [S], evenly spaced, down to 0.

    Args:
        schedule: the forward process.
        num_steps: S; None for all.
        start: the first timestep; None takes that of :meth:`Schedule.start_of`.
        method: ``ddpm`` or ``ddim``. DDPM can visit all T, DDIM those that hold some of the data.

    Raises:
        ValueError: S is not in 1 ... T, or ``start`` is no timestep.
    """
    first, count = schedule.start_of(num_steps, start=start, all_levels=method == "ddpm")
    return torch.linspace(first, 0, count, dtype=torch.float64).round().long()


def _check_steps(schedule: Schedule, steps: Tensor) -> None:
    """Raises :class:`UserError` unless these are decreasing timesteps of the schedule."""
    check_schedule(schedule)
    whole = isinstance(steps, Tensor) and not steps.is_floating_point() and steps.dim() == 1
    if not whole or not len(steps):
        raise UserError(f"steps must be a tensor int64 [S], got {steps!r}")
    if not schedule.num_steps > steps[0] or not steps[-1] >= 0 or not (steps.diff() < 0).all():
        raise UserError(
            f"steps must fall, from {schedule.num_steps - 1} at most to 0 at least, "
            f"got {steps.tolist()}"
        )


@in_default_state
def reverse_table(
    schedule: Schedule,
    steps: Tensor,
    *,
    method: str = "ddpm",
    variance: str = "posterior",
    eta: float = 0.0,
    scale: GuidanceScale = 0.0,
    classifier_free: bool = False,
) -> Tensor:
    """Returns the coefficients of x_t, eps, z and the guidance of each step, float64 [S, 4].

    DDPM (Ho et al. 2020, algorithm 2), written for any stride, with alpha = alpha_bar_t /
    alpha_bar_prev and beta = 1 - alpha::

        x_prev = (x_t - beta / sqrt(1 - alpha_bar_t) eps) / sqrt(alpha) + sigma z

    DDIM (Song et al. 2021, equation 12)::

        x_prev = sqrt(alpha_bar_prev) x0_hat + sqrt(1 - alpha_bar_prev - sigma^2) eps + sigma z

    Guidance (Dhariwal and Nichol 2021, algorithm 2)::

        eps_hat = eps - scale(t) sqrt(1 - alpha_bar_t) grad log p(y | x_t)

    or classifier-free (Ho and Salimans 2022, equation 6)::

        eps_hat = (1 + scale(t)) eps(x_t, y) - scale(t) eps(x_t)

    Args:
        schedule: the forward process.
        steps: decreasing timesteps, int64 [S].
        method: ``ddpm`` or ``ddim``.
        variance: sigma^2 of DDPM: ``beta``, ``posterior`` for that of q(x_prev | x_t, x_0), or
            ``none``, which makes the step deterministic (z = 0).
        eta: noise of DDIM: 0 for none, 1 for as much as in DDPM with the posterior's variance.
        scale: guidance scale, a number or a function of t.
        classifier_free: True for classifier-free guidance, False for guidance by a classifier.

    Raises:
        ValueError: no decreasing timesteps, an unknown method or variance, an eta outside [0, 1],
            or a scale that is not finite.
    """
    _check_steps(schedule, steps)
    check_choice("method", method, STEPS)
    check_choice("variance", variance, VARIANCES)
    check_number("eta", eta, 0, 1)
    alpha_bar = schedule.alpha_bar[steps]
    prev = torch.cat((schedule.alpha_bar[steps[1:]], torch.ones(1, dtype=torch.float64)))
    x, eps, sigma = STEPS[method].coefficients(alpha_bar, prev, variance, eta)
    guide = scale(steps.double()) if callable(scale) else torch.full_like(x, scale)
    if not isinstance(guide, Tensor) or guide.shape != x.shape:
        shape = list(guide.shape) if isinstance(guide, Tensor) else type(guide).__name__
        raise UserError(f"scale must return a tensor [{len(x)}] for t [{len(x)}], got {shape}")
    if not classifier_free:
        guide = guide * (1 - alpha_bar).sqrt()
    if not guide.isfinite().all():
        raise UserError("scale must be finite, got NaN or infinity")
    return torch.stack((x, eps, sigma, guide), dim=1)
