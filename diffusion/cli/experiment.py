"""The commands that train one model: ``flashpoint states`` and ``flashpoint train``."""

import click

from ..choices import METHODS, RECIPES
from .group import loading
from .options import data_option, device_option, network_options, options, seed_option
from .params import Count, OneOf, PathName
from .process import process_options

_run_options = options(
    data_option,
    click.option(
        "--out",
        type=PathName(),
        default=None,
        help="Folder of the run. Default: runs/<name of the data>.",
    ),
    click.option(
        "--quick", is_flag=True, help="Reduce the run to about a minute on two CPU cores."
    ),
    click.option("--resume", is_flag=True, help="Continue an interrupted run."),
    click.option(
        "--overwrite", is_flag=True, help="Delete the run that the folder holds, and start anew."
    ),
    click.option("--quiet", is_flag=True, help="Show no progress, only what comes of it."),
    click.option(
        "--test-fraction",
        type=float,
        default=None,
        help="Part of the data that is held out of the training, at random.",
    ),
    click.option(
        "--recipe",
        type=OneOf(RECIPES),
        default=None,
        help=f"Recipe of the training: {', '.join(RECIPES)}. The classic ones visit each pair of "
        "point and timestep once an epoch and take hours on a CPU. Default: states for the data "
        "set states, unless another schedule or prediction is chosen; else fast.",
    ),
    click.option("--epochs", type=Count(), default=None, help="Epochs of a classic recipe."),
    click.option("--steps", type=Count(), default=None, help="Training steps of the denoiser."),
    click.option(
        "--classifier-steps", type=Count(), default=None, help="Training steps of the classifier."
    ),
    click.option(
        "--batch-size", type=Count(most=10**8), default=None, help="Rows per training step."
    ),
    click.option(
        "--samples",
        type=Count(2, 10**8),
        default=None,
        help="Samples without guidance, and samples of each class.",
    ),
    process_options,
    click.option(
        "--method",
        type=OneOf(METHODS),
        default=None,
        help=f"How samples are drawn: {', '.join(METHODS)}. ddim is deterministic. Default: that "
        "of the recipe, edm in 50 steps for states, else ddpm.",
    ),
    click.option(
        "--reverse-steps",
        type=Count(),
        default=None,
        help="Steps of a sample. Default: those of the recipe with its own method, else all T.",
    ),
    click.option(
        "--scale", type=float, default=None, help="Guidance scale of the samples of each class."
    ),
    network_options,
    click.option(
        "--checkpoint-every",
        type=Count(),
        default=500,
        show_default=True,
        help="Training steps between two checkpoints.",
    ),
    seed_option,
    device_option,
)


@click.command()
@_run_options
def states(**chosen) -> None:
    """Run the whole experiment: train, sample, measure, draw.

    Trains a denoiser and a classifier, draws samples without guidance and guided to every class,
    measures them against the data and writes numbers, files and figures into the run's folder.
    """
    with loading():
        from ..commands.experiment import run_states
    run_states(**chosen)


@click.command()
@_run_options
def train(**chosen) -> None:
    """Train a denoiser, and a classifier if the data has labels."""
    with loading():
        from ..commands.experiment import run_train
    run_train(**chosen)
