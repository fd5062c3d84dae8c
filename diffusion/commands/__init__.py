"""Commands of ``flashpoint`` beside those of the experiment, and the options that all share."""

from collections.abc import Callable
from pathlib import Path

import click

from ..datasets import DATASETS, dataset
from ..points import Points

Decorator = Callable[[Callable], Callable]


def options(*decorators: Decorator) -> Decorator:
    """Several options as one decorator."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(decorators):
            command = option(command)
        return command

    return decorate


device_option = click.option(
    "--device", default=None, help="cpu, cuda or cuda:N. Default: the best."
)
seed_option = click.option("--seed", default=0, show_default=True, help="Of everything random.")
data_option = options(
    click.option(
        "--data",
        default="states",
        show_default=True,
        help=f"{', '.join(DATASETS)}; your own points: .pt ({{data, labels}}), .npy, .npz or "
        ".csv; or FashionMNIST: the folder of its IDX files.",
    ),
    click.option("--only-class", type=int, default=None, help="One class of the data alone."),
)


def read_points(data: str, only_class: int | None) -> Points:
    """What :data:`data_option` asks for."""
    points = dataset(data)
    return points if only_class is None else points.only(only_class)


def out_option(text: str) -> Decorator:
    """``--out`` with this help."""
    return click.option("--out", type=click.Path(path_type=Path), default=None, help=text)
