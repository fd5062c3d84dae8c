"""The types of the options: each refuses a wrong value in one line, before any work starts."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from ..errors import UserError, check_choice


class Count(click.ParamType):
    """A whole number of at least one thing, and at most so many that memory can hold.

    Args:
        least, most: the limits.
    """

    name = "integer"

    def __init__(self, least: int = 1, most: int = 10**9):
        self.least, self.most = least, most

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> int:
        """Returns the number."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"must be a whole number, got {value!r}", param, context)
        if number < self.least:
            self.fail(f"must be at least {self.least}, got {number}", param, context)
        if number > self.most:
            self.fail(f"must be at most {self.most}, got {number}", param, context)
        return number


class OneOf(click.ParamType):
    """One of some names; a mistaken one is answered with the nearest.

    Args:
        names: the names.
    """

    name = "text"

    def __init__(self, names: Collection[str]):
        self.names = names

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> str:
        """Returns the name."""
        try:
            check_choice("", value, self.names)
        except UserError as error:
            self.fail(str(error).strip(), param, context)
        return value


class PathName(click.Path):
    """The path of a file or folder, a :class:`~pathlib.Path`; never an empty one.

    An empty one, as of a variable of the shell that is not set, would be the working folder. Shells
    leave the ~ of ``--out=~/runs`` to the program.
    """

    def __init__(self):
        super().__init__(path_type=Path)

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Any:
        """Returns the path."""
        if str(value) == "":
            self.fail("must be a path, got ''", param, context)
        return super().convert(os.path.expanduser(value), param, context)


class DataName(click.ParamType):
    """The name of a data set, or the path of a file or folder with one; never empty."""

    name = "text"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> str:
        """Returns the name or path."""
        if value == "":
            self.fail("must be the name of a data set or a path, got ''", param, context)
        return os.path.expanduser(value)


class NumberOrNone(click.ParamType):
    """A number, or ``none``."""

    name = "float"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> float | str:
        """Returns the number, or ``none``."""
        if str(value).lower() == "none":
            return "none"
        return click.FLOAT.convert(value, param, context)


class CountOrNone(click.ParamType):
    """A :class:`Count`, or ``none``."""

    name = "integer"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> int | str:
        """Returns the number, or ``none``."""
        return "none" if str(value).lower() == "none" else Count().convert(value, param, context)
