"""The settings of an experiment that the options describe."""

from dataclasses import replace
from typing import Any

from ..errors import UserError, check_integer
from ..settings import Settings
from ..training import ClassicRecipe, Recipe
from .process import chooses_schedule, objective_of, schedule_of


def settings_of(
    *, quick, data, recipe, epochs, steps, classifier_steps, batch_size, samples, method,
    reverse_steps, scale, seed, hidden_layers, activation, linear_input, p_uncond, class_embedding,
    weighting, t_density, p_mean, p_std, low_noise, **process,
) -> Settings:  # fmt: skip
    """Returns the settings that the options of a command describe."""
    own_schedule = not chooses_schedule(process)
    if recipe is None:
        recipe = "states" if data == "states" and own_schedule else "fast"
    if quick and recipe not in ("fast", "states"):
        raise UserError(
            "--quick is for the recipes fast and states; cut a classic one with --epochs, others "
            "with --steps"
        )
    settings = Settings.of_recipe(recipe, seed, quick=quick)
    schedule = schedule_of(settings.schedule, weighting=weighting, **process)
    if reverse_steps is not None:
        check_integer("reverse_steps", reverse_steps, 1, schedule.num_steps)
    own = own_schedule and method in (None, settings.method)
    sampler = _sampler(settings, schedule.num_steps, method, own=own, quick=quick)
    settings = replace(settings, schedule=schedule, **sampler)
    length, classifier_length = _lengths(settings.denoiser, epochs, steps, classifier_steps)
    network = network_of(hidden_layers, activation, linear_input, p_uncond, class_embedding)
    objective = objective_of(
        settings.denoiser, weighting=weighting, t_density=t_density, p_mean=p_mean, p_std=p_std,
        low_noise=low_noise,
    )  # fmt: skip
    settings = replace(
        settings,
        denoiser=replace(
            _with(settings.denoiser, batch_size=batch_size, **length, **network), **objective
        ),
        classifier=_with(settings.classifier, batch_size=batch_size, **classifier_length),
    )
    return _with(settings, n_samples=samples, scale=scale, sampling_steps=reverse_steps)


def _sampler(
    settings: Settings, timesteps: int, method: str | None, *, own: bool, quick: bool
) -> dict[str, Any]:
    """Returns the fields of a recipe's settings that say how samples are drawn.

    Args:
        settings: those of the recipe.
        timesteps: number T of timesteps.
        method: what the user chose; None is nothing.
        own: whether schedule and method are those of the recipe, which its sampler is made for.
        quick: whether the run is a quick one.
    """
    steps = settings.sampling_steps if own else 50 if quick else None
    sampler = {"sampling_steps": steps and min(steps, timesteps)}
    if own:
        return sampler
    return sampler | {"method": method or "ddpm", "s_churn": None, "s_noise": None}


def _lengths(
    recipe: Recipe | ClassicRecipe,
    epochs: int | None,
    steps: int | None,
    classifier_steps: int | None,
) -> tuple[dict[str, int | None], dict[str, int | None]]:
    """Returns the fields of both recipes that say how long the training is."""
    if isinstance(recipe, Recipe):
        if epochs is not None:
            raise UserError("--epochs is for the classic recipes; the others take --steps")
        return {"steps": steps}, {"steps": classifier_steps}
    if steps is not None or classifier_steps is not None:
        raise UserError("--steps is not for a classic recipe, which takes --epochs")
    return {"epochs": epochs}, {"epochs": epochs}


def _with(settings, **changes):
    """Returns a copy with the changes that are not None."""
    return replace(settings, **{name: to for name, to in changes.items() if to is not None})


def network_of(
    hidden_layers: str | None,
    activation: str | None,
    linear_input: bool,
    p_uncond: float | None,
    class_embedding: str | None,
) -> dict[str, Any]:
    """Returns the fields of a recipe that the options set."""
    asked = {
        "hidden_layers": None if hidden_layers is None else _widths(hidden_layers),
        "activation": activation,
        "linear_input": linear_input or None,
        "p_uncond": p_uncond,
        "class_embedding": class_embedding,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(width) for width in text.split(","))
    except ValueError as error:
        raise UserError(f"hidden_layers must be widths like 64,128,128, got {text!r}") from error
