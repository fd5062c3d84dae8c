"""The start of the ``flashpoint`` command, before PyTorch is imported."""

import sys
from threading import Timer


def main() -> None:
    """Runs the command; an interrupt while PyTorch is imported is one line, too."""
    waiting = Timer(1.0, print, ("loading PyTorch ...",), {"file": sys.stderr, "flush": True})
    waiting.daemon = True
    if sys.stderr.isatty():
        waiting.start()
    try:
        from .cli import main as command
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        waiting.cancel()
    command()
