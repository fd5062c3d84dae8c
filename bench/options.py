"""Options of several commands."""

import click


def rounds_option(default: int, text: str = "Paired rounds of a comparison.", least: int = 2):
    """Returns the option ``--rounds``; an interval needs two."""
    return click.option(
        "--rounds", type=click.IntRange(min=least), default=default, show_default=True, help=text
    )


def budget_option(seconds: float):
    """Returns the option ``--budget``."""
    return click.option(
        "--budget",
        type=click.FloatRange(min=0),
        default=seconds,
        show_default=True,
        help="Start no more after this many seconds.",
    )
