"""``python -m flashpoint.diffusion`` is the ``flashpoint`` command."""

from .entry import main

main()
