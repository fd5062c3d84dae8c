"""The command of all benchmarks: ``python -m flashpoint.bench NAME``."""

import signal

import click

from ..diffusion.cli.group import Commands
from . import (
    bands,
    datasets,
    gate,
    gate_months,
    gate_selftest,
    host,
    kernel_cache,
    operations,
    parametrisations,
    race,
    report,
    roofline,
    speedrun,
    study,
    sweep_cost,
    tune,
    visit,
    works,
)

COMMANDS = {
    "bands": bands.main,
    "calibrate": speedrun.calibrate,
    "compile": kernel_cache.main,
    "datasets": datasets.main,
    "gate": gate.main,
    "gate-months": gate_months.main,
    "gate-selftest": gate_selftest.main,
    "host": host.main,
    "operations": operations.main,
    "parametrisations": parametrisations.main,
    "race": race.main,
    "report": report.main,
    "roofline": roofline.main,
    "speedrun": speedrun.speedrun,
    "study": study.main,
    "sweep": sweep_cost.main,
    "tune": tune.main,
    "visit": visit.main,
    "works": works.main,
}


class _Commands(Commands):
    """Commands that end with one line; each record is written in one step, so it stays whole."""

    what_is_left = "; a record, if one was asked for, holds the results until then"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure this library on this machine."""


for name, command in COMMANDS.items():
    main.add_command(command, name)

if __name__ == "__main__":
    # A process that a shell starts in the background ignores interrupts unless it asks for them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
