"""Is the reference backend as fast as a loop somebody would write by hand?

    python -m flashpoint.bench.throughput [--device cpu] [--rounds 30]

Ours and a minimal PyTorch loop (same network and batch, fused AdamW, EMA, ``torch.randn`` noise) do
the same work in turn, A B B A, and the median of the paired ratios counts. Before anything is
timed, both must give the same loss and the same samples for the same numbers.
"""

import time
from collections.abc import Callable

import click
import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor
from torch.nn import functional as F

from ..diffusion import MLP, Recipe, Schedule, Trainer, sample, states_points
from ..diffusion.device import choose_device
from ..diffusion.sampling import reverse_table, timesteps
from ..kernels import train_step
from ..kernels.philox import seed_tensor
from ..kernels.q_sample.reference import draw_fresh, gather_points

ROWS_TRAIN, ROWS_SAMPLE = 2048, 5000
STEPS_TRAIN, STEPS_SAMPLE = 10, 50  # in one round


class MinimalTraining:
    """The training loop of a tutorial, on the best of plain PyTorch."""

    def __init__(self, data: Tensor, schedule: Schedule, model: MLP, recipe: Recipe):
        self.data, self.model, self.recipe = data, model, recipe
        self.alpha_bar = schedule.alpha_bar.float().to(data.device)
        self.feature = schedule.time_features.float().to(data.device)
        self.ema = [parameter.detach().clone() for parameter in model.parameters()]
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, fused=True)

    def loss(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        a = self.alpha_bar[t, None]
        x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
        return F.mse_loss(self.model(torch.cat((x_t, self.feature[t]), dim=1)), eps)

    def step(self) -> None:
        device = self.data.device
        index = torch.randint(len(self.data), (ROWS_TRAIN,), device=device)
        t = torch.randint(len(self.alpha_bar), (ROWS_TRAIN,), device=device)
        eps = torch.randn(ROWS_TRAIN, 2, device=device)
        self.optimizer.zero_grad()
        self.loss(self.data[index], t, eps).backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, list(self.model.parameters()), 1 - self.recipe.ema_decay)


@torch.no_grad()
def minimal_sampling(
    model: MLP, schedule: Schedule, x: Tensor, num_steps: int, method: str = "ddpm"
) -> Tensor:
    """The sampling loop of a tutorial."""
    steps = timesteps(schedule, num_steps)
    table = reverse_table(schedule, steps, method=method).float().to(x.device)
    features = schedule.time_features[steps].float().to(x.device)
    for (c_x, c_eps, c_z, _), feature in zip(table, features, strict=True):
        eps = model(torch.cat((x, feature.expand(len(x), 1)), dim=1))
        x = c_x * x + c_eps * eps
        if method == "ddpm":
            x = x + c_z * torch.randn_like(x)
    return x


def paired_ratio(
    ours: Callable[[], None], theirs: Callable[[], None], rounds: int, device: torch.device
) -> tuple[float, float, float, float]:
    """Median seconds of ours, median of ours / theirs, and its 95% interval; A B B A."""

    def seconds(work: Callable[[], None]) -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for work in (ours, theirs):
        seconds(work)
    times = np.array([
        (seconds(ours), seconds(theirs))
        if number % 2 == 0
        else (seconds(theirs), seconds(ours))[::-1]
        for number in range(rounds)
    ])  # fmt: skip
    ratios = times[:, 0] / times[:, 1]
    interval = bootstrap((ratios,), np.median, rng=0).confidence_interval
    return np.median(times[:, 0]), np.median(ratios), interval.low, interval.high


def check_training(trainer: Trainer, minimal: MinimalTraining) -> None:
    """Both must see the same loss for the same rows.

    Raises:
        SystemExit: they do not, so no speed is worth printing.
    """
    data, seed = trainer.data, seed_tensor(trainer.seed, trainer.device)
    rows = torch.arange(ROWS_TRAIN, device=trainer.device)
    draw = draw_fresh(seed, 0, rows, data.n_points, data.t_table, 2)
    x_0 = gather_points(data.points, draw.index)[0]
    with torch.no_grad():
        want = minimal.loss(x_0, draw.t[0], draw.eps[0])
        got, _ = train_step(trainer.parameters, trainer.shape, data, batch_size=ROWS_TRAIN,
                            seed=seed, step=0)  # fmt: skip
    if not torch.allclose(got[0], want, rtol=1e-4):
        raise SystemExit(f"incorrect: loss {got[0]:.6f}, the minimal loop's {want:.6f}; not timed")


def check_sampling(model: MLP, schedule: Schedule, device: torch.device) -> None:
    """Both must take the same noiseless path from the same noise.

    Raises:
        SystemExit: they do not.
    """
    x_T = torch.randn(100, 2, device=device)
    got = sample(model, schedule, 100, method="ddim", num_steps=20, x_T=x_T, device=device).x
    want = minimal_sampling(model, schedule, x_T, 20, method="ddim")
    if not torch.allclose(got, want, atol=1e-3):
        raise SystemExit("incorrect: samples differ from the minimal loop's; not timed")


@click.command()
@click.option("--device", default=None, help="cpu, cuda or cuda:N. Default: the best.")
@click.option("--rounds", default=30, show_default=True, help="Paired rounds of each comparison.")
def main(device: str | None, rounds: int) -> None:
    """Time training and sampling against a minimal PyTorch loop, paired."""
    device = choose_device(device)
    points, schedule, recipe = states_points(), Schedule(), Recipe(steps=10**6, low_noise=0.0)
    trainer = Trainer(points, schedule, recipe, device=device)
    model = trainer.model().to(device)
    minimal = MinimalTraining(points.data.to(device), schedule, trainer.model().to(device), recipe)
    check_training(trainer, minimal)
    check_sampling(model, schedule, device)

    def train_minimal() -> None:
        for _ in range(STEPS_TRAIN):
            minimal.step()

    def sample_ours() -> None:
        sample(model, schedule, ROWS_SAMPLE, num_steps=STEPS_SAMPLE, device=device)

    def sample_minimal() -> None:
        x = torch.randn(ROWS_SAMPLE, 2, device=device)
        minimal_sampling(model, schedule, x, STEPS_SAMPLE)

    comparisons = [
        (f"training step, {ROWS_TRAIN} rows", STEPS_TRAIN,
         lambda: trainer.run(STEPS_TRAIN), train_minimal),
        (f"reverse step, {ROWS_SAMPLE} rows", STEPS_SAMPLE, sample_ours, sample_minimal),
    ]  # fmt: skip
    click.echo("| work | ms | ours / minimal loop | 95% interval |\n| --- | --- | --- | --- |")
    for name, steps, ours, theirs in comparisons:
        seconds, ratio, low, high = paired_ratio(ours, theirs, rounds, device)
        click.echo(
            f"| {name} | {seconds / steps * 1000:.2f} | {ratio:.3f} | {low:.3f} to {high:.3f} |"
        )


if __name__ == "__main__":
    main()
