"""The settings of an experiment, and how they differ from those of an earlier one."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from itertools import product
from typing import Any

from .chains import METHODS
from .choices import MOST_DRAWS
from .errors import UserError, check_choice, check_integer, check_number, check_seed
from .kinds import checked, kinds_by_name
from .recorded import (
    checked_recipe,
    checked_schedule,
    chooses_schedule,
    recipe_from,
    record_of_recipe,
    schedule_from,
)
from .schedules import Schedule
from .training import RECIPES, ClassicRecipe, Recipe

# The process of the recipe "states". The outlines are blurred by 0.026: less noise than sigma_min
# hides no detail of them, and at sigma_max 1% of x_T's variance is the data's.
_STATES_SCHEDULE = Schedule(500, "edm", sigma_min=0.005, sigma_max=10.0, sigma_data=0.5)
# Its sampler. Noise corrects the errors of guidance, which add up along a deterministic chain, and
# slightly more of it than is taken away makes up for a network that removes too much (Karras et al.
# 2022, section 4).
_STATES_SAMPLER: dict[str, Any] = {
    "method": "edm", "sampling_steps": 50, "s_churn": 20.0, "s_noise": 1.015,
}  # fmt: skip
_RECIPES = ("denoiser", "classifier")
_PARTS = ("schedule", *_RECIPES)
# What a run writes down beside its settings, see :func:`.run_record.record_of`.
OF_RUN = (
    "data", "points", "dim", "digest", "standardisation", "class_names", "source", "init",
)  # fmt: skip
_ELSEWHERE = {name: f"schedule.{name}" for name in kinds_by_name(Schedule)} | {
    name: f"denoiser.{name}" for name in kinds_by_name(Recipe, ClassicRecipe)
}
# Training steps of denoiser and classifier, and reverse steps, of a quick run by recipe.
_QUICK = {"fast": (1500, 700, 50), "states": (2500, 450, 20)}


@dataclass(frozen=True)
class Settings:
    """The settings of an experiment, which decide its outcome.

    Args:
        seed: seed of everything random.
        schedule: the forward process. If the denoiser's recipe says what to predict, it does, too.
        denoiser, classifier: recipes of the two trainings. A conditional denoiser, which has
            ``p_uncond``, takes the class as an input and needs no classifier.
        scale: guidance scale of samples by class; None is 1 with a classifier and 0 with a
            conditional denoiser.
        n_samples: number of samples without guidance and of samples of each class.
        sampling_steps: number of reverse steps; None for all T.
        validate_every: number of training steps between two validations of the denoiser.
        real_draws: number of draws of real data behind the bands of the metrics.
        method: how samples are drawn, see :class:`~flashpoint.diffusion.SampleConfig`.
        s_churn, s_noise: noise of method ``edm``; None are its defaults.

    Raises:
        ValueError: a number is out of range.
    """

    seed: int = 0
    schedule: Schedule = field(default_factory=Schedule)
    denoiser: Recipe | ClassicRecipe = RECIPES["fast"][0]
    classifier: Recipe | ClassicRecipe = RECIPES["fast"][1]
    scale: float | None = None
    n_samples: int = 5000
    sampling_steps: int | None = None
    validate_every: int = 1000
    real_draws: int = 100
    method: str = field(default="ddpm", kw_only=True)
    s_churn: float | None = field(default=None, kw_only=True)
    s_noise: float | None = field(default=None, kw_only=True)

    def __post_init__(self):
        check_seed(self.seed)
        check_integer("n_samples", self.n_samples, 2)
        check_integer("validate_every", self.validate_every, 1)
        check_integer("real_draws", self.real_draws, 2, MOST_DRAWS)
        check_choice("method", self.method, METHODS)
        if self.sampling_steps is not None:
            check_integer("sampling_steps", self.sampling_steps, 1, self.schedule.num_steps)
        for name in ("s_churn", "s_noise"):
            given = getattr(self, name)
            if given is None:
                continue
            if self.method != "edm":
                raise UserError(
                    f"{name} must be left out unless method is edm, got {given!r} with "
                    f"{self.method}"
                )
            check_number(name, given, 0)
        if self.scale is not None:
            check_number("scale", self.scale)
        if self.denoiser.prediction is not None:
            schedule = self.schedule.predicting(self.denoiser.prediction)
            object.__setattr__(self, "schedule", schedule)

    @classmethod
    def of_recipe(cls, name: str, seed: int = 0, *, quick: bool = False) -> "Settings":
        """Returns the settings that go with a named recipe.

        The recipe ``states`` brings its own schedule and sampler. All others train under
        ``Schedule()`` and visit all timesteps with DDPM.

        Args:
            name: the recipe.
            seed: seed of everything random.
            quick: reduces ``fast`` or ``states`` to about a minute on two CPU cores.

        Raises:
            ValueError: the recipe is unknown, or has no quick form, or the seed is out of range.
        """
        check_choice("recipe", name, _QUICK if quick else RECIPES)
        denoiser, classifier = RECIPES[name]
        settings = cls(seed, denoiser=denoiser, classifier=classifier)
        if name == "states":
            settings = replace(
                settings, schedule=_STATES_SCHEDULE, validate_every=2000, **_STATES_SAMPLER
            )
        return settings._reduced(*_QUICK[name]) if quick else settings

    @property
    def sampler(self) -> dict[str, Any]:
        """The fields of a :class:`~flashpoint.diffusion.SampleConfig` that samples are drawn by."""
        names = ("method", "s_churn", "s_noise")
        return {"num_steps": self.sampling_steps} | {name: getattr(self, name) for name in names}

    def _reduced(self, steps: int, classifier_steps: int, reverse_steps: int) -> "Settings":
        """Returns the settings of a quick run."""
        denoiser, classifier = self.denoiser, self.classifier
        assert isinstance(denoiser, Recipe)
        assert isinstance(classifier, Recipe)
        return replace(
            self,
            # Averages over fewer steps, so that the initial weights are forgotten by the end.
            denoiser=replace(denoiser, steps=steps, ema_decay=0.99),
            classifier=replace(classifier, steps=classifier_steps, ema_decay=0.98),
            n_samples=2000,
            sampling_steps=reverse_steps,
            validate_every=steps,
            real_draws=20,
        )

    def record(self) -> dict[str, Any]:
        """Returns the settings as they are written into a run's ``config.json``."""
        recipes = {name: record_of_recipe(getattr(self, name)) for name in _RECIPES}
        return _as_json(asdict(self) | recipes)

    @classmethod
    def from_record(
        cls, record: Mapping[str, Any], base: "Settings | None" = None, *, quick: bool = False
    ) -> "Settings":
        """Returns the settings of a :meth:`record`, or of a part of one.

        With another schedule than that of the base, or another ``method``, the rest of the sampler
        is that of DDPM rather than that of the base, unless the record says it.

        Args:
            record: values by name, as in ``config.json``; what a run writes there of its data is
                passed over. ``recipe``, the name of a recipe, brings all that the record lacks.
            base: settings that bring it in its place; None takes the defaults.
            quick: whether the base is that of a quick run.

        Raises:
            ValueError: a name is unknown, or a value of a wrong kind or out of range.
        """
        given = cls._checked(record)
        chosen = base is not None or "recipe" in given
        if base is None:
            base = cls.of_recipe(given["recipe"]) if "recipe" in given else cls()
        part = given.get("schedule", {})
        schedule = schedule_from("schedule", part, base.schedule)
        own = not chooses_schedule(part) and given.get("method") in (None, base.method)
        return replace(
            base,
            **{
                "schedule": schedule,
                **base._sampler_under(schedule, own=own, quick=quick),
                **{
                    name: recipe_from(name, given.get(name, {}), getattr(base, name), chosen=chosen)
                    for name in _RECIPES
                },
                **{name: given[name] for name in given.keys() - {"recipe", *_PARTS, *OF_RUN}},
            },
        )

    @classmethod
    def check_record(cls, record: Mapping[str, Any]) -> None:
        """Checks the names and the kinds of values of a record, or of a part of one.

        Raises:
            ValueError: a name is unknown, or a value of a wrong kind.
        """
        given = cls._checked(record)
        checked_schedule("schedule", given.get("schedule", {}))
        for name in _RECIPES:
            checked_recipe(name, given.get(name, {}))

    @classmethod
    def _checked(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        kinds = {name: each for name, each in kinds_by_name(cls).items() if name not in _PARTS}
        return checked("", record, kinds, ("recipe", *_PARTS, *OF_RUN), _ELSEWHERE)

    def _sampler_under(self, schedule: Schedule, *, own: bool, quick: bool) -> dict[str, Any]:
        """Returns the fields that say how samples are drawn under a schedule.

        Args:
            schedule: the schedule.
            own: whether schedule and method are those that the sampler is made for.
            quick: whether the run is a quick one.
        """
        steps = self.sampling_steps if own else 50 if quick else None
        sampler = {"sampling_steps": steps and min(steps, schedule.num_steps)}
        return sampler if own else sampler | {"method": "ddpm", "s_churn": None, "s_noise": None}

    def changes(self, record: dict[str, Any]) -> list[str]:
        """Returns each setting that differs from those of a :meth:`record`, with both values.

        A setting that the record lacks had its default then: an older version wrote it. What a
        recipe asks the network to predict is in the schedule. How long the trainings are is left
        out: a run may go on for longer.
        """
        parts, defaults = self.record(), self._defaults()
        now = _flat(parts)
        before = _flat({
            name: _over(defaults[name], record.get(name, defaults[name])) for name in parts
        })  # fmt: skip
        for each in (now, before):
            for recipe, name in product(_RECIPES, ("prediction", "steps", "epochs")):
                each.pop(f"{recipe}.{name}", None)
        return [
            f"{name} {before[name]}, now {now.get(name, 'unknown')}"
            for name in before
            if name not in now or before[name] != now[name]
        ]

    def _defaults(self) -> dict[str, Any]:
        """Returns the defaults of all fields, in the form of :meth:`record`."""
        recipes = {
            name: {
                one.name: _as_json(one.default)
                for one in fields(getattr(self, name))
                if one.default is not MISSING
            }
            for name in _RECIPES
        }
        own = {one.name: one.default for one in fields(self) if one.name not in recipes}
        return {**own, "schedule": _as_json(asdict(Schedule())), **recipes}


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _over(defaults: dict[str, Any] | None, part: Any) -> Any:
    """Returns a part of a record with the defaults of what it lacks."""
    return defaults | part if defaults and isinstance(part, dict) else part


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested dicts by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        flat |= {f"{prefix}{name}": value} if inner is None else inner
    return flat
