"""How good samples are, each number beside the one that fresh real data scores.

The KDE likelihood is blind to blur and to missing parts, so it never stands alone: distances to
the nearest neighbour both ways and the sliced Wasserstein distance see what it does not.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from scipy.spatial import cKDTree
from scipy.stats import norm
from torch import Tensor

from ..kernels.philox import Stream, normals, permute, random_words, seed_tensor
from .errors import UserError
from .points import Points

_CHUNK = 2**24  # elements of a distance matrix held at once


def kde_nll(samples: Tensor, data: Tensor) -> float:
    """Mean -log density of samples under a Gaussian kernel density estimate of the data.

    The same as ``-scipy.stats.gaussian_kde(data.T).logpdf(samples.T).mean()``: bandwidth by
    Scott's rule, n**(-1 / (d + 4)) times the data's covariance.

    Args:
        samples: [n, d].
        data: [N, d], at least d + 1 points that do not lie in a plane.

    Returns:
        Nats per sample.

    Raises:
        ValueError: the dimensions differ or the data's covariance is singular.
    """
    samples, data = samples.double(), data.to(samples.device).double()
    n, dim = data.shape
    if samples.shape[-1] != dim:
        raise UserError(f"samples must be [n, {dim}] like the data, got {list(samples.shape)}")
    covariance = torch.atleast_2d(data.T.cov()) * n ** (-2 / (dim + 4))
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise UserError("data must not lie in a plane of fewer dimensions than it has")
    white_data = torch.linalg.solve_triangular(factor, data.T, upper=False).T
    white = torch.linalg.solve_triangular(factor, samples.T, upper=False).T
    constant = math.log(n) + dim / 2 * math.log(2 * math.pi) + factor.diagonal().log().sum().item()
    log_p = [
        torch.logsumexp(torch.cdist(part, white_data).square_().mul_(-0.5), dim=1)
        for part in white.split(max(1, _CHUNK // n))
    ]
    return constant - torch.cat(log_p).mean().item()


def nearest_distances(points: Tensor, others: Tensor) -> Tensor:
    """Distance of each of the points [n, d] to the nearest of the others, float64 [n]."""
    return torch.from_numpy(cKDTree(others.cpu().numpy()).query(points.cpu().numpy())[0])


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 64, seed: int = 0) -> float:
    """Mean over random directions of the 1-Wasserstein distance between projections of a and b.

    Bonneel et al. 2015; exact in each direction, for unequal numbers of points too.

    Args:
        a: [n, d].
        b: [m, d].
        projections: number of directions.
        seed: of the directions.
    """
    dim = a.shape[1]
    words = random_words(seed_tensor(seed), Stream.SEED, 0, torch.arange(projections), dim + 1)
    directions = torch.nn.functional.normalize(normals(words[0])[:, :dim].double(), dim=1)
    a, b = ((directions @ x.cpu().double().T).sort(dim=1).values for x in (a, b))  # [P, n], [P, m]
    n, m = a.shape[1], b.shape[1]
    # Both quantile functions are constant between neighbours among the levels i/n and j/m.
    levels = torch.cat((torch.arange(n + 1) / n, torch.arange(1, m) / m)).double().sort().values
    middle, width = (levels[1:] + levels[:-1]) / 2, levels.diff()
    gap = a[:, (middle * n).long()] - b[:, (middle * m).long()]
    return ((gap.abs() * width).sum(dim=1)).mean().item()


def label_of_nearest(samples: Tensor, points: Points) -> Tensor:
    """The label int64 [n] of the data point nearest to each sample [n, d]."""
    nearest = cKDTree(points.data.numpy()).query(samples.cpu().numpy())[1]
    return points.labels[torch.from_numpy(nearest)]


_DISTANCES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "sample_to_data": lambda samples, data: nearest_distances(samples, data).median().item(),
    "data_to_sample": lambda samples, data: nearest_distances(data, samples).median().item(),
    "sliced_wasserstein": sliced_wasserstein,
}


@dataclass(frozen=True)
class Score:
    """A metric of samples beside what real data scores.

    Attributes:
        value: of the samples.
        real: mean over repeated draws of real data.
        low, high: the band that holds 99% of real draws; ``low`` is 0 where less is better.
    """

    value: float
    real: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        return self.low <= self.value <= self.high


@dataclass(frozen=True)
class Evaluation:
    """Samples compared with data.

    Attributes:
        nll: negative log-likelihood of the samples under a KDE of the whole data.
        nll_data: of the data itself, or of its points of the class asked for.
        scores: median distance to the nearest data point, of data points to the nearest sample,
            and the sliced Wasserstein distance, by name.
        purity: fraction of samples whose nearest data point has the class asked for; None where
            no class was.
    """

    nll: float
    nll_data: float
    scores: dict[str, Score]
    purity: float | None = None

    @property
    def delta_nll(self) -> float:
        return self.nll - self.nll_data

    def to_dict(self) -> dict:
        scores = {
            name: {**asdict(score), "passed": score.passed} for name, score in self.scores.items()
        }
        return {
            "nll": self.nll,
            "nll_data": self.nll_data,
            "delta_nll": self.delta_nll,
            "purity": self.purity,
            **scores,
        }


def evaluate(
    samples: Tensor, points: Points, *, label: int | None = None, repeats: int = 100, seed: int = 0
) -> Evaluation:
    """Scores samples, each distance beside the 99% band of real draws.

    Where the data's distribution is known, a real draw is a new draw of as many points, compared
    with the data. Otherwise it is a random half of the data, compared with the other half, and
    the samples are cut to that size and compared with such a half too.

    Args:
        samples: [n, d].
        points: the data.
        label: the class that the samples should be of; None for all.
        repeats: number of real draws.
        seed: of the real draws.

    Raises:
        ValueError: the samples' dimension is not the data's, or there are fewer than 4 points.
    """
    samples = samples.cpu()
    data = points.data if label is None else points.of_class(label)
    if len(data) < 4 or len(samples) < 2:
        raise UserError(f"evaluation needs at least 4 data points, got {len(data)}")
    purity = None
    if label is not None:
        purity = (label_of_nearest(samples, points) == label).double().mean().item()
    pairs = real_pairs(points, label, len(samples), repeats, seed)
    compared = samples if points.redraw else samples[: len(data) // 2]
    real = data if points.redraw else pairs[0][1]
    scores = {}
    for name, distance in _DISTANCES.items():
        logs = torch.tensor([distance(*pair) for pair in pairs], dtype=torch.float64).log()
        spread = norm.ppf(0.995) * math.sqrt(1 + 1 / repeats) * logs.std().item()
        low = 0.0 if name == "sliced_wasserstein" else math.exp(logs.mean().item() - spread)
        scores[name] = Score(
            distance(compared, real),
            logs.exp().mean().item(),
            low,
            math.exp(logs.mean().item() + spread),
        )
    return Evaluation(kde_nll(samples, points.data), kde_nll(data, points.data), scores, purity)


def real_pairs(
    points: Points, label: int | None, n: int, repeats: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Pairs (real draw, data) that show what a perfect sampler's scores look like."""
    data = points.data if label is None else points.of_class(label)
    pairs = []
    for repeat in range(repeats):
        if points.redraw is None:
            order = permute(torch.arange(len(data)), len(data), seed_tensor(seed), repeat)[0]
            half = len(data) // 2
            pairs.append((data[order[:half]], data[order[half:]]))
        else:
            pairs.append((points.redraw(n, seed + repeat + 1, label)[0], data))
    return pairs
