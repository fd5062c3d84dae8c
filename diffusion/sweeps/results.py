"""The results of a sweep: one for each model, their table over seeds, and the files that hold them.

::

    results.json    every number, one entry for each model
    results.csv     the same for spreadsheets, one line for each model
    table.md        one row for each combination of the factors, the mean over its seeds
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple, overload

import torch
from scipy.stats import t as student_t

from .. import files
from ..errors import UserError, check_choice
from ..metrics import METRICS, Score
from ..metrics.bands import LINEAR
from ..metrics.table import markdown_table
from .keys import text_of

SEED = "seed"  # the factor whose values are repetitions of one experiment
RESULTS, LINES, TABLE = "results.json", "results.csv", "table.md"
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class SweepResult:
    """One model of a sweep.

    Attributes:
        number: number of the model, from 0, in the order of the product of all values.
        values: value of each factor.
        metrics: scores of its samples beside those of real data, by name of the metric.
        seconds: its share of the duration of training, sampling and measuring.
        steps: training steps.
        failed: why there are no metrics, as of a training that diverged; empty for all others.
    """

    number: int
    values: dict[str, Any]
    metrics: dict[str, Score]
    seconds: float
    steps: int
    failed: str = ""

    def __str__(self) -> str:
        return " ".join(f"{name}={text_of(value)}" for name, value in self.values.items())

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON; each score says whether it is as real data's."""
        scores = {
            name: {**asdict(score), "passed": score.passed} for name, score in self.metrics.items()
        }
        values = {name: _plain(value) for name, value in self.values.items()}
        return {**asdict(self), "values": values, "metrics": scores}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "SweepResult":
        """Returns the result that :meth:`to_dict` made this of.

        Raises:
            KeyError, TypeError, AttributeError: it is no such content.
        """
        scores = {
            name: Score(*(one[part] for part in ("value", "real", "low", "high", "draws")))
            for name, one in content["metrics"].items()
        }
        values = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content["values"].items()
        }
        number, seconds, steps = (content[name] for name in ("number", "seconds", "steps"))
        return cls(int(number), values, scores, float(seconds), int(steps), content["failed"])


class Mean(NamedTuple):
    """The mean of several values, which are repetitions."""

    value: float
    half_width: float | None  # of the 95% interval of the mean (Student's t); None for one value
    repeats: int


def mean_of(values: Sequence[float]) -> Mean:
    """Returns the mean of at least one value, with its 95% interval."""
    count, middle = len(values), fmean(values)
    if count == 1:
        return Mean(middle, None, 1)
    quantile = student_t.ppf((1 + _CONFIDENCE) / 2, count - 1)
    return Mean(middle, float(quantile * stdev(values) / math.sqrt(count)), count)


class Row(NamedTuple):
    """One combination of all factors but the seed."""

    values: dict[str, Any]  # of each factor but the seed
    results: list[SweepResult]  # one for each seed

    def scores(self, metric: str) -> list[Score]:
        """Returns the scores of the models that have this metric."""
        return [one.metrics[metric] for one in self.results if metric in one.metrics]


