"""The evaluation of one set of samples: every metric beside the scores of fresh real data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from ...kernels.default_state import in_default_state
from ...kernels.philox import child_seed
from ..choices import MOST_DRAWS
from ..data import Points
from ..errors import UserError, check_integer, check_seed
from ..progress import check_progress, reported
from .bands import FEWEST_POINTS, RealDraws, Score, data_of, real_draws
from .distances import nearest
from .inputs import (
    PointsLike,
    as_data,
    as_points,
    most_points,
    random_rows,
    subset,
    two_sets,
)
from .likelihood import kde_nll
from .registry import METRICS, Comparison, Metric, standard_metrics
from .table import band_cells, beside_band, markdown_table, number


@dataclass(frozen=True)
class Evaluation:
    """Samples compared with data.

    Attributes:
        nll: negative log-likelihood of the samples under a KDE of the whole data; None where
            the data has no such estimate.
        nll_data: the same of the data itself, or of its points of the class asked for.
        scores: the metrics of every evaluation, by name: median distance of a sample to the
            nearest data point and of a data point to the nearest sample, and the sliced
            Wasserstein distance.
        purity: fraction of samples whose nearest data point has the class asked for; None if no
            class was asked for.
        battery: the other metrics of a full evaluation, by name.
        left_out: reason why a metric is not defined for these samples and data, by its name.
        notes: sentences on which of the points the metrics read.
    """

    nll: float | None
    nll_data: float | None
    scores: dict[str, Score]
    purity: float | None = None
    battery: dict[str, Score] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def delta_nll(self) -> float | None:
        """The samples' NLL minus the data's; None where the data has no density estimate."""
        return None if self.nll is None or self.nll_data is None else self.nll - self.nll_data

    def to_dict(self) -> dict:
        """Returns plain numbers for JSON: the NLLs, the purity, and every score by name."""
        scores = {
            name: {
                "value": score.value,
                "real": score.real,
                "low": score.low,
                "high": score.high,
                "passed": score.passed,
            }
            for name, score in (self.scores | self.battery).items()
        }
        return {
            "nll": self.nll,
            "nll_data": self.nll_data,
            "delta_nll": self.delta_nll,
            "purity": self.purity,
            **scores,
            **({"left_out": self.left_out} if self.left_out else {}),
            **({"notes": self.notes} if self.notes else {}),
        }

    def table(self) -> str:
        """Returns a table in Markdown with a row for every score."""
        rows = [
            [
                METRICS[name].title,
                *band_cells(score),
                f"**{score.verdict}**" if score.passed is False else score.verdict,
            ]
            for name, score in (self.scores | self.battery).items()
        ]
        rows += [
            [METRICS[name].title, "", "", "", f"left out: {reason}"]
            for name, reason in self.left_out.items()
        ]
        return markdown_table(["metric", "samples", "real data", "99% of real draws", ""], rows)


def summary(results: dict[str, Evaluation]) -> str:
    """Returns a table in Markdown with a row for each set of samples, beside real data.

    Args:
        results: evaluations by name of the samples.
    """
    metrics = standard_metrics()
    header = ["samples", "NLL", "data's own", "difference", "in the class asked for"]
    for metric in metrics.values():
        header.append(
            f"{metric.heading} (real: 99% {'below' if metric.less_is_better else 'band'})"
        )
    rows = [
        [
            name.replace("|", "\\|"),
            number(result.nll, ".3f"),
            number(result.nll_data, ".3f"),
            "" if result.delta_nll is None else f"{result.delta_nll:+.3f}",
            "" if result.purity is None else f"{result.purity:.2%}",
            *(_score_cell(result.scores.get(key), metric) for key, metric in metrics.items()),
        ]
        for name, result in results.items()
    ]
    return markdown_table(header, rows)


def _score_cell(score: Score | None, metric: Metric) -> str:
    if score is None:
        return number(None)
    if metric.less_is_better:
        return f"{score.value:.4f} ({score.high:.4f})"
    return beside_band(score.value, score.low, score.high)


@in_default_state
def evaluate(
    samples: PointsLike,
    points: PointsLike,
    *,
    label: int | str | None = None,
    repeats: int = 100,
    seed: int = 0,
    full: bool = False,
    held_out: PointsLike | None = None,
    progress: bool | Callable[[int], None] = False,
) -> Evaluation:
    """Scores samples, each metric beside the 99% band of real draws.

    Where the data's distribution is known, a real draw is a new draw of as many points, compared
    with the data. Otherwise the data is split at random. One half is what samples and real draws
    are compared with; a real draw is a random part of the other half, as large as the samples but
    at most half of it (see :func:`~.bands.real_draws`). More samples are compared in up to 4 parts,
    whose scores are averaged.

    Each metric has its own band, which holds a perfect sampler's score with probability 99%
    (Student's prediction interval, see :meth:`~.bands.RealDraws.band`): of ten metrics of a perfect
    sampler, one is outside its band in one of ten cases. With fewer than 10 real draws a score
    inside its band is undecided.

    A metric that is not defined for the data is left out, with a reason: a density estimate, for
    example, needs data that fills all its dimensions. Large sets are cut at random, so that the
    cost is bounded (:func:`~.inputs.most_points`); the notes of the result say so.

    Args:
        samples: [n, d], a tensor on any device or an array.
        points: the data; a tensor or an array [N, d] is data without labels.
        label: class that the samples should have, its number or its name; None for all classes.
        repeats: number of real draws.
        seed: seed of the real draws and of every random choice in a metric.
        full: computes all metrics rather than three; a real draw of 5,000 points then takes about
            a second.
        held_out: [M, d] real points that were not trained on, for the check of memorisation. They
            are drawn where the distribution is known; without either the check is left out. They
            are split as data of unknown distribution is.
        progress: True shows on stderr how many of the sets of points, those of samples and of real
            draws, are scored; a function is called with their number.

    Raises:
        ValueError: the samples' dimension is not the data's, they are not finite or fewer than 2,
            there is no such class, it has fewer than 8 points (2 where the distribution is
            known), there are fewer than 8 held-out points (2), ``repeats`` is no integer from 2 to
            10,000, or the seed none of at least 0.
    """
    points = as_data(points)
    label = _number(label, points)
    check_integer("repeats", repeats, 2, MOST_DRAWS)
    repeats, seed = int(repeats), check_seed(seed)
    check_progress(progress)
    samples = two_sets(as_points("samples", samples, 2), points)[0]
    data = data_of(points, label)
    if held_out is not None:
        least = FEWEST_POINTS if points.redraw is None else 2
        held_out = two_sets(as_points("held_out", held_out, least), points, ("held_out", "data"))[0]
    draws = real_draws(points, label, len(samples), repeats, seed)
    metrics, trials = standard_metrics(), [_trial(samples, draws, label, seed)]
    if full:
        metrics = METRICS
        trials += _memory(samples, draws, data, held_out, label, seed)
    scores, left_out = _scores(metrics, trials, progress)
    nll = nll_data = None
    most = 2 * most_points(points.dim)
    try:
        nll, nll_data = (
            kde_nll(x, points.data, most=most, seed=seed) for x in (samples, data.data)
        )
    except UserError as error:
        left_out["kde_nll"] = str(error)
    purity = None if label is None else _purity(samples, points, label, seed)
    quick = {name: scores.pop(name) for name in standard_metrics() if name in scores}
    return Evaluation(nll, nll_data, quick, purity, scores, left_out, _notes(samples, data, draws))


def _number(label: int | str | None, points: Points) -> int | None:
    """Returns the number of the class that is named, or a number as it was given."""
    if not isinstance(label, str):
        return label
    if not points.class_names:
        raise UserError(f"label must be an integer: classes have no names, got {label!r}")
    return points.label(label)


class _Trial(NamedTuple):
    """Comparisons of the parts of the samples and of real draws with the same data."""

    draws: RealDraws
    parts: list[Comparison]
    real: list[Comparison]


def _trial(
    samples: Tensor,
    draws: RealDraws,
    label: int | None,
    seed: int,
    memory: tuple[Tensor, Tensor] | None = None,
) -> _Trial:
    """Returns the comparisons of the samples, and of real draws, with what the draws name."""
    parts, real = (
        [Comparison(x, draws.data, draws.points, label, seed, memory) for x in sets]
        for sets in (draws.parts(samples, seed), draws.draws)
    )
    return _Trial(draws, parts, real)


def _memory(
    samples: Tensor,
    draws: RealDraws,
    data: Points,
    held_out: Tensor | None,
    label: int | None,
    seed: int,
) -> list[_Trial]:
    """Returns the comparisons with points trained on and points held out, if there are any.

    Where real draws cannot be made, they are drawn from half of the held-out points, and compared
    with the other half.
    """
    if data.redraw is not None:
        if held_out is None:
            size = min(len(data), 2 * most_points(data.dim))
            held_out = data.redraw(size, child_seed(seed, 0))[0]
    elif held_out is not None:
        others = Points(held_out, name="held_out")
        draws = real_draws(others, None, len(samples), len(draws.draws), seed)
        held_out = draws.data
    else:
        return []
    return [_trial(samples, draws, label, seed, (data.data, held_out))]


def _scores(
    metrics: dict[str, Metric], trials: list[_Trial], progress: bool | Callable[[int], None]
) -> tuple[dict[str, Score], dict[str, str]]:
    """Returns the score of each metric that applies, and why others are left out, by name."""
    scores: dict[str, Score] = {}
    left_out: dict[str, str] = {}
    total = sum(len(trial.parts) + len(trial.real) for trial in trials)
    done = 0
    with reported(progress, "measure", total, "sets of points") as report:
        for trial in trials:
            asked = {
                name: metric
                for name, metric in metrics.items()
                if metric.applies(trial.parts[0]) and name not in scores.keys() | left_out.keys()
            }
            rows = []
            for comparison in trial.parts + trial.real:
                rows.append([metric.function(comparison) for metric in asked.values()])
                done += 1
                report(done)
            for (name, metric), column in zip(asked.items(), zip(*rows, strict=True), strict=True):
                count = len(trial.parts)
                score = metric.score(column[:count], column[count:], trial.draws)
                if isinstance(score, Score):
                    scores[name] = score
                else:
                    left_out[name] = score
    return scores, left_out


def _purity(samples: Tensor, points: Points, label: int, seed: int) -> float:
    """Returns the fraction of the samples whose nearest data point has the label."""
    assert points.labels is not None  # its caller has checked that there is such a class
    most = most_points(points.dim)
    rows = random_rows(len(points), 20 * most, seed)
    index = nearest(subset(samples, 4 * most, seed), points.data.cpu()[rows])[1][:, 0]
    return (points.labels.cpu()[rows[index]] == label).double().mean().item()


def _notes(samples: Tensor, data: Points, draws: RealDraws) -> list[str]:
    """Returns sentences on which of the points the metrics read."""
    read, whole = len(draws.parts(samples, 0)) * draws.size, len(draws.data)
    notes = []
    if data.redraw is None:
        used = whole + int(draws.pool)
        notes.append(
            f"the data's distribution is not known: {whole} of its points are compared with, real "
            f"draws of {draws.size} come from {int(draws.pool)} others"
        )
    else:
        used = whole
    for name, count, of in (("samples", read, len(samples)), ("data points", used, len(data))):
        if count < of and of - count >= draws.size:
            notes.append(f"of {of:,} {name} {count:,} were drawn at random")
    return notes
