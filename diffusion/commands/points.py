"""The points that a choice of data names."""

from collections.abc import Callable

from ..data import DATASETS, Points, Standardisation, dataset
from ..errors import UserError
from ..progress import note
from .data_choice import DataChoice


def read_points(
    data: DataChoice,
    say: Callable[[str], None] = note,
    standardisation: Standardisation | None = None,
) -> Points:
    """Returns the data set that a choice names.

    Args:
        data: the choice.
        say: called with a line of text about what was taken for what in a file.
        standardisation: the map of a trained run, for other data than it was trained on.
    """
    if not data.standardise and data.name in DATASETS:
        raise UserError(f"--no-standardise is for a file: {data.name} stays as it was published")
    lines: list[str] = []  # said once nothing is wrong, so that an error stands alone
    points = dataset(data.name, data.labels, standardisation or data.standardise, lines.append)
    if data.only_class is not None:
        points = points.only(points.label(data.only_class, "--only-class"))
    for line in lines:
        say(line)
    return points
