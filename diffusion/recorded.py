"""Schedules and recipes of settings that are written down, whole or in part, in TOML or JSON."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

from .choices import DECAYS
from .errors import UserError, check_choice, shown
from .kinds import NOTHING, checked, kinds_by_name, of_text
from .predictions import natural_schedule
from .schedules import Schedule
from .time_embedding import TimeEmbedding
from .training import ClassicRecipe, CosineDecay, PlainRecipe, PlateauDecay, Recipe, StepDecay
from .training.recipes import with_own_mean

_Made = TypeVar("_Made")

Decay = StepDecay | CosineDecay | PlateauDecay

_DECAYS: dict[str, type[Decay]] = dict(
    zip(DECAYS, (StepDecay, CosineDecay, PlateauDecay), strict=True)
)
_PLAIN = "plain"  # kind of a recipe that has the fields of another


def record_of_recipe(recipe: Recipe | ClassicRecipe) -> dict[str, Any]:
    """Returns a recipe as :func:`recipe_from` takes it."""
    kind = {"kind": _PLAIN} if isinstance(recipe, PlainRecipe) else {}
    return asdict(recipe) | kind


def chooses_schedule(given: Mapping[str, Any]) -> bool:
    """Returns True if fields of a schedule ask for another one than that of the recipe."""
    names = ("name", "prediction", "beta_start", "beta_end")
    return any(given.get(name) is not None for name in names) or bool(
        given.get("zero_terminal_snr")
    )


def checked_schedule(part: str, record: Any) -> dict[str, Any]:
    """Returns the fields of a schedule's record; each must have a name and a kind of value."""
    return checked(part, record, kinds_by_name(Schedule), ("time_feature",))


def checked_recipe(part: str, record: Any) -> dict[str, Any]:
    """Returns the fields of a recipe's record, which are those of one class or another."""
    return checked(part, record, kinds_by_name(Recipe, ClassicRecipe), ("decay", "kind"))


def schedule_from(part: str, record: Any, own: Schedule) -> Schedule:
    """Returns the schedule of a record.

    Args:
        part: name of the record, for messages.
        record: fields of the schedule by name.
        own: that of the recipe, whose fields are those that the record lacks, unless it chooses
            another schedule. Of another they are the defaults.

    Raises:
        ValueError: a field is unknown, or its value of a wrong kind or out of range.
    """
    given = checked_schedule(part, record)
    given = {name: value for name, value in given.items() if value is not None}
    embedding = given.get("time_feature")
    if isinstance(embedding, Mapping):
        place = f"{part}.time_feature"
        embedding = checked(place, embedding, kinds_by_name(TimeEmbedding))
        given["time_feature"] = _made(place, TimeEmbedding, lambda: TimeEmbedding(**embedding))
    if not chooses_schedule(given):
        return _made(part, Schedule, lambda: replace(own, **given))
    named = {"name": natural_schedule(given.get("prediction"))}
    return _made(part, Schedule, lambda: Schedule(**(named | given)))


def recipe_from(
    part: str, record: Any, base: Recipe | ClassicRecipe, *, chosen: bool
) -> Recipe | ClassicRecipe:
    """Returns the recipe of a record.

    Args:
        part: name of the record, for messages.
        record: fields of the recipe by name.
        base: the recipe whose fields are those that the record lacks.
        chosen: whether the recipe must be of the base's class. Otherwise ``epochs`` alone make it a
            classic one, and ``steps`` alone another, with the defaults of its class.

    Raises:
        ValueError: a field is unknown or not of this recipe, or its value of a wrong kind or out of
            range.
    """
    given = checked_recipe(part, record)
    kind, owner = given.pop("kind", None), type(base)
    if kind is not None:
        check_choice(f"{part}.kind", kind, (_PLAIN,))
        owner = PlainRecipe
    elif not chosen and "epochs" in given and "steps" not in given:
        owner = ClassicRecipe
    elif not chosen and "steps" in given and "epochs" not in given:
        owner = Recipe if issubclass(owner, ClassicRecipe) else owner
    _check_of(part, owner, given)
    own = base.decay if isinstance(base, ClassicRecipe) else StepDecay()
    if "decay" in given:
        given["decay"] = decay_from(f"{part}.decay", given["decay"], own)
    if owner is type(base):
        return _made(part, owner, lambda: replace(base, **with_own_mean(given)))
    return _made(part, owner, lambda: owner(**given))


def _check_of(part: str, owner: type, given: Mapping[str, Any]) -> None:
    """Checks that fields are those of a recipe's class."""
    wrong = next((name for name in given if name not in {one.name for one in fields(owner)}), None)
    if wrong is None:
        return
    full, classic = f"{part}.{wrong}", issubclass(owner, ClassicRecipe)
    if wrong in ("steps", "epochs"):
        takes = "a classic recipe, which takes epochs" if classic else "this recipe: it takes steps"
        raise UserError(f"{full} must be left out with {takes}, got {shown(given[wrong])}")
    if classic:
        raise UserError(
            f"{full} must be left out with a classic recipe, which visits every timestep of every "
            f"point, got {shown(given[wrong])}"
        )
    raise UserError(
        f"{full} must be left out unless the recipe is a classic one, got {shown(given[wrong])}"
    )


def decay_from(name: str, given: Any, own: Decay) -> Decay:
    """Returns the rule by which a rate falls: a text like ``step:every=2``, or a rule's numbers.

    Args:
        name: name of the value, for messages.
        given: the text, or the numbers by name.
        own: the rule whose numbers they are if they may belong to several.

    Raises:
        ValueError: there is no such rule, or it has no such numbers.
    """
    if isinstance(given, str):
        rule, numbers = given.partition(":")[::2]
        check_choice(name, rule, _DECAYS)
        kinds = kinds_by_name(_DECAYS[rule])
        return _DECAYS[rule](**checked(name, _numbers(numbers), kinds))
    if not isinstance(given, Mapping):
        allowed = f"{', '.join(_DECAYS)} or numbers of one of them"
        raise UserError(f"{name} must be {allowed}, got {shown(given)}")
    owners = [type(own), *(owner for owner in _DECAYS.values() if owner is not type(own))]
    for owner in owners:
        kinds = kinds_by_name(owner)
        if given.keys() <= kinds.keys():
            return owner(**checked(name, given, kinds))
    checked(name, given, kinds_by_name(*owners))  # names a number that is of no rule
    raise UserError(f"{name} must hold the numbers of one rule, got {', '.join(given)}")


def _numbers(text: str) -> dict[str, Any]:
    """Returns the numbers by name in a text like ``every=2,factor=0.99``."""
    numbers: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, value = part.partition("=")[::2]
        whole, number = of_text(int, value), of_text(float, value)
        found = number if whole is NOTHING else whole
        numbers[name.strip()] = value if found is NOTHING else found
    return numbers


def _made(part: str, owner: type, make: Callable[[], _Made]) -> _Made:
    """Returns what is made; an error about one of its fields names the part too."""
    try:
        return make()
    except UserError as error:
        word, rest = str(error).partition(" ")[::2]
        field = "name" if owner is Schedule and word == "schedule" else word
        if field not in {one.name for one in fields(owner)}:
            raise
        raise UserError(f"{part}.{field} {rest}") from error
