"""Euler's and Heun's method as scheduler objects, with the interface and numbers of diffusers.

Their samples are x_0 + sigma eps, of any size: :meth:`scale_model_input` makes the model's input.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...kernels.default_state import methods_in_default_state
from ..errors import UserError, shown
from . import checks
from .grids import chosen, spaced, timesteps_of
from .outputs import StepOutput
from .scheduler import ONE, ZERO, checked_pair, combine, mixed, noise_like
from .solvers import OfNoiseLevels, exactly_one, refuse_integer


@methods_in_default_state
class _Unscaled(OfNoiseLevels):
    """What Euler and Heun share: samples are x_0 + sigma eps."""

    _scaled = False  # whether scale_model_input was called

    @property
    def init_noise_sigma(self) -> Tensor:
        """The standard deviation of the noise that a chain starts from, float32 []."""
        most = self.sigmas.max()
        return (most**2 + 1) ** 0.5 if self.timestep_spacing == "leading" else most

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor) -> Tensor:  # type: ignore[override]
        """Returns the model's input, sample / sqrt(sigma^2 + 1).

        Args:
            sample: x_0 + sigma eps, float [B, ..., d].
            timestep: one of ``timesteps``.

        Raises:
            ValueError: the timestep is none of the chain's, or the sample no such tensor.
        """
        sample = checks.points("sample", sample)
        sigma = self.sigmas[self._enter(timestep)]
        self._scaled = True
        return sample / (sigma**2 + 1) ** 0.5

    def add_noise(
        self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | Sequence[float] | float
    ) -> Tensor:
        """Returns x_0 + sigma eps.

        Args:
            original_samples: x_0, float [B, ..., d].
            noise: eps, the shape of x_0.
            timesteps: some of the scheduler's ``timesteps``, [B], or one for all.

        Raises:
            ValueError: a tensor is of the wrong shape or type, or on a CPU not finite; or a
                timestep is none of the chain's.
        """
        x_0, noise = checked_pair("original_samples", original_samples, noise)
        places = self._places_of(timesteps, len(x_0))
        return mixed(x_0, noise, places, torch.ones_like(self.sigmas), self.sigmas)

    def _warn_if_unscaled(self) -> None:
        if not self._scaled:
            warnings.warn(
                "scale_model_input was not called before step: the model must see "
                "sample / sqrt(sigma^2 + 1)",
                stacklevel=4,
            )

    def _clean(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns the x_0 of a model's output, for x = x_0 + sigma eps.

        It is :meth:`_predict` of x / sqrt(sigma^2 + 1), in the order in which diffusers computes
        it: where sigma is 10,000, x holds few digits of x_0.
        """
        if self.prediction_type == "epsilon":
            return self._within_bounds(x - sigma * output)
        if self.prediction_type == "sample":
            return self._within_bounds(output)
        root = (sigma**2 + 1) ** 0.5
        return self._within_bounds(output * (-sigma / root) + x / (sigma**2 + 1))


