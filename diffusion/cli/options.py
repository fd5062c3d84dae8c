"""Options that several commands share, and how they choose the data."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from ..choices import DATASETS, FIGURES
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


def under(heading: str, *decorators: Decorator) -> Decorator:
    """Returns :func:`options` that stand under a heading in the help of :class:`.Sections`."""

    def decorate(command: Callable) -> Callable:
        known = len(getattr(command, "__click_params__", ()))
        command = options(*decorators)(command)
        for option in vars(command)["__click_params__"][known:]:
            option.heading = heading
        return command

    return decorate


class Sections(click.Command):
    """A command whose help shows its options under headings, in the order of the options."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options into the help."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(context):
            record = param.get_help_record(context)
            if record is not None:
                sections.setdefault(getattr(param, "heading", "Other"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


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
quiet_option = click.option(
    "-q", "--quiet", is_flag=True, help="Show no progress, only what comes of it."
)


format_option = click.option(
    "--format",
    "figure_format",
    type=OneOf(FIGURES),
    default="png",
    show_default=True,
    help=f"Format of figures: {', '.join(FIGURES)}.",
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
_DATA = (
    f"{', '.join(DATASETS)}; or a file of points: .pt ({{data, labels}}), .npy, .npz, .csv, .tsv "
    "or .txt; or the folder of FashionMNIST's IDX files."
)
data_option = data_choice(
    click.option("--data", type=DataName(), default="states", show_default=True, help=_DATA)
)
# Of a command that takes a file of settings, which may name the data.
data_or_config_option = data_choice(
    click.option(
        "--data",
        type=DataName(),
        default=None,
        help=f"{_DATA} Default: those of --config, or states.",
    )
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
