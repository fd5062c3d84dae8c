"""Error of each sampler against the number of reverse steps, where the exact answer is known.

For a mixture of Gaussians the best denoiser has a closed form, so that no network adds an error to
that of the sampler. ``python -m flashpoint.diffusion.studies.few_steps FILE.png`` draws the figure
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
from ..metrics.table import markdown_table
from ..reverse_steps import reverse_table, timesteps
from ..sampling import METHODS
from ..schedules import Schedule
from ..solvers import SOLVERS, solver_timesteps

DETERMINISTIC = {
    name: title for name, title in METHODS.items() if name == "ddim" or name in SOLVERS
}
COUNTS = (5, 10, 20, 50, 100, 200)


class StepErrors(NamedTuple):
    """The result of :func:`step_errors`, for S numbers of steps."""

    evaluations: dict[str, list[int]]  # evaluations of the denoiser, [S], by method
    errors: dict[str, list[float]]  # mean distance to the exact result, [S], by method


def eight_gaussians() -> GaussianMixture:
    """Returns eight Gaussians of standard deviation 0.05 on a circle of radius 1.5."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = 1.5 * torch.stack((angle.cos(), angle.sin()), dim=1)
    covariance = 0.05**2 * torch.eye(2, dtype=torch.float64)
    return GaussianMixture(torch.ones(8), means, covariance.expand(8, 2, 2))


def solve(
    method: str, target: Target, schedule: Schedule, num_steps: int | None, x_T: Tensor
) -> Tensor:
    """Returns x_0 [n, d] that a deterministic method reaches with the best denoiser there is.

    Args:
        method: ``ddim``, or one of ``SOLVERS``.
        target: the distribution of x_0.
        schedule: the forward process.
        num_steps: number of timesteps that are visited; None for all.
        x_T: the noise to start from, float64 [n, d].
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
    """Measures the distance between a method's result and that of all T steps of Heun's method.

    Args:
        target: the distribution of x_0.
        schedule: the forward process.
        counts: numbers of steps.
        n: number of points.
        seed: seed of x_T.
    """
    dim = target.draw(1, 0).shape[1]
    generator = torch.Generator().manual_seed(seed)
    x_T = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    exact = solve("heun", target, schedule, None, x_T)
    result = StepErrors({}, {})
    for method in DETERMINISTIC:
        ends = [solve(method, target, schedule, count, x_T) for count in counts]
        result.errors[method] = [(x - exact).norm(dim=1).mean().item() for x in ends]
        solver = SOLVERS.get(method)
        result.evaluations[method] = [solver.evaluations(s) if solver else s for s in counts]
    return result


def main(path: str) -> None:
    """Draws the figure for eight Gaussians and 500 timesteps, and prints the numbers as a table."""
    result = step_errors(eight_gaussians(), Schedule(500))
    curves = {
        name: (result.evaluations[method], result.errors[method])
        for method, name in DETERMINISTIC.items()
    }
    plots.against_evaluations(curves, save_to=path)
    rows = [
        [str(count), *(f"{result.errors[method][row]:.4f}" for method in DETERMINISTIC)]
        for row, count in enumerate(COUNTS)
    ]
    print(markdown_table(["steps", *DETERMINISTIC.values()], rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
