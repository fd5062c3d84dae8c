"""The options of the forward process, of what the denoiser predicts, and of its objective."""

import click

from ..choices import NATURAL, PREDICTIONS, SCHEDULES, T_DENSITIES, TIME_FEATURES, WEIGHTINGS
from .options import options
from .params import Count, NumberOrNone, OneOf

process_options = options(
    click.option(
        "--timesteps",
        type=Count(most=10**6),
        default=None,
        help="T of the forward process. Default: 500.",
    ),
    click.option(
        "--schedule",
        type=OneOf(SCHEDULES),
        default=None,
        help=f"One of {', '.join(SCHEDULES)}. Default: that of the recipe; with --prediction "
        f"{' or '.join(NATURAL.values())} that of the same name, with any other linear.",
    ),
    click.option(
        "--beta-start", type=float, default=None,
        help="Smallest variance beta. Default: 0.0001.",
    ),
    click.option(
        "--beta-end", type=float, default=None,
        help="Largest variance beta. Default: 0.02.",
    ),
    click.option(
        "--zero-terminal-snr/--no-zero-terminal-snr",
        default=None,
        help="Leave no data at the last timestep of a schedule of betas.",
    ),
    click.option(
        "--sigma-min", type=float, default=None,
        help="Smallest noise level of the edm schedule. Default: 0.002, of recipe states 0.005.",
    ),
    click.option(
        "--sigma-max", type=float, default=None,
        help="Largest noise level of the edm schedule. Default: 80, of recipe states 10.",
    ),
    click.option(
        "--sigma-data", type=float, default=None,
        help="Standard deviation of the data, for edm as schedule, prediction or weighting. "
        "Default: 1, of recipe states 0.5.",
    ),
    click.option(
        "--time-feature",
        type=OneOf(TIME_FEATURES),
        default=None,
        help=f"Form in which the networks take t: {', '.join(TIME_FEATURES)}. Default: linspace, "
        "or c_noise with the edm schedule.",
    ),
    click.option(
        "--prediction",
        type=OneOf(PREDICTIONS),
        default=None,
        help=f"What the denoiser predicts: {', '.join(PREDICTIONS)}. Default: that of the recipe's "
        f"schedule; with --schedule {' or '.join(NATURAL)} that of the same name, with any other "
        "eps.",
    ),
)  # fmt: skip
objective_options = options(
    click.option(
        "--weighting",
        type=OneOf(WEIGHTINGS),
        default=None,
        help=f"How much an error counts at each timestep: {', '.join(WEIGHTINGS)}. Default: "
        "uniform.",
    ),
    click.option(
        "--t-density",
        type=OneOf(T_DENSITIES),
        default=None,
        help=f"Density of the timesteps of the training that are no --low-noise ones: "
        f"{', '.join(T_DENSITIES)}. Default: that of the recipe.",
    ),
    click.option(
        "--p-mean", type=NumberOrNone(), default=None,
        help="Mean of log(sigma) in a normal --t-density. Default: that of the recipe.",
    ),
    click.option(
        "--p-std", type=NumberOrNone(), default=None,
        help="Standard deviation of log(sigma) in a normal --t-density. Default: that of the "
        "recipe.",
    ),
    click.option(
        "--low-noise",
        type=float,
        default=None,
        help="Part of the timesteps of the training that is drawn uniformly in the logarithm of "
        "the noise level. Default: that of the recipe.",
    ),
)  # fmt: skip
