"""DDPM and DDIM as scheduler objects, with the interface and the numbers of diffusers.

A sampling loop written for diffusers runs unchanged::

    scheduler.set_timesteps(50)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t), t, x).prev_sample

The arithmetic is that of diffusers, float32 coefficients from float32 betas, so that a change of
the import changes no digit that matters. :func:`flashpoint.diffusion.sample` is faster and more
accurate: it runs the whole chain in one call, with coefficients in float64.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...kernels.default_state import methods_in_default_state
from ..errors import UserError, shown
from . import checks
from .grids import moved, spaced
from .outputs import StepOutput
from .scheduler import ONE, ZERO, Scheduler, checked_pair, combine, mixed, noise_like
from .settings import SchedulerConfig

# Where a chain starts with so much more alpha_bar than the last timestep has, samples from pure
# noise are visibly off: by about a tenth of the data's mean.
_MOST_SIGNAL = 0.01


@methods_in_default_state
class _OfTimesteps(Scheduler):
    """What DDPM and DDIM share: timesteps are integers, x_t has the variance of the data."""

    _own_defaults: ClassVar[frozenset[str]] = frozenset({"clip_sample", "follow_timesteps"})

    def _set_spaced(self, num_inference_steps: int, device: str | torch.device | None) -> None:
        """Chooses the timesteps of a chain by their number, and warns where it starts too late."""
        total = self.num_train_timesteps
        count = checks.integer("num_inference_steps", num_inference_steps, 1, total)
        steps = spaced(self.timestep_spacing, total, count, self.steps_offset).round()
        self.timesteps = moved(steps.astype(np.int64), device)
        self.num_inference_steps = count
        if steps[0] >= self._usable:
            return  # a step from there is refused
        signal, least = self.alphas_cumprod[[int(steps[0]), -1]].tolist()
        if steps[0] + total // count < total and signal > least + _MOST_SIGNAL:
            warnings.warn(
                f"timestep_spacing='leading' with {count} of {total} steps starts at timestep "
                f"{int(steps[0])}, whose alpha_bar is {signal:.3g}: samples from pure noise are "
                "off; timestep_spacing='trailing' starts at the last one",
                stacklevel=5,
            )

    def _next_of(self, t: int) -> int:
        """Returns the timestep after t in ``timesteps``; -1 after the last."""
        places = (self.timesteps == t).nonzero()
        if not len(places):
            raise UserError(f"timestep must be one of the scheduler's timesteps, got {t}")
        place = int(places[0]) + 1
        return -1 if place == len(self.timesteps) else int(self.timesteps[place])

    def add_noise(
        self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | Sequence[int] | int
    ) -> Tensor:
        """Returns x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.

        Args:
            original_samples: x_0, float [B, ..., d].
            noise: eps, the shape of x_0.
            timesteps: integers [B], or one for all.

        Raises:
            ValueError: a tensor is of the wrong shape or type, or on a CPU not finite; or a
                timestep is no integer or out of range.
        """
        x_0, noise = checked_pair("original_samples", original_samples, noise)
        t = checks.timesteps(timesteps, len(x_0), self._usable)
        return mixed(x_0, noise, t, *self._levels(x_0))

    def get_velocity(
        self, sample: Tensor, noise: Tensor, timesteps: Tensor | Sequence[int] | int
    ) -> Tensor:
        """Returns v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (Salimans and Ho 2022).

        Args:
            sample: x_0, float [B, ..., d].
            noise: eps, the shape of x_0.
            timesteps: integers [B], or one for all.

        Raises:
            ValueError: a tensor is of the wrong shape or type, or on a CPU not finite; or a
                timestep is no integer or out of range.
        """
        x_0, noise = checked_pair("sample", sample, noise)
        return self._velocity(x_0, noise, checks.timesteps(timesteps, len(x_0), self._usable))

    def _checked_step(
        self, model_output: Any, timestep: Any, sample: Any, doubled: bool = False
    ) -> tuple[Tensor, int, Tensor]:
        sample = checks.points("sample", sample)
        output = checks.like("model_output", model_output, "sample", sample, doubled)
        t = checks.integer("timestep", timestep, 0, self._usable - 1)
        last = self.rescale_betas_zero_snr and t == len(self.betas) - 1
        if last and self.prediction_type == "epsilon":
            raise UserError(
                f"prediction_type must be sample or v_prediction at timestep {t}, where "
                "rescale_betas_zero_snr leaves no data, got epsilon"
            )
        checks.finite(model_output=output, sample=sample)
        return output, t, sample


@methods_in_default_state
@dataclass(eq=False)
class DDPMScheduler(_OfTimesteps):
    """Ancestral sampling (Ho et al. 2020), with the numbers of ``diffusers.DDPMScheduler``.

    The arguments have the names, the order and the defaults of diffusers, but for ``clip_sample``,
    which is False: points, unlike pixels, have no range.

    Args:
        num_train_timesteps: T.
        beta_start, beta_end: range of beta; the cosine schedule ignores it.
        beta_schedule: ``linear``, ``scaled_linear``, ``squaredcos_cap_v2`` (cosine), ``sigmoid``,
            ``exp`` or ``laplace``.
        trained_betas: numbers that replace the schedule; timesteps beyond them are refused.
        variance_type: ``fixed_small`` is that of q(x_{t-1} | x_t, x_0), ``fixed_large`` beta;
            ``learned`` and ``learned_range`` take it from the second half of the model's output
            (Nichol and Dhariwal 2021).
        clip_sample: True clips the predicted x_0 to +- ``clip_sample_range``.
        prediction_type: the model predicts ``epsilon``, the ``sample`` x_0, or ``v_prediction``.
        thresholding: True clips each row of the predicted x_0 to a quantile of its absolute values
            and divides by it (Saharia et al. 2022, section 2.3), in place of ``clip_sample``.
        dynamic_thresholding_ratio, sample_max_value: the quantile, and its largest value.
        clip_sample_range: see ``clip_sample``.
        timestep_spacing: ``leading``, ``linspace`` or ``trailing``
            (Lin et al. 2024, table 2).
        steps_offset: added to the timesteps of ``leading``.
        rescale_betas_zero_snr: True leaves no data at T - 1 (Lin et al. 2024, algorithm 1); a
            model that predicts epsilon cannot step from there.

    Raises:
        ValueError: a setting is unknown, of the wrong type or out of range.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Sequence[float] | np.ndarray | Tensor | None = None
    variance_type: str = "fixed_small"
    clip_sample: bool = False
    prediction_type: str = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    clip_sample_range: float = 1.0
    sample_max_value: float = 1.0
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Chooses the timesteps of the chain, into ``timesteps``.

        Args:
            num_inference_steps: number of steps, at most ``num_train_timesteps``; None if the
                timesteps themselves are given.
            device: device of ``timesteps``; None is the CPU.
            timesteps: the timesteps themselves, descending.

        Raises:
            ValueError: the number or a timestep is out of range, both or neither are given, the
                timesteps do not descend, or there is no such device.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise UserError(
                "num_inference_steps or timesteps must be given, and not both, got "
                f"{shown(num_inference_steps)} and {shown(timesteps)}"
            )
        if num_inference_steps is not None:
            return self._set_spaced(num_inference_steps, device)
        steps = checks.timesteps(timesteps, None, self.num_train_timesteps).numpy()
        if len(steps) == 0:
            raise UserError("timesteps must be one or more, got none")
        checks.falling("timesteps", steps, timesteps, strictly=True)
        self.timesteps = moved(steps, device)
        self.num_inference_steps = None

    def previous_timestep(self, timestep: int | Tensor) -> Tensor:
        """Returns the timestep that a step from t leads to, int64 [] on the CPU; -1 after the last.

        Raises:
            ValueError: t is not one of ``timesteps``.
        """
        t = checks.integer("timestep", timestep, 0, self.num_train_timesteps - 1)
        return torch.tensor(self._next_of(t), device="cpu")

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, ...]:
        """Returns x_{t-1} for x_t (Ho et al. 2020, equation 7).

        Args:
            model_output: float [B, ..., d], or [B, 2 d] with a learned variance.
            timestep: t, one of ``timesteps``.
            sample: x_t, float [B, ..., d].
            generator: generator of the noise, or a list of one for each row; None takes torch's
                global one.
            return_dict: False returns a plain tuple.

        Raises:
            ValueError: t is not one of ``timesteps``, a tensor is of the wrong shape or type or
                on a CPU not finite, or a generator is none.
        """
        learned = self.variance_type.startswith("learned")
        model_output, t, sample = self._checked_step(model_output, timestep, sample, learned)
        generator = checks.generators(generator, len(sample))
        predicted = None
        if learned:
            model_output, predicted = model_output.split(sample.shape[1], dim=1)
        before = self._next_of(t)
        a, prev = self._alpha_bar(t), ONE if before < 0 else self._alpha_bar(before)
        alpha = a / prev
        x_0, _ = self._predict(model_output, sample, a**0.5, (1 - a) ** 0.5)
        z, c_noise = None, ZERO
        if t > 0:
            std = self._standard_deviation(a, prev, predicted)
            z = noise_like(model_output, generator)
            z, c_noise = (z, std) if std.dim() == 0 else (std * z, ONE)
        c_x0 = prev**0.5 * (1 - alpha) / (1 - a)
        c_x = alpha**0.5 * (1 - prev) / (1 - a)
        output = StepOutput(combine(sample, x_0, z, c_x, c_x0, c_noise), x_0)
        return output if return_dict else output.to_tuple()

    def _standard_deviation(self, a: Tensor, prev: Tensor, predicted: Tensor | None) -> Tensor:
        """Returns the standard deviation of a step: one number, or per element if predicted."""
        beta = 1 - a / prev
        small = ((1 - prev) / (1 - a) * beta).clamp(min=1e-20)
        if self.variance_type == "fixed_large":
            return beta**0.5
        if predicted is None:
            return small**0.5 if self.variance_type == "fixed_small" else (0.5 * small.log()).exp()
        if self.variance_type == "learned":
            return predicted**0.5
        share = (predicted + 1) / 2  # Nichol and Dhariwal 2021, equation 15
        return (0.5 * (share * beta.log() + (1 - share) * small.log())).exp()


