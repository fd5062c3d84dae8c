"""Commands of ``flashpoint`` other than those of the experiment, and the options they share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from ..data import DATASETS, Points, Standardisation, dataset
from ..errors import UserError, check_seed
from ..models import ACTIVATIONS, CLASS_EMBEDDINGS
from .group import Commands, Count, DataName, PathName

__all__ = [
    "Commands",
    "Count",
    "DataChoice",
    "DataName",
    "PathName",
    "data_choice",
    "data_option",
    "device_option",
    "network_of",
    "network_options",
    "note",
    "options",
    "out_option",
    "read_points",
    "seed_option",
]

Decorator = Callable[[Callable], Callable]


def options(*decorators: Decorator) -> Decorator:
    """Returns one decorator in place of several."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(decorators):
            command = option(command)
        return command

    return decorate


device_option = click.option(
    "--device", default=None, help="cpu, cuda or cuda:N. Default: CUDA where there is one."
)
seed_option = click.option(
    "--seed",
    default=0,
    show_default=True,
    callback=lambda _context, _option, seed: check_seed(seed),
    help="Seed of everything random.",
)


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


def data_choice(source: Decorator) -> Decorator:
    """Returns the options that choose the data; a command takes them as ``data: DataChoice``.

    Args:
        source: the option or argument ``data``, which names the data.
    """

    def decorate(command: Callable) -> Callable:
        @wraps(command)
        def collected(*args: Any, data, only_class, labels, no_standardise, **others: Any) -> Any:
            choice = DataChoice(data or "", only_class, labels, not no_standardise)
            return command(*args, data=choice, **others)

        return options(source, _reading_options)(collected)

    return decorate


_reading_options = options(
    click.option(
        "--only-class",
        default=None,
        metavar="CLASS",
        help="Take only this class of the data, a name or a number.",
    ),
    click.option(
        "--labels",
        default=None,
        metavar="COLUMN",
        help="Column of a file with the labels, or key of an .npz or .pt; none for no labels. "
        "Default: found by its name.",
    ),
    click.option(
        "--no-standardise",
        is_flag=True,
        help="Take the numbers of a file as they are. Default: map them to mean 0 and standard "
        "deviation 1, and samples back.",
    ),
)
data_option = data_choice(
    click.option(
        "--data",
        type=DataName(),
        default="states",
        show_default=True,
        help=f"{', '.join(DATASETS)}; or a file of points: .pt ({{data, labels}}), .npy, .npz, "
        ".csv, .tsv or .txt; or the folder of FashionMNIST's IDX files.",
    )
)
network_options = options(
    click.option(
        "--hidden-layers", default=None, help="Widths of the denoiser's layers: 64,128,128."
    ),
    click.option("--activation", default=None, help=f"One of {', '.join(ACTIVATIONS)}."),
    click.option("--linear-input", is_flag=True, help="No activation after the first layer."),
    click.option(
        "--p-uncond",
        type=float,
        default=None,
        help="Train a conditional denoiser in place of a classifier; the class is withheld from it "
        "with this probability.",
    ),
    click.option(
        "--class-embedding",
        default=None,
        help=f"Form in which it takes the class: {' or '.join(CLASS_EMBEDDINGS)}.",
    ),
)


def network_of(
    hidden_layers: str | None,
    activation: str | None,
    linear_input: bool,
    p_uncond: float | None,
    class_embedding: str | None,
) -> dict[str, Any]:
    """Returns the fields of a recipe that :data:`network_options` set."""
    asked = {
        "hidden_layers": None if hidden_layers is None else _widths(hidden_layers),
        "activation": activation,
        "linear_input": linear_input or None,
        "p_uncond": p_uncond,
        "class_embedding": class_embedding,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(width) for width in text.split(","))
    except ValueError as error:
        raise UserError(f"hidden_layers must be widths like 64,128,128, got {text!r}") from error


def note(line: str) -> None:
    """Prints a line beside a command's results, on stderr."""
    click.echo(line, err=True)


def read_points(
    data: DataChoice,
    say: Callable[[str], None] = note,
    standardisation: Standardisation | None = None,
) -> Points:
    """Returns the data set that the options of :func:`data_choice` name.

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


def out_option(text: str) -> Decorator:
    """Returns the option ``--out`` with this help."""
    return click.option("--out", type=PathName(), default=None, help=text)
