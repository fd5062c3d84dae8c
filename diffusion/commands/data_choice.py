"""The choice of a command's data, as the options say it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import UserError


@dataclass(frozen=True)
class DataChoice:
    """What the options of :func:`data_choice` say of a command's data.

    Args:
        name: name of the data set, or path of a file or folder.
        only_class: name or number of the one class to take; None takes all.
        labels: column, or key, of the labels in a file; None finds it by its name.
        standardise: maps a user's own file to points of order one.
    """

    name: str
    only_class: str | None = None
    labels: str | None = None
    standardise: bool = True


class Remembered(NamedTuple):
    """What a run remembers of its data."""

    choice: DataChoice
    test_fraction: float | None = None  # of the data, held out with the run's seed
    validation_fraction: float | None = None  # of the rest, likewise


def remembered_in(record: Mapping[str, Any], where: str) -> Remembered | None:
    """Returns what the record of a run says of its data; None where it says nothing.

    Args:
        record: content of the run's ``config.json``.
        where: the file, for messages.

    Raises:
        ValueError: it says what this version does not know.
    """
    if not record.get("source"):
        return None
    try:
        source = dict(record["source"])
        test, validation = (source.pop(f"{part}_fraction", None) for part in ("test", "validation"))
        choice = DataChoice(**source)
        return Remembered(choice, test and float(test), validation and float(validation))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"file {where} says of its data what this version does not know; name "
            "them with --data in the version that wrote it"
        ) from error
