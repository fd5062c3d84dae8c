"""Fewer reverse steps: second-order solvers of the probability-flow ODE (Song et al. 2021).

They are deterministic and need 10 to 50 steps where DDPM needs all T. Each takes a function
``noise(x, i)``, which returns the noise eps_hat predicted at the i-th timestep visited, guided or
not, and yields x after every step. The forward process is x_t = alpha x_0 + sigma eps, with
alpha = sqrt(alpha_bar_t) and sigma = sqrt(1 - alpha_bar_t).
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import sample_chain
from ..kernels.reverse_step.reference import EPS, NOISE, X
from .schedules import Schedule

NoiseFunction = Callable[[Tensor, int], Tensor]

_RHO = 7.0  # Karras et al. 2022, section 5: more of the steps where the noise is low


def solver_timesteps(schedule: Schedule, num_steps: int | None) -> Tensor:
    """Returns the timesteps nearest to Karras's spacing of the noise: int64 [S], T - 1 to 0.

    (sigma / alpha)^(1/7) is evenly spaced (Karras et al. 2022, equation 5). If the nearest
    timestep is already taken, the next noisier one is visited.

    Raises:
        ValueError: S is not in 1 ... T.
    """
    total, count = schedule.num_steps, schedule.steps_visited(num_steps)
    log_ratio = ((1 - schedule.alpha_bar) / schedule.alpha_bar).log() / 2  # of sigma to alpha
    first, last = (log_ratio[[-1, 0]] / _RHO).exp().tolist()
    wanted = _RHO * torch.linspace(first, last, count, dtype=torch.float64).log()
    nearest = (log_ratio - wanted[:, None]).abs().argmin(dim=1).flip(0)
    place = torch.arange(count)
    distinct = (nearest - place).cummax(0).values + place
    return torch.minimum(distinct, total - count + place).flip(0)


def dpm_solver_2m(
    noise: NoiseFunction, schedule: Schedule, steps: Tensor, x: Tensor
) -> Iterator[Tensor]:
    """Solves the ODE by DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): S evaluations for S steps.

    Args:
        noise: returns eps_hat of x at the i-th of the steps.
        schedule: the forward process.
        steps: decreasing timesteps, int64 [S]; after the last come alpha = 1 and sigma = 0.
        x: x_T, any shape.

    Yields:
        x after each step. The first and the last step are of first order.
    """
    alpha, sigma = _levels(schedule, steps)
    half_log_snr = [math.log(a / s) if s else math.inf for a, s in zip(alpha, sigma, strict=True)]
    before = x
    for i, last in enumerate(_last_flags(steps)):
        x_0 = (x - sigma[i] * noise(x, i)) / alpha[i]
        h = half_log_snr[i + 1] - half_log_snr[i]
        corrected = x_0
        if i and not last:
            r = (half_log_snr[i] - half_log_snr[i - 1]) / h
            corrected = x_0 + (x_0 - before) / (2 * r)
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * math.expm1(-h) * corrected
        before = x_0
        yield x


def heun(noise: NoiseFunction, schedule: Schedule, steps: Tensor, x: Tensor) -> Iterator[Tensor]:
    """Solves the ODE by Heun's method (Karras et al. 2022, algorithm 1): 2 S - 1 evaluations.

    In y = x / alpha and the noise level sigma / alpha the ODE is dy = eps_hat d(sigma / alpha).

    Args:
        noise: returns eps_hat of x at the i-th of the steps.
        schedule: the forward process.
        steps: decreasing timesteps, int64 [S]; after the last come alpha = 1 and sigma = 0.
        x: x_T, any shape.

    Yields:
        x after each step. The last step is Euler's.
    """
    alpha, sigma = _levels(schedule, steps)
    level = [s / a for a, s in zip(alpha, sigma, strict=True)]
    for i, last in enumerate(_last_flags(steps)):
        slope = noise(x, i)
        y, width = x / alpha[i], level[i + 1] - level[i]
        if not last:
            ahead = noise(alpha[i + 1] * (y + width * slope), i + 1)
            slope = (slope + ahead) / 2
        x = alpha[i + 1] * (y + width * slope)
        yield x


class Solver(NamedTuple):
    """A solver of the ODE. Add an entry to :data:`SOLVERS` to sample with it."""

    title: str  # in figures and reports
    order: int  # the error falls with this power of the number of steps
    solve: Callable[[NoiseFunction, Schedule, Tensor, Tensor], Iterator[Tensor]]
    evaluations: Callable[[int], int]  # number of evaluations of the denoiser in S steps


SOLVERS = {
    "dpm++2m": Solver("DPM-Solver++(2M)", 2, dpm_solver_2m, lambda steps: steps),
    "heun": Solver("Heun", 2, heun, lambda steps: 2 * steps - 1),
}


def solver_chain(method: str, schedule: Schedule, steps: Tensor) -> Callable:
    """Returns :func:`sample_chain` with a solver in place of the reverse steps.

    Args:
        method: one of ``SOLVERS``.
        schedule: the forward process.
        steps: timesteps, int64 [S], see :func:`solver_timesteps`.

    Returns:
        A function with the arguments and results of :func:`sample_chain`. It uses only the guidance
        of its table.
    """

    def chain(denoiser, x_T, table, time_features, *, keep_every=0, **options):
        # A step with these coefficients returns the guided noise prediction itself.
        table = table.clone()
        table[..., [X, EPS, NOISE]] = table.new_tensor([0.0, 1.0, 0.0])

        def noise(x: Tensor, i: int) -> Tensor:
            one = slice(i, i + 1)
            return sample_chain(denoiser, x, table[:, one], time_features[:, one], **options)[0]

        kept, x = [x_T], x_T
        for done, x in enumerate(SOLVERS[method].solve(noise, schedule, steps, x_T), 1):
            if keep_every and (done % keep_every == 0 or done == len(steps)):
                kept.append(x)
        return x, torch.stack(kept) if keep_every else x.new_empty((0, *x.shape))

    return chain


def _levels(schedule: Schedule, steps: Tensor) -> tuple[list[float], list[float]]:
    """Returns alpha and sigma, S + 1 numbers each: of the steps, and of the data."""
    alpha_bar = schedule.alpha_bar[steps]
    return [*alpha_bar.sqrt().tolist(), 1.0], [*(1 - alpha_bar).sqrt().tolist(), 0.0]


def _last_flags(steps: Tensor) -> list[bool]:
    return [False] * (len(steps) - 1) + [True]
