"""Likelihood of samples under a kernel density estimate of the data."""

import math

import torch
from torch import Tensor

from ...kernels.default_state import in_default_state
from ..errors import UserError, check_integer
from .inputs import PointsLike, subset, two_sets
from .pairwise import distances

_CHUNK = 2**24  # elements of a distance matrix held at once


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
    return constant - _log_kernel_sums(white, white_data, 0.5).mean().item()


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
    parts = x.split(max(1, _CHUNK // len(y)))
    return torch.cat([distances(part, y).square_().mul_(-rate).logsumexp(dim=1) for part in parts])
