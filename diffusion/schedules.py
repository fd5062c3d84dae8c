"""Schedules of the forward process, what networks see of a timestep, and what they predict."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..kernels.default_state import in_default_state, methods_in_default_state
from .choices import NATURAL, SCHEDULES, TIME_FEATURES
from .errors import ScheduleWarning, UserError, check_choice, check_integer, shown
from .noise_levels import BETAS, Levels, edm, flow, variance_preserving
from .predictions import PREDICTIONS, WEIGHTINGS, estimates
from .time_embedding import TimeEmbedding

EMBEDDING_DIM = 16  # width of the sinusoidal embedding of a timestep or a class
# Fields that belong to some of the schedules, with the values that all others must leave.
_BETAS = {"beta_start": 1e-4, "beta_end": 0.02}
_SIGMAS = {"sigma_min": 0.002, "sigma_max": 80.0}
_MOST_TIMESTEPS = 1_000_000
# Chains start from N(0, I) as if no data were left in x_T. With the best denoiser of a component
# N(m, s^2), of s = 0.3, the mean of its samples falls short by about s sqrt(alpha_bar) = 7% of m.
_MOST_DATA_LEFT = 0.05
# Bounds of the error of x0_hat, for an error of 1 of the network, where a chain starts. The upper
# one is alpha_bar = 0.005 for a network that predicts eps, little more than the default schedule's
# own start at 12.5. Chains of 5 steps get no further than the lower one without an error that the
# next steps magnify.
_LOWEST_START, _HIGHEST_START, _START_PER_STEP = 8.0, 14.1, 1.6


@methods_in_default_state
@dataclass(frozen=True)
class Schedule:
    """The forward process x_t = signal_t x_0 + noise_t eps, t = 0 ... T - 1, and its networks.

    It knows what a network sees of x_t and of t, and how x_0 and eps follow from what it predicts.
    All tables are float64 [T]; index 0 is the least noisy timestep.

    Args:
        num_steps: number of timesteps T.
        name: one of :data:`SCHEDULES`. ``linear``, ``cosine``, ``scaled_linear``, ``sigmoid`` and
            ``sech`` are variance-preserving, ``flow`` is the straight line of flow matching,
            ``edm`` that of Karras et al. 2022, with x_t scaled by c_in.
        beta_start, beta_end: range of beta, rising, of the variance-preserving schedules; the
            cosine schedule has none and takes only the defaults.
        time_feature: the form in which networks see t: ``linspace`` is linspace(-1, 1, T),
            ``centered`` is 2 (t - T/2) / T, ``sinusoidal`` is the :func:`sinusoidal_embedding` of t
            of width 16, ``c_noise`` is log(sigma) / 4 (Karras et al. 2022, table 1); a
            :class:`.TimeEmbedding` is any other of this kind. None is ``c_noise`` for ``edm``, and
            ``linspace`` for all others.
        prediction: what denoisers predict, one of :data:`PREDICTIONS`: ``eps``, ``x0``, ``v``,
            ``flow`` (eps - x_0) or ``edm`` (F of Karras et al. 2022, equation 7). None is ``flow``
            for ``flow``, ``edm`` for ``edm``, and ``eps`` for all others.
        zero_terminal_snr: leaves no data at T - 1 of a variance-preserving schedule (Lin et al.
            2024, algorithm 1); a network that predicts eps would learn nothing there.
        sigma_min, sigma_max: noise levels of ``edm`` at 0 and T - 1.
        sigma_data: standard deviation of the data, for ``edm`` as schedule, prediction or
            weighting. That of standardised data is 1.

    Warns:
        ScheduleWarning: more than a twentieth of the data's variance is left at T - 1, so that even
            the best denoiser draws wrong samples.

    Raises:
        ValueError: T is no integer from 1 to 1,000,000, beta or sigma does not rise, is out of
            range or of no effect, a name is unknown, or eps is predicted where no data is left.
    """

    num_steps: int = 500
    name: str = "linear"
    beta_start: float = _BETAS["beta_start"]
    beta_end: float = _BETAS["beta_end"]
    time_feature: str | TimeEmbedding | None = None
    prediction: str | None = None
    zero_terminal_snr: bool = False
    sigma_min: float = _SIGMAS["sigma_min"]
    sigma_max: float = _SIGMAS["sigma_max"]
    sigma_data: float = 1.0

    def __post_init__(self):
        check_integer("num_steps", self.num_steps, 1)
        if self.num_steps > _MOST_TIMESTEPS:
            raise UserError(f"num_steps must be at most {_MOST_TIMESTEPS}, got {self.num_steps}")
        check_choice("schedule", self.name, SCHEDULES)
        if self.prediction is None:
            object.__setattr__(self, "prediction", NATURAL.get(self.name, "eps"))
        check_choice("prediction", self.prediction, PREDICTIONS)
        self._check_time_feature()
        self._check_betas()
        self._check_sigmas()
        self._check_end()

    def _check_end(self) -> None:
        """Checks how much of the data is left at the last timestep."""
        left = self.alpha_bar[-1].item()
        nothing_left = self.name == "flow" or self.zero_terminal_snr
        if not nothing_left and left < torch.finfo(torch.float64).tiny:
            raise UserError(
                f"num_steps must leave alpha_bar above 0 in float64, got {self.num_steps} with "
                f"beta from {self.beta_start} to {self.beta_end}"
            )
        if not (self.noise[0] > 0 and (self.sigma.diff() > 0).all()):
            raise UserError(
                "schedule must raise noise / signal at every timestep, in float64, got "
                f"{self.num_steps} timesteps of {self.name} with beta from {self.beta_start} to "
                f"{self.beta_end}, sigma from {self.sigma_min} to {self.sigma_max}"
            )
        if left == 0 and self.prediction == "eps":
            raise UserError(
                "prediction must be x0, v, flow or edm where no data is left at the last timestep, "
                f"got eps with the {self.name} schedule"
            )
        if left == 0 and self.time_feature == "c_noise":
            raise UserError(
                "time_feature must be another than c_noise, log(sigma) / 4, where no data is left "
                f"at the last timestep, got it with the {self.name} schedule"
            )
        if left > _MOST_DATA_LEFT:
            advice = "a larger beta_end, more timesteps or the cosine schedule"
            if self.name == "edm":
                advice = "a larger sigma_max"
            warnings.warn(
                f"the schedule leaves alpha_bar = {left:.2f} at its last timestep, and samples are "
                f"right only if it is close to 0: take {advice}",
                ScheduleWarning,
                stacklevel=6,  # who called the constructor
            )

    def _check_betas(self) -> None:
        for field, default in _BETAS.items():
            beta = getattr(self, field)
            if isinstance(beta, bool) or not isinstance(beta, Real) or not 0 < float(beta) < 1:
                raise UserError(f"{field} must be between 0 and 1 (both excluded), got {beta!r}")
            if self.name in ("cosine", "flow", "edm") and beta != default:
                raise UserError(
                    f"{field} must be left out with the {self.name} schedule, got {beta}"
                )
        if self.beta_start > self.beta_end:
            raise UserError(
                f"beta_end must be at least beta_start, {self.beta_start}, got {self.beta_end}"
            )
        if not isinstance(self.zero_terminal_snr, bool):
            raise UserError(
                f"zero_terminal_snr must be True or False, got {self.zero_terminal_snr!r}"
            )
        if self.zero_terminal_snr and self.name not in BETAS:
            raise UserError(f"zero_terminal_snr must be left out with the {self.name} schedule")
        if self.zero_terminal_snr and self.num_steps == 1:
            raise UserError("num_steps must be at least 2 with zero_terminal_snr, got 1")

    def _check_sigmas(self) -> None:
        for field in (*_SIGMAS, "sigma_data"):
            sigma = getattr(self, field)
            number = isinstance(sigma, Real) and not isinstance(sigma, bool)
            if not number or not 1e-6 <= float(sigma) <= 1e6:
                raise UserError(f"{field} must be from 1e-6 to 1e6, got {sigma!r}")
            if self.name != "edm" and sigma != _SIGMAS.get(field, sigma):
                raise UserError(
                    f"{field} must be left out with the {self.name} schedule, got {sigma}"
                )
        if self.sigma_min >= self.sigma_max:
            raise UserError(
                f"sigma_max must be above sigma_min, {self.sigma_min}, got {self.sigma_max}"
            )

    def _check_time_feature(self) -> None:
        if self.time_feature is None:
            natural = "c_noise" if self.name == "edm" else "linspace"
            object.__setattr__(self, "time_feature", natural)
        if isinstance(self.time_feature, Mapping):  # as files write it
            try:
                embedding = TimeEmbedding(**self.time_feature)
            except TypeError as error:
                raise UserError(f"time_feature is no TimeEmbedding: {error}") from None
            object.__setattr__(self, "time_feature", embedding)
        if not isinstance(self.time_feature, TimeEmbedding):
            check_choice("time_feature", self.time_feature, TIME_FEATURES)

    def predicting(self, prediction: str) -> "Schedule":
        """Returns the same forward process for networks that predict something else."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScheduleWarning)  # this one has warned
            return replace(self, prediction=prediction)

    @cached_property
    def _levels(self) -> Levels:
        if self.name == "flow":
            return flow(self.num_steps)
        if self.name == "edm":
            return edm(self.num_steps, self.sigma_min, self.sigma_max, self.sigma_data)
        beta = BETAS[self.name](self.num_steps, self.beta_start, self.beta_end)
        return variance_preserving(beta, zero_terminal_snr=self.zero_terminal_snr)

    @property
    def signal(self) -> Tensor:
        """Weight of x_0 in x_t, which the network sees: sqrt(alpha_bar) of most schedules."""
        return self._levels[0]

    @property
    def noise(self) -> Tensor:
        """Weight of eps in x_t, which the network sees: sqrt(1 - alpha_bar) of most schedules."""
        return self._levels[1]

    @cached_property
    def sigma(self) -> Tensor:
        """noise / signal, the noise level of Karras et al. 2022; infinite where no data is left."""
        return self.noise / self.signal

    @cached_property
    def size(self) -> Tensor:
        """The standard deviation of x_t for data of deviation 1, sqrt(signal^2 + noise^2).

        Figures show x_t / size, that of a variance-preserving process, so that the data stay in
        place while the noise falls.
        """
        return torch.hypot(self.signal, self.noise)

    @cached_property
    def alpha_bar(self) -> Tensor:
        """The share of the data in x_t, signal^2 / (signal^2 + noise^2)."""
        if self.name in BETAS:
            return self.signal.square()
        return self.signal.square() / (self.signal.square() + self.noise.square())

    @cached_property
    def alpha(self) -> Tensor:
        """alpha_bar divided by that of the timestep before."""
        return self.alpha_bar / torch.cat((self.alpha_bar.new_ones(1), self.alpha_bar[:-1]))

    @cached_property
    def beta(self) -> Tensor:
        """1 - alpha: the variance that each step adds to a process with variance 1."""
        return 1 - self.alpha

    @cached_property
    def target(self) -> tuple[Tensor, Tensor]:
        """Weights of x_0 and of eps in what a denoiser predicts."""
        return PREDICTIONS[str(self.prediction)].coefficients(
            self.signal, self.noise, self.sigma_data
        )

    @cached_property
    def x0_coefficients(self) -> tuple[Tensor, Tensor]:
        """Weights of x_t and of the network's output in x0_hat."""
        return estimates(self.signal, self.noise, *self.target)[0]

    @cached_property
    def eps_coefficients(self) -> tuple[Tensor, Tensor]:
        """Weights of x_t and of the network's output in eps_hat."""
        return estimates(self.signal, self.noise, *self.target)[1]

    def forward_table(self, weighting: str = "uniform") -> Tensor:
        """Returns the five numbers of each timestep that training needs, float64 [T, 5].

        They are the weights of x_0 and eps in x_t, their weights in what the network predicts, and
        the weight of its squared error, see :func:`flashpoint.kernels.q_sample`.

        Args:
            weighting: one of :data:`WEIGHTINGS`.

        Raises:
            ValueError: the weighting is unknown, or a weight is out of the range of float32.
        """
        check_choice("weighting", weighting, WEIGHTINGS)
        gains = self.x0_coefficients[1].abs(), self.eps_coefficients[1].abs()
        weight = WEIGHTINGS[weighting](self.sigma, *gains, self.sigma_data)
        if not weight.max() <= torch.finfo(torch.float32).max:
            raise UserError(
                f"weighting must be another than {weighting} for {self.prediction} with this "
                f"schedule, got a weight of {weight.max().item():.1e}, which float32 does not hold"
            )
        return torch.stack((self.signal, self.noise, *self.target, weight), dim=1)

    def x0_hat(self, x_t: Tensor, output: Tensor, t: int | Tensor) -> Tensor:
        """Returns the clean points that a denoiser predicts, the mean of x_0 given x_t.

        Args:
            x_t: noisy points [..., d].
            output: the denoiser's output [..., d].
            t: timestep, a number or int64 [...].
        """
        return _combined(self.x0_coefficients, x_t, output, t)

    def eps_hat(self, x_t: Tensor, output: Tensor, t: int | Tensor) -> Tensor:
        """Returns the noise that a denoiser predicts, the mean of eps given x_t.

        The arguments are those of :meth:`x0_hat`.
        """
        return _combined(self.eps_coefficients, x_t, output, t)

    def score(self, x_t: Tensor, output: Tensor, t: int | Tensor) -> Tensor:
        """Returns the gradient of log p(x_t) that a denoiser predicts: -eps_hat / noise.

        The arguments are those of :meth:`x0_hat`. Source: Song et al. 2021, equation 9.
        """
        x, out = self.eps_coefficients
        return _combined((-x / self.noise, -out / self.noise), x_t, output, t)

    def noised(self, x_0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        """Returns x_t of clean points and noise [..., d]; t is a number or int64 [...]."""
        return _combined(self._levels, x_0, eps, t)

    def target_of(self, x_0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        """Returns what a denoiser is to predict, of clean points and noise [..., d]."""
        return _combined(self.target, x_0, eps, t)

    def features_of(self, t: Tensor) -> Tensor:
        """Returns the features that networks see of timesteps t [...], float64 [..., F].

        Timesteps may be fractions; log(sigma) is interpolated between its neighbours.
        """
        if isinstance(self.time_feature, TimeEmbedding):
            return self.time_feature.features(t)
        if self.time_feature == "sinusoidal":
            return sinusoidal_embedding(t, EMBEDDING_DIM)
        t = t.double()[..., None]
        if self.time_feature == "centered":
            return 2 * (t - self.num_steps / 2) / self.num_steps
        if self.time_feature == "c_noise":
            low, high = t.floor().long(), t.ceil().long()
            return torch.lerp(self.sigma.log()[low], self.sigma.log()[high], t - low) / 4
        return -1 + 2 * t / max(1, self.num_steps - 1)

    @cached_property
    def time_features(self) -> Tensor:
        """The features of each timestep that networks see, [T, 1], or [T, F] of an embedding."""
        steps = torch.arange(self.num_steps)
        if self.time_feature == "linspace":
            return torch.linspace(-1, 1, self.num_steps, dtype=torch.float64)[:, None]
        return self.features_of(steps)

    def start_of(
        self,
        num_steps: int | None,
        *,
        start: int | None = None,
        for_all: bool = False,
        all_levels: bool = False,
    ) -> tuple[int, int]:
        """Returns the first timestep of a chain, and how many timesteps it visits.

        An error of a network that predicts eps is multiplied by noise / signal in x0_hat, which is
        10,000 at the end of a cosine schedule, and few large steps magnify what comes out. So a
        chain starts at the noisiest timestep where this factor is at most 8 in 5 steps, 14 in 9 or
        more. Noisier timesteps are N(0, I) as well, up to less than a 64th of the data's variance,
        or a 200th. A chain of more steps than remain visits all that remain. Errors of networks
        that predict something else are not magnified so, and their chains start at T - 1.

        Args:
            num_steps: number of timesteps to visit; None for all.
            start: the first timestep, as far as the factor is at most 14 there.
            for_all: starts where a network that predicts eps does, whatever this one predicts. The
                gradient of a classifier that guides is multiplied by noise / signal too.
            all_levels: a chain of more steps than remain starts at T - 1 after all. The noise of
                DDPM corrects the errors of single small steps.

        Raises:
            ValueError: the number is not from 1 to T, or to ``start`` + 1; or ``start`` is no
                timestep.
        """
        last = self.num_steps - 1
        if start is not None:
            check_integer("start", start, 0, last)
            last = int(start)
        if num_steps is not None:
            check_integer("num_steps", num_steps, 1, last + 1)
        count = last + 1 if num_steps is None else int(num_steps)
        most = min(max(_START_PER_STEP * count, _LOWEST_START), _HIGHEST_START)
        if start is not None:
            most = _HIGHEST_START
        factor = self.sigma if for_all else self.x0_coefficients[1].abs()
        first = min(last, max(0, int((factor <= most).sum()) - 1))
        if all_levels and count > first + 1:
            first = last
        return first, min(count, first + 1)

    def inputs(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        """Returns a network's inputs [..., d + F]: points and the features of their timestep.

        Args:
            x_t: float32 [..., d].
            t: timestep, a number or int64 [...] on the CPU.
        """
        features = self.time_features[t].float().to(x_t.device)
        return torch.cat((x_t, features.expand(*x_t.shape[:-1], -1)), dim=-1)


def _combined(
    coefficients: tuple[Tensor, Tensor], first: Tensor, second: Tensor, t: int | Tensor
) -> Tensor:
    """Returns a linear combination of points [..., d], with the coefficients [T] at t."""
    a, b = coefficients
    if not isinstance(t, Tensor):
        check_integer("t", t, 0, len(a) - 1)
        return a[int(t)].item() * first + b[int(t)].item() * second
    if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
        raise UserError(f"t must be a timestep or int64 [...] of them, got {shown(t)}")
    t = t.to(first.device)
    a, b = (each.to(first.device, first.dtype)[t][..., None] for each in (a, b))
    return a * first + b * second


def given_schedule(*arguments: Any, **options: Any) -> Schedule:
    """Returns a :class:`Schedule` without a warning: others have published or chosen it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        return Schedule(*arguments, **options)


def check_schedule(schedule: Schedule) -> None:
    """Raises :class:`UserError` unless it is a :class:`Schedule`."""
    if not isinstance(schedule, Schedule):
        raise UserError(f"schedule must be a Schedule, got {type(schedule).__name__}")


@in_default_state
def sinusoidal_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Returns sines and cosines of t at geometric frequencies (Vaswani et al. 2017, 3.5).

    Args:
        t: timesteps, any shape.
        dim: even number of features.
        max_period: the longest period is 2 pi times this.

    Returns:
        float64 [..., dim]: dim / 2 sines, then dim / 2 cosines.

    Raises:
        ValueError: t is no tensor, or dim is not a positive even number.
    """
    if not isinstance(t, Tensor):
        raise UserError(f"t must be a tensor, got {type(t).__name__}")
    check_integer("dim", dim, 2)
    if dim % 2:
        raise UserError(f"dim must be a positive even number, got {dim}")
    return TimeEmbedding(dim, base=max_period).features(t)
