"""Measures how often the gate raises an alarm, with and without planted work.

    python -m flashpoint.bench gate-selftest --device cpu --record FOLDER

After a baseline is written, the gate runs many times, each time in a new process as it does every
night. Without planted work each alarm is false. With 5% and 20% more rows in ours the gate should
raise an alarm. Rates come with their Clopper-Pearson 95% interval.
"""

import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from ..diffusion.progress import counted
from .machine import free_device
from .options import count_option, rounds_option
from .record import Record, record_option
from .timing import clopper_pearson
from .verdict import Status

_OUTCOMES = {Status.AS_BEFORE: "quiet", Status.SLOWER: "alarm", Status.INVALID: "invalid night"}


@dataclass
class Planted:
    """Outcomes of the gate for an amount of planted work.

    Attributes:
        extra_rows: planted rows, as a fraction.
        runs: number of runs, without invalid nights.
        alarms: number of runs with the verdict slower.
        invalid: number of invalid nights.
        low, high: Clopper-Pearson 95% interval of alarms / runs.
    """

    extra_rows: float
    runs: int
    alarms: int
    invalid: int
    low: float
    high: float


def gate(*arguments: str) -> int:
    """Runs the gate in a new process and returns its exit status.

    Raises:
        RuntimeError: the gate failed without a verdict.
    """
    command = [sys.executable, "-m", "flashpoint.bench", "gate", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    verdict = done.returncode == 0 or done.stdout.rstrip().rpartition("\n")[2].startswith("gate: ")
    if done.returncode not in _OUTCOMES or not verdict:
        raise RuntimeError(f"gate ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.returncode


def summarise(extra_rows: float, statuses: list[int]) -> Planted:
    """Returns the rate of alarms over the valid nights, with its interval."""
    count = Counter(_OUTCOMES[status] for status in statuses)
    runs = count["quiet"] + count["alarm"]
    low, high = clopper_pearson(count["alarm"], runs)
    return Planted(extra_rows, runs, count["alarm"], count["invalid night"], low, high)


@click.command()
@click.option("--device", default=None, help="cpu, cuda or cuda:N. Default: the best.")
@count_option("--repeats", 30, "Runs without planted work.")
@count_option("--planted-repeats", 20, "Runs for each amount.")
@rounds_option(40, "Paired rounds of each work.")
@record_option
def main(device, repeats, planted_repeats, rounds, folder) -> None:
    """Plant work in ours and count how often the gate notices it."""
    device, record, results = free_device(device), Record(folder), []
    with tempfile.TemporaryDirectory() as scratch:
        options = ["--device", str(device), "--rounds", str(rounds),
                   "--baseline", str(Path(scratch) / "baseline.json")]  # fmt: skip
        gate("--update", *options)
        for extra_rows, count in ((0.0, repeats), (0.05, planted_repeats), (0.2, planted_repeats)):
            statuses = [
                gate("--extra-rows", str(extra_rows), *options)
                for _ in counted(count, f"{extra_rows:.0%} planted", "gates")
            ]
            found = summarise(extra_rows, statuses)
            results.append(asdict(found))
            record.put("gate-selftest", rounds=rounds, results=results)
            click.echo(
                f"{extra_rows:4.0%} more rows: {found.alarms} alarms of {found.runs}, "
                f"95% {found.low:.1%} to {found.high:.1%}; {found.invalid} invalid nights"
            )
