"""The commands on a run: its report, viewer, exports, and what its model is put to."""

import click

from ..choices import EXPORTS, MOST_DRAWS
from .group import loading
from .options import (
    device_option,
    format_option,
    options,
    out_option,
    quiet_option,
    run_data_option,
    seed_option,
)
from .params import Count, OneOf, PathName


@click.command()
@click.argument("run", type=PathName())
@click.option(
    "--real-draws",
    type=Count(2, MOST_DRAWS),
    default=20,
    show_default=True,
    help="Real draws behind each metric's band.",
)
@options(format_option, run_data_option, quiet_option, seed_option, device_option)
def report(**chosen) -> None:
    """Write report.md and report.html, with every figure and metric, into a run's folder."""
    with loading():
        from ..commands.report import report_run
    report_run(**chosen)


@click.command()
@click.argument("run", type=PathName())
@click.option(
    "-n",
    "--samples",
    type=Count(3, 10**6),
    default=1500,
    show_default=True,
    help="Samples without guidance.",
)
@click.option(
    "--out",
    type=PathName(),
    default=None,
    help="File of the page. Default: view.html in the run's folder.",
)
@options(run_data_option, quiet_option, seed_option, device_option)
def view(**chosen) -> None:
    """Write a page that shows the reverse process of a run, one file for any browser."""
    with loading():
        from ..commands.view import view_run
    view_run(**chosen)


@click.command()
@click.argument("run", type=PathName())
@click.option(
    "--format",
    "format_",
    type=OneOf(EXPORTS),
    default="safetensors",
    show_default=True,
    help=", ".join(EXPORTS),
)
@click.option(
    "--out",
    type=PathName(),
    default=None,
    help="Folder for the files. Default: exports/ in the run's folder.",
)
def export(**chosen) -> None:
    """Write a run's networks as safetensors, ONNX or torch.export, and check each by running it.

    A network takes points and timesteps; the schedule, what it predicts, and the map between the
    data's units and those of the network are in the file's metadata.
    """
    with loading():
        from ..commands.export import export_run
    export_run(**chosen)


@click.command(name="classify")
@click.argument("run", type=PathName())
@click.option(
    "-n",
    "--points",
    "most",
    type=Count(),
    default=1000,
    show_default=True,
    help="Number of points at most.",
)
@click.option(
    "--noises", type=Count(), default=4, show_default=True, help="Pairs of noise at each timestep."
)
@click.option(
    "--test-fraction",
    type=float,
    default=None,
    help="Part of the data to classify where the run has held none out, at random. Default: 0.2.",
)
@options(run_data_option, quiet_option, seed_option, device_option)
def classify(**chosen) -> None:
    """Classify points by how well a conditional model removes their noise for each class.

    The points are those that the run has held out of its training, otherwise new ones where the
    data's distribution is known, otherwise a part of the data. The nearest neighbours are searched
    in the rest.
    """
    with loading():
        from ..commands.classify import classify_points
    classify_points(**chosen)


@click.command(name="interpolate")
@click.argument("run", type=PathName())
@click.option(
    "--pairs",
    type=Count(),
    default=8,
    show_default=True,
    help="Number of random pairs of data points.",
)
@click.option(
    "--between",
    type=(int, int),
    default=None,
    help="Rows of the data of a single pair, in place of --pairs.",
)
@click.option(
    "--count",
    type=Count(2, 10**6),
    default=9,
    show_default=True,
    help="Points on each way, both ends included.",
)
@click.option("--steps", type=Count(), default=None, help="Steps of DDIM. Default: all timesteps.")
@options(
    out_option("File for the ways [count, pairs, d], .pt; a figure is written beside it."),
    format_option,
    run_data_option,
    quiet_option,
    seed_option,
    device_option,
)
def interpolate(**chosen) -> None:
    """Interpolate between data points through the noise that they come from.

    Deterministic DDIM, run backwards, takes both points to their noise; the points on the arc
    between the two lead to new points between the data points (figure 9 of Ho et al. 2020).
    """
    with loading():
        from ..commands.interpolate import interpolate_data
    interpolate_data(**chosen)
