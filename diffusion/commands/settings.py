"""The settings of an experiment that a file and the options describe; the options win."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..errors import UserError
from ..kinds import NOTHING, of_text
from ..recorded import chooses_schedule
from ..schedules import Schedule
from ..settings import Settings
from ..training import ClassicRecipe, Recipe
from .config_file import ConfigFile, merged

# Options that are not named like the field that they set, by part of the settings.
_NAMES = {
    "schedule": ("schedule", "name"),
    "timesteps": ("schedule", "num_steps"),
    "samples": ("", "n_samples"),
    "reverse_steps": ("", "sampling_steps"),
}
_OF_SETTINGS = {one.name for one in fields(Settings)}
_OF_SCHEDULE = {one.name for one in fields(Schedule)}
_OF_RECIPES = {one.name for recipe in (Recipe, ClassicRecipe) for one in fields(recipe)}
# What --quick sets, in place of what a file says.
_QUICK = (
    "n_samples", "sampling_steps", "validate_every", "real_draws", "denoiser.steps",
    "denoiser.ema_decay", "classifier.steps", "classifier.ema_decay",
)  # fmt: skip


def field_of(option: str) -> tuple[str, str] | None:
    """Returns the part of the settings, empty for the whole, and the field that an option sets.

    Options that set none of them give None.
    """
    if option in _NAMES:
        return _NAMES[option]
    if option in _OF_SETTINGS:
        return "", option
    if option in _OF_SCHEDULE:
        return "schedule", option
    if option in _OF_RECIPES:
        return "denoiser", option
    rest = option.removeprefix("classifier_")
    return ("classifier", rest) if rest != option and rest in _OF_RECIPES else None


def record_of_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record of options by name; those that are None were not given."""
    record: dict[str, Any] = {}
    for option, value in given.items():
        place = field_of(option)
        if value is None or place is None:
            continue
        part, name = place
        if name == "hidden_layers":
            value = _widths(option, value)
        (record.setdefault(part, {}) if part else record)[name] = value
    for name in ("batch_size", "epochs"):  # of both recipes
        if name in record.get("denoiser", {}):
            record.setdefault("classifier", {}).setdefault(name, record["denoiser"][name])
    return record


def settings_of(
    file: ConfigFile, *, quick: bool, data: str, recipe: str | None, **given: Any
) -> Settings:
    """Returns the settings that a file and options describe.

    Args:
        file: the file of settings.
        quick: reduces the run.
        data: name of the data.
        recipe: name of a recipe; None is that of the file, or that of the data.
        **given: the other options that set a field; None where one is not given.

    Raises:
        ValueError: a value is unknown, of a wrong kind, out of range or of no effect.
    """
    _check_config(file)
    if file.whole and recipe is not None:
        raise UserError(
            "--recipe must be left out with the config.json of a run, which has all settings of "
            f"one, got {recipe!r}"
        )
    options = record_of_options(given)
    record = merged(_without_quick(file.settings) if quick else file.settings, options)
    own_schedule = not chooses_schedule(record.get("schedule", {}))
    recipe = recipe or record.pop("recipe", None)
    if recipe is None and (quick or not file.whole):
        recipe = "states" if data == "states" and own_schedule else "fast"
    epochs = "epochs" in record.get("denoiser", {})
    if quick and (recipe not in ("fast", "states") or (file.whole and epochs)):
        raise UserError(
            "--quick is for the recipes fast and states; cut a classic one with --epochs, others "
            "with --steps"
        )
    base = None if recipe is None else Settings.of_recipe(recipe, quick=quick)
    try:
        _check_length(base or Settings.from_record(file.settings), options)
        settings = Settings.from_record(record, base, quick=quick)
    except UserError as error:
        raise UserError(_in_words(str(error), options, file)) from error
    _check_sigma_data(settings, options)
    return settings


def _check_config(file: ConfigFile) -> None:
    """Checks names and kinds of values of a file alone, so that an error names the file."""
    try:
        Settings.check_record(file.settings)
    except UserError as error:
        raise UserError(f"file {file.path}: {error}") from error


def _without_quick(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a file's record without what a quick run sets itself."""
    kept: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            kept[name] = {key: x for key, x in value.items() if f"{name}.{key}" not in _QUICK}
        elif name not in _QUICK:
            kept[name] = value
    return kept


def _check_length(base: Settings, options: Mapping[str, Any]) -> None:
    """Checks that the length of the training is given in the unit of the recipe."""
    given = {name for part in ("denoiser", "classifier") for name in options.get(part, {})}
    if isinstance(base.denoiser, Recipe) and "epochs" in given:
        raise UserError("--epochs is for the classic recipes; the others take --steps")
    if not isinstance(base.denoiser, Recipe) and "steps" in given:
        raise UserError("--steps is not for a classic recipe, which takes --epochs")


def _check_sigma_data(settings: Settings, options: Mapping[str, Any]) -> None:
    given = options.get("schedule", {})
    schedule, weighting = settings.schedule, settings.denoiser.weighting
    if "sigma_data" in given and "edm" not in (schedule.name, schedule.prediction, weighting):
        raise UserError(
            "sigma_data must be left out unless schedule, prediction or weighting is edm, got "
            f"{given['sigma_data']}"
        )


def _in_words(message: str, options: Mapping[str, Any], file: ConfigFile) -> str:
    """Returns an error about a field with the name of its option, or that of the file."""
    found = re.match(r"(?:(schedule|denoiser|classifier)\.)?(\w+) ", message)
    if found is None:
        return message
    part, name = found[1] or "", found[2]
    if name in _of(part, file.settings) and name not in _of(part, options):
        return f"file {file.path}: {message}"
    if part == "schedule" and name == "name":
        name = "schedule"
    elif part == "classifier":
        name = f"classifier_{name}"
    return f"{name} {message[found.end() :]}"


def _of(part: str, record: Mapping[str, Any]) -> Mapping[str, Any]:
    return record.get(part, {}) if part else record


def _widths(option: str, text: str) -> tuple[int, ...]:
    widths = of_text(tuple, text.replace(",", "-"))
    if widths is NOTHING:
        raise UserError(f"{option} must be widths like 64,128,128, got {text!r}")
    return widths
