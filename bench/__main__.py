"""The benchmarks as one command: ``python -m flashpoint.bench NAME``."""

import signal
import sys

import click

from ..diffusion import UserError
from . import (
    datasets,
    gate,
    gate_selftest,
    kernel_cache,
    operations,
    race,
    report,
    roofline,
    speedrun,
    study,
    tune,
    visit,
    works,
)

COMMANDS = {
    "calibrate": speedrun.calibrate,
    "compile": kernel_cache.main,
    "datasets": datasets.main,
    "gate": gate.main,
    "gate-selftest": gate_selftest.main,
    "operations": operations.main,
    "race": race.main,
    "report": report.main,
    "roofline": roofline.main,
    "speedrun": speedrun.speedrun,
    "study": study.main,
    "tune": tune.main,
    "visit": visit.main,
    "works": works.main,
}


class _Commands(click.Group):
    """Turns a user's error into one line and exit code 2, an interrupt into 130.

    Records are written in one step each, so what an interrupt leaves is whole.
    """

    def invoke(self, context: click.Context):
        try:
            return super().invoke(context)
        except UserError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("interrupted; a record holds what was measured until then", err=True)
            sys.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure this library on this machine."""


for name, command in COMMANDS.items():
    main.add_command(command, name)

if __name__ == "__main__":
    # To be told to stop is an interrupt too; and what a shell starts in the background ignores
    # interrupts unless it says otherwise.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
