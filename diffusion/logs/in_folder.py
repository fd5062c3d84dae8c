"""The logs in the folder of a run: ``losses.csv``, and those that are asked for."""

from collections.abc import Collection
from pathlib import Path

from ..choices import LOGS
from ..errors import check_choice
from .callbacks import Callback
from .tables import CSVLog, JSONLog
from .tensorboard import EVENTS, TensorBoardLog, check_tensorboard

# The files that they write, as patterns.
OWN_LOGS = (
    "losses.csv", "losses.jsonl",
    *(f"tensorboard/{network}/{EVENTS}" for network in ("denoiser", "classifier")),
)  # fmt: skip


def check_logs(kinds: Collection[str]) -> None:
    """Raises :class:`UserError` unless these are kinds of logs that can be written here."""
    for kind in kinds:
        check_choice("log", kind, LOGS)
    if "tensorboard" in kinds:
        check_tensorboard()


def logs_in(folder: Path, kinds: Collection[str]) -> list[Callback]:
    """Returns the logs in the folder of a run, which owns what they write.

    Args:
        folder: the folder.
        kinds: kinds of logs beside ``losses.csv``: ``jsonl`` and ``tensorboard``.
    """
    logs: list[Callback] = [CSVLog(folder / "losses.csv", overwrite=True)]
    if "jsonl" in kinds:
        logs.append(JSONLog(folder / "losses.jsonl", overwrite=True))
    if "tensorboard" in kinds:
        logs.append(TensorBoardLog(folder / "tensorboard", overwrite=True))
    return logs
