"""The nightly gate, which fails when ours has become slower.

    python -m flashpoint.bench gate             compares with the committed baseline of this GPU
    python -m flashpoint.bench gate --update    writes the baseline

Ours and the frozen work of ``reference_work.py`` run in turn, A B B A. The gate compares the median
of the paired ratios from night to night, because clocks, drivers and neighbours change both times.
Ours has become slower if the favourable bound of the ratio's bootstrap 95% interval is more than 3%
worse than the ratio of the baseline, and again in a second measurement.

Exit status 0: as fast as the baseline, or there was no baseline and it was written. 1: slower, with
a table, or wrong. 2: the night is invalid, because the time of the reference differs by more than
10% from the baseline, or the baseline is of another GPU or another version of the suite.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch

from ..diffusion import UserError
from ..diffusion.files import make_folder, save_json
from ..diffusion.metrics.table import markdown_table
from .machine import describe, free_device, reference_hash, short_name
from .options import rounds_option
from .peers.ours import Ours
from .problem import Problem, states_problem
from .race import TOLERANCE, Referee
from .record import SUITE, Record, record_option
from .reference_work import Sampling, Training
from .timing import Runner, Timing, from_graph, paired

BASELINES = Path(__file__).with_name("records") / "baselines"
SLOWER, REFERENCE_MOVED = 1.03, 1.10
_CHECKS = ("training", "sampling", "guided")
_UPDATE_ROUNDS = 3  # times the rounds of a night, because every night is compared with a baseline

# Rows of training steps, and rows and reverse steps of sampling, that fit into a night.
_TRAINING = {"cuda": (2048, 10_000), "cpu": (2048,)}
_SAMPLING = {"cuda": (5000, 500), "cpu": (2000, 10)}
_SMALL_TRAINING, _SMALL_SAMPLING = (40,), (20, 2)


@dataclass(frozen=True)
class GateWork:
    """A work of the gate, as two functions that prepare a runner with all its data."""

    name: str
    ours: Callable[[], Runner]
    reference: Callable[[], Runner]


@dataclass(frozen=True)
class Verdict:
    """Tonight's times of a work beside those of the baseline.

    Attributes:
        slowdown: slowdown of ours against the reference; 1 for none.
        least: the same at the favourable bound of the interval.
        reference_moved: tonight's time of the reference over that of the baseline.
    """

    name: str
    now: Timing
    before: Timing

    @property
    def slowdown(self) -> float:
        return self.before.speedup / self.now.speedup

    @property
    def least(self) -> float:
        return self.before.speedup / self.now.high

    @property
    def reference_moved(self) -> float:
        return self.now.peer_us / self.before.peer_us

    @property
    def slower(self) -> bool:
        return self.least > SLOWER

    @property
    def invalid(self) -> bool:
        return not 1 / REFERENCE_MOVED <= self.reference_moved <= REFERENCE_MOVED


def works(
    problem: Problem, device: torch.device, extra_rows: float = 0.0, small: bool = False
) -> Iterator[GateWork]:
    """Yields the works that are timed.

    Args:
        problem: data and networks of ours.
        device: device to measure on.
        extra_rows: additional fraction of rows for ours, to test the gate.
        small: toy sizes, to test the command.
    """
    ours = Ours(problem, device, "half" if device.type == "cuda" else "fp32")

    def more(rows: int) -> int:
        return round(rows * (1 + extra_rows))

    def captured(work: Callable[[], object], count: int) -> Runner:
        return from_graph(work, count) if device.type == "cuda" else Runner(work)

    for rows in _SMALL_TRAINING if small else _TRAINING[device.type]:
        yield GateWork(
            f"training step, {rows:,} rows",
            lambda rows=rows: ours.training(more(rows)),
            lambda rows=rows: captured(Training(rows, device).step, 20),
        )
    rows, steps = _SMALL_SAMPLING if small else _SAMPLING[device.type]
    chain = problem.chain(steps, "ddpm", guided=False)
    yield GateWork(
        f"sampling, {rows:,} rows, {steps} steps",
        lambda: ours.sampling(chain, more(rows)),
        lambda: captured(Sampling(rows, steps, device).chain, 1),
    )


def measure(todo: list[GateWork], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Returns the paired timing of ours and the reference for each work."""
    return {work.name: paired(work.ours(), work.reference(), rounds, device) for work in todo}


def check_correct(problem: Problem, device: torch.device) -> None:
    """Checks the answers of ours against float64.

    Raises:
        SystemExit: status 1: an answer is wrong, so nothing is timed.
    """
    precision = "half" if device.type == "cuda" else "fp32"
    referee = Referee(problem, device)
    for check in _CHECKS:
        error = referee.error("ours", precision, check)
        if not error <= TOLERANCE[precision]:
            click.echo(
                f"gate: {check} is wrong (error {error:.1e}, allowed {TOLERANCE[precision]:g}); "
                "nothing is timed",
                err=True,
            )
            raise SystemExit(1)


