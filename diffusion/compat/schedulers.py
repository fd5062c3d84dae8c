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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...kernels.default_state import methods_in_default_state
from ..errors import UserError, shown
from . import checks
from .scheduler import ONE, ZERO, Scheduler, combine, noise_like
from .settings import SchedulerConfig


class StepOutput(NamedTuple):
    """The result of :meth:`DDPMScheduler.step` and :meth:`DDIMScheduler.step`.

    ``output.prev_sample``, ``output["prev_sample"]`` and ``output[0]`` are the same.
    """

    prev_sample: Tensor  # x_{t-1}, the shape of the sample
    pred_original_sample: Tensor  # the x_0 that the model's output amounts to, same shape

    def __getitem__(self, key: Any) -> Any:
        return getattr(self, key) if key in self._fields else tuple.__getitem__(self, key)

    def to_tuple(self) -> tuple[Tensor, Tensor]:
        """Returns a plain tuple."""
        return (self.prev_sample, self.pred_original_sample)


@methods_in_default_state
@dataclass(eq=False)
class DDPMScheduler(Scheduler):
    """Ancestral sampling (Ho et al. 2020), with the numbers of ``diffusers.DDPMScheduler``.

    The arguments have the names, the order and the defaults of diffusers, but for ``clip_sample``,
    which is False: points, unlike pixels, have no range.

    Args:
        num_train_timesteps: T.
        beta_start, beta_end: range of beta; the cosine schedule ignores it.
        beta_schedule: ``linear``, ``scaled_linear``, ``squaredcos_cap_v2`` (cosine) or ``sigmoid``.
        trained_betas: T numbers that replace the schedule.
        variance_type: ``fixed_small`` is that of q(x_{t-1} | x_t, x_0), ``fixed_large`` beta;
            ``learned`` and ``learned_range`` take it from the second half of the model's output
            (Nichol and Dhariwal 2021).
        clip_sample: True clips the predicted x_0 to +- ``clip_sample_range``.
        prediction_type: the model predicts ``epsilon``, the ``sample`` x_0, or ``v_prediction``.
        thresholding, dynamic_thresholding_ratio, sample_max_value, rescale_betas_zero_snr: only
            diffusers' own schedulers have these; any value but the default is refused.
        clip_sample_range: see ``clip_sample``.
        timestep_spacing: ``leading``, ``linspace`` or ``trailing``
            (Lin et al. 2023, table 2).
        steps_offset: added to the timesteps of ``leading``.

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
            return super().set_timesteps(num_inference_steps, device)
        steps = checks.timesteps(timesteps, None, self.num_train_timesteps).numpy()
        if len(steps) == 0 or (np.diff(steps) >= 0).any():
            raise UserError(f"timesteps must descend, got {shown(timesteps)}")
        self._use(steps, device)
        self.num_inference_steps = None

    def previous_timestep(self, timestep: int | Tensor) -> int:
        """Returns the timestep that a step from t leads to; -1 after the last.

        Raises:
            ValueError: t is not one of ``timesteps``.
        """
        return self._next_of(checks.integer("timestep", timestep, 0, self.num_train_timesteps - 1))

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, Tensor]:
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
        x_0, _ = self._predict(model_output, a, sample)
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
class DDIMScheduler(Scheduler):
    """DDIM (Song et al. 2021), with the numbers of ``diffusers.DDIMScheduler``.

    The arguments have the names, the order and the defaults of diffusers, but for ``clip_sample``,
    which is False: points, unlike pixels, have no range. ``follow_timesteps`` is of this package.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, clip_sample,
            prediction_type, clip_sample_range, timestep_spacing, steps_offset: see
            :class:`DDPMScheduler`.
        set_alpha_to_one: True makes the last step lead to alpha_bar = 1, False to that of timestep
            0.
        thresholding, dynamic_thresholding_ratio, sample_max_value, rescale_betas_zero_snr: only
            diffusers' own schedulers have these; any value but the default is refused.
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

    def __post_init__(self) -> None:
        super().__post_init__()
        self.final_alpha_cumprod = ONE if self.set_alpha_to_one else self.alphas_cumprod[0]

    @property
    def config(self) -> SchedulerConfig:
        """Every setting, under diffusers' names; it cannot be changed.

        ``follow_timesteps`` is left out where it is False, because diffusers warns of a setting
        that it does not know.
        """
        known = self._settings()
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
        super().set_timesteps(num_inference_steps, device)
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
    ) -> StepOutput | tuple[Tensor, Tensor]:
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
        x_0, eps = self._predict(model_output, a, sample)
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
