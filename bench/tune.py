"""Times other tile sizes beside the shipped ones on this GPU.

    python -m flashpoint.bench tune [--device cuda] [--record FOLDER]

Each candidate differs in a few fields from the configuration that ``kernels/mlp/config.py`` ships
for this GPU. First all are compiled, each in a process of its own. Then each is checked against
float64; a wrong candidate, or one that needs more memory than the GPU has, is not timed. Then the
candidate and the shipped configuration work in turn, A B B A, at a training step and at the chain,
in half precision. The command changes no file: to ship a faster candidate, write it into the table.
"""

import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import click
import torch

from ..kernels.mlp import config as table
from ..kernels.mlp.config import Config
from .machine import free_device
from .operations import one_line, training_step
from .peers.ours import Ours
from .problem import states_problem
from .race import TOLERANCE, Referee
from .record import Record, record_option
from .stages import Stage, run_together
from .tables import duration
from .timing import Runner, Timing, paired, seconds

Changes = dict[str, int]
# Fields of Config that a candidate changes. Fields of the weight gradients are not tried at the
# chain, which has none.
CANDIDATES: tuple[Changes, ...] = (
    {"out": 128},
    {"stages": 2},
    {"stages": 4},
    {"reduce": 32, "stages": 4},
    {"reduce": 128, "stages": 2},
    {"warps": 4},
    {"out": 128, "warps": 4},
    {"grad_stages": 4},
    {"grad_rows": 32, "grad_stages": 4},
    {"grad_rows": 128, "grad_stages": 2},
    {"grad_in": 64},
    {"grad_in": 64, "grad_out": 256},
    {"grad_warps": 4},
)
TRAINING, CHAIN = "training step", "chain"
_CHAIN_STEPS = {"cuda": 500, "cpu": 4}
_SECONDS = 0.5  # seconds of a comparison
_COMPILING = 0.5  # share of the budget for compilation


@dataclass(frozen=True)
class TunedWork:
    """A work whose tile sizes are tuned, on ``rows`` points at once."""

    name: str
    rows: int

    @property
    def title(self) -> str:
        return f"{self.name}, {self.rows:,} rows"

    def shipped(self, device: torch.device) -> Config:
        """Returns the configuration of half precision on this device; on a CPU that of Hopper."""
        on_gpu = device.type == "cuda"
        capability = torch.cuda.get_device_capability(device) if on_gpu else (9, 0)
        if self.name == TRAINING:
            return table.config_for("fp16", capability, self.rows, 1)
        return table.chain_config_for(
            "fp16", capability, self.rows, 1, guided=False, classifier_free=False
        )

    def candidates(self, device: torch.device) -> list[Changes]:
        """Returns the candidates that change this work."""
        config = self.shipped(device)
        return [
            changes for changes in CANDIDATES
            if replace(config, **changes) != config
            and (self.name == TRAINING or not all(name.startswith("grad_") for name in changes))
        ]  # fmt: skip


WORKS = (TunedWork(TRAINING, 10_000), TunedWork(CHAIN, 5000), TunedWork(TRAINING, 2048))


def written(fields: Changes) -> str:
    """Returns the fields of a configuration in a line."""
    return ", ".join(f"{field}={value}" for field, value in fields.items())


@dataclass
class Candidate:
    """The outcome of a candidate at a work, without a timing if it is wrong or does not run."""

    work: str
    changes: Changes
    error: float | None = None
    timing: Timing | None = None  # ``peer`` is the shipped configuration
    unavailable: str | None = None

    @property
    def line(self) -> str:
        name = written(self.changes)
        if self.timing is None:
            return f"    {name:28} no time, {self.unavailable}"
        one = self.timing
        return (
            f"    {name:28} {duration(one.ours_us)}, shipped {duration(one.peer_us)}: "
            f"{one.speedup:.3f} times as fast (95% {one.low:.3f} to {one.high:.3f})"
        )


@contextmanager
def in_place_of(config: Config, changes: Changes) -> Iterator[None]:
    """Launches kernels with a changed configuration wherever this one is in use."""
    (name,) = (name for name, value in vars(table).items() if value is config)
    with mock.patch.object(table, name, replace(config, **changes)):
        yield


