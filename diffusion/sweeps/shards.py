"""The parts of a sweep, which several processes do at once, on one machine or on many.

Each part trains, draws and measures its own models, and nothing passes between them but the files
of the folder that they share. Whichever ends last finds all models there and writes the table.
"""

import os
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .. import files
from ..errors import UserError, shown
from ..locks import HOLDER, is_locked, lock_folder
from .store import SweepFolder

_FOLDER = "parts"  # of a sweep's folder, with a folder for each part that was begun


class Part(NamedTuple):
    """One part of a sweep."""

    number: int = 0  # from 0
    parts: int = 1

    def __str__(self) -> str:
        return f"{self.number + 1}/{self.parts}"

    @property
    def is_all(self) -> bool:
        """True if the part is the whole sweep."""
        return self.parts == 1


WHOLE = Part()


def part_of_text(text: str) -> Part:
    """Returns the part that ``--shard`` names, such as 3/16 for the third of 16 parts.

    Raises:
        ValueError: it names none.
    """
    found = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    number, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= parts:
        raise UserError(f"shard must be one of 1/N to N/N, as 3/16, got {shown(text)}")
    return Part(number - 1, parts)


def this_part(shard: str | None = None) -> Part:
    """Returns the part of this process: its rank among those of ``torchrun``, within its shard.

    Args:
        shard: the part that all its ranks share, see :func:`part_of_text`; None for everything.

    Raises:
        ValueError: the shard names no part.
    """
    part = WHOLE if shard is None else part_of_text(shard)
    rank, size = (int(os.environ.get(name, one)) for name, one in (("RANK", 0), ("WORLD_SIZE", 1)))
    return Part(part.number * size + rank, part.parts * size)


def check_part(folder: SweepFolder, part: Part, *, resume: bool, overwrite: bool) -> None:
    """Raises :class:`UserError` if a part of a sweep cannot be begun, or go on, in a folder.

    Args:
        folder: the folder of the sweep, which other parts may have begun.
        part: the part.
        resume: goes on with the part.
        overwrite: what a part must not do, since others share the folder.
    """
    if overwrite:
        raise UserError(
            f"overwrite must be left out for part {part} of a sweep, which shares its folder with "
            f"others: delete {folder.path}, or give another --out"
        )
    if resume or not folder.config_file.exists():
        return
    if _was_begun(_folder_of(folder.path, part)):
        raise UserError(
            f"folder {folder.path} holds part {part} of a sweep already; --resume goes on with it, "
            "another --out keeps it"
        )
    if not any(map(_was_begun, (folder.path / _FOLDER).glob("*-of-*"))):
        folder.check_unused()  # a sweep that was not begun in parts
    folder.check_same()
    if files.load_json(folder.config_file).get("factors") != folder.record()["factors"]:
        raise UserError(
            f"folder {folder.path} holds parts of a sweep with other values; give the same ones, "
            "or another --out"
        )


def occupy(folder: Path, part: Part, owner: object) -> None:
    """Locks the folder of a sweep, or a part's place in it, for as long as the owner lives.

    Args:
        folder: the folder, which exists.
        part: the part.
        owner: the object that works in the folder.

    Raises:
        ValueError: another process does this part, the whole sweep, or parts of another size.
    """
    if part.is_all:
        weakref.finalize(owner, lock_folder(folder).release)
    elif is_locked(folder):
        raise UserError(f"folder {folder} is in use by a run of the whole sweep; wait for its end")
    for other in _others(folder, part):
        if is_locked(other):
            raise UserError(
                f"folder {folder} is in use by part {other.name.replace('-of-', '/')} of the "
                f"sweep; wait for its end, or do one of the same number of parts"
            )
    if not part.is_all:
        place = files.make_folder(_folder_of(folder, part))
        weakref.finalize(owner, lock_folder(place).release)


def _folder_of(folder: Path, part: Part) -> Path:
    return folder / _FOLDER / f"{part.number + 1}-of-{part.parts}"


def _was_begun(place: Path) -> bool:
    """Returns True if a part has been begun, whose place in the folder this is."""
    return (place / HOLDER).exists()


def _others(folder: Path, part: Part) -> Iterator[Path]:
    """Yields the places of the parts that were begun, where the sweep was in other parts."""
    for place in sorted((folder / _FOLDER).glob("*-of-*")):
        if not place.name.endswith(f"-of-{part.parts}"):
            yield place