@methods_in_default_state
@dataclass(eq=False)
class EulerDiscreteScheduler(_Unscaled):
    """Euler's method in the noise level, with the numbers of ``diffusers.EulerDiscreteScheduler``.

    With ``s_churn`` its steps are those of the stochastic sampler of Karras et al. 2022 (algorithm
    2) without its second order. The arguments have the names, order and defaults of diffusers.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type,
            timestep_spacing, steps_offset: see :class:`DDPMScheduler`.
        interpolation_type: ``linear`` interpolates sigma between timesteps; ``log_linear`` spaces
            its logarithm evenly, whatever the timesteps.
        use_karras_sigmas: spaces sigma^(1/7) evenly (Karras et al. 2022, equation 5).
        use_exponential_sigmas: spaces the logarithm of sigma evenly.
        use_beta_sigmas: takes quantiles of a beta distribution (Lee et al. 2024).
        sigma_min, sigma_max: ends of these three; None is the noise levels of the first and the
            last timestep.
        timestep_type: ``continuous`` makes the timesteps of a model that predicts v
            log(sigma) / 4.
        rescale_betas_zero_snr: leaves alpha_bar = 2^-24 at the last timestep.
        final_sigmas_type: the noise level after the last step: ``zero``, or ``sigma_min``, that of
            timestep 0.

    Raises:
        ValueError: a setting is unknown, of the wrong type or out of range.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Sequence[float] | np.ndarray | Tensor | None = None
    prediction_type: str = "epsilon"
    interpolation_type: str = "linear"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    timestep_spacing: str = "linspace"
    timestep_type: str = "discrete"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    final_sigmas_type: str = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        sigmas = self._sigma_table().flip(0)
        self._set(self.timesteps.float(), torch.cat((sigmas, torch.zeros(1))), None)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | np.ndarray | Tensor | None = None,
        sigmas: Sequence[float] | np.ndarray | Tensor | None = None,
    ) -> None:
        """Chooses the timesteps of the chain, into ``timesteps``, and its noise levels.

        Args:
            num_inference_steps: number of steps, at most ``num_train_timesteps``.
            device: device of ``timesteps``; None is the CPU.
            timesteps: in its place the timesteps themselves, descending.
            sigmas: in its place the noise levels, descending, and the one after the last step.

        Raises:
            ValueError: not exactly one of the three is given, one is out of range or rises, a
                setting chooses the noise levels, or there is no such device.
        """
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas)
        table = self._sigma_table().numpy()
        if sigmas is not None:
            levels = _own_levels(sigmas)
            steps = timesteps_of(levels[:-1], np.log(table))
        else:
            steps = self._steps(num_inference_steps, timesteps)
            levels = np.interp(steps, np.arange(len(table)), table)
            if self.interpolation_type == "log_linear":
                ends = float(np.log(table[-1])), float(np.log(table[0]))
                levels = torch.linspace(*ends, len(steps) + 1).exp().numpy()
            high = levels[0] if self.sigma_max is None else self.sigma_max
            low = levels[-1] if self.sigma_min is None else self.sigma_min
            grid = chosen(self, float(high), float(low), len(steps))
            if grid is not None:
                levels, steps = grid, timesteps_of(grid, np.log(table))
            last = table[0] if self.final_sigmas_type == "sigma_min" else 0.0
            levels = np.concatenate((levels, [last]))
        self.num_inference_steps = len(steps)
        self._set(_float32(steps), _float32(levels), device)

    def _steps(self, count: Any, timesteps: Any) -> np.ndarray:
        """Returns the timesteps that are visited, float32, before a setting moves them."""
        total = self.num_train_timesteps
        if timesteps is not None:
            if self._sees_noise_levels:
                raise UserError(
                    "timesteps must be left out with timestep_type='continuous' and v_prediction"
                )
            return self._own_timesteps(timesteps, total, strictly=False).astype(np.float32)
        count = checks.integer("num_inference_steps", count, 1, total)
        return spaced(self.timestep_spacing, total, count, self.steps_offset).astype(np.float32)

    @property
    def _sees_noise_levels(self) -> bool:
        return self.timestep_type == "continuous" and self.prediction_type == "v_prediction"

    def _set(self, timesteps: Tensor, sigmas: Tensor, device: str | torch.device | None) -> None:
        if self._sees_noise_levels:
            timesteps = 0.25 * sigmas[:-1].log()
        self._use(timesteps, sigmas, device)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, ...]:
        """Returns the sample at the next noise level.

        Args:
            model_output: float [B, ..., d].
            timestep: one of ``timesteps``; looked up at the first step alone.
            sample: x_0 + sigma eps, float [B, ..., d].
            s_churn: noise that is added before each step: sigma grows by the factor
                1 + min(s_churn / S, sqrt(2) - 1).
            s_tmin, s_tmax: the noise levels in between are churned.
            s_noise: standard deviation of the noise that is added.
            generator: generator of the noise, or a list of one for each row; None takes torch's
                global one.
            return_dict: False returns a plain tuple.

        Raises:
            ValueError: the timestep is an integer or none of the chain's, the chain has ended, a
                number is out of range, or a tensor is of the wrong shape or type or on a CPU not
                finite.
        """
        output, sample = self._checked_step(model_output, sample)
        refuse_integer("timestep", timestep)
        s_churn = checks.number("s_churn", s_churn, 0)
        s_noise = checks.number("s_noise", s_noise, 0)
        generator = checks.generators(generator, len(sample))
        self._warn_if_unscaled()
        place = self._enter(timestep)
        sigma, after = self.sigmas[place], self.sigmas[place + 1]
        x, churned = sample.float(), sigma  # in float32, whatever the sample, as in diffusers
        if s_churn > 0 and s_tmin <= sigma <= s_tmax:
            churned = sigma * (1 + min(s_churn / (len(self.sigmas) - 1), math.sqrt(2) - 1))
            z = noise_like(output, generator)
            x = x + s_noise * (churned**2 - sigma**2) ** 0.5 * z
        x_0 = self._clean(output, x, sigma if self.prediction_type == "v_prediction" else churned)
        prev = combine(x, x_0, None, after / churned, (churned - after) / churned, ZERO)
        self._step_index = place + 1
        result = StepOutput(prev.to(output.dtype), x_0)
        return result if return_dict else result.to_tuple()

    def get_velocity(
        self, sample: Tensor, noise: Tensor, timesteps: Tensor | Sequence[float]
    ) -> Tensor:
        """Returns v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (Salimans and Ho 2022).

        As in diffusers, alpha_bar_t is looked up by the place of t in ``timesteps``, which descend,
        so it is that of another timestep; a warning says so. :class:`DDPMScheduler` has the right
        one.

        Args:
            sample: x_0, float [B, ..., d].
            noise: eps, the shape of x_0.
            timesteps: some of the scheduler's ``timesteps``, [B], or one for all.

        Raises:
            ValueError: a tensor is of the wrong shape or type, or on a CPU not finite; or a
                timestep is none of the chain's.
        """
        x_0, noise = checked_pair("sample", sample, noise)
        warnings.warn(
            "get_velocity of EulerDiscreteScheduler takes alpha_bar of another timestep, as in "
            "diffusers; that of DDPMScheduler takes the right one",
            stacklevel=3,
        )
        return self._velocity(x_0, noise, self._places_of(timesteps, len(x_0), by_begin=False))


def _own_levels(sigmas: Any) -> np.ndarray:
    """Returns the noise levels that a script gave, float32, descending.

    Raises:
        ValueError: they rise, or one before the last is not above 0.
    """
    levels = checks.numbers("sigmas", sigmas).astype(np.float32)
    checks.falling("sigmas", levels, sigmas, strictly=False)
    if len(levels) < 2 or levels[-2] <= 0 or levels[-1] < 0:
        raise UserError(
            "sigmas must be two or more, above 0 but for the last, which may be 0, "
            f"got {shown(sigmas)}"
        )
    return levels


@methods_in_default_state
@dataclass(eq=False)
class HeunDiscreteScheduler(_Unscaled):
    """Heun's method in the noise level, with the numbers of ``diffusers.HeunDiscreteScheduler``.

    Each step of algorithm 1 of Karras et al. 2022 is two calls of :meth:`step`, with two outputs of
    the model, so that a chain of S steps has 2 S - 1 ``timesteps``. The arguments have the names,
    order and defaults of diffusers.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type,
            clip_sample, clip_sample_range, timestep_spacing, steps_offset: see
            :class:`DDPMScheduler`.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: see
            :class:`EulerDiscreteScheduler`.

    Raises:
        ValueError: a setting is unknown, of the wrong type or out of range.
    """

    order: ClassVar[int] = 2

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "linear"
    trained_betas: Sequence[float] | np.ndarray | Tensor | None = None
    prediction_type: str = "epsilon"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    timestep_spacing: str = "linspace"
    steps_offset: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(np.arange(self.num_train_timesteps)[::-1], None)

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next step is the first of a pair."""
        return self.dt is None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        num_train_timesteps: int | None = None,
        timesteps: Sequence[float] | np.ndarray | Tensor | None = None,
    ) -> None:
        """Chooses the timesteps of the chain, into ``timesteps``, and its noise levels.

        Args:
            num_inference_steps: number of steps S.
            device: device of ``timesteps``; None is the CPU.
            num_train_timesteps: number of timesteps that the chain is spread over; None is that of
                the settings.
            timesteps: in place of S the timesteps themselves, descending.

        Raises:
            ValueError: not exactly one of S and timesteps is given, one is out of range or rises,
                a setting chooses the noise levels, or there is no such device.
        """
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        total = self.num_train_timesteps
        if num_train_timesteps is not None:
            total = checks.integer("num_train_timesteps", num_train_timesteps, 1, total)
        if timesteps is not None:
            steps = self._own_timesteps(timesteps, total, strictly=False)
        else:
            count = checks.integer("num_inference_steps", num_inference_steps, 1, total)
            steps = spaced(self.timestep_spacing, total, count, self.steps_offset)
        self._set(steps, device)

    def _set(self, steps: np.ndarray, device: str | torch.device | None) -> None:
        """Makes a chain of timesteps, each but the first twice."""
        steps = steps.astype(np.float32)
        table = self._sigma_table().numpy()
        levels = np.interp(steps, np.arange(len(table)), table)
        grid = chosen(self, float(levels[0]), float(levels[-1]), len(steps))
        if grid is not None:
            levels, steps = grid, timesteps_of(grid, np.log(table))
        levels = np.concatenate((levels[:1], np.repeat(levels[1:], 2), [0.0]))
        steps = np.concatenate((steps[:1], np.repeat(steps[1:], 2)))
        self.num_inference_steps = (len(steps) + 1) // 2
        self._use(_float32(steps), _float32(levels), device)
        self.prev_derivative: Tensor | None = None
        self.dt: Tensor | None = None
        self.sample: Tensor | None = None

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, ...]:
        """Returns the sample at the next noise level: Euler's, then Heun's improvement of it.

        Args:
            model_output: float [B, ..., d].
            timestep: one of ``timesteps``; looked up at the first step alone.
            sample: x_0 + sigma eps, float [B, ..., d].
            return_dict: False returns a plain tuple.

        Raises:
            ValueError: the timestep is none of the chain's, the chain has ended, or a tensor is of
                the wrong shape or type or on a CPU not finite.
        """
        output, sample = self._checked_step(model_output, sample)
        self._warn_if_unscaled()
        place = self._enter(timestep)
        sigma = self.sigmas[place]
        x_0 = self._clean(output, sample, sigma)
        derivative = (sample - x_0) / sigma
        if self.prev_derivative is None or self.dt is None or self.sample is None:
            start, dt = sample, self.sigmas[place + 1] - sigma
            self.prev_derivative, self.dt, self.sample = derivative, dt, sample
        else:
            start, dt = self.sample, self.dt
            derivative = (self.prev_derivative + derivative) / 2
            self.prev_derivative = self.dt = self.sample = None
        prev = combine(start, derivative, None, ONE, dt, ZERO)
        self._step_index = place + 1
        result = StepOutput(prev, x_0)
        return result if return_dict else result.to_tuple()


def _float32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