class TuneBench:
    """Checks and times ours at a work, with the shipped configuration or a candidate."""

    def __init__(self, device: torch.device):
        self.device, self.problem = device, states_problem()
        self.precision = {"cuda": "half", "cpu": "fp32"}[device.type]
        self.operand = {"cuda": "fp16", "cpu": "fp32"}[device.type]
        self.referee = Referee(self.problem, device)

    def as_changed(self, work: TunedWork, changes: Changes) -> AbstractContextManager:
        """Returns a context in which a candidate is in use; without changes the shipped one."""
        return in_place_of(work.shipped(self.device), changes) if changes else nullcontext()

    def runner(self, work: TunedWork, changes: Changes) -> Runner:
        """Prepares a work and does it once."""
        ours = Ours(self.problem, self.device, self.precision)
        with self.as_changed(work, changes):
            if work.name == TRAINING:
                made = ours.training(work.rows)
            else:
                chain = self.problem.chain(_CHAIN_STEPS[self.device.type], "ddpm", guided=False)
                made = Runner(ours.chain_work(chain, work.rows, None))
            seconds(made, 2, self.device)

        def run() -> None:
            with self.as_changed(work, changes):  # a training that ends begins anew
                made.run()

        return made._replace(run=run)

    def error(self, work: TunedWork, changes: Changes) -> tuple[float, float]:
        """Returns the relative error of a candidate against float64, and its tolerance."""
        with self.as_changed(work, changes):
            if work.name == TRAINING:
                gradients = training_step(self.device, work.rows, self.operand)
                return gradients.error(), gradients.tolerance
            self.referee.error.cache_clear()  # the error of another candidate
            return self.referee.error("ours", self.precision, "sampling"), TOLERANCE[self.precision]

    def measure(self, one: Candidate, work: TunedWork, rounds: int, peer: Runner) -> None:
        """Checks a candidate and, if it is right, times it beside the shipped configuration."""
        try:
            one.error, tolerance = self.error(work, one.changes)
            if one.error <= tolerance:
                ours = self.runner(work, one.changes)
                one.timing = paired(ours, peer, rounds, self.device, _SECONDS)
            else:
                one.unavailable = f"wrong: error {one.error:.1e}, allowed {tolerance:g}"
        except Exception as reason:  # the compiler and the driver raise various errors
            one.unavailable = one_line(reason)


def compile_one(device: torch.device, work: TunedWork, changes: Changes) -> None:
    """Does and checks a work once, so that its kernels are in Triton's cache."""
    bench = TuneBench(device)
    with suppress(Exception):  # it will be raised and reported again
        bench.runner(work, changes)
        bench.error(work, changes)


def compile_all(device: torch.device, number: int, small: bool, within: float) -> None:
    """Compiles in as many processes as there are processors, for at most ``within`` seconds."""
    command = (sys.executable, "-m", "flashpoint.bench", "tune", "--device", str(device), "--busy")
    command += ("--small",) if small else ()
    stages = [
        Stage(f"compile {one}", (*command, "--compile", str(one)), within) for one in range(number)
    ]
    processors, end = len(os.sched_getaffinity(0)), time.monotonic() + within
    with tempfile.TemporaryDirectory() as scratch:
        deque(run_together(stages, processors, end, dict(os.environ), Path(scratch)), maxlen=0)


@click.command()
@click.option("--device", default=None, help="cpu, cuda or cuda:N. Default: the best.")
@click.option("--rounds", default=30, show_default=True, help="Paired rounds of a comparison.")
@click.option("--small", is_flag=True, help="One work and one candidate, to test the command.")
@click.option(
    "--budget", default=600.0, show_default=True, help="Start no more after this many seconds."
)
@click.option("--busy", is_flag=True, help="Measure although another process uses the GPU.")
@click.option("--compile", "only", type=int, default=None, hidden=True, help="Compile one alone.")
@record_option
def main(device, rounds, small, budget, busy, only, folder) -> None:
    """Time other tile sizes beside the shipped ones, at a training step and at the chain."""
    end, device, record = time.monotonic() + budget, free_device(device, busy), Record(folder)
    torch.manual_seed(0)
    tried = {work: work.candidates(device) for work in WORKS}
    if small:
        tried = {WORKS[-1]: tried[WORKS[-1]][:1]}
    # Works with other numbers of rows run the same kernels.
    kinds = {work.name: work for work in tried}.values()
    todo = [(work, one) for work in kinds for one in ({}, *tried[work])]
    if only is not None:
        compile_one(device, *todo[only])
        return
    compile_all(device, len(todo), small, _COMPILING * budget)
    bench, found = TuneBench(device), []
    for work, candidates in tried.items():
        error, tolerance = bench.error(work, {})
        if not error <= tolerance:
            click.echo(f"{work.title}: the shipped one is wrong, error {error:.1e}; nothing timed")
            raise SystemExit(1)
        click.echo(f"{work.title}, shipped: {written(asdict(work.shipped(device)))}")
        peer = bench.runner(work, {})
        for changes in candidates:
            if time.monotonic() > end:
                click.echo(f"the budget of {budget:g} s is spent; the rest is not measured")
                return
            found.append(Candidate(work.title, changes))
            bench.measure(found[-1], work, rounds, peer)
            click.echo(found[-1].line)
            record.put("tune", results=[asdict(one) for one in found])
