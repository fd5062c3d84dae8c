"""What a run writes down of its data and settings, and whether others are the same."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from .data import Points
from .errors import UserError
from .metrics.inputs import subset
from .run_folder import RunFolder
from .settings import Settings
from .training import RECIPES, ClassicRecipe, Trainer

VALIDATION_SAMPLES = 2000  # behind each NLL during the training
_DENSITY_POINTS, _DENSITY = 10_000, 6  # points at most, and stream of random numbers


def density_data(points: Points, seed: int) -> Tensor:
    """Returns the points [n, d] behind the density estimate that a run validates with.

    They are all, or so many random ones that validation costs about a second.

    Args:
        points: the data.
        seed: seed of the run.
    """
    return subset(points.data, _DENSITY_POINTS, seed, _DENSITY)


def record_of(
    points: Points,
    source: dict[str, Any] | None,
    settings: Settings,
    init: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Returns the content of a run's ``config.json``.

    Args:
        points: the data.
        source: where they come from, for those who read them again; None where nothing says it.
        settings: the settings.
        init: path and digest of the weights that the training starts from; None for random ones.
    """
    map_ = points.standardisation
    return {
        "data": points.name,
        "points": len(points),
        "dim": points.dim,
        "digest": points.digest,
        "standardisation": None if map_ is None else asdict(map_),
        "class_names": list(_names_of(points)),
        "source": source,
        "init": init,
        **settings.record(),
    }


def check_same_run(
    folder: RunFolder,
    points: Points,
    settings: Settings,
    say: Callable[[str], None],
    init: dict[str, str] | None = None,
    source: dict[str, Any] | None = None,
) -> None:
    """Raises :class:`UserError` if the folder's run, which is to go on, was another one.

    Args:
        folder: the folder.
        points: the data.
        settings: the settings.
        say: called with a line where an old run does not say enough to be checked.
        init: the record of the weights that the training started from.
        source: the record of where the data come from.
    """
    before = folder.config()
    map_ = points.standardisation
    now = {
        "data": points.name,
        "points": len(points),
        "dim": points.dim,
        "standardisation": None if map_ is None else asdict(map_),
    }
    if before is None:
        raise UserError(f"folder {folder} has no config.json, so its run cannot go on")
    if "digest" not in before:
        say(
            f"{folder} is of an older version, which did not write down its data: whether they "
            "are the same cannot be checked"
        )
    elif before["digest"] != points.digest:
        raise UserError(
            f"the data have changed since run {folder} was started ({_described(before)}; now "
            f"{_described(now)}); give the same ones, or another --out"
        )
    _check_names(before, points, folder, "or another --out")
    changed = settings.changes(before)
    if "digest" not in before and before.get("data", points.name) != points.name:
        changed.insert(0, f"data {before['data']}, now {points.name}")
    changed[:0] = _changed_fractions(before.get("source"), source)
    weights = [each and each.get("digest") for each in (before.get("init"), init)]
    if weights[0] != weights[1]:
        paths = [each["path"] if each else "none" for each in (before.get("init"), init)]
        changed.insert(0, f"init {paths[0]}, now {paths[1]}")
    if changed:
        raise UserError(
            f"run {folder} was made with other settings ({'; '.join(changed[:5])}); give the same "
            f"ones{_recipe_hint(before, settings)}, or another --out"
        )


