"""The commands on points: ``flashpoint data`` and ``flashpoint evaluate``; and ``info``."""

import click

from ..choices import MOST_DRAWS
from .group import loading
from .options import data_choice, options, out_option, quiet_option, run_data_option, seed_option
from .params import Count, DataName, PathName


@click.command(name="data")
@data_choice(click.argument("data", type=DataName(), metavar="NAME"))
@click.option(
    "--test-fraction",
    type=float,
    default=None,
    help="Also write the points: this part of them to <name>_test.pt, the rest to <name>_train.pt.",
)
@options(out_option("File of the picture, .png, .svg or .pdf. Default: <name>.png."))
def data(**chosen) -> None:
    """Draw a data set.

    NAME is what the option --data of the other commands takes.
    """
    with loading():
        from ..commands.data import draw_data
    draw_data(**chosen)


@click.command(name="evaluate")
@click.argument("samples", type=PathName())
@click.option(
    "--label",
    default=None,
    metavar="CLASS",
    help="Class that the samples should have, a name or a number.",
)
@click.option(
    "--held-out",
    type=PathName(),
    default=None,
    help="File of real points that were not trained on, for the check of memorisation.",
)
@click.option(
    "--real-draws",
    type=Count(2, MOST_DRAWS),
    default=40,
    show_default=True,
    help="Real draws behind each metric's band. With fewer than 10, samples inside a band are not "
    "called as good as real data.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone in place of tables.")
@options(run_data_option, quiet_option, seed_option)
def evaluate(**chosen) -> None:
    """Measure a file of samples, each number beside the score of real data.

    Exits with 0 whatever the numbers say: of ten metrics of a perfect sampler, one differs in one
    of ten cases. Scripts find each verdict as "passed" in the output of --json.
    """
    with loading():
        from ..commands.evaluate import evaluate_samples
    evaluate_samples(**chosen)


@click.command(name="info")
def info(**chosen) -> None:
    """Print versions, devices and forms of kernels, for a bug report."""
    with loading():
        from ..commands.info import print_info
    print_info(**chosen)
