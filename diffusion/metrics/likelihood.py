"""Likelihood of samples under a kernel density estimate of the data."""

import math

import torch
from torch import Tensor

from ..errors import UserError

_CHUNK = 2**24  # elements of a distance matrix held at once


def kde_nll(samples: Tensor, data: Tensor) -> float:
    """Returns the mean -log density of samples under a Gaussian kernel density estimate of data.

    The result is that of ``-scipy.stats.gaussian_kde(data.T).logpdf(samples.T).mean()``. The
    bandwidth follows Scott's rule: the data's covariance times N**(-2 / (d + 4)).

    Args:
        samples: [n, d].
        data: [N, d], at least d + 1 points that do not lie in a plane of fewer dimensions.

    Returns:
        Nats per sample.

    Raises:
        ValueError: the dimensions differ or the data's covariance is singular.
    """
    samples, data = same_dimension(samples, data)
    n, dim = data.shape
    covariance = torch.atleast_2d(data.T.cov()) * n ** (-2 / (dim + 4))
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise UserError("data must not lie in a plane of fewer dimensions than it has")
    white_data = torch.linalg.solve_triangular(factor, data.T, upper=False).T
    white = torch.linalg.solve_triangular(factor, samples.T, upper=False).T
    constant = math.log(n) + dim / 2 * math.log(2 * math.pi) + factor.diagonal().log().sum().item()
    return constant - _log_kernel_sums(white, white_data, 0.5).mean().item()


def kernel_nll(samples: Tensor, data: Tensor, temperature: float = 0.1) -> float:
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
        ValueError: the dimensions differ or the temperature is not positive.
    """
    if not temperature > 0:
        raise UserError(f"temperature must be positive, got {temperature}")
    samples, data = same_dimension(samples, data)
    (n, dim), m = samples.shape, len(data)
    log_sum = _log_kernel_sums(samples, data, 1 / (4 * temperature)).logsumexp(0).item()
    return math.log(n * m) + dim / 2 * math.log(2 * math.pi * temperature) - log_sum


def same_dimension(samples: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both sets in float64 on the samples' device.

    Raises:
        ValueError: one is not [n, d], or their dimensions differ.
    """
    if data.dim() != 2 or samples.dim() != 2 or samples.shape[1] != data.shape[1]:
        width = data.shape[1] if data.dim() == 2 else "d"
        raise UserError(f"samples must be [n, {width}] like the data, got {list(samples.shape)}")
    return samples.double(), data.to(samples.device).double()


def _log_kernel_sums(x: Tensor, y: Tensor, rate: float) -> Tensor:
    """Returns log sum_j exp(-rate |x_i - y_j|^2), [n], for each x [n, d] over all y [m, d]."""
    parts = x.split(max(1, _CHUNK // len(y)))
    return torch.cat(
        [torch.cdist(part, y).square_().mul_(-rate).logsumexp(dim=1) for part in parts]
    )
