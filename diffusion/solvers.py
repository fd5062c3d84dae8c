"""Few reverse steps: solvers of the probability-flow ODE (Song et al. 2021), and EDM's sampler.

They need 10 to 50 steps where DDPM needs all T. All are linear in x, in the x0_hat and eps_hat that
the network predicts at x, guided or not, in a combination m of both that is remembered, and in z.
So each is a table with a row for every evaluation of the network, and all steps run in one launch::

    x_prev = x * x_t + x0 * x0_hat + eps * eps_hat + memory * m + noise * z
    m      = memory_x0 * x0_hat + memory_eps * eps_hat

x0_hat and eps_hat follow from what the network predicts, so that every solver runs for every
parametrisation. The forward process is x_t = signal x_0 + noise eps, sigma = noise / signal.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .reverse_steps import (
    STEPS,
    GuidanceScale,
    guide_of,
    levels_at,
    levels_of,
    of_output,
    reverse_table,
    timestep_of,
)
from .schedules import Schedule


class Churn(NamedTuple):
    """How much noise EDM's sampler adds in each of S steps (Karras et al. 2022, algorithm 2)."""

    s_churn: float = 5.0  # raises sigma by the factor 1 + min(s_churn / S, sqrt(2) - 1)
    s_tmin: float = 0.0  # lowest and
    s_tmax: float = math.inf  # highest sigma that is raised
    s_noise: float = 1.0  # standard deviation of the noise


class Row(NamedTuple):
    """One evaluation of the network, and what becomes of it."""

    t: float  # timestep of the evaluation, maybe a fraction
    x: float = 0.0
    x0: float = 0.0
    eps: float = 0.0
    noise: float = 0.0
    memory: float = 0.0
    memory_x0: float = 0.0
    memory_eps: float = 0.0


def euler(schedule: Schedule, steps: Tensor, churn: Churn) -> list[Row]:  # noqa: ARG001
    """Returns the rows of Euler's method in x / signal and sigma: DDIM's deterministic step.

    Args:
        schedule: the forward process.
        steps: decreasing timesteps, int64 [S]; after the last come signal = 1 and noise = 0.
        churn: no noise is added.
    """
    levels = levels_of(schedule, steps)
    columns = (each.tolist() for each in (steps, levels.signal_prev, levels.noise_prev))
    return [Row(t, x0=signal, eps=noise) for t, signal, noise in zip(*columns, strict=True)]


def dpm_solver_2m(schedule: Schedule, steps: Tensor, churn: Churn) -> list[Row]:  # noqa: ARG001
    """Returns the rows of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), one for each step.

    A step of h in log(signal / noise), after a step of r h that remembered its x0_hat as m, is::

        x_prev = noise_prev / noise x_t + signal_prev (1 - e^-h) (x0_hat + (x0_hat - m) / (2 r))

    The first and the last step are of first order, without the difference. So is the second where
    the chain starts without any data, from where h is infinite.

    Args:
        schedule: the forward process.
        steps: decreasing timesteps, int64 [S]; after the last come signal = 1 and noise = 0.
        churn: no noise is added.
    """
    _, noise, signal_prev, noise_prev = map(Tensor.tolist, levels_of(schedule, steps))
    log_snr = [-sigma.log().item() for sigma in (*schedule.sigma[steps], torch.tensor(0.0))]
    rows = []
    for i, t in enumerate(steps.tolist()):
        h, share = log_snr[i + 1] - log_snr[i], 0.0
        if 0 < i < len(steps) - 1:
            share = h / (2 * (log_snr[i] - log_snr[i - 1]))  # 1 / (2 r)
        new = -signal_prev[i] * math.expm1(-h)
        x0 = new * (1 + share)
        rows.append(Row(t, noise_prev[i] / noise[i], x0, memory=-new * share, memory_x0=1.0))
    return rows


def heun(schedule: Schedule, steps: Tensor, churn: Churn) -> list[Row]:
    """Returns the rows of Heun's method (Karras et al. 2022, algorithm 1): 2 S - 1 for S steps.

    In y = x / signal and sigma the ODE is dy = eps_hat dsigma. The first row of a step is Euler's
    and remembers its slope eps_hat; the second replaces the slope by the mean of both ends. The
    last step is Euler's alone. Steps of ``flow``, and one from where no data is left and sigma is
    infinite, are in y = x / (signal + noise) and tau = noise / (signal + noise), of slope
    eps_hat - x0_hat: for ``flow`` these are x, t and the velocity.

    Args:
        schedule: the forward process.
        steps: decreasing timesteps, int64 [S]; after the last come signal = 1 and noise = 0.
        churn: no noise is added.
    """
    return edm(schedule, steps, churn._replace(s_churn=0.0))


