"""The choice of a command's data, as the options say it."""

from dataclasses import dataclass


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
