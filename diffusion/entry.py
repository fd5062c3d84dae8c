"""The start of the ``flashpoint`` command."""

import sys


def main() -> None:
    """Runs the command; an interrupt before it has begun is one line, too."""
    try:
        from .cli import main as command
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    command()
