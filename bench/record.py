"""The record of a benchmark run: one ``record.json``, whole at every moment, in a folder.

python -m flashpoint.bench record name                              of this machine's GPU
python -m flashpoint.bench record start FOLDER
python -m flashpoint.bench record stage FOLDER NAME STATUS SECONDS LIMIT OUTPUT
python -m flashpoint.bench record unavailable FOLDER NAME REASON

Each measuring command adds its results to the record that ``--record FOLDER`` names, as it goes;
``bench/gpu.sh`` adds how each of its stages ended. The commands above are for it.
"""

import json
from pathlib import Path

import click

from ..diffusion.files import make_folder, save_json
from . import machine

# Of what is measured and how; numbers of two versions are not compared.
SUITE = 1
FILE = "record.json"
_TIMED_OUT = (124, 137)  # what ``timeout`` exits with, by TERM or by KILL

record_option = click.option(
    "--record", "folder", type=click.Path(path_type=Path), help="Folder of the record to add to."
)


class Record:
    """What was measured on one machine; every change is written at once, in one step.

    Args:
        folder: where ``record.json`` is or will be; None keeps nothing.

    Raises:
        ValueError: the folder cannot be written to.
    """

    def __init__(self, folder: Path | None):
        self.path = None if folder is None else make_folder(folder) / FILE
        if self.path is not None and self.path.exists():
            self.content = json.loads(self.path.read_text())
        else:
            self.content = {
                "suite": SUITE,
                "reference work": machine.reference_hash(),
                "machine": machine.describe(),
                "stages": {},
            }

    def put(self, stage: str, **entries) -> None:
        """Adds to, or replaces in, the entries of a stage."""
        self.content["stages"].setdefault(stage, {}).update(entries)
        self.write()

    def write(self) -> None:
        if self.path is not None:
            save_json(self.path, self.content)


@click.group()
def main() -> None:
    """Keep the record of a benchmark run."""


@main.command()
def name() -> None:
    """Print the GPU's name as part of a folder's name."""
    click.echo(machine.short_name())


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def start(folder: Path) -> None:
    """Begin a record anew."""
    (folder / FILE).unlink(missing_ok=True)
    Record(folder).write()


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name")
@click.argument("status", type=int)
@click.argument("seconds", type=float)
@click.argument("limit", type=float)
@click.argument("output", type=click.Path(path_type=Path))
def stage(folder: Path, name: str, status: int, seconds: float, limit: float, output: Path) -> None:
    """Add how a stage ended, and the last line of its output."""
    printed = output.read_text(errors="replace").strip().splitlines()
    outcome = {0: "passed", **dict.fromkeys(_TIMED_OUT, "out of time")}.get(status, "failed")
    ending = {
        "outcome": outcome,
        "exit status": status,
        "seconds": seconds,
        "limit": limit,
        "last line": printed[-1] if printed else "",
    }
    Record(folder).put(name, **ending)
    click.echo(f"{name}: {outcome}  {ending['last line']}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name")
@click.argument("reason")
def unavailable(folder: Path, name: str, reason: str) -> None:
    """Add a stage that this machine cannot run."""
    Record(folder).put(name, outcome="unavailable", reason=reason)
    click.echo(f"{name}: unavailable  {reason}")


if __name__ == "__main__":
    main()
