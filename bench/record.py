"""The record of a benchmark run: one ``record.json``, whole at every moment, in a folder.

Each measuring command adds its results to the record that ``--record FOLDER`` names, as it goes;
``bench/gpu.sh`` adds how each of its stages ended.
"""

import json
from pathlib import Path

import click

from ..diffusion import UserError
from ..diffusion.files import make_folder, save_json
from . import machine

# Of what is measured and how; numbers of two versions are not compared.
SUITE = 1
FILE = "record.json"

record_option = click.option(
    "--record", "folder", type=click.Path(path_type=Path), help="Folder of the record to add to."
)


class Record:
    """What was measured on one machine; every change is written at once, in one step.

    Args:
        folder: where ``record.json`` is or will be; None keeps nothing.

    Raises:
        ValueError: the folder cannot be written to, or what it holds is no record of this version
            of the suite and this GPU.
    """

    def __init__(self, folder: Path | None):
        self.path = None if folder is None else make_folder(folder) / FILE
        if self.path is not None and self.path.exists():
            self.content = read(self.path)
            self._check()
        else:
            self.content = {
                "suite": SUITE,
                "reference work": machine.reference_hash(),
                "machine": machine.describe(),
                "stages": {},
            }

    def _check(self) -> None:
        """Numbers of two GPUs or two versions of the suite do not go into one record."""
        found = {"suite": self.content["suite"], "GPU": self.content["machine"]["gpu"]}
        here = {"suite": SUITE, "GPU": machine.gpu_name()}
        for name, value in here.items():
            if found[name] != value:
                raise UserError(
                    f"record {self.path.parent.name}/{FILE} was made with {name} {found[name]}, "
                    f"here it is {value}; choose another folder"
                )

    def put(self, stage: str, **entries) -> None:
        """Adds to, or replaces in, the entries of a stage."""
        self.content["stages"].setdefault(stage, {}).update(entries)
        self.write()

    def write(self) -> None:
        if self.path is not None:
            save_json(self.path, self.content)


def read(path: Path) -> dict:
    """What a record holds.

    Raises:
        ValueError: it cannot be read, or a part is missing.
    """
    try:
        content = json.loads(path.read_text())
        missing = {"suite", "machine", "stages"} - content.keys()
        missing = missing or {"gpu", "date"} - content["machine"].keys()
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"record {path.parent.name}/{FILE} cannot be read ({error!r})") from error
    if missing:
        raise UserError(f"record {path.parent.name}/{FILE} lacks {', '.join(sorted(missing))}")
    return content
