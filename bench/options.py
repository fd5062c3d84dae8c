"""Options of several commands."""

import math

import click


class Number(click.FloatRange):
    """A finite number within a range: no NaN and no infinity."""

    def convert(self, value, param, ctx):
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"must be a finite number, got {value}", param, ctx)
        return number


def count_option(name: str, default: int | None, text: str, least: int = 1):
    """Returns an option that takes a whole number of at least ``least``."""
    return click.option(
        name, type=click.IntRange(min=least), default=default, show_default=True, help=text
    )


def rounds_option(default: int, text: str = "Paired rounds of a comparison.", least: int = 2):
    """Returns the option ``--rounds``; an interval needs two."""
    return count_option("--rounds", default, text, least)


def budget_option(seconds: float):
    """Returns the option ``--budget``."""
    return click.option(
        "--budget",
        type=Number(min=0),
        default=seconds,
        show_default=True,
        help="Start no more after this many seconds.",
    )
