"""The record of a benchmark run: one ``record.json`` in a folder, complete at every moment.

Each command adds its results, one by one, to the record that ``--record FOLDER`` names.
``bench/gpu.sh`` adds the outcome of each of its stages.
"""

from pathlib import Path

import click

from ..diffusion.errors import UserError
from ..diffusion.files import load_json, make_folder, save_json
from . import machine

# Version of the works and of the method; numbers of two versions are not compared.
SUITE = 1
FILE = "record.json"
# What every record says of its machine and readers rely on.
_OF_MACHINE = {
    "date", "commit", "uncommitted changes", "python", "torch", "triton", "gpu", "processor",
    "threads",
}  # fmt: skip

record_option = click.option(
    "--record",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder of the record to which results are added.",
)


class Record:
    """Results of one machine; every change is written at once, in one step.

    Args:
        folder: folder of ``record.json``; None writes nothing.

    Raises:
        ValueError: the folder cannot be written to, or it holds a record of another version of the
            suite or another GPU.
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
        """Refuses a record of another GPU or another version of the suite."""
        found = {"suite": self.content["suite"], "GPU": self.content["machine"]["gpu"]}
        here = {"suite": SUITE, "GPU": machine.gpu_name()}
        for name, value in here.items():
            if found[name] != value:
                raise UserError(
                    f"record {self.path.parent.name}/{FILE} was made with {name} {found[name]}, "
                    f"here it is {value}; choose another folder"
                )

    def put(self, stage: str, **entries) -> None:
        """Adds entries to those of a stage, or replaces them."""
        self.content["stages"].setdefault(stage, {}).update(entries)
        self.write()

    def write(self) -> None:
        if self.path is not None:
            save_json(self.path, self.content)


def read(path: Path) -> dict:
    """Returns the content of a record.

    Raises:
        ValueError: the record cannot be read, or a part is missing.
    """
    content = load_json(path, "record")
    if missing := {"suite", "machine", "stages"} - content.keys():
        raise UserError(f"record {path} lacks {', '.join(sorted(missing))}")
    for part in ("machine", "stages"):
        if not isinstance(content[part], dict):
            raise UserError(f"record {path}: {part} must be an object, got {content[part]!r}")
    if missing := _OF_MACHINE - content["machine"].keys():
        raise UserError(f"record {path} lacks {', '.join(sorted(missing))}")
    if not all(isinstance(stage, dict) for stage in content["stages"].values()):
        raise UserError(f"record {path}: stages must be objects")
    return content
