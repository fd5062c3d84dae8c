"""The models of a sweep: what each value of a key makes of recipe, schedule and sampling."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.philox import child_seed
from ..chains import SampleConfig, prepare
from ..data import Points
from ..errors import UserError, check_choice, check_seed
from ..predictions import natural_schedule
from ..schedules import Schedule
from ..solvers import SOLVERS
from ..training import RECIPES, ClassicRecipe, Recipe, Task
from ..training.module_engine import check_trainable
from ..training.recipes import with_own_mean
from .keys import KEYS, text_of

_TRAINING, _SAMPLING, _LABELS = range(3)  # streams of random numbers
_child_seed = lru_cache(maxsize=10_000)(child_seed)  # of a seed that many models share


@dataclass(frozen=True)
class SweepModel:
    """One combination of the values of a sweep.

    Attributes:
        number: its place in the product of all values, from 0.
        values: its value of each key that is set, as the user named it.
        schedule: the forward process.
        recipe: recipe of the training.
        seed: seed of everything random.
        sampling: options of the sampling by name of their field in :class:`.SampleConfig`.
        maker: what makes a network of the user's own, or None.
        network: what tells that network from others, see :func:`_described`; empty without.
    """

    number: int
    values: Mapping[str, Any]
    schedule: Schedule
    recipe: Recipe | ClassicRecipe
    seed: int
    sampling: Mapping[str, Any] = field(default_factory=dict)
    maker: Callable[[Task], nn.Module] | None = None
    network: str = ""

    def task(self, points: Points) -> Task:
        """Returns the training."""
        seed = _child_seed(self.seed, _TRAINING)
        return Task(points, self.schedule, self.recipe, seed=seed, model=self.maker)

    def config(self, network: nn.Module, points: Points, n: int) -> SampleConfig:
        """Returns how n samples are drawn.

        A conditional model with a guidance scale draws each class as often as the data hold it;
        any other model draws them without a class.

        Args:
            network: the trained network.
            points: the data that it was trained on.
            n: number of samples.
        """
        seed = _child_seed(self.seed, _SAMPLING)
        label = self._labels(points, n) if self.sampling.get("scale") is not None else None
        return SampleConfig(network, self.schedule, seed, label=label, **self.sampling)

    def _labels(self, points: Points, n: int) -> Tensor:
        assert points.labels is not None  # of a conditional model's data
        generator = torch.Generator().manual_seed(_child_seed(self.seed, _LABELS))
        rows = torch.randint(len(points), (n,), generator=generator)
        return points.labels.cpu()[rows]

    @property
    def reverse_steps(self) -> int:
        """Number of reverse steps of its samples."""
        return self.sampling.get("num_steps") or self.schedule.num_steps

    @property
    def evaluations(self) -> int:
        """Number of evaluations of the network in these steps."""
        solver = SOLVERS.get(self.sampling.get("method", "ddpm"))
        return self.reverse_steps if solver is None else solver.evaluations(self.reverse_steps)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the model but the data, as files write it down."""
        recipe = {"kind": type(self.recipe).__name__, **asdict(self.recipe)}
        for name in ("p_mean", "p_std"):  # the first sweeps knew no such fields
            if recipe.get(name) is None:
                recipe.pop(name, None)
        return {
            "seed": self.seed,
            "schedule": asdict(self.schedule),
            "recipe": recipe,
            "sampling": dict(self.sampling),
            **({"network": self.network} if self.maker is not None else {}),
        }

    def training_id(self, data: str) -> str:
        """Returns the name of the trained network, a hash of all that decides it.

        Args:
            data: digest of the data.
        """
        return _digest(data, {**self.settings, "sampling": {}})

    def id(self, data: str, n: int) -> str:
        """Returns the name of n samples of the model, a hash of all that decides them."""
        return _digest(data, self.settings, n)

    def __str__(self) -> str:
        return " ".join(f"{key}={text_of(value)}" for key, value in self.values.items())