def _changed_fractions(before: dict[str, Any] | None, now: dict[str, Any] | None) -> list[str]:
    """Says which held-out parts of the data were others, as of points to test or validate with."""
    if before is None or now is None:
        return []
    names = (f"{part}_fraction" for part in ("test", "validation"))
    return [
        f"{name} {before.get(name)}, now {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _recipe_hint(record: dict[str, Any], settings: Settings) -> str:
    """Returns the option for the recipe of a run's record, if the settings are of another one."""
    fixed = ("lr", "warmup", "weight_decay")

    def named(recipe: dict[str, Any]) -> list[str]:
        own = [recipe.get(name) for name in fixed]
        denoisers = {name: asdict(denoiser) for name, (denoiser, _) in RECIPES.items()}
        return [name for name, one in denoisers.items() if [one.get(x) for x in fixed] == own]

    own, made = (
        named(recipe) for recipe in (record.get("denoiser") or {}, asdict(settings.denoiser))
    )
    # Options may have changed these fields: a recipe of both is none that was not named.
    return f" (--recipe {' or '.join(own)})" if own and made and own != made else ""


def check_data(folder: RunFolder, points: Points) -> None:
    """Raises :class:`UserError` if the folder's run was trained on other data.

    Args:
        folder: the folder; without a ``config.json`` there is nothing to check.
        points: the data.
    """
    config = folder.config() or {}
    same = config.get("digest", points.digest) == points.digest
    if same and ("digest" in config or config.get("data", points.name) == points.name):
        _check_names(config, points, folder, "or add --other-data")
        return
    named = config.get("data")
    if named == points.name:
        raise UserError(
            f"the data {named} are not those that run {folder} was trained on "
            f"({_described(config)}): they have changed, or were read in another way; give them as "
            "they were, or add --other-data"
        )
    raise UserError(
        f"run {folder} was trained on {named}, not on {points.name}; name its data with --data, or "
        "add --other-data"
    )


def _names_of(points: Points) -> tuple[str, ...]:
    """Returns the names of the classes that the data has points of."""
    return tuple(points.class_names[: points.num_classes])


def _check_names(record: dict[str, Any], points: Points, folder: RunFolder, other: str) -> None:
    """Raises :class:`UserError` if a class of a run has another name in its data."""
    names = zip(record.get("class_names") or (), _names_of(points), strict=False)
    for label, (before, now) in enumerate(names):
        if before != now:
            raise UserError(
                f"class {label} is {before!r} in run {folder} and {now!r} in the data; name the "
                f"classes as they were, {other}"
            )


def _described(config: dict[str, Any]) -> str:
    if "points" not in config:
        return str(config.get("data"))
    size = f"{config['points']:,} points of dimension {config['dim']}"
    return f"{config['data']}: {size}{', standardised' * bool(config.get('standardisation'))}"


def check_lengths(trainers: Mapping[str, Trainer], state: Any, path: Path) -> None:
    """Raises :class:`UserError` if a training is to be shorter than it is already.

    Args:
        trainers: what is to go on, by name of the network.
        state: content of the file with the state of the training.
        path: the file, for messages.
    """
    try:
        done = {name: int(state[name]["step"]) for name in trainers}
    except Exception as error:  # of any kind, from a file of any content
        raise UserError(f"file {path} does not hold the state of this training") from error
    for name, trainer in trainers.items():
        recipe, pairs = trainer.task.recipe, trainer.task.pairs
        if done[name] <= trainer.total_steps:
            continue
        least, given, unit = done[name], trainer.total_steps, "steps"
        if isinstance(recipe, ClassicRecipe):
            least, given, unit = -(-least // recipe.steps_per_rate(pairs)), recipe.epochs, "epochs"
        option = unit if name == "denoiser" else f"{name}_{unit}"
        raise UserError(f"{option} must be at least the {least:,} that are done, got {given:,}")


def changed_length(name: str, trainer: Trainer, config: dict[str, Any]) -> str:
    """Says how a training goes on that is longer or shorter than it was to be; empty if it is not.

    Args:
        name: ``denoiser`` or ``classifier``.
        trainer: what goes on.
        config: the record of the run before.
    """
    recipe, before = trainer.task.recipe, config.get(name, {})
    unit = "epochs" if isinstance(recipe, ClassicRecipe) else "steps"
    now, then = getattr(recipe, unit), before.get(unit)
    if then in (None, now):
        return ""
    return (
        f"the {name} goes on to {now:,} {unit} in place of {then:,}: from step {trainer.step:,} on "
        f"its learning rate is that of a recipe of {now:,} {unit}"
    )
