"""The group of commands, which ends each mistake with one line."""

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any, NoReturn

import click

from ..errors import UserError
from ..interrupts import exit_code, stoppable, word_for
from .warning_lines import warnings_as_lines

# Names of arguments in Python beside those of the options that set them, in order of preference.
_OPTIONS = {
    "format": ("format_",),
    "n": ("samples",),
    "n_samples": ("samples",),
    "sampling_steps": ("reverse_steps",),
    "num_steps": ("timesteps", "steps"),
    "repeats": ("real_draws",),
    "label": ("only_class",),
    "x_T": ("prior",),
}


@contextmanager
def loading() -> Iterator[None]:
    """A context that imports PyTorch, and says so on a terminal once a second has passed."""
    waiting = Timer(1.0, print, ("loading PyTorch ...",), {"file": sys.stderr, "flush": True})
    waiting.daemon = True
    if sys.stderr.isatty():
        waiting.start()
    try:
        yield
    finally:
        waiting.cancel()


class Commands(click.Group):
    """Commands that end with one line: exit code 2 on wrong input, 130 and 143 when stopped.

    Signals of batch systems stop a command as Ctrl-C does. Signs that the terminal's encoding does
    not have are replaced.
    """

    what_is_left = ""  # after an interrupt, for the message

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Reads the options of the group itself."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        try:
            return super().make_context(*arguments, **options)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            _end(_line(error))

    def invoke(self, context: click.Context) -> Any:
        """Runs the command that the arguments name."""
        try:
            with stoppable(), warnings_as_lines():
                return super().invoke(context)
        except UserError as error:
            _end(self._with_flag(context, str(error)))
        except click.ClickException as error:
            _end(_line(error))
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends quietly, as a program whose reader is gone does
            _end(f"{error.filename or 'a file'}: {error.strerror or error}")
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            _end("memory does not suffice: take smaller numbers, or fewer points at once")
        except KeyboardInterrupt as stop:
            click.echo(f"\n{word_for(stop)}{self.what_is_left}", err=True)
            sys.exit(exit_code(stop))

    def _with_flag(self, context: click.Context, message: str) -> str:
        """Returns the message, with the flag in place of the argument's name in Python."""
        command = self.get_command(context, context.invoked_subcommand or "")
        found = re.match(r"[A-Za-z_]+(?= (?:must|needs|\S+ leaves) )", message)
        if command is None or found is None:
            return message
        names = (found[0], *_OPTIONS.get(found[0], ()))
        params = {param.name: param for param in command.params}
        param = next((params[name] for name in names if name in params), None)
        return message if param is None else f"{_flag(param)}{message[found.end() :]}"


def _end(message: str) -> NoReturn:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)


def _line(error: click.ClickException) -> str:
    """Returns click's message, with our own words for a value that is out of range."""
    param = error.param if isinstance(error, click.BadParameter) else None
    if param is None or isinstance(error, click.MissingParameter):
        return error.format_message()
    between = " " if error.message.startswith("must ") else ": "
    return f"{_flag(param)}{between}{error.message}"


def _flag(param: click.Parameter) -> str:
    """Returns the longest name of an option, or the name of an argument as the help shows it."""
    if isinstance(param, click.Argument):
        return param.make_metavar(click.Context(click.Command(""))).strip("[]")
    return max(param.opts, key=len)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "memory" in str(error).lower()
