"""Times the works that users wait for, ours beside eager PyTorch, and prints a line for each.

    python -m flashpoint.bench works [--device cuda] [--record FOLDER]

The works are training steps, sampling, guided sampling, and the network as a drop-in, forward and
backward. Ours is first checked against float64; a wrong work is not timed. Then both work in turn,
A B B A, for about two seconds. On a GPU eager PyTorch uses the faster of bf16 and tf32, as in the
race. The guided chain comes last, because it takes longest; on a GPU it is cut to fewer steps.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import click
import torch

from . import operations
from .machine import free_device
from .operations import one_line
from .options import budget_option, rounds_option
from .problem import Problem, states_problem
from .race import TOLERANCE, Referee, compete
from .record import Record, record_option
from .tables import duration
from .timing import Runner, Timing, from_graph, paired
from .workloads import CHAIN_ROWS, Workload, Workloads

KINDS = ("training", "sampling", "drop-in", "guided")
UNTIL = ("checked", "run", "timed")
ROWS, DROP_IN_ROWS, SMALL_ROWS = (2048, 10_000, 131_072), 10_000, 200
_SECONDS = 2.0  # seconds for the rounds of a work
# Expected operations per second, and the limit of one run of a work in seconds. On a GPU it cuts
# the guided chain, for which eager PyTorch needs about a second.
_FORESEEN = {"cuda": (1e13, 0.3), "cpu": (1e11, 2.0)}
_PRECISIONS = {"cuda": ("half", "tf32"), "cpu": ("fp32",)}


@dataclass
class Outcome:
    """The outcome of a work, without a time if ours was wrong or could not run."""

    work: str
    error: float | None = None  # relative error against float64
    eager: str | None = None  # precision of eager PyTorch
    timing: Timing | None = None
    unavailable: str | None = None

    @property
    def line(self) -> str:
        if self.unavailable is not None:
            return f"{self.work}: no time, {self.unavailable}"
        if self.timing is None:
            return f"{self.work}: right, error {self.error:.1e}"
        one = self.timing
        return (
            f"{self.work}: {duration(one.ours_us)}, eager PyTorch {duration(one.peer_us)} "
            f"({self.eager}): {one.speedup:.2f} times as fast (95% {one.low:.2f} to {one.high:.2f})"
        )


@dataclass
class WorksBench:
    """Measures works on a device.

    Attributes:
        device: device to measure on.
        until: last step: ``checked``; ``run``, once, so that all is compiled; or ``timed``.
        rounds: paired rounds of a work.
        small: toy sizes, for a test or a sanitizer.
    """

    device: torch.device
    until: str
    rounds: int
    small: bool

    def outcomes(self, kinds: Sequence[str], problem: Problem) -> Iterator[Outcome]:
        """Yields the outcomes of all works of some kinds."""
        referee = Referee(problem, self.device)
        for kind in (kind for kind in KINDS if kind in kinds):
            if kind == "drop-in":
                yield from self._drop_ins()
                continue
            for workload in self._workloads(kind, problem):
                yield self._guarded(partial(self._raced, workload, referee), workload.title)

    def _drop_ins(self) -> Iterator[Outcome]:
        for in_graph in (False, True) if self.device.type == "cuda" else (False,):
            title = f"drop-in forward and backward, {self._drop_in_rows:,} rows"
            title += ", in a graph" * in_graph
            yield self._guarded(partial(self._drop_in, in_graph), title)

    @property
    def _drop_in_rows(self) -> int:
        return SMALL_ROWS if self.small else DROP_IN_ROWS

    def _workloads(self, kind: str, problem: Problem) -> Iterator[Workload]:
        rate, seconds = _FORESEEN[self.device.type]
        works = Workloads(problem, rate, 0.01 if self.small else seconds)
        if kind == "training":
            yield from works.steps((SMALL_ROWS,) if self.small else ROWS)
        else:
            yield works.chain(kind == "guided", SMALL_ROWS if self.small else CHAIN_ROWS)

    def _guarded(self, measure: Callable[[Outcome], None], title: str) -> Outcome:
        """Returns the outcome of a work, also if a compiler, a capture or an allocator fails."""
        outcome = Outcome(title)
        torch.manual_seed(0)  # the same data for any number of rounds before
        try:
            measure(outcome)
        except Exception as reason:
            outcome.unavailable = one_line(reason)
        return outcome

    def _raced(self, workload: Workload, referee: Referee, outcome: Outcome) -> None:
        """Checks and times a work of the race."""
        precisions = _PRECISIONS[self.device.type]
        if self.until == "checked":
            outcome.error = max(
                referee.error("ours", precisions[0], check) for check in workload.checks
            )
            self._judge(outcome, TOLERANCE[precisions[0]])
            return
        mine, ours = compete(workload, "ours", precisions[0], referee, floor=0.0)
        outcome.error, outcome.unavailable = mine.error, mine.unavailable
        if ours is None or self.until == "run":
            return
        for precision in precisions:
            _, eager = compete(workload, "eager", precision, referee, floor=0.0)
            if eager is not None:
                self._time(outcome, ours, eager, precision, _SECONDS / len(precisions))

    def _drop_in(self, in_graph: bool, outcome: Outcome) -> None:
        """Checks and times the network of the denoiser inside ordinary training code."""
        precision = "fp16" if self.device.type == "cuda" else "fp32"
        one = operations.perceptron(self.device, self._drop_in_rows, precision, training=True)
        outcome.error = one.error()
        self._judge(outcome, one.tolerance)
        if outcome.unavailable or self.until == "checked":
            return
        ready = from_graph if in_graph else Runner
        ours, eager = ready(one.ours), ready(one.peers["eager"])
        if self.until == "timed":
            self._time(outcome, ours, eager, precision, _SECONDS)

    def _judge(self, outcome: Outcome, tolerance: float) -> None:
        if not outcome.error <= tolerance:
            outcome.unavailable = f"wrong: error {outcome.error:.1e}, allowed {tolerance:g}"

    def _time(
        self, outcome: Outcome, ours: Runner, eager: Runner, precision: str, seconds: float
    ) -> None:
        """Times both, and keeps the timing unless eager PyTorch is faster in another precision."""
        timing = paired(ours, eager, self.rounds, self.device, seconds)
        if outcome.timing is None or timing.peer_us < outcome.timing.peer_us:
            outcome.eager, outcome.timing = precision, timing


@click.command()
@click.option("--device", default=None, help="cpu, cuda or cuda:N. Default: the best.")
@click.option("--only", multiple=True, type=click.Choice(KINDS), help="Kinds; may be repeated.")
@click.option(
    "--until",
    type=click.Choice(UNTIL),
    default="timed",
    show_default=True,
    help="Last thing to do.",
)
@rounds_option(30, "Paired rounds of a work.")
@budget_option(600.0)
@click.option("--small", is_flag=True, help="Toy sizes: for a sanitizer, or to test the command.")
@click.option("--busy", is_flag=True, help="Measure although another process uses the GPU.")
@record_option
def main(device, only, until, rounds, budget, small, busy, folder) -> None:
    """Time ours beside eager PyTorch, one line for each work."""
    end, device, record = time.monotonic() + budget, free_device(device, busy), Record(folder)
    bench, found = WorksBench(device, until, rounds, small), []
    for outcome in bench.outcomes(only or KINDS, states_problem()):
        found.append(outcome)
        click.echo(outcome.line)
        record.put("works", results=[asdict(one) for one in found])
        if time.monotonic() > end:
            click.echo(f"the budget of {budget:g} s is spent; what is left is not measured")
            break
    if any(one.unavailable for one in found):
        raise SystemExit(1)
