"""The grid of a sweep: the data, the values of each key, and the product of them all."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from .. import files
from ..choices import MOST_DRAWS
from ..data import Points, dataset
from ..errors import UserError, check_choice, check_integer, shown
from ..metrics.yardstick import check_metrics, default_metrics
from ..progress import Progress
from ..training.task import Task, check_maker
from .keys import KEYS, key_of, text_of, values_of
from .models import SweepModel, model_of

_MOST_MODELS = 100_000
MANY = 2000  # models that take more than a second to check or to group


@dataclass(frozen=True, eq=False)
class Sweep:
    """All combinations of the values of some keys, trained on one data set.

    Args:
        points: the data set, or its name.
        factors: values by key: text like ``1e-3,3e-3`` or ``0..9``, a list, or one value. A key is
            a field of :class:`.Recipe` or :class:`.ClassicRecipe`; of :class:`.Schedule`, whose
            ``name`` is ``schedule`` and whose ``num_steps`` is ``timesteps``; of
            :class:`.SampleConfig`, whose ``num_steps`` is ``sampling_steps``; ``recipe``, the name
            of the recipe to start from; or ``seed``, which is 0 where it is left out.
            ``prediction`` flow or edm without a ``schedule`` takes the schedule of that name.
        n_samples: number of samples that each model is measured by.
        metrics: names of the metrics; None takes those of every evaluation and the likelihood.
        real_draws: number of draws of real data behind the band of each metric.
        source: where the points come from, for those who read them again.
        progress: shows how many of many combinations are checked.
        model: function of a :class:`.Task` that makes a network of your own, see there; None for
            the recipe's perceptron.

    Attributes:
        factors: the values of each key as a tuple, in the order given.

    Raises:
        ValueError: a key or metric is unknown, a value is of a wrong kind or out of range, or two
            values do not go together.
    """

    points: Points
    factors: Mapping[str, Any] = field(default_factory=dict)
    n_samples: int = 2000
    metrics: Sequence[str] | None = None
    real_draws: int = 40
    source: dict[str, Any] | None = None
    progress: bool = False
    model: Callable[[Task], nn.Module] | None = None

    def __post_init__(self):
        object.__setattr__(self, "points", points_of(self.points))
        check_integer("n_samples", self.n_samples, 2)
        check_integer("real_draws", self.real_draws, 2, MOST_DRAWS)
        if self.metrics is None:
            object.__setattr__(self, "metrics", default_metrics(self.points))
        object.__setattr__(self, "metrics", tuple(self.metrics or ()))
        check_metrics(self.metrics or (), self.points)
        object.__setattr__(self, "factors", _factors(self.factors))
        if self.model is not None:
            check_maker(self.model)
        count = math.prod(map(len, self.factors.values()))
        if count > _MOST_MODELS:
            raise UserError(f"a sweep must be of at most {_MOST_MODELS:,} models, got {count:,}")
        _ = self.models  # checks every combination

    @cached_property
    def models(self) -> tuple[SweepModel, ...]:
        """The models, in the order of the product: the last key changes fastest."""
        return tuple(self._models())

    @cached_property
    def digest(self) -> str:
        """The digest of the data."""
        return self.points.digest

    def _models(self) -> Iterable[SweepModel]:
        count = math.prod(map(len, self.factors.values()))
        shown = self.progress and count >= MANY
        with Progress("check", count, "models", shown=shown) as bar:
            for number, values in enumerate(product(*self.factors.values())):
                yield self._model(number, dict(zip(self.factors, values, strict=True)))
                bar.to(number + 1)

    def _model(self, number: int, given: dict[str, Any]) -> SweepModel:
        try:
            return model_of(number, given, self.points, self.model)
        except UserError as error:
            varied = [f"{key}={text_of(given[key])}" for key in self.varied]
            among = f" (in the model {' '.join(varied)})" if varied else ""
            raise UserError(f"{error}{among}") from error

    @property
    def varied(self) -> tuple[str, ...]:
        """The keys with several values."""
        return tuple(key for key, values in self.factors.items() if len(values) > 1)


def points_of(data: str | Path | Points) -> Points:
    """Returns a data set, or that of a name or file, which is standardised."""
    return data if isinstance(data, Points) else dataset(data, standardise=True)


def _factors(given: Any) -> dict[str, tuple]:
    if not isinstance(given, Mapping):
        raise UserError(f"factors must be values by key, got {shown(given)}")
    factors: dict[str, tuple] = {}
    for name, values in given.items():
        key = key_of(name)
        same = next((other for other in factors if KEYS[other] == KEYS[key]), None)
        if same is not None:
            raise UserError(f"{key} must be given once, got it twice, as {same} too")
        factors[key] = values_of(key, values)
    return factors


def settings_of(texts: Sequence[str]) -> dict[str, str]:
    """Returns the values by key in settings like ``lr=1e-3,3e-3``.

    Raises:
        ValueError: a text is no setting, or a key is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--set must be KEY=VALUE,VALUE as in lr=1e-3,3e-3, got {text!r}")
        key = key_of(name)
        if key in found:
            raise UserError(f"{key} must be given once, got {found[key]!r} and {values!r}")
        found[key] = values
    return found


def read_grid(path: Path) -> dict[str, Any]:
    """Returns the values by key in a file of TOML, whose one table is ``[set]``.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    content = files.load_toml(path)
    for name in content:
        check_choice(f"table of file {path}", name, ("set",))
    if not isinstance(content.get("set"), dict):
        raise UserError(f"file {path} must hold a table [set], with the values of each key")
    return content["set"]
