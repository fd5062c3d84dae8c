"""Classification by a conditional denoiser: the class under which it sees a point best."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..kernels.default_state import methods_in_default_state
from ..kernels.philox import Stream, child_seed, normal_rows
from .device import choose_device
from .errors import UserError, check_integer, check_seed
from .given import check_finite, labels_of, points
from .models import ConditionalMLP, Perceptron, check_prediction
from .own_networks import predictor
from .progress import reported
from .schedules import Schedule, check_schedule

_ROWS = 100_000  # of the network's input at once

# (point and timestep feature [n, d + F], label int64 [n]) -> output [n, d]
ConditionalPredictor = Callable[..., Tensor]


@methods_in_default_state
class DiffusionClassifier:
    """Classifies points by p(y | x_0) of a conditional model (Li et al. 2023, algorithm 1).

    A class's log-likelihood is bounded from below by minus half the denoising error, weighted over
    the timesteps (Ho et al. 2020, equation 12; Kingma et al. 2021, equation 14)::

        log p(x_0 | y) >= -1/2 sum_t (SNR(t - 1) - SNR(t)) E |x_0 - x0_hat(x_t, t, y)|^2 + constant

    where SNR = (signal / noise)^2, whatever the network predicts, and also at a timestep without
    any data. Bayes' rule turns the bounds into posteriors. All classes see the same noise, and each
    noise with both signs, so that chance affects them alike. The methods have the names and the
    meaning of scikit-learn's.

    Args:
        model: a :class:`~flashpoint.diffusion.ConditionalMLP`, any function of its inputs, or a
            network of your own of (x_t, t, y), see :mod:`.own_networks`.
        schedule: the forward process that it was trained with, and what it predicts.
        num_classes: C; None asks the model.
        timesteps: int64 [S] in rising order, at which the error is measured; each stands for its
            neighbours too. None takes up to 100, of which each has about the same weight.
        noises: number of pairs of noise and its negative at each timestep.
        prior: shares of the classes, float [C]; None for equal ones.
        seed: seed of the noise.
        device: None takes CUDA where there is one.

    Raises:
        ValueError: an argument is of a wrong type or out of range.
    """

    def __init__(
        self,
        model: ConditionalPredictor,
        schedule: Schedule,
        *,
        num_classes: int | None = None,
        timesteps: Tensor | None = None,
        noises: int = 4,
        prior: Tensor | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
    ):
        check_integer("noises", noises, 1)
        check_schedule(schedule)
        check_prediction(model, schedule)
        self.device = choose_device(device)
        self.dim = _dim_of(model)
        self.model = predictor(model, schedule, self.device, self.dim, labelled=True)
        self.schedule, self.noises, self.seed = schedule, noises, check_seed(seed)
        num_classes = getattr(model, "num_classes", None) if num_classes is None else num_classes
        if num_classes is None:
            raise UserError("num_classes must be given: the model does not know it")
        check_integer("num_classes", num_classes, 1)
        if isinstance(model, Perceptron):
            if not isinstance(model, ConditionalMLP):
                raise UserError(f"model must be a ConditionalMLP, got {type(model).__name__}")
            check_integer("num_classes", num_classes, 1, model.num_classes)
        self.classes_ = np.arange(num_classes)
        weight = bound_weights(schedule)
        self.gain = error_gains(schedule)  # [T]
        self.timesteps = even_timesteps(weight, 100) if timesteps is None else timesteps
        if not isinstance(self.timesteps, Tensor) or self.timesteps.dtype != torch.int64:
            raise UserError(f"timesteps must be a tensor int64 [S], got {timesteps!r}")
        if self.timesteps.dim() != 1:
            raise UserError(f"timesteps must be [S], got {list(self.timesteps.shape)}")
        if len(self.timesteps) == 0 or not (self.timesteps.diff() > 0).all():
            raise UserError("timesteps must be in rising order, and at least one")
        if not 0 <= self.timesteps[0] <= self.timesteps[-1] < schedule.num_steps:
            raise UserError(f"timesteps must be from 0 to {schedule.num_steps - 1}")
        self.weights = _cell_sums(weight, self.timesteps)  # [S]
        prior = torch.ones(num_classes) if prior is None else prior
        try:
            prior = torch.as_tensor(prior, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"prior must be {num_classes} numbers, got {prior!r}") from error
        if prior.shape != (num_classes,) or not ((prior > 0) & prior.isfinite()).all():
            raise UserError(f"prior must be {num_classes} positive numbers, got {prior.tolist()}")
        self.log_prior = (prior / prior.sum()).double().log()

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, *, progress: bool | Callable[[int], None] = False
    ) -> Tensor:
        """Returns the bound of log p(x_0 | y) up to a constant of all classes, float64 [n, C].

        Args:
            x: clean points [n, d].
            progress: True shows a bar on stderr; a function is called with the number of points
                done.

        Raises:
            ValueError: x are no such points, progress is neither, or a result is not finite.
        """
        x = points("x", x, (None, self.dim)).to(self.device)
        per_point = 2 * self.noises * len(self.classes_)
        parts, size = [], max(1, _ROWS // per_point)
        with reported(progress, "classify", len(x), "points") as show:
            for start in range(0, len(x), size):
                parts.append(self._bound(x[start : start + size], start))
                show(min(start + size, len(x)))
        bound = torch.cat(parts) if parts else torch.empty(0, len(self.classes_)).double()
        check_finite("log-likelihoods", bound)
        return bound

    def _bound(self, x: Tensor, first_row: int) -> Tensor:
        """Returns :meth:`log_likelihood` of a few points, their rows counted from ``first_row``."""
        n, dim = x.shape
        classes = len(self.classes_)
        labels = torch.arange(classes, device=self.device).expand(2 * self.noises * n, -1)
        rows = torch.arange(first_row, first_row + n, device=self.device)
        bound = torch.zeros(n, classes, dtype=torch.float64, device=self.device)
        for t, weight in zip(self.timesteps.tolist(), self.weights.tolist(), strict=True):
            x_0, eps = x.repeat(2 * self.noises, 1), self._noise(t, rows, dim)
            x_t = self.schedule.noised(x_0, eps, t)  # [2 * noises * n, d]
            of_classes = x_t.repeat_interleave(classes, dim=0)  # [2 * noises * n * C, d]
            error = self.model(of_classes, t, labels.reshape(-1)).unflatten(0, (-1, classes))
            error = error - self.schedule.target_of(x_0, eps, t)[:, None]
            error = error.double().square().sum(dim=2)  # [2 * noises * n, C]
            weight *= self.gain[t].item() / 2
            bound -= weight * error.view(2 * self.noises, n, classes).mean(dim=0)
        return bound.cpu()

    def _noise(self, t: int, rows: Tensor, dim: int) -> Tensor:
        """Returns standard normal noise of these rows, and its negative, [2 * noises * n, d]."""
        seeds = [child_seed(self.seed, number) for number in range(self.noises)]
        eps = torch.cat([normal_rows(seed, Stream.NOISE, t, rows, dim)[0] for seed in seeds])
        return torch.cat((eps, -eps))

    def predict_proba(
        self, x: Tensor, *, progress: bool | Callable[[int], None] = False
    ) -> np.ndarray:
        """Returns p(y | x_0) of clean points [n, d], float64 [n, C].

        Args:
            x, progress: see :meth:`log_likelihood`.
        """
        bound = self.log_likelihood(x, progress=progress)
        return (bound + self.log_prior).softmax(dim=1).numpy()

    def predict(self, x: Tensor, *, progress: bool | Callable[[int], None] = False) -> np.ndarray:
        """Returns the likeliest class of clean points [n, d], int64 [n].

        Args:
            x, progress: see :meth:`log_likelihood`.
        """
        return self.predict_proba(x, progress=progress).argmax(axis=1)

    def score(self, x: Tensor, labels: Tensor) -> float:
        """Returns the accuracy on clean points [n, d] with labels [n], from 0 to 1."""
        found = self.predict(x)
        truth = labels_of(labels, len(found), len(self.classes_), torch.device("cpu"))
        return float((found == truth.numpy()).mean())


def _dim_of(model: ConditionalPredictor) -> int | None:
    """Returns the dimension of the points that a model takes; None if it does not say."""
    if isinstance(model, Perceptron):
        return model.shape.widths[-1]
    return getattr(model, "point_dim", None)


def bound_weights(schedule: Schedule) -> Tensor:
    """Returns the weights of the bound of the likelihood, float64 [T], all finite.

    They are those of the errors of :func:`error_gains`, (SNR(t - 1) - SNR(t)) / (1 + SNR(t)). The
    first timestep has no noise level before it; SNR(t - 1) is twice SNR(t) there, as for a decoder
    with the variance of the noise.
    """
    snr = schedule.sigma.pow(-2)
    return (torch.cat((2 * snr[:1], snr[:-1])) - snr) / (1 + snr)


def error_gains(schedule: Schedule) -> Tensor:
    """Returns what makes squared errors of the network's output alike at all noise levels, [T].

    It turns them into those of x0_hat, times 1 + SNR: the mean error of a coordinate is 1 for the
    best denoiser of N(0, I), so that that of one timestep can stand for its neighbours'.
    """
    return schedule.x0_coefficients[1].square() * (1 + schedule.sigma.pow(-2))


def even_timesteps(weight: Tensor, most: int) -> Tensor:
    """Returns at most so many timesteps, int64, of about equal shares of the weight [T]."""
    share = weight.cumsum(0) / weight.sum()
    middles = (torch.arange(most, dtype=torch.float64) + 0.5) / most
    return torch.searchsorted(share, middles).clamp(max=len(weight) - 1).unique()


def _cell_sums(weight: Tensor, timesteps: Tensor) -> Tensor:
    """Adds the weight [T] of each timestep to that of the nearest chosen one; returns [S]."""
    nearest = (torch.arange(len(weight))[:, None] - timesteps).abs().argmin(dim=1)
    return torch.zeros(len(timesteps), dtype=torch.float64).index_add_(0, nearest, weight)
