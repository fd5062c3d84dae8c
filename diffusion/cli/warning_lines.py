"""Warnings of the library as lines of the command line."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Prints each warning of this package and of PyTorch once, in one line on stderr."""
    show, seen = warnings.showwarning, set()

    def show_line(message, category, *place, **options) -> None:
        line = " ".join(str(message).split())
        if not issubclass(category, UserWarning):
            show(message, category, *place, **options)
        elif line not in seen:
            seen.add(line)
            click.echo(f"warning: {line}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show_line
        yield
