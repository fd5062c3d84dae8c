"""The excess loss: the distance of a denoiser from the best one there is.

The training loss of a perfect denoiser is not 0, because it cannot know which noise led to x_t. It
knows the mean of that noise, eps*(x_t) = E[eps | x_t], which has a closed form if the data's
distribution has one. The loss of any other denoiser of noise is larger by E|eps_hat - eps*|^2, and
denoisers that predict something else are measured in the same units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...kernels.default_state import in_default_state, methods_in_default_state
from ...kernels.philox import Stream, child_seed, normal_rows, random_words, seed_tensor
from ..errors import UserError, check_integer
from ..models import Perceptron, check_prediction
from ..own_networks import predictor, takes_timesteps
from ..schedules import Schedule
from .inputs import as_finite, as_points, two_sets
from .pairwise import distances

_CHUNK = 2**22  # elements of a [samples, components, d] block held at once
_COMPONENT, _POINT = range(2)  # streams of random numbers of one draw


class Target(Protocol):
    """A distribution whose best denoiser is known."""

    def draw(self, n: int, seed: int) -> Tensor:
        """Draws n points, float64 [n, d]."""

    def optimal_noise(self, x: Tensor, alpha_bar: float) -> Tensor:
        """Returns eps*(x) [n, d] for noisy x = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps."""


@methods_in_default_state
@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of K Gaussians.

    Args:
        weights: [K], positive; they need not sum to 1.
        means: [K, d].
        covariances: [K, d, d], positive definite.

    Raises:
        ValueError: the shapes do not match, a number is not finite, a weight is not positive or a
            covariance not definite.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self):
        for name in ("weights", "means", "covariances"):
            object.__setattr__(self, name, as_finite(name, getattr(self, name)))
        shapes = [list(x.shape) for x in (self.weights, self.means, self.covariances)]
        count, dim = self.means.shape if self.means.dim() == 2 else (0, 0)
        if not count or shapes != [[count], [count, dim], [count, dim, dim]]:
            raise UserError(
                "weights, means and covariances must be [K], [K, d] and [K, d, d], got "
                f"{shapes[0]}, {shapes[1]} and {shapes[2]}"
            )
        if not (self.weights > 0).all():
            raise UserError("weights must be positive")
        if torch.linalg.cholesky_ex(self.covariances).info.any():
            raise UserError("covariances must be positive definite")

    def draw(self, n: int, seed: int) -> Tensor:
        """Draws n points, float64 [n, d]."""
        cumulative = (self.weights / self.weights.sum()).cumsum(0)
        place = _uniform(n, child_seed(seed, _COMPONENT))
        component = torch.searchsorted(cumulative, place).clamp(max=len(cumulative) - 1)
        noise = _noise(n, self.means.shape[1], child_seed(seed, _POINT))
        factor = torch.linalg.cholesky(self.covariances)[component]  # [n, d, d]
        return self.means[component] + (factor @ noise[..., None])[..., 0]

    def optimal_noise(self, x: Tensor, alpha_bar: float) -> Tensor:
        """Returns eps*(x), the mean of the noise that led to x.

        It is sqrt(1 - alpha_bar) sum_k p(k | x) S_k^-1 (x - sqrt(alpha_bar) mu_k), where
        S_k = alpha_bar Sigma_k + (1 - alpha_bar) I is the covariance of component k at this noise.
        By Tweedie's formula it is -sqrt(1 - alpha_bar) times the score of p(x_t).

        Args:
            x: [n, d].
            alpha_bar: alpha_bar of the timestep, from 0 on, below 1.

        Returns:
            float64 [n, d].
        """
        dim = x.shape[1]
        noise = torch.eye(dim, dtype=torch.float64, device="cpu")
        covariance = alpha_bar * self.covariances + (1 - alpha_bar) * noise
        factor = torch.linalg.cholesky(covariance)  # [K, d, d]
        log_det = factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)  # [K]
        parts = []
        for part in x.double().split(max(1, _CHUNK // self.means.numel())):
            delta = (part - alpha_bar**0.5 * self.means[:, None]).mT  # [K, d, n]
            solved = torch.cholesky_solve(delta, factor)
            log_p = self.weights.log() - log_det - (delta * solved).sum(dim=1).T / 2
            parts.append(torch.einsum("nk,kdn->nd", log_p.softmax(dim=1), solved))
        return (1 - alpha_bar) ** 0.5 * torch.cat(parts)


@methods_in_default_state
@dataclass(frozen=True)
class PointMasses:
    """The data itself as a distribution in which all points are equally likely.

    Its best denoiser leads every sample to a training point. At low noise, a denoiser that has
    learnt the distribution behind the points differs from it.

    Args:
        data: [N, d].

    Raises:
        ValueError: the data is no set of points, or it is empty or not finite.
    """

    data: Tensor

    def __post_init__(self):
        object.__setattr__(self, "data", as_points("data", self.data))

    def draw(self, n: int, seed: int) -> Tensor:
        """Draws n points, float64 [n, d]."""
        place = _uniform(n, child_seed(seed, _COMPONENT))
        return self.data[(place * len(self.data)).long()]

    def optimal_noise(self, x: Tensor, alpha_bar: float) -> Tensor:
        """Returns eps*(x) = (x - sqrt(alpha_bar) E[x_0 | x]) / sqrt(1 - alpha_bar).

        Args:
            x: [n, d].
            alpha_bar: alpha_bar of the timestep, from 0 on, below 1.

        Returns:
            float64 [n, d].
        """
        x, _ = two_sets(x, self.data, ("x", "data"))
        data, variance = alpha_bar**0.5 * self.data, 1 - alpha_bar
        means = [
            distances(part, data).square_().mul_(-0.5 / variance).softmax(dim=1) @ data
            for part in x.split(max(1, _CHUNK // len(data)))
        ]
        return (x - torch.cat(means)) / variance**0.5


def best_noise(target: Target, schedule: Schedule, x_t: Tensor, t: int) -> Tensor:
    """Returns eps*(x_t), the mean of the noise that led to x_t, float64 [n, d].

    Args:
        target: the distribution of x_0.
        schedule: the forward process, of any levels of signal and noise.
        x_t: noisy points [n, d].
        t: timestep.
    """
    radius = torch.hypot(schedule.signal[t], schedule.noise[t]).item()
    return target.optimal_noise(x_t.double() / radius, schedule.alpha_bar[t].item())


@in_default_state
@torch.no_grad()
def excess_loss(
    model: Callable[..., Tensor],
    schedule: Schedule,
    target: Target,
    *,
    steps: Sequence[int] | None = None,
    n: int = 2000,
    seed: int = 0,
) -> Tensor:
    """Returns E|eps_hat(x_t, t) - eps*(x_t)|^2 at each timestep, summed over coordinates.

    The training loss of a denoiser that predicts the noise is a mean over d coordinates, so it
    exceeds its least possible value by this sum divided by d; that of any other prediction does so
    by this sum divided by d c^2, where c is the weight of the output in eps_hat. Where x_t holds no
    data, eps_hat is x_t / noise whatever the denoiser returns, and the excess is 0.

    Args:
        model: takes (point, timestep feature) float32 [n, d + f], returns what the schedule's
            ``prediction`` says, [n, d]; or a network of your own of (x_t, t), see
            :mod:`~flashpoint.diffusion.own_networks`.
        schedule: the forward process, and what the model predicts.
        target: the distribution of x_0.
        steps: timesteps; None takes 50 spread evenly over all T, or all if there are fewer.
        n: number of noisy points per timestep.
        seed: seed of the points and their noise.

    Returns:
        float64 [S]. Over evenly spread timesteps their mean is the excess loss of a timestep drawn
        uniformly.

    Raises:
        ValueError: n is not positive, a timestep is out of range, or a network of this package
            takes another number of coordinates.
    """
    check_integer("n", n, 1)
    check_prediction(model, schedule)
    last = schedule.num_steps - 1
    if steps is None:
        steps = torch.linspace(0, last, min(50, last + 1), device="cpu").round().long().tolist()
    excess, own = torch.zeros(len(steps), dtype=torch.float64, device="cpu"), None
    if takes_timesteps(model):
        own = predictor(model, schedule, torch.device("cpu"), None)
    for row, t in enumerate(steps):
        check_integer(f"steps[{row}]", t, 0, last)
        x_0 = target.draw(n, child_seed(seed, 2 * t))
        eps = _noise(n, x_0.shape[1], child_seed(seed, 2 * t + 1))
        x_t = schedule.noised(x_0, eps, t).float()
        output = _of_inputs(model, schedule, x_t, t) if own is None else own(x_t, t)
        predicted = schedule.eps_hat(x_t.double(), output.double(), t)
        error = predicted - best_noise(target, schedule, x_t, t)
        excess[row] = error.square().sum(dim=1).mean()
    return excess


def _of_inputs(model: Callable[..., Tensor], schedule: Schedule, x_t: Tensor, t: int) -> Tensor:
    """Returns the output of a model of (point, timestep feature), [n, d]."""
    inputs = schedule.inputs(x_t, t)
    if isinstance(model, Perceptron) and model.shape.widths[0] != inputs.shape[1]:
        raise UserError(
            f"model must take {inputs.shape[1]} coordinates, those of a point and of the "
            f"schedule's time feature, got {model.shape.widths[0]}"
        )
    return model(inputs)


def _uniform(n: int, seed: int) -> Tensor:
    """Draws uniform numbers in (0, 1), float64 [n]."""
    rows = torch.arange(n, device="cpu")
    words = random_words(seed_tensor(seed), Stream.SEED, 0, rows, 1)[0, :, 0]
    return (words.double() + 0.5) / 2**32


def _noise(n: int, dim: int, seed: int) -> Tensor:
    """Draws standard normal numbers, float64 [n, dim]."""
    return normal_rows(seed, Stream.SEED, 0, torch.arange(n, device="cpu"), dim)[0].double()
