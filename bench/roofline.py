"""The roofline: the time of each operation beside the limit of this device.

    python -m flashpoint.bench roofline [--device cuda] [--record FOLDER]

The rates of the device (matrix products, memory, last-level cache) are measured in the same run.
The floor of an operation is the longer of two times: its FLOPs at the matrix rate, and its bytes at
the rate of memory. Its fraction is the floor over the measured time. Williams, Waterman and
Patterson 2009.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import click
import torch

from ..diffusion.metrics.table import markdown_table
from . import costs, operations
from .costs import Cost, Rates
from .figures import roofline_figure
from .machine import free_device
from .operations import one_line
from .peers.ours import Ours
from .problem import Problem, states_problem
from .rates import measure_rates
from .record import Record, record_option
from .timing import Runner, from_graph, median_interval, seconds

_ROUNDS = 15
_ROWS = {
    "cuda": {
        "train": (2048, 10_000, 131_072),
        "points": 1_000_000,
        "chain": (5000, 500),
        "models": (1, 8, 32, 132),
    },
    "cpu": {"train": (2048,), "points": 100_000, "chain": (1000, 10), "models": (1, 8)},
}
_SMALL = {"train": (64,), "points": 1000, "chain": (20, 2), "models": (1, 2)}
_INDEX = 8  # bytes of a drawn index or timestep


@dataclass
class Point:
    """One operation on the roofline, without a time if it could not run.

    Attributes:
        bound: the rate that sets the floor, ``matmul`` or ``memory``.
        us: median time in microseconds; ``low`` and ``high`` are its 95% interval.
        fraction: floor over time, 1 at best.
        kernels: microseconds of each GPU kernel that it launches, by name.
    """

    name: str
    rows: int
    precision: str
    flops: float
    bytes: float
    floor_us: float
    bound: str
    us: float | None = None
    low: float | None = None
    high: float | None = None
    fraction: float | None = None
    kernels: dict[str, float] | None = None
    unavailable: str | None = None


@dataclass(frozen=True)
class Operation:
    """An operation to measure; ``prepare`` returns its work, or a runner if ``host`` is set."""

    name: str
    rows: int
    precision: str  # precision of its matrix products, as the rates name it
    cost: Cost
    prepare: Callable[[], Callable[[], object] | Runner]
    host: bool = False  # launched from the host, because it captures graphs of its own


def all_operations(problem: Problem, device: torch.device, sizes: dict) -> Iterator[Operation]:
    """Yields every operation of ``flashpoint.kernels`` at the sizes of training and sampling."""
    on_gpu = device.type == "cuda"
    rate, precision = ("half", "fp16") if on_gpu else ("fp32", "fp32")
    denoiser, classifier = problem.denoiser.shape.widths, problem.classifier.shape.widths
    weights = costs.weights(denoiser)
    for rows in sizes["train"]:
        # Without the optimiser, weights are read and gradients are written.
        flops = costs.training_step(denoiser, rows).flops
        yield Operation(
            "train_step", rows, rate, Cost(flops, 8 * rows + 8 * weights),
            lambda rows=rows: operations.training_step(device, rows, precision).ours,
        )  # fmt: skip
        yield Operation(
            "mlp forward and backward", rows, rate, Cost(flops, 20 * rows + 8 * weights),
            lambda rows=rows: operations.perceptron(device, rows, precision, training=True).ours,
        )  # fmt: skip
    rows, steps = sizes["chain"]
    yield Operation(
        "mlp forward", rows, rate, Cost(2 * weights * rows, 20 * rows + 4 * weights),
        lambda: operations.perceptron(device, rows, precision, training=False).ours,
    )  # fmt: skip
    for guided in (False, True):
        count = rows * (5 if guided else 1)
        yield Operation(
            "sample_chain, guided" if guided else "sample_chain", count, rate,
            costs.chain(denoiser, classifier if guided else None, count, steps),
            lambda guided=guided, count=count: _chain(problem, device, count, steps, guided),
        )  # fmt: skip
    for models in sizes["models"]:
        # Whole training steps of many models in the same launches, each with the fewest rows.
        rows = sizes["train"][0]
        yield Operation(
            f"train_many, {models} models", rows, rate,
            costs.training_step(denoiser, rows) * models,
            lambda models=models, rows=rows: _many(problem, device, models, rows), host=True,
        )  # fmt: skip
    points = sizes["points"]
    # Writes x_t, eps, the index and t; reads the point.
    yield Operation(
        "q_sample_batch", points, rate, Cost(0, points * (8 + 8 + 2 * _INDEX + 8)),
        lambda: operations.noising(device, points).ours,
    )  # fmt: skip
    yield Operation(
        "reverse_step", points, rate, Cost(0, points * 4 * 8),
        lambda: operations.reverse_update(device, points).ours,
    )  # fmt: skip
    parameters = problem.denoiser.shape.num_parameters
    yield Operation(
        "adamw_", parameters, rate, Cost(0, 4 * (costs.PARAMETER_BUFFERS + 1) * parameters),
        lambda: operations.optimiser(device, parameters),
    )  # fmt: skip


def _many(problem: Problem, device: torch.device, models: int, rows: int) -> Runner:
    return Ours(problem, device, "half" if device.type == "cuda" else "fp32").many(models, rows)


def _chain(problem: Problem, device: torch.device, rows: int, steps: int, guided: bool):
    labels = torch.arange(5).repeat_interleave(rows // 5) if guided else None
    ours = Ours(problem, device, "half" if device.type == "cuda" else "fp32")
    return ours.chain_work(problem.chain(steps, "ddpm", guided), rows, labels)


def place(operation: Operation, rates: Rates, device: torch.device) -> Point:
    """Times one operation and places it on the roofline."""
    compute = operation.cost.flops / rates.matmul[operation.precision]
    memory = operation.cost.bytes / rates.memory
    point = Point(
        operation.name, operation.rows, operation.precision, operation.cost.flops,
        operation.cost.bytes, max(compute, memory) * 1e6,
        "matmul" if compute >= memory else "memory",
    )  # fmt: skip
    try:
        work = operation.prepare()
        runner = work if operation.host else Runner(work)
        if device.type == "cuda" and not operation.host:
            runner = from_graph(work, 1 if "chain" in operation.name else 20)
            point.kernels = kernel_times(work)
        seconds(runner, 2, device)
        times = [seconds(runner, 1, device) * 1e6 for _ in range(_ROUNDS)]
        point.us, point.low, point.high = median_interval(times)
        point.fraction = point.floor_us / point.us
    except Exception as reason:  # one operation that does not run must not end the others
        point.unavailable = one_line(reason)
    return point


def kernel_times(work: Callable[[], object]) -> dict[str, float] | None:
    """Returns the microseconds of each kernel of a work on the GPU; None without a profiler."""
    from torch.profiler import ProfilerActivity, profile

    work()
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            work()
            torch.cuda.synchronize()
        return {
            event.key: event.device_time_total
            for event in profiler.key_averages()
            if event.device_time_total > 0
        }
    except (RuntimeError, AttributeError):
        return None


def table(points: list[Point]) -> str:
    """Returns the table of all operations in Markdown."""
    header = ("operation", "rows", "FLOP", "bytes", "floor, us", "set by", "measured, us",
              "of the floor")  # fmt: skip
    return markdown_table(header, (
        (
            point.name, f"{point.rows:,}", f"{point.flops:.3g}", f"{point.bytes:.3g}",
            f"{point.floor_us:.2f}", point.bound,
            f"{point.us:.1f}" if point.us else "not measured",
            f"{point.fraction:.1%}" if point.us else "",
        )
        for point in points
    ))  # fmt: skip


@click.command()
@click.option("--device", default=None, help="cpu, cuda or cuda:N. Default: the best.")
@click.option("--small", is_flag=True, help="Toy sizes, to test the command.")
@click.option("--busy", is_flag=True, help="Measure although another process uses the GPU.")
@record_option
def main(device, small, busy, folder) -> None:
    """Measure every operation against its floor, with a plot."""
    device, points = free_device(device, busy), []
    record, problem = Record(folder), states_problem()
    torch.manual_seed(0)
    rates = measure_rates(device, small)
    for operation in all_operations(problem, device, _SMALL if small else _ROWS[device.type]):
        points.append(place(operation, rates, device))
        record.put("roofline", rates=asdict(rates), results=[asdict(point) for point in points])
    click.echo(table(points))
    if folder is not None:
        roofline_figure(rates, points, folder / "roofline.png")
