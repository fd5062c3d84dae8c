"""Quality against the number of reverse steps, where the exact answer is known.

For a mixture of Gaussians the best denoiser has a closed form, so that all error is the solver's
and none a network's. ``python -m flashpoint.diffusion.studies.few_steps FILE.png`` draws the figure
and prints its numbers.
"""

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import plots
from ..metrics.excess_loss import GaussianMixture, Target
from ..sampling import METHODS, reverse_table, timesteps
from ..schedules import Schedule
from ..solvers import SOLVERS, solver_timesteps

DETERMINISTIC = {
    name: title for name, title in METHODS.items() if name == "ddim" or name in SOLVERS
}
COUNTS = (5, 10, 20, 50, 100, 200)


class StepErrors(NamedTuple):
    """What :func:`step_errors` returns, for S numbers of steps."""

    evaluations: dict[str, list[int]]  # of the denoiser, by method, [S]
    errors: dict[str, list[float]]  # mean distance to the exact result, by method, [S]


def eight_gaussians() -> GaussianMixture:
    """Eight Gaussians of standard deviation 0.05 on a circle of radius 1.5."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = 1.5 * torch.stack((angle.cos(), angle.sin()), dim=1)
    covariance = 0.05**2 * torch.eye(2, dtype=torch.float64)
    return GaussianMixture(torch.ones(8), means, covariance.expand(8, 2, 2))


def solve(
    method: str, target: Target, schedule: Schedule, num_steps: int | None, x_T: Tensor
) -> Tensor:
    """x_0 [n, d] of x_T [n, d] by a deterministic method with the best denoiser there is.

    Args:
        method: ``ddim``, or one of ``SOLVERS``.
        target: the distribution of x_0.
        schedule: of the forward process.
        num_steps: how many timesteps are visited; None for all.
        x_T: where to start, float64.
    """
    steps = (timesteps if method == "ddim" else solver_timesteps)(schedule, num_steps)
    alpha_bar = schedule.alpha_bar[steps].tolist()

    def noise(x: Tensor, i: int) -> Tensor:
        return target.optimal_noise(x, alpha_bar[i])

    x = x_T
    if method == "ddim":
        for i, (c_x, c_eps, *_) in enumerate(reverse_table(schedule, steps, method="ddim")):
            x = c_x * x + c_eps * noise(x, i)
    else:
        *_, x = SOLVERS[method].solve(noise, schedule, steps, x)
    return x


def step_errors(
    target: Target,
    schedule: Schedule,
    counts: Sequence[int] = COUNTS,
    *,
    n: int = 1000,
    seed: int = 0,
) -> StepErrors:
    """How far each method with few steps ends from where all T steps of Heun's method end.

    Args:
        target: the distribution of x_0.
        schedule: of the forward process.
        counts: numbers of steps.
        n: number of points.
        seed: of x_T.
    """
    dim = target.draw(1, 0).shape[1]
    generator = torch.Generator().manual_seed(seed)
    x_T = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    exact = solve("heun", target, schedule, None, x_T)
    found = StepErrors({}, {})
    for method in DETERMINISTIC:
        ends = [solve(method, target, schedule, count, x_T) for count in counts]
        found.errors[method] = [(x - exact).norm(dim=1).mean().item() for x in ends]
        solver = SOLVERS.get(method)
        found.evaluations[method] = [solver.evaluations(s) if solver else s for s in counts]
    return found


def main(path: str) -> None:
    """Draws the figure for eight Gaussians and 500 timesteps, and prints the numbers as a table."""
    found = step_errors(eight_gaussians(), Schedule(500))
    curves = {
        name: (found.evaluations[method], found.errors[method])
        for method, name in DETERMINISTIC.items()
    }
    plots.against_evaluations(curves, save_to=path)
    print("| steps |", " | ".join(DETERMINISTIC.values()), "|")
    print("| --- |", " | ".join("---" for _ in DETERMINISTIC), "|")
    for row, count in enumerate(COUNTS):
        print(f"| {count} |", " | ".join(f"{found.errors[m][row]:.4f}" for m in DETERMINISTIC), "|")


if __name__ == "__main__":
    main(*sys.argv[1:])
