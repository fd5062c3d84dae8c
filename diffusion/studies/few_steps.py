"""Error of each sampler against the number of reverse steps, where the exact answer is known.

For a mixture of Gaussians the best denoiser has a closed form, so that no network adds an error to
that of the sampler; and an error can be added that is known. ``python -m
flashpoint.diffusion.studies.few_steps FILE.png`` draws the figure and prints the tables.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import plots
from ..metrics.distances import sliced_wasserstein
from ..metrics.excess_loss import GaussianMixture, Target
from ..metrics.table import markdown_table
from ..noise_levels import BETAS
from ..predictions import PREDICTIONS
from ..reverse_steps import levels_at, timesteps
from ..sampling import METHODS
from ..schedules import Schedule
from ..solvers import SOLVERS, chain_table, evaluations_of

DETERMINISTIC = {"ddim": METHODS["ddim"]} | {
    name: solver.title for name, solver in SOLVERS.items() if not solver.stochastic
}
_LEAST_DATA = 1e-12
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


def closed_curve() -> GaussianMixture:
    """Returns 40 Gaussians along a closed curve in 3-D, of standard deviation 0.8 in each axis."""
    u = torch.arange(40, dtype=torch.float64) * math.pi / 20
    curve = (u.sin() + (2 * u).sin() / 2, u.cos() - (2 * u).cos() / 2, (3 * u).sin())
    spread = 0.06
    means = torch.stack(curve, dim=1)
    means *= (0.8**2 - spread**2) ** 0.5 / means.std(dim=0, correction=0)
    covariance = spread**2 * torch.eye(3, dtype=torch.float64)
    return GaussianMixture(torch.ones(40), means, covariance.expand(40, 3, 3))


def smooth_error(x: Tensor, t: float) -> Tensor:
    """Returns an error of an output [n, d] as trained networks have: smooth, and large far away.

    Args:
        x: points x_t [n, d].
        t: timestep as a part of T.
    """
    phase = 6 * t + torch.arange(x.shape[1], dtype=x.dtype)
    return (1 + x.norm(dim=1, keepdim=True)) * (x.roll(1, dims=1) + phase).sin()


def best_output(target: Target, schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
    """Returns what the best denoiser predicts at x_t [n, d], float64 [n, d].

    Args:
        target: the distribution of x_0.
        schedule: the forward process, and what a denoiser predicts.
        x: points x_t, float64 [n, d].
        t: timestep, a number that may be a fraction, float64 [1].
    """
    signal, noise = levels_at(schedule, t)
    radius = torch.hypot(signal, noise)
    # Without any data left x_0 is its mean, which a share of 1e-12 does not change.
    alpha_bar = max((signal / radius).square().item(), _LEAST_DATA)
    x = x / radius
    eps = target.optimal_noise(x, alpha_bar)
    x_0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    p, q = PREDICTIONS[str(schedule.prediction)].coefficients(signal, noise, schedule.sigma_data)
    return p * x_0 + q * eps


def follow(
    table: Tensor, output: Callable[[Tensor, int], Tensor], x: Tensor, seed: int = 1
) -> Iterator[Tensor]:
    """Yields x after each row of a table, as :func:`~flashpoint.kernels.sample_chain` does it.

    Args:
        table: float64 [R, 4 or 7].
        output: the network's output [n, d] of x [n, d] and the row.
        x: the start of the chain, [n, d].
        seed: seed of the noise.
    """
    generator, memory = torch.Generator().manual_seed(seed), torch.zeros_like(x)
    for row, (of_x, of_output, of_z, _, *kept) in enumerate(table.tolist()):
        out, now = output(x, row), x
        x = of_x * now + of_output * out
        if of_z:
            x = x + of_z * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        if kept:
            x, memory = x + kept[0] * memory, kept[1] * now + kept[2] * out
        yield x


def solve(
    method: str,
    target: Target,
    schedule: Schedule,
    num_steps: int | None,
    x_T: Tensor,
    *,
    error: float = 0.0,
    steps: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Returns x_0 [n, d] that a method reaches with the best denoiser there is, or nearly.

    Args:
        method: one of ``METHODS``.
        target: the distribution of x_0.
        schedule: the forward process.
        num_steps: number of timesteps that are visited; None for all.
        x_T: the noise to start from, float64 [n, d].
        error: factor of :func:`smooth_error`, which is added to the best denoiser's output.
        steps: the timesteps themselves, int64 [S].
        options: those of :func:`.solvers.chain_table`.
    """
    if steps is None:
        steps = timesteps(schedule, num_steps, method=method)
    table, t = chain_table(schedule, steps, method=method, **options)

    def output(x: Tensor, row: int) -> Tensor:
        best = best_output(target, schedule, x, t[row : row + 1])
        return best + error * smooth_error(x, t[row].item() / schedule.num_steps)

    *_, x = follow(table, output, x_T)
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
        result.evaluations[method] = [evaluations_of(method, steps) for steps in counts]
    return result


def distances_by_schedule(
    counts: Sequence[int] = COUNTS[:4], *, n: int = 2000, error: float = 0.03
) -> dict[tuple[str, str], list[float]]:
    """Measures the sliced Wasserstein distance between samples and data on every schedule.

    The data are :func:`closed_curve`, T = 500 and beta from 1e-4 to 0.02.

    Args:
        counts: numbers of steps.
        n: number of samples.
        error: factor of :func:`smooth_error` in the denoiser.

    Returns:
        The distances, by schedule and method, one for each number of steps.
    """
    target, generator = closed_curve(), torch.Generator().manual_seed(0)
    data, x_T = target.draw(n, 0), torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return {
        (name, method): [
            sliced_wasserstein(
                solve(method, target, Schedule(500, name), count, x_T, error=error), data
            )
            for count in counts
        ]
        for name in BETAS
        for method in METHODS
    }


def main(path: str) -> None:
    """Draws the figure for eight Gaussians and 500 timesteps, and prints the tables."""
    result = step_errors(eight_gaussians(), Schedule(500))
    curves = {
        name: (result.evaluations[method], result.errors[method])
        for method, name in DETERMINISTIC.items()
    }
    plots.against_evaluations({"mean distance to the exact result": curves}, save_to=path)
    rows = [
        [str(count), *(f"{result.errors[method][row]:.4f}" for method in DETERMINISTIC)]
        for row, count in enumerate(COUNTS)
    ]
    print(markdown_table(["steps", *DETERMINISTIC.values()], rows))
    rows = [
        [name, METHODS[method], *(f"{distance:.3f}" for distance in distances)]
        for (name, method), distances in distances_by_schedule().items()
    ]
    print()
    print(markdown_table(["schedule", "method", *(f"{c} steps" for c in COUNTS[:4])], rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
