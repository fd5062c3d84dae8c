"""Trains each parametrisation on a mixture whose best denoiser is known.

    python -m flashpoint.bench parametrisations [--seeds 3] [--record FOLDER]

The networks of a seed train in the same launches, each for as many steps. Their errors are brought
into one unit, that of the noise: E|eps_hat - eps*|^2, at timesteps evenly spread over a network's
own schedule, and at noise levels sigma = noise / signal that all schedules have. Samples of each
are compared with real data.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import NamedTuple, cast

import click
import torch
from torch import Tensor

from ..diffusion import (
    RECIPES,
    GaussianMixture,
    ManyTrainer,
    Points,
    Recipe,
    SampleConfig,
    Schedule,
    Task,
    evaluate,
    excess_loss,
    sample_many,
)  # fmt: skip
from ..diffusion.metrics.table import markdown_table
from ..diffusion.progress import Progress
from ..kernels.philox import child_seed
from .battery import five_gaussians
from .machine import free_device
from .options import count_option
from .record import Record, record_option

RECIPE = replace(cast(Recipe, RECIPES["small"][0]), batch_size=512)
LIMIT = 1.5  # times the error of a network that predicts eps
# Noise levels that all schedules have, evenly spaced in the logarithm.
SIGMAS = torch.linspace(math.log(0.0125), math.log(12), 30, dtype=torch.float64).exp()
_SMALL = Recipe(steps=6, hidden_layers=(16,), batch_size=32)
_TRAINED_ON = 50_000  # points; samples are compared with other ones
_POINTS, _OTHER_POINTS, _TRAINING, _SAMPLING = range(4)  # streams of random numbers


class Parametrisation(NamedTuple):
    """A schedule and a recipe, and the name of the one that predicts eps to compare with."""

    schedule: Schedule
    recipe: Recipe
    same: str  # of the same schedule, or of the linear one


def parametrisations(recipe: Recipe, steps: int = 500) -> dict[str, Parametrisation]:
    """Returns all that are compared, by name."""
    linear, cosine = Schedule(steps), Schedule(steps, "cosine")
    flow, edm = Schedule(steps, "flow"), Schedule(steps, "edm")
    no_data_left = Schedule(steps, zero_terminal_snr=True, prediction="v")
    x0 = linear.predicting("x0")
    min_snr = replace(recipe, weighting="min-snr")
    in_the_middle = replace(recipe, t_density="logit-normal")
    as_published = replace(recipe, low_noise=0.0, t_density="log-normal")
    return {
        "eps, linear": Parametrisation(linear, recipe, "eps, linear"),
        "v, linear": Parametrisation(linear.predicting("v"), recipe, "eps, linear"),
        "v, linear to no data": Parametrisation(no_data_left, recipe, "eps, linear"),
        "x0, linear": Parametrisation(x0, recipe, "eps, linear"),
        "x0, linear, min-SNR weights": Parametrisation(x0, min_snr, "eps, linear"),
        "eps, cosine": Parametrisation(cosine, recipe, "eps, cosine"),
        "v, cosine": Parametrisation(cosine.predicting("v"), recipe, "eps, cosine"),
        "flow": Parametrisation(flow, recipe, "eps, linear"),
        "flow, logit-normal t": Parametrisation(flow, in_the_middle, "eps, linear"),
        "edm, log-normal sigma": Parametrisation(edm, as_published, "eps, linear"),
    }


def standardised_gaussians() -> GaussianMixture:
    """Returns the five Gaussians scaled to mean 0 and standard deviation 1 per axis."""
    mixture = five_gaussians()
    weights = mixture.weights / mixture.weights.sum()
    centred = mixture.means - weights @ mixture.means
    second = mixture.covariances + centred[:, :, None] * centred[:, None]  # [K, 2, 2]
    std = torch.einsum("k,kij->ij", weights, second).diagonal().sqrt()
    return GaussianMixture(weights, centred / std, mixture.covariances / (std[:, None] * std))


def points_of(target: GaussianMixture, n: int, seed: int) -> Points:
    """Returns n points of a mixture, labelled by the component that most likely made them."""
    components = torch.distributions.MultivariateNormal(target.means, target.covariances)

    def redraw(n: int, seed: int, label: int | None = None) -> tuple[Tensor, Tensor]:
        assert label is None
        x = target.draw(n, seed)
        log_p = components.log_prob(x[:, None].to(target.means)) + target.weights.log()  # [n, K]
        return x.float(), log_p.argmax(dim=1)

    return Points(*redraw(n, seed), name="five Gaussians", redraw=redraw)


def steps_at(schedule: Schedule, sigmas: Tensor) -> list[int]:
    """Returns the timesteps whose noise levels are the nearest, in the logarithm."""
    log_sigma = schedule.sigma.log()
    return [int((log_sigma - sigma).abs().argmin()) for sigma in sigmas.log().tolist()]


@dataclass(frozen=True)
class Result:
    """The measurement of one network.

    Attributes:
        name: name of the parametrisation.
        seed: seed of the training and of the samples.
        even: mean excess loss at evenly spread timesteps.
        common: mean excess loss at the noise levels :data:`SIGMAS`.
        by_sigma: the excess loss at each of them.
        outside: metrics whose value of the samples is not in the 99% band of real draws.
        metrics: number of metrics.
    """

    name: str
    seed: int
    even: float
    common: float
    by_sigma: list[float]
    outside: list[str]
    metrics: int


def results(
    seed: int,
    recipe: Recipe,
    device: torch.device,
    *,
    n: int = 1000,
    compared_with: int = 5000,
    real_draws: int = 20,
) -> Iterator[Result]:
    """Trains all parametrisations with one seed, together, then yields what is measured.

    Args:
        seed: seed of everything random but the data.
        recipe: recipe of all networks, but for what distinguishes them.
        device: device of training and sampling.
        n: number of samples, and of noisy points at each timestep.
        compared_with: number of points that samples are compared with.
        real_draws: number of real draws behind the bands.
    """
    target = standardised_gaussians()
    points = points_of(target, _TRAINED_ON, _POINTS)
    others = points_of(target, compared_with, _OTHER_POINTS)
    entries = parametrisations(recipe)
    tasks = [
        Task(points, entry.schedule, entry.recipe, seed=child_seed(seed, _TRAINING))
        for entry in entries.values()
    ]
    trainer = ManyTrainer(tasks, device=device)
    with Progress(f"train, seed {seed}", trainer.total_steps, "steps") as progress:
        trainer.run(trainer.total_steps, progress.to)
    models = trainer.models()
    configs = [
        SampleConfig(model, task.schedule, child_seed(seed, _SAMPLING))
        for model, task in zip(models, tasks, strict=True)
    ]
    with Progress(f"sample, seed {seed}", n * len(configs), "samples") as progress:
        samples = sample_many(configs, n, device=device, progress=progress.to)
    with Progress(f"measure, seed {seed}", len(models), "networks") as progress:
        for place, (name, task, model) in enumerate(zip(entries, tasks, models, strict=True)):
            levels = steps_at(task.schedule, SIGMAS)
            by_sigma = excess_loss(model, task.schedule, target, steps=levels, n=n).tolist()
            by_t = excess_loss(model, task.schedule, target, n=n)
            scores = evaluate(samples[place].x.cpu(), others, repeats=real_draws, full=True)
            scores = scores.scores | scores.battery
            yield Result(
                name, seed, by_t.mean().item(), mean(by_sigma), by_sigma,
                [key for key, score in scores.items() if score.passed is False],
                len(scores),
            )  # fmt: skip
            progress.to(place + 1)


def table(found: Sequence[Result]) -> str:
    """Returns the means over seeds in Markdown, a row for each parametrisation."""
    rows, by_name = [], {}
    for result in found:
        by_name.setdefault(result.name, []).append(result)
    same = {name: entry.same for name, entry in parametrisations(_SMALL).items()}

    def ratio(name: str, other: str, kind: str) -> str:
        own, eps = (mean(getattr(one, kind) for one in by_name[key]) for key in (name, other))
        return f"{own:.5f} ({own / eps:.2f})" + ("" if own <= LIMIT * eps else " ✗")

    for name, own in by_name.items():
        outside = ", ".join(str(len(result.outside)) for result in own)
        rows.append([
            name, ratio(name, same[name], "even"), ratio(name, same[name], "common"),
            f"{outside} of {own[0].metrics}",
        ])  # fmt: skip
    header = [
        "parametrisation", "excess loss, even in t (times eps')", "even in log sigma (times eps')",
        "metrics outside the band, by seed",
    ]  # fmt: skip
    return markdown_table(header, rows)


@click.command()
@count_option("--seeds", 3, "Networks of each parametrisation.")
@click.option("--small", is_flag=True, help="Toy networks, to test the command.")
@click.option("--device", default=None, help="cpu, cuda or cuda:N. Default: the best.")
@click.option("--busy", is_flag=True, help="Measure although another process uses the GPU.")
@record_option
def main(seeds: int, small: bool, device: str | None, busy: bool, folder: Path | None) -> None:
    """Measure how well each parametrisation trains, where the best denoiser is known."""
    record, found = Record(folder), []
    chosen = free_device(device, busy)
    recipe = _SMALL if small else RECIPE
    for seed in range(seeds):
        options = {"n": 50, "compared_with": 200, "real_draws": 2} if small else {}
        found += results(seed, recipe, chosen, **options)
        record.put(
            "parametrisations", recipe=asdict(recipe), sigmas=SIGMAS.tolist(),
            results=[asdict(result) for result in found],
        )  # fmt: skip
    click.echo(table(found))
