"""The commands that train one model: ``flashpoint states`` and ``flashpoint train``."""

import click

from ..choices import LOGS, METHODS, MOST_DRAWS, RECIPES
from ..errors import check_seed
from .group import loading
from .options import (
    Sections,
    data_or_config_option,
    device_option,
    format_option,
    options,
    quiet_option,
    under,
)
from .params import Count, CountOrNone, NumberOrNone, OneOf, PathName
from .process import objective_options, process_options
from .training import classifier_options, network_options, training_options

_run = under(
    "Run",
    click.option(
        "--recipe",
        type=OneOf(RECIPES),
        default=None,
        help=f"Recipe of the training: {', '.join(RECIPES)}. The classic ones visit each pair of "
        "point and timestep once an epoch and take hours on a CPU. Default: states for the data "
        "set states, unless another schedule or prediction is chosen; else fast.",
    ),
    click.option(
        "--config",
        type=PathName(),
        default=None,
        help="File of settings, .toml or .json, with the names of a run's config.json, which is "
        "one. Options of the command line win over it.",
    ),
    click.option(
        "--quick",
        is_flag=True,
        help="Reduce the run to about a minute on two CPU cores; fine outlines blur.",
    ),
    click.option(
        "--out",
        type=PathName(),
        default=None,
        help="Folder of the run. Default: runs/<name of the data>.",
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Continue an interrupted run, or one that more --steps or --epochs make longer.",
    ),
    click.option(
        "--overwrite", is_flag=True, help="Delete the run that the folder holds, and start anew."
    ),
    click.option(
        "--init",
        type=PathName(),
        default=None,
        metavar="RUN",
        help="Start from the weights of another run, in whose units the data are taken.",
    ),
    click.option(
        "--checkpoint-every",
        type=Count(),
        default=500,
        show_default=True,
        help="Training steps between two checkpoints.",
    ),
    click.option(
        "--validate-every",
        type=Count(),
        default=None,
        help="Training steps between two validations. Default: that of the recipe.",
    ),
    click.option(
        "--seed",
        type=int,
        default=None,
        callback=lambda _context, _option, seed: seed if seed is None else check_seed(seed),
        help="Seed of everything random. Default: 0.",
    ),
    device_option,
    click.option(
        "--log",
        type=OneOf(LOGS),
        multiple=True,
        help="Log the losses as JSON lines or for TensorBoard, too, beside losses.csv in the run's "
        "folder: jsonl or tensorboard. May be given twice.",
    ),
    format_option,
    quiet_option,
)
_data = under(
    "Data",
    data_or_config_option,
    click.option(
        "--validation-fraction",
        type=float,
        default=None,
        help="Part of the data whose loss is watched while the rest is trained on, at random.",
    ),
    click.option(
        "--test-fraction",
        type=float,
        default=None,
        help="Part of the data that is held out of training and validation, at random, for "
        "flashpoint classify.",
    ),
)
_sampling = under(
    "Sampling",
    click.option(
        "--samples",
        type=Count(2, 10**8),
        default=None,
        help="Samples without guidance, and samples of each class.",
    ),
    click.option(
        "--method",
        type=OneOf(METHODS),
        default=None,
        help=f"How samples are drawn: {', '.join(METHODS)}. ddim is deterministic. Default: that "
        "of the recipe, edm in 50 steps for states, else ddpm.",
    ),
    click.option(
        "--reverse-steps",
        type=CountOrNone(),
        default=None,
        help="Steps of a sample. Default: those of the recipe with its own method, else all T.",
    ),
    click.option(
        "--scale",
        type=NumberOrNone(),
        default=None,
        help="Guidance scale of the samples of each class.",
    ),
    click.option(
        "--s-churn",
        type=NumberOrNone(),
        default=None,
        help="Noise that method edm adds in all its steps. Default: that of the recipe.",
    ),
    click.option(
        "--s-noise",
        type=NumberOrNone(),
        default=None,
        help="Standard deviation of this noise. Default: that of the recipe.",
    ),
    click.option(
        "--real-draws",
        type=Count(2, MOST_DRAWS),
        default=None,
        help="Real draws behind each metric's band. Default: 100, with --quick 20.",
    ),
)
_run_options = options(
    _run,
    _data,
    under("Process", process_options),
    under("Network", network_options),
    under("Training", training_options, objective_options),
    under("Classifier", classifier_options),
    _sampling,
)


@click.command(cls=Sections)
@_run_options
def states(**chosen) -> None:
    """Run the whole experiment: train, sample, measure, draw.

    Trains a denoiser and a classifier, draws samples without guidance and guided to every class,
    measures them against the data and writes numbers, files and figures into the run's folder.
    """
    with loading():
        from ..commands.experiment import run_states
    run_states(**chosen)


@click.command(cls=Sections)
@_run_options
def train(**chosen) -> None:
    """Train a denoiser, and a classifier if the data has labels."""
    with loading():
        from ..commands.experiment import run_train
    run_train(**chosen)
