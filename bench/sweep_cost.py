"""Times training steps of many models together, beside their matrix products alone.

    python -m flashpoint.bench sweep [--device cpu] [--models 1,8,32,96] [--record FOLDER]

A step of M models is compared with the products of its layers, forwards, backwards by inputs and
backwards by weights, as batched products of M: all that a step must compute, without noise,
activations, loss and optimiser. Models go together as a sweep trains them: all at once on a GPU, on
a CPU so many as its cache holds. Both work in turn, A B B A; the result is the median of the paired
ratios with its bootstrap 95% interval. On a CPU the clock counts the time of this process alone,
over all threads.

The steps of several numbers of models show how the time grows with them.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path

import click
import torch
from torch import Tensor

from ..diffusion import ManyTrainer, Recipe, Schedule, Task, UserError, dataset
from ..diffusion.sweeps.groups import Training, chunks_of
from .machine import free_device
from .options import budget_option, rounds_option
from .record import Record, record_option
from .tables import duration
from .timing import Runner, Timing, from_graph, paired, seconds, warm_up

COUNTS = {"cpu": "1,8,32,96", "cuda": "1,2,4,8,16,33,66,99,132"}
_STEPS = 20_000  # of a recipe, more than are timed; its rates are a table
_GRAPH_STEPS = {"cpu": 1, "cuda": 50}  # steps of a run; on a GPU one graph


@dataclass(frozen=True)
class Setting:
    """The networks and batches whose steps are timed."""

    hidden_layers: tuple[int, ...]
    batch_size: int

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.hidden_layers))}, {self.batch_size:,} rows"


SETTINGS = (
    Setting((64,) * 3, 256),
    Setting((128,) * 3, 1024),
    Setting((256,) * 4, 2048),  # of the recipe fast
)


@dataclass
class Result:
    """Times of the steps of some models; ``products`` has those of their products as the peer."""

    setting: str
    models: int
    step_us: float  # of all models together
    products: Timing | None = None

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """Time of a step over that of its products, with both ends of the interval."""
        one = self.products
        return None if one is None else (1 / one.speedup, 1 / one.high, 1 / one.low)

    @property
    def line(self) -> str:
        name = f"{self.setting}, {self.models} model{'s' * (self.models > 1)}"
        text = f"{name:36} {duration(self.step_us)} a step"
        if self.ratio is None or self.products is None:
            return text
        ratio, low, high = self.ratio
        return (
            f"{text}, {duration(self.products.peer_us)} its products: {ratio:.2f} times as long, "
            f"95% {low:.2f} to {high:.2f}"
        )


def tasks_of(setting: Setting, count: int) -> list[Task]:
    """Returns so many models, which differ in their seeds."""
    points, recipe = dataset("moons"), Recipe(_STEPS, setting.hidden_layers, setting.batch_size)
    return [Task(points, Schedule(), recipe, seed=seed) for seed in range(count)]


def step(setting: Setting, count: int, device: torch.device) -> Runner:
    """Returns a runner of training steps of so many models, together as in a sweep."""
    trainings = [Training(task, ()) for task in tasks_of(setting, count)]
    trainers = [
        ManyTrainer([one.task for one in chunk], device=device)
        for chunk in chunks_of(trainings, device)
    ]
    works = _GRAPH_STEPS[device.type]

    def run() -> None:
        for trainer in trainers:
            trainer.run(works)

    return Runner(run, works)


def products(setting: Setting, count: int, device: torch.device) -> Runner:
    """Returns a runner of the matrix products of such a step, and of nothing else."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    widths = tasks_of(setting, 1)[0].shape().widths
    works = [
        work
        for first, (width, out) in enumerate(pairwise(widths))
        for work in _layer(count, setting.batch_size, width, out, first == 0, dtype, device)
    ]

    def run() -> None:
        for work in works:
            work()

    return from_graph(run) if device.type == "cuda" else Runner(run)


def _layer(
    count: int, rows: int, width: int, out: int, is_first: bool, dtype: torch.dtype,
    device: torch.device,
) -> Iterator[Callable[[], Tensor]]:  # fmt: skip
    """Yields the products of a layer: y = x w, dw = x^T dy, and dx = dy w^T but for the first."""

    def made(*shape: int) -> Tensor:
        return torch.randn(count, *shape, dtype=dtype, device=device)

    x, w, dy = made(rows, width), made(width, out), made(rows, out)
    y, dw, dx = made(rows, out), made(width, out), made(rows, width)
    yield lambda: torch.bmm(x, w, out=y)
    yield lambda: torch.bmm(x.mT, dy, out=dw)
    if not is_first:
        yield lambda: torch.bmm(dy, w.mT, out=dx)


def measure(
    settings: Sequence[Setting],
    counts: Sequence[int],
    device: torch.device,
    rounds: int,
    budget: float,
) -> Iterator[Result]:
    """Yields the times of steps, for the largest number of models beside their products.

    No more are started after ``budget`` seconds.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    began, share = time.monotonic(), budget / (2 * len(settings))
    for setting, count in product(settings, counts):
        if time.monotonic() - began > budget:
            return
        ours = step(setting, count, device)
        if count < max(counts):
            once = warm_up(ours, device, clock)
            times = [seconds(ours, max(1, round(0.25 / once)), device, clock) for _ in range(3)]
            yield Result(str(setting), count, 1e6 * sorted(times)[1])
            continue
        timing = paired(ours, products(setting, count, device), rounds, device, share, clock)
        yield Result(str(setting), count, timing.ours_us, timing)


def counts_of(text: str) -> list[int]:
    """Returns the numbers of models in a text like 1,8,96, in rising order.

    Raises:
        ValueError: one is no number of models.
    """
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = [0]
    if not 1 <= counts[0] <= counts[-1] <= 1000:
        raise UserError(f"models must be numbers from 1 to 1000 like 1,8,96, got {text!r}")
    return counts


@click.command()
@click.option("--device", default=None, help="cpu, cuda or cuda:N. Default: the best.")
@click.option(
    "--models", default=None,
    help=f"Numbers of models. Default: {COUNTS['cpu']}, on a GPU {COUNTS['cuda']}.",
)  # fmt: skip
@click.option("--small", is_flag=True, help="Time the smallest networks alone.")
@rounds_option(20)
@budget_option(600.0)
@click.option("--busy", is_flag=True, help="Measure although another process uses the GPU.")
@record_option
def main(
    device: str | None,
    models: str | None,
    small: bool,
    rounds: int,
    budget: float,
    busy: bool,
    folder: Path | None,
) -> None:
    """Time training steps of many models together, beside their matrix products alone."""
    device, results = free_device(device, busy), []
    counts, record = counts_of(models or COUNTS[device.type]), Record(folder)
    torch.manual_seed(0)
    for result in measure(SETTINGS[:1] if small else SETTINGS, counts, device, rounds, budget):
        results.append(result)
        click.echo(result.line)
        record.put("sweep", results=[asdict(one) for one in results])
