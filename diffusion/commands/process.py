"""The forward process and the objective that a run's options describe."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import UserError
from ..predictions import natural_schedule
from ..schedules import Schedule
from ..training.recipes import ClassicRecipe, Recipe, with_own_mean


def chooses_schedule(process: Mapping[str, Any]) -> bool:
    """Returns True if the options ask for another schedule than the recipe's."""
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
    """Returns the schedule that the options describe.

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
    """Returns the fields of a denoiser's recipe that the options set.

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