@dataclass(frozen=True)
class SweepTable(Sequence[SweepResult]):
    """The results of a sweep, a list in the order of the models' numbers.

    Attributes:
        data: name of the data set.
        factors: values of each factor, in the order given.
        results: one for each model.
    """

    data: str
    factors: dict[str, tuple]
    results: list[SweepResult] = field(repr=False)

    def __post_init__(self):
        object.__setattr__(self, "results", sorted(self.results, key=lambda one: one.number))

    def __len__(self) -> int:
        return len(self.results)

    @overload
    def __getitem__(self, index: int) -> SweepResult: ...
    @overload
    def __getitem__(self, index: slice) -> list[SweepResult]: ...
    def __getitem__(self, index):
        return self.results[index]

    def __iter__(self) -> Iterator[SweepResult]:
        return iter(self.results)

    @property
    def metrics(self) -> list[str]:
        """Names of all metrics that a model has, in the order of the first model that has them."""
        return list(dict.fromkeys(name for one in self.results for name in one.metrics))

    @property
    def varied(self) -> list[str]:
        """Names of the factors with several values, without the seed."""
        return [name for name, values in self.factors.items() if len(values) > 1 and name != SEED]

    @property
    def rows(self) -> list[Row]:
        """The combinations of all factors but the seed, in order."""
        rows: dict[tuple, Row] = {}
        for one in self.results:
            values = {name: value for name, value in one.values.items() if name != SEED}
            rows.setdefault(tuple(values.items()), Row(values, [])).results.append(one)
        return list(rows.values())

    def best(self, metric: str) -> SweepResult:
        """Returns the model whose score is that of real data, or nearest to it.

        A model inside the band of real draws comes before any outside; then the nearest to the mean
        of real draws does, on the scale of the metric. A lower score than that is not better.

        Args:
            metric: name of the metric.

        Raises:
            ValueError: no model has this metric.
        """
        if not self.metrics:
            raise UserError(f"the best model by {metric} must have it, and no model has any metric")
        check_choice("metric", metric, self.metrics)
        scale = METRICS[metric].scale if metric in METRICS else LINEAR

        def distance(result: SweepResult) -> tuple[bool, float]:
            score = result.metrics[metric]
            pair = torch.tensor([score.value, score.real], dtype=torch.float64, device="cpu")
            here, real = scale.to(pair).tolist()
            return score.passed is False, abs(here - real)

        return min((one for one in self.results if metric in one.metrics), key=distance)

    def to_markdown(self) -> str:
        """Returns the table over seeds: the mean of each metric, beside that of real data."""
        fixed = {name: values[0] for name, values in self.factors.items() if len(values) == 1}
        said = "".join(f", {name}={text_of(value)}" for name, value in fixed.items())
        shared = {metric: self.band(metric) for metric in self.metrics}
        header = [*self.varied, "models", *map(title_of, self.metrics)]
        rows = [
            [
                *(text_of(row.values[name]) for name in self.varied),
                str(len(row.results)),
                *(_cell(row.scores(metric), shared[metric] is None) for metric in self.metrics),
            ]
            for row in self.rows
        ]
        empty = [""] * len(self.varied)
        rows.append(["real data", *empty, *(_band_cell(score) for score in shared.values())])
        notes = "".join(
            f"\nModel {one.number} ({one}): {one.failed}.\n" for one in self.results if one.failed
        )
        heading = f"{self.data}: {len(self)} models{said}"
        return f"{heading}\n\n{markdown_table(header, rows)}\n\n{_LEGEND}\n{notes}"

    def band(self, metric: str) -> Score | None:
        """Returns a score with the band of real draws that all models share, or None if none is."""
        scores = [one.metrics[metric] for one in self.results if metric in one.metrics]
        return scores[0] if len({(one.real, one.low, one.high) for one in scores}) == 1 else None

    def to_csv(self) -> str:
        """Returns a line for each model: its values, and each metric beside that of real data."""
        written = io.StringIO()
        writer = csv.writer(written, lineterminator="\n")
        parts = ("", "_real", "_low", "_high", "_passed")
        columns = [f"{metric}{part}" for metric in self.metrics for part in parts]
        writer.writerow(["number", *self.factors, *columns, "trained_steps", "seconds", "failed"])
        for one in self.results:
            scores = [part for metric in self.metrics for part in _parts(one.metrics.get(metric))]
            values = [text_of(one.values[name]) for name in self.factors]
            seconds = f"{one.seconds:.3f}"
            writer.writerow([one.number, *values, *scores, one.steps, seconds, one.failed])
        return written.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        factors = {
            name: [_plain(value) for value in values] for name, values in self.factors.items()
        }
        return {
            "data": self.data,
            "factors": factors,
            "models": [one.to_dict() for one in self.results],
        }

    def write(self, folder: Path) -> None:
        """Writes ``results.json``, ``results.csv`` and ``table.md`` into a folder, atomically.

        Raises:
            ValueError: a file cannot be written.
        """
        files.save_json(folder / RESULTS, self.to_dict())
        files.write_atomically(folder / LINES, self.to_csv().encode())
        files.write_atomically(folder / TABLE, self.to_markdown().encode())

    @classmethod
    def read(cls, folder: Path) -> "SweepTable":
        """Returns the table that :meth:`write` wrote into a folder.

        Raises:
            ValueError: there is none, or its file is damaged.
        """
        path = folder / RESULTS
        content = files.load_json(path)
        try:
            factors = {
                name: tuple(tuple(one) if isinstance(one, list) else one for one in values)
                for name, values in content["factors"].items()
            }
            results = [SweepResult.of(one) for one in content["models"]]
            return cls(str(content["data"]), factors, results)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"file {path} does not hold the results of a sweep") from error


_LEGEND = (
    "Mean over the seeds ± half the width of its 95% interval (Student's t). Real data: the mean "
    "and the range of 99% of real draws. ✗: outside that range, in so many of the models."
)


def title_of(metric: str) -> str:
    """Returns the title of a metric, for tables and axes."""
    return METRICS[metric].title if metric in METRICS else metric


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _cell(scores: Sequence[Score], with_band: bool) -> str:
    if not scores:
        return "not defined"
    value, half_width, count = mean_of([score.value for score in scores])
    text = f"{value:.4g}" if half_width is None else f"{value:.4g} ± {half_width:.2g}"
    if with_band:
        real, low, high = (
            fmean(getattr(one, part) for one in scores) for part in ("real", "low", "high")
        )
        text += f" (real {real:.4g}, {low:.4g} to {high:.4g})"
    outside = sum(score.passed is False for score in scores)
    if not outside:
        return text
    return f"{text} ✗" if count == 1 else f"{text} ✗ {outside}/{count}"


def _band_cell(score: Score | None) -> str:
    if score is None:
        return "beside each"
    return f"{score.real:.4g} ({score.low:.4g} to {score.high:.4g})"


def _parts(score: Score | None) -> list[object]:
    if score is None:
        return [""] * 5
    passed = "undecided" if score.passed is None else text_of(score.passed)
    return [score.value, score.real, score.low, score.high, passed]