def edm(schedule: Schedule, steps: Tensor, churn: Churn) -> list[Row]:
    """Returns the rows of EDM's stochastic sampler (Karras et al. 2022, algorithm 2): 2 S - 1.

    It is Heun's method, but each step first adds noise to y = x / signal, which raises sigma by a
    factor of up to sqrt(2); the last row of the step before does that. The network sees the
    timestep of the raised sigma, a fraction. No sigma is raised above that where the chain starts,
    which holds nothing but noise already, so that the first step is Heun's.

    Args:
        schedule: the forward process.
        steps: decreasing timesteps, int64 [S]; after the last come signal = 1 and noise = 0.
        churn: the noise.
    """
    raised = _raised(schedule, steps, churn)  # [S]
    starts = torch.stack((raised, *levels_at(schedule, raised)), dim=1).tolist()  # [S, 3]
    ends = torch.stack(levels_of(schedule, steps)[2:], dim=1).tolist()  # [S, 2]
    rows = []
    for i, (t, signal, noise) in enumerate(starts):
        signal_prev, noise_prev = ends[i]
        straight = schedule.name == "flow" or signal == 0
        before, after = signal, signal_prev  # what x is divided by
        if straight:
            before, after = signal + noise, signal_prev + noise_prev
        width = after * (noise_prev / after - noise / before)
        x0, memory_x0 = (-width, -1.0) if straight else (0.0, 0.0)
        rows.append(Row(t, after / before, x0, width, memory_x0=memory_x0, memory_eps=1.0))
        if i + 1 == len(steps):
            break
        second = Row(int(steps[i + 1]), 1.0, x0 / 2, width / 2, memory=-width / 2)
        rows.append(_with_noise(second, starts[i + 1], (signal_prev, noise_prev), churn.s_noise))
    return rows


def _raised(schedule: Schedule, steps: Tensor, churn: Churn) -> Tensor:
    """Returns the timesteps of the raised noise levels of steps int64 [S], float64 [S]."""
    sigma, up_to_start = schedule.sigma[steps], schedule.sigma[: int(steps[0]) + 1]
    factor = 1 + min(churn.s_churn / len(steps), math.sqrt(2) - 1)
    most = up_to_start.masked_fill(up_to_start.isinf(), 0.0).max()
    level = (sigma * factor).minimum(most)
    rises = (level > sigma) & (sigma >= churn.s_tmin) & (sigma <= churn.s_tmax)
    raised = steps.double()
    raised[rises] = timestep_of(schedule, level[rises])
    return raised


def _with_noise(row: Row, to: list[float], level: tuple[float, float], s_noise: float) -> Row:
    """Returns a row that also raises x from a level, of signal and noise, to that of a timestep."""
    t, signal, noise = to
    if t == row.t:
        return row
    scale = signal / level[0]
    added = signal * math.sqrt((noise / signal) ** 2 - (level[1] / level[0]) ** 2)
    scaled = {name: scale * getattr(row, name) for name in ("x", "x0", "eps", "memory")}
    return row._replace(**scaled, noise=s_noise * added)


class Solver(NamedTuple):
    """A method with few steps. Add an entry to :data:`SOLVERS` to sample with it."""

    title: str  # in figures and reports
    order: int  # the error falls with this power of the number of steps
    rows: Callable[[Schedule, Tensor, Churn], list[Row]]
    rows_per_step: int  # the last step may have fewer
    stochastic: bool = False

    def evaluations(self, steps: int) -> int:
        """Returns the number of evaluations of the denoiser in S steps."""
        return self.rows_per_step * (steps - 1) + 1


SOLVERS = {
    "euler": Solver("Euler", 1, euler, rows_per_step=1),
    "dpm++2m": Solver("DPM-Solver++(2M)", 2, dpm_solver_2m, rows_per_step=1),
    "heun": Solver("Heun", 2, heun, rows_per_step=2),
    "edm": Solver("EDM, stochastic", 2, edm, rows_per_step=2, stochastic=True),
}


def evaluations_of(method: str, steps: int) -> int:
    """Returns how often a method evaluates the denoiser in S steps.

    Args:
        method: one of :data:`~flashpoint.diffusion.sampling.METHODS`.
        steps: S.
    """
    return SOLVERS[method].evaluations(steps) if method in SOLVERS else steps


def chain_table(
    schedule: Schedule,
    steps: Tensor,
    *,
    method: str = "ddpm",
    churn: Churn | None = None,
    scale: GuidanceScale = 0.0,
    classifier_free: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Returns the table of :func:`sample_chain` for a method, and the timesteps of its rows.

    Args:
        schedule: the forward process.
        steps: decreasing timesteps, int64 [S].
        method: one of :data:`~flashpoint.diffusion.sampling.METHODS`.
        churn: noise of EDM's sampler; None takes the defaults.
        scale, classifier_free: guidance, see :func:`reverse_table`.
        options: those of :func:`reverse_table` for DDPM and DDIM.

    Returns:
        The table, float64 [R, 4] of DDPM and DDIM, [R, 7] of a solver; and the timesteps at which
        rows evaluate the network, float64 [R], maybe fractions.
    """
    if method in STEPS:
        options |= {"scale": scale, "classifier_free": classifier_free}
        return reverse_table(schedule, steps, method=method, **options), steps.double()
    rows = SOLVERS[method].rows(schedule, steps, churn or Churn())
    t, x, x0, eps, noise, memory, *kept = torch.tensor(rows, dtype=torch.float64).unbind(dim=1)
    of_x, of_outputs = of_output(schedule, t, x0, eps)
    guide = guide_of(schedule, t, scale, classifier_free=classifier_free)
    remembered = of_output(schedule, t, *kept)
    return torch.stack((x + of_x, of_outputs, noise, guide, memory, *remembered), dim=1), t
