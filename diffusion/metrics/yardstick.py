"""A yardstick: real data, scored once, beside which many sets of samples are measured."""

from collections.abc import Sequence

from torch import Tensor

from ...kernels.default_state import methods_in_default_state
from ..data import Points
from ..errors import UserError, check_choice
from ..progress import Progress
from .bands import Score, data_of, real_draws
from .inputs import as_points, two_sets
from .registry import METRICS, Comparison, standard_metrics


def _applies(name: str, points: Points) -> bool:
    data = points.data
    return METRICS[name].applies(Comparison(data, data, points))


def default_metrics(points: Points) -> tuple[str, ...]:
    """Returns the names of the metrics of every evaluation, and of the likelihood."""
    names = ("kde_nll", *standard_metrics())
    return tuple(name for name in names if _applies(name, points))


def check_metrics(names: Sequence[str], points: Points) -> None:
    """Raises :class:`UserError` unless these are metrics that samples of the data have.

    Args:
        names: names of metrics.
        points: the data.
    """
    data_of(points, None)
    if not names:
        raise UserError("metrics must be at least one, got none")
    allowed = [name for name in METRICS if _applies(name, points)]
    for place, name in enumerate(names):
        check_choice("metrics", name, allowed)
        if name in names[:place]:
            raise UserError(f"metrics holds {name} twice")


@methods_in_default_state
class Yardstick:
    """Real data that sets of n samples are measured beside; real draws are scored once.

    A score is that of :func:`~.evaluation.evaluate` with the same number of draws and seed.

    Args:
        points: the data.
        n: number of samples of a set.
        metrics: names of the metrics.
        repeats: number of real draws.
        seed: seed of the real draws and of every random choice in a metric.
        progress: shows on stderr how many of the real draws are scored.

    Raises:
        ValueError: a metric is unknown or not defined for the data, or there are too few points.
    """

    def __init__(
        self,
        points: Points,
        n: int,
        metrics: Sequence[str],
        *,
        repeats: int = 40,
        seed: int = 0,
        progress: bool = False,
    ):
        check_metrics(metrics, points)
        self.points, self.seed = points, seed
        self.metrics = {name: METRICS[name] for name in metrics}
        self._draws = real_draws(points, None, n, repeats, seed)
        self._real: list[list[float]] = []
        with Progress("measure real data", repeats, "draws", shown=progress) as bar:
            for draw in self._draws.draws:
                self._real.append(self._scores(draw))
                bar.to(len(self._real))

    def _scores(self, x: Tensor) -> list[float]:
        """Returns the score of a set of points by each metric."""
        comparison = Comparison(x, self._draws.data, self._draws.points, None, self.seed)
        return [metric.function(comparison) for metric in self.metrics.values()]

    def measure(self, samples: Tensor) -> dict[str, Score | str]:
        """Returns the score of n samples by each metric, or why there is none.

        Args:
            samples: [n, d], on any device.

        Raises:
            ValueError: the samples are not finite, or of another dimension than the data.
        """
        samples = two_sets(as_points("samples", samples, 2), self.points)[0]
        parts = [self._scores(part) for part in self._draws.parts(samples, self.seed)]
        return {
            name: metric.score(
                [part[place] for part in parts], [real[place] for real in self._real], self._draws
            )
            for place, (name, metric) in enumerate(self.metrics.items())
        }
