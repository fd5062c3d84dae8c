"""The race: ours and every peer do the same work in turn on the same machine.

    python -m flashpoint.bench race [--device cuda] [--record FOLDER]

Before anything is timed, ours and each peer train on the same batches and walk the same noiseless
chain. Their answers must agree with float64; a wrong peer is not timed. Then ours and the peer work
in turn, A B B A, warm and with warm caches. The result is the median of the paired ratios with its
bootstrap 95% interval.

Ours works in its default precision, fp16 on a GPU and fp32 on a CPU. ``floor`` is the shortest time
in which this device could do the work, by rates that are measured just before.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from statistics import median

import click
import torch

from ..diffusion.errors import UserError, check_choice
from . import costs
from .costs import Rates
from .machine import free_device
from .operations import one_line
from .options import Number, budget_option, rounds_option
from .peers import GPU_ONLY, PEERS, Peer
from .peers.eager import Exact
from .peers.ours import Ours
from .problem import Problem, states_problem
from .rates import measure_rates
from .record import Record, record_option
from .tables import summary_table
from .timing import Runner, Timing, paired, seconds, warm_up
from .workloads import CLASSES, Workload, Workloads

TOLERANCE = {"fp32": 1e-4, "tf32": 5e-3, "half": 5e-3}
_CHECK_ROWS, _CHECK_STEPS, _CHECK_BATCHES = 2048, 20, 3


@dataclass
class Entry:
    """One competitor at one work, without a time if it was wrong or could not run."""

    work: str
    rows: int
    steps: int
    full_steps: int
    peer: str
    precision: str
    floor_us: float
    flops: float
    bytes: float
    error: float | None = None  # relative error against float64
    timing: Timing | None = None  # ours and this peer; None for ours itself
    us: float | None = None
    memory_mib: float | None = None  # high-water mark on a GPU
    unavailable: str | None = None


class Referee:
    """Compares the answers of competitors with those of float64."""

    def __init__(self, problem: Problem, device: torch.device):
        self.ours = Ours(problem, torch.device("cpu"), "fp32")
        self.problem, self.device = problem, device
        self.batches = cache(self._batches)
        self.expected = cache(self._expected)
        self.error = cache(self._error)

    def _batches(self, classify: bool):
        return self.ours.first_batches(_CHECK_ROWS, _CHECK_BATCHES, classify)

    def _walk(self, guided: bool):
        generator = torch.Generator().manual_seed(0)
        x_T = torch.randn(_CHECK_ROWS, 2, generator=generator)
        labels = torch.arange(_CHECK_ROWS) % CLASSES if guided else None
        return self.problem.chain(_CHECK_STEPS, "ddim", guided), x_T, labels

    def _answer(self, peer: Peer, check: str) -> torch.Tensor:
        if check in ("training", "classifier"):
            classify = check == "classifier"
            return torch.tensor(peer.losses(self.batches(classify), classify)).double()
        return peer.end_of(*self._walk(check == "guided")).double()

    def _expected(self, check: str) -> torch.Tensor:
        return self._answer(Exact(self.problem, torch.device("cpu"), "fp32"), check)

    def _error(self, name: str, precision: str, check: str) -> float:
        """Returns the largest relative error of a fresh peer of this name."""
        make = Ours if name == "ours" else PEERS[name]
        expected = self.expected(check)
        answer = self._answer(make(self.problem, self.device, precision), check)
        return ((answer - expected).abs().max() / expected.abs().max()).item()


def compete(
    workload: Workload, name: str, precision: str, referee: Referee, floor: float
) -> tuple[Entry, Runner | None]:
    """Checks one competitor and prepares it; the runner is None if it is wrong or cannot run."""
    entry = Entry(
        workload.name, workload.rows, workload.steps, workload.full_steps, name, precision,
        floor * 1e6, workload.cost.flops, workload.cost.bytes,
    )  # fmt: skip
    make = Ours if name == "ours" else PEERS[name]
    try:
        entry.error = max(referee.error(name, precision, check) for check in workload.checks)
        if not entry.error <= TOLERANCE[precision]:
            entry.unavailable = f"wrong: error {entry.error:.1e}, allowed {TOLERANCE[precision]:g}"
            return entry, None

        def prepare() -> Runner:
            return workload.prepare(make(referee.problem, referee.device, precision))

        runner, entry.memory_mib = made_ready(prepare, referee.device)
        return entry, runner
    except Exception as reason:  # compilers, captures and allocators raise various errors
        entry.unavailable = one_line(reason)
        return entry, None


def made_ready(prepare: Callable[[], Runner], device: torch.device) -> tuple[Runner, float | None]:
    """Prepares a runner and returns it with the peak of its memory in MiB.

    The count begins before the preparation, because the memory of a CUDA graph is allocated when it
    is captured. It is None where torch does not count.
    """
    if device.type != "cuda":
        return prepare(), None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    runner = prepare()
    seconds(runner, 1, device)
    used = torch.cuda.max_memory_allocated(device) - before
    return runner, None if runner.wait is not None else used / 2**20


@dataclass
class Race:
    """Runs the workloads and adds the entries to those of other peers in the record."""

    device: torch.device
    record: Record
    rounds: int
    per_comparison: float  # seconds for the rounds of one comparison
    deadline: float  # time.monotonic() after which no work starts
    peers: tuple[str, ...]
    rates: Rates
    entries: list[Entry] = field(default_factory=list)

    def __post_init__(self):
        self.before = self.record.content["stages"].get("race", {}).get("results", [])

    def run(self, works: Workloads) -> None:
        referee = Referee(works.problem, self.device)
        try:
            for workload in works:
                if time.monotonic() > self.deadline:
                    click.echo(f"{workload.title}: out of time")
                    continue
                self.one(workload, referee)
                self.save(works.left_out)
        finally:  # after an interrupt the results are kept
            self.save(works.left_out)

    def save(self, left_out: list[str]) -> None:
        found = [asdict(entry) for entry in self.entries]
        again = {(one["work"], one["rows"], one["peer"]) for one in found}
        kept = [one for one in self.before if (one["work"], one["rows"], one["peer"]) not in again]
        self.record.put("race", results=kept + found, rates=asdict(self.rates), left_out=left_out)

    def one(self, workload: Workload, referee: Referee) -> None:
        click.echo(workload.title)
        default = "half" if self.device.type == "cuda" else "fp32"
        floor = self.rates.floor(workload.cost, default)
        mine, ours = compete(workload, "ours", default, referee, floor)
        self.add(mine)
        if ours is None:
            return
        # This time stands if no peer is timed.
        mine.us, times = warm_up(ours, self.device) / ours.works * 1e6, []
        for name in self.peers:
            for precision in ("half", "tf32") if self.device.type == "cuda" else ("fp32",):
                if time.monotonic() > self.deadline:
                    return
                entry, runner = compete(workload, name, precision, referee, floor)
                if runner is not None:
                    try:
                        entry.timing = paired(
                            ours, runner, self.rounds, self.device, self.per_comparison
                        )
                        times.append(entry.timing.ours_us)
                        entry.us, mine.us = entry.timing.peer_us, median(times)
                    except Exception as reason:
                        entry.unavailable = one_line(reason)
                self.add(entry)
                del runner

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        head = f"    {entry.peer:24} {entry.precision:5}"
        if entry.unavailable is not None:
            click.echo(f"{head} no number: {entry.unavailable}")
        elif entry.timing is not None:
            timing = entry.timing
            click.echo(
                f"{head} {timing.peer_us:12.1f} us, ours {timing.ours_us:12.1f} us: "
                f"{timing.speedup:.2f} times as fast, 95% {timing.low:.2f} to {timing.high:.2f}"
            )
        else:
            click.echo(f"{head} correct, error {entry.error:.1e}")


def ours_flop_rate(problem: Problem, device: torch.device) -> float:
    """Measures the operations per second of a training step of ours, to foresee run times."""
    runner = Ours(problem, device, "half").training(2048)
    seconds(runner, 1, device)
    once = seconds(runner, 1, device)
    return costs.training_step(problem.denoiser.shape.widths, 2048).flops / once


@click.command()
@click.option("--device", default=None, help="cpu, cuda or cuda:N. Default: the best.")
@rounds_option(30)
@click.option(
    "--seconds",
    "per_run",
    type=Number(min=0, min_open=True),
    default=None,
    help="Seconds for one run of a work; longer works are cut. Default: 60, on a CPU 2.",
)
@click.option(
    "--per-comparison",
    type=Number(min=0),
    default=20.0,
    show_default=True,
    help="Seconds for the rounds.",
)
@budget_option(3600.0)
@click.option("--peers", default=",".join(PEERS), show_default=True, help="Peers to race against.")
@click.option("--busy", is_flag=True, help="Measure although another process uses the GPU.")
@record_option
def main(device, rounds, per_run, per_comparison, budget, peers, busy, folder) -> None:
    """Race against eager, graphed and compiled PyTorch, JAX, and a classic script."""
    device = free_device(device, busy)
    names = tuple(dict.fromkeys(name.strip() for name in peers.split(",")))
    for name in names:
        check_choice("--peers", name, PEERS)
    if device.type != "cuda":
        names = tuple(name for name in names if name not in GPU_ONLY)
        if not names:
            raise UserError(f"--peers needs one that runs without a GPU, got {peers}")
    if per_run is None:
        per_run = 60.0 if device.type == "cuda" else 2.0
    record = Record(folder)
    torch.manual_seed(0)
    problem = states_problem()
    rates = measure_rates(device)
    deadline = time.monotonic() + budget
    race = Race(device, record, rounds, per_comparison, deadline, names, rates)
    race.run(Workloads(problem, ours_flop_rate(problem, device), per_run))
    click.echo(summary_table(record.content["stages"]["race"]["results"]))
    wrong = [entry for entry in race.entries if entry.peer == "ours" and entry.unavailable]
    if wrong:
        raise SystemExit(1)
