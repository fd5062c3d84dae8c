"""Likelihood of samples under a kernel density estimate of the data."""

import math

import torch
from torch import Tensor

from ...kernels.default_state import in_default_state
from ..errors import UserError, check_integer
from .bands import CHANCE, prediction_factor
from .inputs import PointsLike, subset, two_sets
from .pairwise import by_product, distances

# Elements of a distance matrix that each thread works on at once: as many as stay in its cache.
_CHUNK = 2**18
_CHUNK_OF_PRODUCTS = 2**24  # where distances come from a matrix product, which reuses its rows


@in_default_state
def kde_nll(
    samples: PointsLike, data: PointsLike, *, most: int | None = None, seed: int = 0
) -> float:
    """Returns the mean -log density of samples under a Gaussian kernel density estimate of data.

    The result is that of ``-scipy.stats.gaussian_kde(data.T).logpdf(samples.T).mean()``. The
    bandwidth follows Scott's rule: the data's covariance times N**(-2 / (d + 4)).

    Args:
        samples: [n, d].
        data: [N, d], at least d + 1 points that do not lie in a plane of fewer dimensions.
        most: number of random points of each set that are read where it has more, because the cost
            is the product of both; None reads all.
        seed: seed of that choice. With one seed, equal data have equal estimates.

    Returns:
        Nats per sample.

    Raises:
        ValueError: the dimensions differ, a set is empty or not finite, ``most`` is below 2, there
            are fewer than d + 1 data points or the data's covariance is singular.
    """
    samples, data = two_sets(samples, data)
    if most is not None:
        check_integer("most", most, 2)
        samples, data = subset(samples, most, seed), subset(data, most, seed)
    log_sums, constant = _log_densities(samples, data)
    return constant - log_sums.mean().item()


@in_default_state
def kde_band(data: PointsLike, n: int) -> tuple[float, float]:
    """Returns the band that holds :func:`kde_nll` of n real points in 99% of cases.

    Each point of the data is scored under the kernels of all others, so that it is as new to them
    as a real draw would be. The band is that of Student for the mean of n new points.

    Args:
        data: [N, d], as :func:`kde_nll` takes them.
        n: number of points of a draw.

    Returns:
        Both ends, in nats per point; infinite where a point lies far from all others.

    Raises:
        ValueError: n is below 1, or there is no density estimate of the data.
    """
    check_integer("n", n, 1)
    data, _ = two_sets(data, data)
    log_sums, constant = _log_densities(data, data)
    # A point's own kernel is 1, and the others are N - 1.
    nll = constant + math.log1p(-1 / len(data)) - log_sums.expm1().log()
    half = prediction_factor(len(data), CHANCE / 2, variance=1 / n) * nll.std().item()
    return nll.mean().item() - half, nll.mean().item() + half


def _log_densities(samples: Tensor, data: Tensor) -> tuple[Tensor, float]:
    """Returns log sums of kernels of the data at samples [n], and -log of their common factor."""
    n, dim = data.shape
    if n <= dim:
        raise UserError(f"data must be at least {dim + 1} points in {dim} dimensions, got {n}")
    covariance = torch.atleast_2d(data.T.cov()) * n ** (-2 / (dim + 4))
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise UserError("data must not lie in a plane of fewer dimensions than it has")
    white_data = torch.linalg.solve_triangular(factor, data.T, upper=False).T
    white = torch.linalg.solve_triangular(factor, samples.T, upper=False).T
    constant = math.log(n) + dim / 2 * math.log(2 * math.pi) + factor.diagonal().log().sum().item()
    return _log_kernel_sums(white, white_data, 0.5), constant


@in_default_state
def kernel_nll(samples: PointsLike, data: PointsLike, temperature: float = 0.1) -> float:
    """Returns -log of the mean kernel over all pairs of a sample and a data point::

        -log mean_ij exp(-|x_i - y_j|^2 / (4 temperature)) / (2 pi temperature)^(d / 2)

    This is the published form; its constant factor does not make the kernel integrate to 1. For
    samples and data from one Gaussian N(0, s^2 I) the result is d/2 log(2 pi (temperature + s^2)).
    Samples that gather where the data is densest score lower than real data.

    Args:
        samples: [n, d].
        data: [N, d].
        temperature: temperature of the kernel, in squared units of the data.

    Returns:
        Nats.

    Raises:
        ValueError: the dimensions differ, a set is empty or not finite, or the temperature is not
            positive and finite.
    """
    if not 0 < temperature < math.inf:
        raise UserError(f"temperature must be positive, got {temperature}")
    samples, data = two_sets(samples, data)
    (n, dim), m = samples.shape, len(data)
    log_sum = _log_kernel_sums(samples, data, 1 / (4 * temperature)).logsumexp(0).item()
    return math.log(n * m) + dim / 2 * math.log(2 * math.pi * temperature) - log_sum


def _log_kernel_sums(x: Tensor, y: Tensor, rate: float) -> Tensor:
    """Returns log sum_j exp(-rate |x_i - y_j|^2), [n], for each x [n, d] over all y [m, d]."""
    chunk = _CHUNK_OF_PRODUCTS if by_product(y) else _CHUNK * torch.get_num_threads()
    parts = x.split(max(1, chunk // len(y)))
    return torch.cat([distances(part, y).square_().mul_(-rate).logsumexp(dim=1) for part in parts])
