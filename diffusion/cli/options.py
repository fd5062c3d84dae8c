"""Options that several commands share, and how they choose the data."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from ..choices import ACTIVATIONS, CLASS_EMBEDDINGS, DATASETS
from ..commands.data_choice import DataChoice
from ..errors import check_seed
from .params import DataName, OneOf, PathName

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
    click.option(
        "--activation",
        type=OneOf(ACTIVATIONS),
        default=None,
        help=f"One of {', '.join(ACTIVATIONS)}.",
    ),
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
        type=OneOf(CLASS_EMBEDDINGS),
        default=None,
        help=f"Form in which it takes the class: {' or '.join(CLASS_EMBEDDINGS)}.",
    ),
)
run_data_option = options(
    data_choice(
        click.option(
            "--data",
            type=DataName(),
            default=None,
            help="The run's data, where it does not remember them or they have moved. Default: "
            "what it was trained on.",
        )
    ),
    click.option(
        "--other-data", is_flag=True, help="Take --data even if the run was trained on others."
    ),
)


def out_option(text: str) -> Decorator:
    """Returns the option ``--out`` with this help."""
    return click.option("--out", type=PathName(), default=None, help=text)
