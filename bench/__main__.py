"""The command of all benchmarks: ``python -m flashpoint.bench NAME``."""

import signal
from importlib import import_module

import click

from ..diffusion.cli.group import Commands

# The module of each command, and its name there.
COMMANDS = {
    "bands": ("bands", "main"),
    "calibrate": ("speedrun", "calibrate"),
    "compile": ("kernel_cache", "main"),
    "datasets": ("datasets", "main"),
    "gate": ("gate", "main"),
    "gate-months": ("gate_months", "main"),
    "gate-selftest": ("gate_selftest", "main"),
    "host": ("host", "main"),
    "operations": ("operations", "main"),
    "parametrisations": ("parametrisations", "main"),
    "race": ("race", "main"),
    "report": ("report", "main"),
    "roofline": ("roofline", "main"),
    "speedrun": ("speedrun", "speedrun"),
    "study": ("study", "main"),
    "sweep": ("sweep_cost", "main"),
    "tune": ("tune", "main"),
    "visit": ("visit", "main"),
    "works": ("works", "main"),
}


class _Commands(Commands):
    """Commands that end with one line; each record is written in one step, so it stays whole.

    Only the command that is asked for is imported, because together they need many libraries.
    """

    what_is_left = "; a record, if one was asked for, holds the results until then"

    def list_commands(self, _: click.Context) -> list[str]:
        """Returns the names of all commands."""
        return sorted(COMMANDS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        """Returns the command of this name; None if there is none."""
        if name not in COMMANDS:
            return None
        module, command = COMMANDS[name]
        return getattr(import_module(f".{module}", __package__), command)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure this library on this machine."""


if __name__ == "__main__":
    # A process that a shell starts in the background ignores interrupts unless it asks for them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
