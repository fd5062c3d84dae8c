"""The ``flashpoint`` command: what users can type, its help, and the answer to mistakes.

Nothing here imports PyTorch, which takes seconds: each command imports what it does from
:mod:`~flashpoint.diffusion.commands` once its options are right.
"""

import click

from .data import data, evaluate, info
from .experiment import states, train
from .grids import study, sweep
from .group import Commands
from .of_run import classify, export, interpolate, report, view
from .sample import sample


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flashpoint")
def main() -> None:
    """Train and sample small diffusion models of point clouds.

    Start with:  flashpoint states --quick
    """


for command in (
    states, train, sample, evaluate, report, view, sweep, study, export, data, classify,
    interpolate, info,
):  # fmt: skip
    main.add_command(command)
