"""The options of the forward process and of what the denoiser predicts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click

from ..errors import UserError
from ..noise_levels import SCHEDULES
from ..predictions import NATURAL, PREDICTIONS, WEIGHTINGS, natural_schedule
from ..schedules import TIME_FEATURES, Schedule
from ..training.recipes import T_DENSITIES, ClassicRecipe, Recipe, with_own_mean
from . import options
from .group import Count

process_options = options(
    click.option(
        "--timesteps",
        type=Count(most=10**6),
        default=500,
        show_default=True,
        help="T of the forward process.",
    ),
    click.option(
        "--schedule",
        default=None,
        help=f"One of {', '.join(SCHEDULES)}. Default: that of the recipe; with --prediction "
        f"{' or '.join(NATURAL.values())} that of the same name, with any other linear.",
    ),
    click.option(
        "--beta-start", type=float, default=None,
        help=f"Smallest variance beta. Default: {Schedule.beta_start}.",
    ),
    click.option(
        "--beta-end", type=float, default=None,
        help=f"Largest variance beta. Default: {Schedule.beta_end}.",
    ),
    click.option(
        "--zero-terminal-snr",
        is_flag=True,
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
        default=None,
        help=f"Form in which the networks take t: {', '.join(TIME_FEATURES)}. Default: linspace, "
        "or c_noise with the edm schedule.",
    ),
    click.option(
        "--prediction",
        default=None,
        help=f"What the denoiser predicts: {', '.join(PREDICTIONS)}. Default: that of the recipe's "
        f"schedule; with --schedule {' or '.join(NATURAL)} that of the same name, with any other "
        "eps.",
    ),
    click.option(
        "--weighting",
        default=None,
        help=f"How much an error counts at each timestep: {', '.join(WEIGHTINGS)}. Default: "
        "uniform.",
    ),
    click.option(
        "--t-density",
        default=None,
        help=f"Density of the timesteps of the training that are no --low-noise ones: "
        f"{', '.join(T_DENSITIES)}. Default: that of the recipe.",
    ),
    click.option(
        "--p-mean", type=float, default=None,
        help="Mean of log(sigma) in a normal --t-density. Default: that of the recipe.",
    ),
    click.option(
        "--p-std", type=float, default=None,
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


def chooses_schedule(process: Mapping[str, Any]) -> bool:
    """Returns True if :data:`process_options` ask for another schedule than the recipe's."""
    names = ("schedule", "prediction", "beta_start", "beta_end")
    return any(process.get(name) is not None for name in names) or bool(
        process.get("zero_terminal_snr")
    )


def schedule_of(
    own: Schedule,
    *,
    timesteps: int = 500,
    schedule: str | None = None,
    prediction: str | None = None,
    weighting: str | None = None,
    **fields: Any,
) -> Schedule:
    """Returns the schedule that :data:`process_options` describe.

    Args:
        own: that of the recipe, which is taken unless the options choose another.
        timesteps: number T of timesteps.
        schedule: its name; None is that which goes with the prediction.
        prediction: what the denoiser predicts.
        weighting: weighting of the denoiser's error.
        **fields: the other fields of :class:`~flashpoint.diffusion.Schedule`; None is the default.

    Raises:
        ValueError: a value is unknown, out of range or of no effect.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    if chooses_schedule({"schedule": schedule, "prediction": prediction, **given}):
        name = natural_schedule(prediction) if schedule is None else schedule
        made = Schedule(timesteps, name, prediction=prediction, **given)
    else:
        made = replace(own, num_steps=timesteps, **given)
    if "sigma_data" in given and "edm" not in (made.name, made.prediction, weighting):
        raise UserError(
            "sigma_data must be left out unless schedule, prediction or weighting is edm, got "
            f"{given['sigma_data']}"
        )
    return made


def objective_of(
    recipe: Recipe | ClassicRecipe, *, weighting: str | None, **densities: str | float | None
) -> dict[str, Any]:
    """Returns the fields of a denoiser's recipe that :data:`process_options` set.

    Args:
        recipe: the recipe that they are to change.
        weighting: weighting of the error; None where it is left out.
        **densities: ``t_density``, ``p_mean``, ``p_std`` and ``low_noise``, likewise.

    Raises:
        ValueError: a density is given for a classic recipe.
    """
    given = {name: value for name, value in densities.items() if value is not None}
    if given and not isinstance(recipe, Recipe):
        name, value = next(iter(given.items()))
        raise UserError(
            f"{name} must be left out with a classic recipe, which visits every timestep of every "
            f"point, got {value!r}"
        )
    given = with_own_mean(given)
    return given if weighting is None else given | {"weighting": weighting}