@methods_in_default_state
@dataclass(eq=False)
class DDIMScheduler(_OfTimesteps):
    """DDIM (Song et al. 2021), with the numbers of ``diffusers.DDIMScheduler``.

    The arguments have the names, the order and the defaults of diffusers, but for ``clip_sample``,
    which is False: points, unlike pixels, have no range. ``follow_timesteps`` is of this package.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, clip_sample,
            prediction_type, thresholding, dynamic_thresholding_ratio, clip_sample_range,
            sample_max_value, timestep_spacing, steps_offset, rescale_betas_zero_snr: see
            :class:`DDPMScheduler`.
        set_alpha_to_one: True makes the last step lead to alpha_bar = 1, False to that of timestep
            0.
        follow_timesteps: True makes each step lead to the next of ``timesteps``, as those of
            :class:`DDPMScheduler` do. False is what diffusers does: a step leads to t - T // S,
            and where that is not the next timestep, the noise level is wrong after each step.

    Raises:
        ValueError: a setting is unknown, of the wrong type or out of range.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Sequence[float] | np.ndarray | Tensor | None = None
    clip_sample: bool = False
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    prediction_type: str = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    clip_sample_range: float = 1.0
    sample_max_value: float = 1.0
    timestep_spacing: str = "leading"
    rescale_betas_zero_snr: bool = False
    follow_timesteps: bool = field(default=False, kw_only=True)

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """alpha_bar that the last step leads to, float32 []."""
        return ONE if self.set_alpha_to_one else self.alphas_cumprod[0]

    @property
    def config(self) -> SchedulerConfig:
        """Every setting, under diffusers' names; it cannot be changed.

        ``follow_timesteps`` is left out where it is False, because diffusers warns of a setting
        that it does not know.
        """
        known = dict(super().config)
        if not self.follow_timesteps:
            del known["follow_timesteps"]
        return SchedulerConfig(known)

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Chooses the timesteps of the chain, into ``timesteps``.

        It warns if the steps do not lead from one of these to the next: of linspace always, of
        trailing if S does not divide T, unless ``follow_timesteps`` is set.

        Args:
            num_inference_steps: number of steps S, at most ``num_train_timesteps``.
            device: device of ``timesteps``; None is the CPU.

        Raises:
            ValueError: the number is out of range, ``steps_offset`` leads beyond the last
                timestep, or there is no such device.
        """
        self._set_spaced(num_inference_steps, device)
        stride = self.num_train_timesteps // len(self.timesteps)
        if not self.follow_timesteps and (self.timesteps.diff() != -stride).any():
            warnings.warn(
                f"timestep_spacing={self.timestep_spacing!r} with {len(self.timesteps)} of "
                f"{self.num_train_timesteps} steps: each step leads to t - {stride}, as in "
                "diffusers, not to the next timestep, so the noise level is wrong after each; "
                "follow_timesteps=True leads to the next",
                stacklevel=3,
            )

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, ...]:
        """Returns x_{t-1} for x_t (Song et al. 2021, equation 12).

        As in diffusers, the step leads to timestep t - T // S, whatever the spacing, unless
        ``follow_timesteps`` is set.

        Args:
            model_output: float [B, ..., d].
            timestep: t.
            sample: x_t, float [B, ..., d].
            eta: 0 is deterministic, 1 as noisy as DDPM.
            use_clipped_model_output: True computes eps from the clipped x_0.
            generator: generator of the noise, or a list of one for each row; None takes torch's
                global one.
            variance_noise: the noise itself, in place of a generator.
            return_dict: False returns a plain tuple.

        Raises:
            ValueError: :meth:`set_timesteps` was not called, t or eta is out of range, a tensor is
                of the wrong shape or type or on a CPU not finite, or both a generator and noise
                are given.
        """
        if self.num_inference_steps is None:
            raise UserError("num_inference_steps is not known: call set_timesteps before step")
        if generator is not None and variance_noise is not None:
            raise UserError("generator and variance_noise exclude each other, got both")
        model_output, t, sample = self._checked_step(model_output, timestep, sample)
        eta = checks.number("eta", eta, 0, 1)
        generator = checks.generators(generator, len(sample))
        if variance_noise is not None:
            checks.like("variance_noise", variance_noise, "sample", sample)
        a, prev = self._alpha_bar(t), self._alpha_bar_before(t)
        x_0, eps = self._predict(model_output, sample, a**0.5, (1 - a) ** 0.5)
        if use_clipped_model_output:
            eps = (sample - a**0.5 * x_0) / (1 - a) ** 0.5
        sigma = eta * ((1 - prev) / (1 - a) * (1 - a / prev)) ** 0.5
        z = None
        if eta > 0:
            z = noise_like(model_output, generator) if variance_noise is None else variance_noise
        x_prev = combine(x_0, eps, z, prev**0.5, (1 - prev - sigma**2) ** 0.5, sigma)
        output = StepOutput(x_prev, x_0)
        return output if return_dict else output.to_tuple()

    def _alpha_bar_before(self, t: int) -> Tensor:
        """Returns alpha_bar of the timestep that a step from t leads to."""
        assert self.num_inference_steps is not None  # step has checked it
        stride = self.num_train_timesteps // self.num_inference_steps
        before = self._next_of(t) if self.follow_timesteps else t - stride
        return self._alpha_bar(before) if before >= 0 else self.final_alpha_cumprod.cpu()
