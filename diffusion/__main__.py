"""``python -m flashpoint.diffusion`` is the ``flashpoint`` command."""

from .cli import main

main()