def _digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def model_of(
    number: int,
    values: Mapping[str, Any],
    points: Points,
    maker: Callable[[Task], nn.Module] | None = None,
) -> SweepModel:
    """Returns the model that some values describe, checked as far as can be without training.

    Args:
        number: its place among all.
        values: value by key.
        points: the data.
        maker: what makes a network of the user's own, or None.

    Raises:
        ValueError: a value is out of range, or goes not with another; or the network is none that
            can be trained.
    """
    by_part: dict[str, dict[str, Any]] = {"model": {}, "recipe": {}, "schedule": {}, "sampling": {}}
    for key, value in values.items():
        by_part[KEYS[key].part][KEYS[key].field] = value
    part = "model"
    try:
        seed = check_seed(by_part["model"].get("seed", 0))
        base = by_part["model"].get("recipe", "fast")
        check_choice("recipe", base, RECIPES)
        part = "recipe"
        recipe = _recipe(base, by_part["recipe"])
        part = "schedule"
        schedule = _schedule(tuple(sorted(by_part["schedule"].items())))
        part = "sampling"
        model = SweepModel(number, dict(values), schedule, recipe, seed, by_part["sampling"])
        _check(model, points)
        if maker is not None:
            model = _with_network(replace(model, maker=maker), points)
    except UserError as error:
        raise UserError(_in_keys(str(error), part, values)) from error
    return model


def _in_keys(message: str, part: str, values: Mapping[str, Any]) -> str:
    """Returns a message with the user's key in place of the name of a field."""
    found = re.match(r"[A-Za-z_0-9]+(?= (?:must|needs) )", message)
    if found is None:
        return message
    names = (key for key in values if KEYS[key][:2] == (part, found[0]))
    return next(names, found[0]) + message[found.end() :]


def _recipe(name: str, changes: dict[str, Any]) -> Recipe | ClassicRecipe:
    base = RECIPES[name][0]
    known = {one.name for one in fields(base)}
    for field_ in changes:
        if field_ not in known:
            length = "epochs" if "epochs" in known else "steps"
            raise UserError(
                f"{field_} must be left out with the recipe {name}, whose length is {length}"
            )
    return replace(base, **with_own_mean(changes))


@lru_cache
def _schedule(changes: tuple[tuple[str, Any], ...]) -> Schedule:
    """Returns the schedule with some fields; flow and EDM, if predicted, bring their own."""
    given = dict(changes)
    return Schedule(**{"name": natural_schedule(given.get("prediction"))} | given)


def _check(model: SweepModel, points: Points) -> None:
    """Raises :class:`UserError` if the values do not go together, or with the data."""
    if model.sampling.get("scale") is not None and model.recipe.p_uncond is None:
        raise UserError(
            "scale needs p_uncond: only conditional models are guided, got "
            f"{text_of(model.sampling['scale'])} without"
        )
    small = replace(model.recipe, hidden_layers=(1,))  # of a network that is built at once
    _check_chain(
        model.schedule, small.p_uncond, small.class_embedding,
        tuple(sorted(model.sampling.items())), points,
    )  # fmt: skip


def _with_network(model: SweepModel, points: Points) -> SweepModel:
    """Returns a model of a user's own network, which is made once, checked and described."""
    task = model.task(points)
    network = task.initial()
    check_trainable(task, network)
    prepare(model.config(network, points, 2), 2, torch.device("cpu"))
    return replace(model, network=_described(network))


def _described(network: nn.Module) -> str:
    """Returns the name of a network's class, and a digest of its layers and their shapes.

    A change of what its ``forward`` does with them is not seen.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = {name: list(x.shape) for name, x in tensors.items()}
    kind = type(network)
    return f"{kind.__module__}.{kind.__qualname__} {_digest(repr(network), shapes)}"


@lru_cache(maxsize=10_000)
def _check_chain(
    schedule: Schedule,
    p_uncond: float | None,
    class_embedding: str,
    sampling: tuple[tuple[str, Any], ...],
    points: Points,
) -> None:
    """Raises :class:`UserError` if samples cannot be drawn so from any network on the data."""
    recipe = Recipe(hidden_layers=(1,), p_uncond=p_uncond, class_embedding=class_embedding)
    model = SweepModel(0, {}, schedule, recipe, 0, dict(sampling))
    network = model.task(points).initial()
    prepare(model.config(network, points, 2), 2, torch.device("cpu"))
