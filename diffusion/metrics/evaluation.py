"""The evaluation of one set of samples: every metric beside the scores of fresh real data."""

from dataclasses import asdict, dataclass, field
from itertools import repeat

from torch import Tensor

from ...kernels.philox import child_seed
from ..data import Points
from ..errors import UserError, check_at_least
from .bands import Score, halves, real_pairs
from .distances import label_of_nearest, subset
from .likelihood import kde_nll, same_dimension
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
    """

    nll: float | None
    nll_data: float | None
    scores: dict[str, Score]
    purity: float | None = None
    battery: dict[str, Score] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def delta_nll(self) -> float | None:
        """The samples' NLL minus the data's; None where the data has no density estimate."""
        return None if self.nll is None or self.nll_data is None else self.nll - self.nll_data

    def to_dict(self) -> dict:
        """Returns plain numbers for JSON: the NLLs, the purity, and every score by name."""
        scores = {
            name: {**asdict(score), "passed": score.passed}
            for name, score in (self.scores | self.battery).items()
        }
        return {
            "nll": self.nll,
            "nll_data": self.nll_data,
            "delta_nll": self.delta_nll,
            "purity": self.purity,
            **scores,
            **({"left_out": self.left_out} if self.left_out else {}),
        }

    def table(self) -> str:
        """Returns a table in Markdown with a row for every score."""
        rows = [
            [
                METRICS[name].title,
                *band_cells(score),
                "as real data" if score.passed else "**differs**",
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
            name,
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


def data_of(points: Points, label: int | None) -> Tensor:
    """Returns the points that samples are compared with, [n, d].

    Args:
        points: the data.
        label: class whose points are returned; None for all points.

    Raises:
        ValueError: there is no such class, or there are fewer than 4 points.
    """
    of = ""
    if label is not None:
        points.check_label(label)
        of = f" of {points.class_name(label)}"
    data = points.data if label is None else points.of_class(label)
    if len(data) < 4:
        raise UserError(f"evaluation needs at least 4 data points{of}, got {len(data)}")
    return data


def evaluate(
    samples: Tensor,
    points: Points,
    *,
    label: int | None = None,
    repeats: int = 100,
    seed: int = 0,
    full: bool = False,
    held_out: Tensor | None = None,
) -> Evaluation:
    """Scores samples, each metric beside the 99% band of real draws.

    Where the data's distribution is known, a real draw is a new draw of as many points, compared
    with the data. Otherwise it is a random half of the data, compared with the other half, and
    as many of the samples are compared with such a half too. Each metric has its own band, which
    holds a further draw with probability 99% (Student's prediction interval): of ten metrics of a
    perfect sampler, one is outside its band in one of ten cases.

    A metric that is not defined for the data is left out, with a reason: a density estimate, for
    example, needs data that fills all its dimensions.

    Args:
        samples: [n, d].
        points: the data.
        label: class that the samples should have; None for all classes.
        repeats: number of real draws.
        seed: seed of the real draws and of every random choice in a metric.
        full: computes all metrics rather than three; a real draw of 5,000 points then takes about
            a second.
        held_out: [M, d] real points that were not trained on, for the check of memorisation. They
            are drawn where the distribution is known; without either the check is left out.

    Raises:
        ValueError: the samples' dimension is not the data's, they are not finite or fewer than 2,
            there is no such class, or it has fewer than 4 points.
    """
    _check(samples, points, repeats, held_out)
    samples, data = samples.cpu(), data_of(points, label)
    purity = None
    if label is not None:
        purity = (label_of_nearest(samples, points) == label).double().mean().item()
    metrics = standard_metrics() | (METRICS if full else {})
    pairs = real_pairs(points, label, len(samples), repeats, seed)
    comparisons = _comparisons(samples, pairs, points, label, seed, full, held_out)
    scores, left_out = _scores(metrics, comparisons)
    nll = nll_data = None
    try:
        nll, nll_data = kde_nll(samples, points.data), kde_nll(data, points.data)
    except UserError as error:
        left_out["kde_nll"] = str(error)
    quick = {name: scores.pop(name) for name in standard_metrics() if name in scores}
    return Evaluation(nll, nll_data, quick, purity, scores, left_out)


def _check(samples: Tensor, points: Points, repeats: int, held_out: Tensor | None) -> None:
    """Raises :class:`UserError` for wrong arguments of :func:`evaluate`."""
    check_at_least("repeats", repeats, 2)
    same_dimension(samples, points.data)
    check_at_least("number of samples", len(samples), 2)
    if not samples.isfinite().all():
        raise UserError("samples must be finite, got NaN or infinity")
    if held_out is not None:
        check_at_least("number of held-out points", len(held_out), 2)


def _comparisons(
    samples: Tensor,
    pairs: list[tuple[Tensor, Tensor]],
    points: Points,
    label: int | None,
    seed: int,
    full: bool,
    held_out: Tensor | None,
) -> list[Comparison]:
    """Returns the comparison of the samples with data, then that of each real draw."""
    if points.redraw is None:
        samples = subset(samples, len(pairs[0][0]), seed)
    trials = [(samples, pairs[0][1]), *pairs]
    draws = [draw for draw, _ in trials]
    trios = _trios(draws, points, label, held_out, seed) if full else None
    return [
        Comparison(*trial, points, label, seed, trio)
        for trial, trio in zip(trials, trios or repeat(None, len(trials)), strict=True)
    ]


def _trios(
    draws: list[Tensor], points: Points, label: int | None, held_out: Tensor | None, seed: int
) -> list[tuple[Tensor, Tensor, Tensor]] | None:
    """Returns (draw, points trained on, points held out) for the samples and for each real draw.

    Where real draws cannot be made, halves of the held-out points stand for them and are compared
    with the other halves. The result is None where nothing was held out.
    """
    train = points.data if label is None else points.of_class(label)
    if points.redraw:
        if held_out is None:
            held_out = points.redraw(len(train), child_seed(seed, 0), label)[0]
        return [(draw, train, held_out) for draw in draws]
    if held_out is None:
        return None
    splits = [halves(held_out, seed, number) for number in range(len(draws) - 1)]
    return [(draws[0], train, splits[0][1]), *((draw, train, rest) for draw, rest in splits)]


def _scores(
    metrics: dict[str, Metric], comparisons: list[Comparison]
) -> tuple[dict[str, Score], dict[str, str]]:
    """Returns the score of each metric that applies, and why others are left out, by name."""
    scores, left_out = {}, {}
    for name, metric in metrics.items():
        if not metric.applies(comparisons[0]):
            continue
        value, *real = map(metric.function, comparisons)
        score = metric.score(value, real)
        if score is None:
            left_out[name] = "not defined for these points"
        else:
            scores[name] = score
    return scores, left_out