def read_baseline(path: Path, device: torch.device) -> dict[str, Timing] | None:
    """Returns the baseline's timings by work; None without a baseline.

    Raises:
        ValueError: the baseline is of another device, suite version or reference work, or cannot
            be read.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        timings = {name: Timing(**timing) for name, timing in content["works"].items()}
        found = {name: content[name] for name in ("device", "suite", "reference work")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"baseline {path.name} cannot be read ({error!r})") from error
    here = {"device": short_name(device), "suite": SUITE, "reference work": reference_hash()}
    for name, value in here.items():
        if found[name] != value:
            raise UserError(
                f"baseline {path.name} was made with {name} {found[name]}, here it is {value}; "
                "gate --update writes a new one"
            )
    return timings


def write_baseline(path: Path, timings: dict[str, Timing], device: torch.device) -> None:
    """Writes timings as the baseline of later nights."""
    make_folder(path.parent)
    save_json(path, {
        "device": short_name(device),
        "suite": SUITE,
        "reference work": reference_hash(),
        "machine": describe(),
        "works": {name: asdict(timing) for name, timing in timings.items()},
    })  # fmt: skip


def compare(now: dict[str, Timing], before: dict[str, Timing]) -> list[Verdict]:
    """Returns a verdict on each work."""
    return [Verdict(name, timing, before[name]) for name, timing in now.items()]


def judge(
    todo: list[GateWork],
    before: dict[str, Timing],
    measure_works: Callable[[list[GateWork]], dict[str, Timing]],
) -> list[Verdict]:
    """Measures all works, those that seem slower twice; returns the last verdict on each."""
    verdicts = {one.name: one for one in compare(measure_works(todo), before)}
    if any(one.invalid for one in verdicts.values()):
        return list(verdicts.values())
    again = [work for work in todo if verdicts[work.name].slower]
    if again:
        click.echo(f"once more: {'; '.join(work.name for work in again)}")
        verdicts |= {one.name: one for one in compare(measure_works(again), before)}
    return list(verdicts.values())


def table(verdicts: list[Verdict]) -> str:
    """Returns the table of tonight beside the baseline, in Markdown."""
    header = ("work", "ours, us", "reference, us", "slower by", "at least", "reference moved", "")
    return markdown_table(header, (
        (
            one.name, f"{one.now.ours_us:.1f}", f"{one.now.peer_us:.1f}",
            f"{one.slowdown - 1:+.1%}", f"{one.least - 1:+.1%}", f"{one.reference_moved - 1:+.1%}",
            "**invalid**" if one.invalid else "**slower**" if one.slower else "as before",
        )
        for one in verdicts
    ))  # fmt: skip


@click.command()
@click.option("--update", is_flag=True, help="Write the baseline instead of comparing with it.")
@click.option("--device", default=None, help="cpu, cuda or cuda:N. Default: the best.")
@rounds_option(40, "Paired rounds of each work.")
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    default=None,
    help="Default: bench/records/baselines/<this GPU>.json.",
)
@click.option(
    "--extra-rows",
    default=0.0,
    show_default=True,
    help="Additional fraction of rows for ours, to test the gate.",
)
@click.option("--small", is_flag=True, help="Toy sizes, to test the command.")
@click.option("--busy", is_flag=True, help="Measure although another process uses the GPU.")
@record_option
def main(update, device, rounds, baseline, extra_rows, small, busy, folder) -> None:
    """Compare the speed of ours with the committed baseline of this GPU."""
    device = free_device(device, busy)
    path = baseline or BASELINES / f"{short_name(device)}.json"
    record, before = Record(folder), None if update else read_baseline(path, device)
    problem = states_problem()
    todo = list(works(problem, device, extra_rows, small))
    if before is not None and (missing := {work.name for work in todo} - before.keys()):
        raise UserError(
            f"baseline {path.name} lacks {'; '.join(sorted(missing))}; "
            "gate --update writes a new one"
        )
    check_correct(problem, device)
    if before is None:
        timings = measure(todo, rounds * _UPDATE_ROUNDS, device)
        write_baseline(path, timings, device)
        record.put("gate", verdict="baseline written", results=_plain(timings))
        why = "" if update else "no baseline of this device yet; "
        click.echo(f"gate: {why}wrote {path.name}")
        return
    verdicts = judge(todo, before, lambda some: measure(some, rounds, device))
    word, status = "as fast as the baseline", 0
    if any(one.invalid for one in verdicts):
        word, status = "invalid night: the reference itself moved by more than 10%", 2
    elif any(one.slower for one in verdicts):
        word, status = "slower than the baseline", 1
    record.put("gate", verdict=word, results=_plain({one.name: one.now for one in verdicts}))
    click.echo(f"{table(verdicts)}\ngate: {word}")
    raise SystemExit(status)


def _plain(timings: dict[str, Timing]) -> list[dict]:
    return [{"work": name, **asdict(timing)} for name, timing in timings.items()]
