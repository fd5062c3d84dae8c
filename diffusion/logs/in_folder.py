"""The logs in the folder of a run: ``losses.csv``, and those that are asked for."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from ..errors import check_choice
from .callbacks import Callback
from .tables import CSVLog, JSONLog
from .tensorboard import EVENTS, TensorBoardLog, check_tensorboard


class _Kind(NamedTuple):
    """A kind of log."""

    name: str  # in the folder
    make: Callable[..., Callback]


KINDS = {
    "csv": _Kind("losses.csv", CSVLog),
    "jsonl": _Kind("losses.jsonl", JSONLog),
    "tensorboard": _Kind("tensorboard", TensorBoardLog),
}
# The files that they write, as patterns.
OWN_LOGS = (
    "losses.csv", "losses.jsonl",
    *(f"tensorboard/{network}/{EVENTS}" for network in ("denoiser", "classifier")),
)  # fmt: skip


def check_kinds(kinds: Collection[str]) -> None:
    """Raises :class:`UserError` unless these are kinds of logs that can be written here."""
    for kind in kinds:
        check_choice("log", kind, KINDS)
    if "tensorboard" in kinds:
        check_tensorboard()


def logs_in(folder: Path, kinds: Collection[str]) -> list[Callback]:
    """Returns the logs in the folder of a run, which owns what they write.

    Args:
        folder: the folder.
        kinds: kinds of logs beside ``csv``.
    """
    return [
        kind.make(folder / kind.name, overwrite=True)
        for name, kind in KINDS.items()
        if name in ("csv", *kinds)
    ]
