"""Fewer reverse steps: second-order solvers of the probability-flow ODE (Song et al. 2021).

They are deterministic and need 10 to 50 steps where DDPM needs all T. All are linear in x, in the
noise eps_hat predicted at x, guided or not, and in a combination m of both that is remembered. So
each is a table with a row for every evaluation of the denoiser, and all steps run in one launch::

    x_prev = x * x_t + eps * eps_hat + memory * m
    m      = memory_x * x_t + memory_eps * eps_hat

The forward process is x_t = alpha x_0 + sigma eps, with
alpha = sqrt(alpha_bar_t) and sigma = sqrt(1 - alpha_bar_t).
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .schedules import Schedule

NoiseFunction = Callable[[Tensor, int], Tensor]

_RHO = 7.0  # Karras et al. 2022, section 5: more of the steps where the noise is low


def solver_timesteps(
    schedule: Schedule, num_steps: int | None, *, start: int | None = None
) -> Tensor:
    """Returns the timesteps nearest to Karras's spacing of the noise: int64 [S], down to 0.

    (sigma / alpha)^(1/7) is evenly spaced (Karras et al. 2022, equation 5). If the nearest
    timestep is already taken, the next noisier one is visited.

    Args:
        schedule: the forward process.
        num_steps: S; None for all that hold some of the data.
        start: the first timestep; None takes that of :meth:`Schedule.start_of`.

    Raises:
        ValueError: S is not in 1 ... T, or ``start`` is no timestep.
    """
    first_step, count = schedule.start_of(num_steps, start=start)
    total = first_step + 1
    alpha_bar = schedule.alpha_bar[:total]
    log_ratio = ((1 - alpha_bar) / alpha_bar).log() / 2  # of sigma to alpha
    first, last = (log_ratio[[-1, 0]] / _RHO).exp().tolist()
    wanted = _RHO * torch.linspace(first, last, count, dtype=torch.float64).log()
    nearest = (log_ratio - wanted[:, None]).abs().argmin(dim=1).flip(0)
    place = torch.arange(count)
    distinct = (nearest - place).cummax(0).values + place
    return torch.minimum(distinct, total - count + place).flip(0)


class Row(NamedTuple):
    """One evaluation of the denoiser, and what becomes of it."""

    place: int  # of the timestep among those visited
    x: float
    eps: float
    memory: float = 0.0
    memory_x: float = 0.0
    memory_eps: float = 0.0


def dpm_solver_2m(schedule: Schedule, steps: Tensor) -> list[Row]:
    """Returns the rows of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), one for each step.

    With x_0 = (x_t - sigma eps_hat) / alpha, which each row remembers, a step of h in half the
    logarithm of the signal-to-noise ratio, after a step of r h, is::

        x_prev = sigma_prev / sigma x_t + alpha_prev (1 - e^-h) (x_0 + (x_0 - m) / (2 r))

    The first and the last step are of first order, without the difference.

    Args:
        schedule: the forward process.
        steps: decreasing timesteps, int64 [S]; after the last come alpha = 1 and sigma = 0.
    """
    alpha, sigma = _levels(schedule, steps)
    half_log_snr = [math.log(a / s) if s else math.inf for a, s in zip(alpha, sigma, strict=True)]
    rows = []
    for i in range(len(steps)):
        h, share = half_log_snr[i + 1] - half_log_snr[i], 0.0
        if 0 < i < len(steps) - 1:
            share = h / (2 * (half_log_snr[i] - half_log_snr[i - 1]))  # 1 / (2 r)
        new = -alpha[i + 1] * math.expm1(-h)
        x, eps = 1 / alpha[i], -sigma[i] / alpha[i]
        row = Row(
            i,
            x=sigma[i + 1] / sigma[i] + new * (1 + share) * x,
            eps=new * (1 + share) * eps,
            memory=-new * share,
            memory_x=x,
            memory_eps=eps,
        )
        rows.append(row)
    return rows


def heun(schedule: Schedule, steps: Tensor) -> list[Row]:
    """Returns the rows of Heun's method (Karras et al. 2022, algorithm 1): 2 S - 1 for S steps.

    In y = x / alpha and the noise level sigma / alpha the ODE is dy = eps_hat d(sigma / alpha). The
    first row of a step is Euler's and remembers its slope eps_hat; the second replaces the slope by
    the mean of both ends. The last step is Euler's alone.

    Args:
        schedule: the forward process.
        steps: decreasing timesteps, int64 [S]; after the last come alpha = 1 and sigma = 0.
    """
    alpha, sigma = _levels(schedule, steps)
    level = [s / a for a, s in zip(alpha, sigma, strict=True)]
    rows = []
    for i in range(len(steps)):
        width = alpha[i + 1] * (level[i + 1] - level[i])
        rows.append(Row(i, x=alpha[i + 1] / alpha[i], eps=width, memory_eps=1.0))
        if i + 1 < len(steps):
            rows.append(Row(i + 1, x=1.0, eps=width / 2, memory=-width / 2))
    return rows


class Solver(NamedTuple):
    """A solver of the ODE. Add an entry to :data:`SOLVERS` to sample with it."""

    title: str  # in figures and reports
    order: int  # the error falls with this power of the number of steps
    rows: Callable[[Schedule, Tensor], list[Row]]
    rows_per_step: int  # the last step may have fewer

    def evaluations(self, steps: int) -> int:
        """Returns the number of evaluations of the denoiser in S steps."""
        return self.rows_per_step * (steps - 1) + 1

    def table(self, schedule: Schedule, steps: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the table of :func:`sample_chain`, and the place of each row's timestep.

        Args:
            schedule: the forward process.
            steps: decreasing timesteps, int64 [S].
            guide: guidance scale at each of them, float64 [S].
        """
        rows = torch.tensor(self.rows(schedule, steps), dtype=torch.float64)  # [R, 6]
        place = rows[:, 0].long()
        x, eps, *memory = rows[:, 1:].unbind(dim=1)
        return torch.stack((x, eps, torch.zeros_like(x), guide[place], *memory), dim=1), place

    def solve(
        self, noise: NoiseFunction, schedule: Schedule, steps: Tensor, x: Tensor
    ) -> Iterator[Tensor]:
        """Yields x after each step from x_T on, of any shape; ``noise`` predicts eps_hat."""
        memory, rows = torch.zeros_like(x), self.rows(schedule, steps)
        for done, row in enumerate(rows, 1):
            eps = noise(x, row.place)
            now, x = x, row.x * x + row.eps * eps + row.memory * memory
            memory = row.memory_x * now + row.memory_eps * eps
            if done % self.rows_per_step == 0 or done == len(rows):
                yield x


SOLVERS = {
    "dpm++2m": Solver("DPM-Solver++(2M)", 2, dpm_solver_2m, rows_per_step=1),
    "heun": Solver("Heun", 2, heun, rows_per_step=2),
}


def _levels(schedule: Schedule, steps: Tensor) -> tuple[list[float], list[float]]:
    """Returns alpha and sigma, S + 1 numbers each: of the steps, and of the data."""
    return [*schedule.signal[steps].tolist(), 1.0], [*schedule.noise[steps].tolist(), 0.0]
