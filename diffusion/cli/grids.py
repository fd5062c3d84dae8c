"""The commands that train many models: ``flashpoint sweep`` and ``flashpoint study``."""

import click

from ..choices import MOST_DRAWS, STUDIES
from .group import loading
from .options import (
    data_option,
    device_option,
    format_option,
    options,
    out_option,
    quiet_option,
    seed_option,
)
from .params import Count, DataName, OneOf, PathName


@click.command(name="sweep")
@data_option
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE,VALUE",
    help="Values of a key, to be combined with those of all others: lr=1e-3,3e-3, hidden=64x3,"
    "128-128, prediction=eps,v,flow, seed=0..9.",
)
@click.option(
    "--file", "grid", type=PathName(), default=None, help="File of TOML with a table [set]."
)
@click.option(
    "--samples",
    type=Count(2, 10**8),
    default=2000,
    show_default=True,
    help="Samples that each model is measured by.",
)
@click.option(
    "--metrics",
    default=None,
    help="Metrics by name, with commas, as in kde_nll,mmd,emd. Default: those of every evaluation "
    "and the likelihood.",
)
@click.option(
    "--real-draws",
    type=Count(2, MOST_DRAWS),
    default=40,
    show_default=True,
    help="Real draws behind each metric's band.",
)
@click.option(
    "--together",
    type=Count(),
    default=None,
    help="Networks that train at once. Default: as many as memory, or a CPU's cache, holds.",
)
@click.option(
    "--best",
    default=None,
    metavar="METRIC",
    help="Leave the best model by a metric, the one nearest to real data, as the run "
    "best-<metric> in the folder.",
)
@click.option(
    "--shard",
    default=None,
    metavar="K/N",
    help="Do the K-th of N parts, as 3/16; all parts take the same --out. torchrun shares out the "
    "models over its ranks in the same way.",
)
@click.option("--dry-run", is_flag=True, help="Say what the sweep will take, and do nothing.")
@click.option("--resume", is_flag=True, help="Continue an interrupted sweep, or add values to it.")
@click.option(
    "--overwrite", is_flag=True, help="Delete the sweep that the folder holds, and start anew."
)
@options(
    quiet_option,
    out_option("Folder of the sweep. Default: runs/sweep-<name of the data>."),
    format_option,
    device_option,
)
def sweep(**chosen) -> None:
    """Train and measure all combinations of some values.

    A key is a setting of the training (lr, steps, hidden, batch_size, weighting ...), of the
    schedule (schedule, timesteps, prediction, beta_end ...) or of the sampling (method,
    sampling_steps ...), the recipe, or the seed. Networks of one shape train in the same launches.
    """
    with loading():
        from ..commands.sweep import run_sweep
    run_sweep(**chosen)


@click.command(name="study")
@click.argument("name", type=OneOf(STUDIES), required=False)
@click.option(
    "--quick", is_flag=True, help="Reduce the study to less than five minutes on two CPU cores."
)
@click.option(
    "--data",
    type=DataName(),
    default=None,
    help="Data set in place of the study's: a name, a file of points, or FashionMNIST's folder.",
)
@click.option(
    "--together",
    type=Count(),
    default=None,
    help="Models that train at once. Default: all of one kind on a GPU, one on a CPU.",
)
@click.option(
    "--page",
    type=PathName(),
    default=None,
    help="Markdown file to write about every study in --out.",
)
@options(
    out_option(
        "Folder of all studies; work that it holds is not done again. Default: runs/studies, with "
        "--quick runs/studies-quick."
    ),
    quiet_option,
    format_option,
    seed_option,
    device_option,
)
def study(**chosen) -> None:
    """Train, draw and measure a grid of models, in published settings.

    NAME is one of timesteps, betas, schedules, epochs, complexity, guidance, reward, digits,
    predictions. The same command continues an interrupted study.
    """
    with loading():
        from ..commands.study import run_study
    run_study(**chosen)
