"""DDPM and DDIM as scheduler objects, with the interface and the numbers of diffusers.

A sampling loop written for diffusers runs unchanged::

    scheduler.set_timesteps(50)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t), t, x).prev_sample

The arithmetic is that of diffusers, float32 coefficients from float32 betas, so that a change of
the import changes no digit that matters. :func:`flashpoint.diffusion.sample` is faster and more
accurate: it runs the whole chain in one call, with coefficients in float64.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...kernels import q_sample, reverse_step
from .. import files
from ..errors import UserError, check_at_least, check_choice
from ..schedules import SCHEDULES, Schedule

CONFIG_NAME = "scheduler_config.json"
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")
VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range")

# In float32 as diffusers computes them: 1 - alpha_bar at the first timesteps shows every bit.
_BETAS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": lambda steps, start, end: torch.linspace(start, end, steps),
    "scaled_linear": lambda steps, start, end: torch.linspace(start**0.5, end**0.5, steps) ** 2,
    "squaredcos_cap_v2": lambda *arguments: SCHEDULES["cosine"](*arguments).float(),
    "sigmoid": lambda steps, start, end: (
        torch.linspace(-6, 6, steps).sigmoid() * (end - start) + start
    ),
}
_NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
# What diffusers' schedulers can do to images and these do not.
_REFUSED = ("thresholding", "rescale_betas_zero_snr")

_Self = TypeVar("_Self", bound="_Scheduler")


class StepOutput(NamedTuple):
    """The result of :meth:`DDPMScheduler.step` and :meth:`DDIMScheduler.step`."""

    prev_sample: Tensor  # x_{t-1}, the shape of the sample
    pred_original_sample: Tensor  # the x_0 that the model's output amounts to, same shape


class SchedulerConfig(dict[str, Any]):
    """Settings of a scheduler, to be read as ``config["name"]`` or ``config.name``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the scheduler's config has no {name!r}") from None


@dataclass(kw_only=True, eq=False)
class _Scheduler:
    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Sequence[float] | None = None
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0

    def __post_init__(self) -> None:
        check_at_least("num_train_timesteps", self.num_train_timesteps, 1)
        check_choice("beta_schedule", self.beta_schedule, _BETAS)
        check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)
        check_choice("timestep_spacing", self.timestep_spacing, TIMESTEP_SPACINGS)
        count = self.num_train_timesteps
        if self.trained_betas is None:
            self.betas = _BETAS[self.beta_schedule](count, self.beta_start, self.beta_end)
        else:
            self.betas = torch.tensor(self.trained_betas, dtype=torch.float32)
            if len(self.betas) != count:
                raise UserError(
                    f"trained_betas must be num_train_timesteps = {count} numbers, "
                    f"got {len(self.betas)}"
                )
        if not ((self.betas >= 0) & (self.betas < 1)).all():
            raise UserError(
                f"betas must be from 0 to 1 (excluded), got {self.betas.min():g} to "
                f"{self.betas.max():g}"
            )
        self.alphas = 1 - self.betas
        self.alphas_cumprod = self.alphas.cumprod(0)
        self.order = 1
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(count - 1, -1, -1)

    def __len__(self) -> int:
        return self.num_train_timesteps

    @property
    def config(self) -> SchedulerConfig:
        """Every setting, under diffusers' names."""
        return SchedulerConfig({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def from_config(cls: type[_Self], config: Mapping[str, Any], **changes: Any) -> _Self:
        """Returns a scheduler with these settings, for example those of another scheduler.

        Settings that this class does not have are ignored, as in diffusers.

        Args:
            config: settings of a scheduler of this package or of diffusers.
            **changes: settings that replace those of the config.

        Raises:
            ValueError: the config asks for thresholding or for zero terminal signal, which only
                diffusers' own schedulers have.
        """
        settings = {**config, **changes}
        for name in _REFUSED:
            if settings.get(name):
                raise UserError(f"{name} must be false, got {settings[name]!r}")
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in settings.items() if name in known})

    @classmethod
    def from_pretrained(cls: type[_Self], folder: str | Path, **changes: Any) -> _Self:
        """Reads ``scheduler_config.json`` of a folder, as either package writes it.

        Raises:
            ValueError: there is no such file, or its settings are not supported.
        """
        path = Path(folder) / CONFIG_NAME
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"file {path} cannot be read as a scheduler's config") from error
        return cls.from_config(config, **changes)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes ``scheduler_config.json``, which diffusers reads too, into a folder."""
        target = files.make_folder(Path(folder)) / CONFIG_NAME
        files.save_json(target, {"_class_name": type(self).__name__, **self.config})

    @classmethod
    def from_schedule(cls: type[_Self], schedule: Schedule, **changes: Any) -> _Self:
        """Returns a scheduler for the forward process that a model was trained with.

        Args:
            schedule: the forward process.
            **changes: further settings.
        """
        settings: dict[str, Any] = {"num_train_timesteps": schedule.num_steps}
        if schedule.name in _NAMES:
            settings |= {
                "beta_schedule": _NAMES[schedule.name],
                "beta_start": schedule.beta_start,
                "beta_end": schedule.beta_end,
            }
        else:  # not all of diffusers' schedulers know these by name
            settings["trained_betas"] = schedule.beta.tolist()
        return cls(**{**settings, **changes})

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Chooses the timesteps of the chain, into ``timesteps``.

        Args:
            num_inference_steps: number of steps, at most ``num_train_timesteps``.
            device: device of ``timesteps``.

        Raises:
            ValueError: the number is out of range.
        """
        total = self.num_train_timesteps
        if not 1 <= num_inference_steps <= total:
            raise UserError(
                f"num_inference_steps must be from 1 to {total}, got {num_inference_steps}"
            )
        # numpy's ranges, rounding included, are those of diffusers.
        steps: np.ndarray
        if self.timestep_spacing == "linspace":
            steps = np.linspace(0, total - 1, num_inference_steps).round()[::-1]
        elif self.timestep_spacing == "leading":
            stride = total // num_inference_steps
            steps = np.arange(num_inference_steps)[::-1] * stride + self.steps_offset
        else:
            steps = np.arange(total, 0, -total / num_inference_steps).round() - 1
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.from_numpy(steps.astype(np.int64)).to(device)

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Returns the sample as it is: these schedulers need no scaling."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.

        Args:
            original_samples: x_0, float [B, ..., d].
            noise: eps, the shape of x_0.
            timesteps: int64 [B], or one for all.

        Raises:
            ValueError: shapes do not fit, or a timestep is out of range.
        """
        shape, device = original_samples.shape, original_samples.device
        t = timesteps.to(device).long()
        t = t.reshape(-1, *[1] * (len(shape) - 2)).expand(shape[:-1])  # [B, ...]
        x_t = q_sample(
            _rows(original_samples), self.alphas_cumprod.to(device), t.reshape(-1), _rows(noise)
        )
        return x_t.reshape(shape)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (Salimans and Ho 2022).

        Args:
            sample: x_0, float [B, ..., d].
            noise: eps, the shape of x_0.
            timesteps: int64 [B], or one for all.
        """
        return self.add_noise(noise, -sample, timesteps)

    def _predict(self, output: Tensor, alpha_bar: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns x_0, clipped if asked for, and eps of a model's output."""
        signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        if self.prediction_type == "epsilon":
            x_0, eps = (x_t - noise * output) / signal, output
        elif self.prediction_type == "sample":
            x_0, eps = output, (x_t - signal * output) / noise
        else:
            x_0, eps = signal * x_t - noise * output, signal * output + noise * x_t
        if self.clip_sample:
            x_0 = x_0.clamp(-self.clip_sample_range, self.clip_sample_range)
        return x_0, eps


@dataclass(kw_only=True, eq=False)
class DDPMScheduler(_Scheduler):
    """Ancestral sampling (Ho et al. 2020), with the numbers of ``diffusers.DDPMScheduler``.

    The arguments have the names and the defaults of diffusers, but for ``clip_sample``, which
    is False: points, unlike pixels, have no range.

    Args:
        num_train_timesteps: T.
        beta_start, beta_end: range of beta; the cosine schedule ignores it.
        beta_schedule: ``linear``, ``scaled_linear``, ``squaredcos_cap_v2`` (cosine) or ``sigmoid``.
        trained_betas: T numbers that replace the schedule.
        clip_sample: True clips the predicted x_0 to +- ``clip_sample_range``.
        clip_sample_range: see ``clip_sample``.
        prediction_type: the model predicts ``epsilon``, the ``sample`` x_0, or ``v_prediction``.
        timestep_spacing: ``leading``, ``linspace`` or ``trailing``
            (Lin et al. 2023, table 2).
        steps_offset: added to the timesteps of ``leading``.
        variance_type: ``fixed_small`` is that of q(x_{t-1} | x_t, x_0), ``fixed_large`` beta;
            ``learned`` and ``learned_range`` take it from the second half of the model's output
            (Nichol and Dhariwal 2021).

    Raises:
        ValueError: a setting is unknown or out of range.
    """

    variance_type: str = "fixed_small"

    def __post_init__(self) -> None:
        check_choice("variance_type", self.variance_type, VARIANCE_TYPES)
        super().__post_init__()

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, Tensor]:
        """Returns x_{t-1} for x_t (Ho et al. 2020, equation 7).

        Args:
            model_output: float [B, ..., d], or [B, 2 d] with a learned variance.
            timestep: t, one of ``timesteps``.
            sample: x_t, float [B, ..., d].
            generator: generator of the noise; None takes torch's global one.
            return_dict: False returns a plain tuple.

        Raises:
            ValueError: t is not one of ``timesteps``.
        """
        t = int(timestep)
        predicted = None
        if self.variance_type.startswith("learned"):
            model_output, predicted = model_output.split(sample.shape[1], dim=1)
        a, prev = self.alphas_cumprod[t], self._alpha_bar_before(t)
        alpha = a / prev
        x_0, _ = self._predict(model_output, a, sample)
        z, c_noise = None, torch.tensor(0.0)
        if t > 0:
            std = self._standard_deviation(a, prev, predicted)
            z = _noise_like(model_output, generator)
            z, c_noise = (z, std) if std.dim() == 0 else (std * z, torch.tensor(1.0))
        c_x0 = prev**0.5 * (1 - alpha) / (1 - a)
        c_x = alpha**0.5 * (1 - prev) / (1 - a)
        output = StepOutput(_combine(sample, x_0, z, c_x, c_x0, c_noise), x_0)
        return output if return_dict else (output.prev_sample, output.pred_original_sample)

    def _alpha_bar_before(self, t: int) -> Tensor:
        """Returns alpha_bar of the next timestep of the chain; 1 after the last."""
        places = (self.timesteps == t).nonzero()
        if not len(places):
            raise UserError(f"timestep must be one of the scheduler's timesteps, got {t}")
        place = int(places[0])
        if place + 1 == len(self.timesteps):
            return torch.tensor(1.0)
        return self.alphas_cumprod[int(self.timesteps[place + 1])]

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


@dataclass(kw_only=True, eq=False)
class DDIMScheduler(_Scheduler):
    """DDIM (Song et al. 2021), with the numbers of ``diffusers.DDIMScheduler``.

    The arguments have the names and the defaults of diffusers, but for ``clip_sample``, which
    is False: points, unlike pixels, have no range.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, clip_sample,
            clip_sample_range, prediction_type, timestep_spacing, steps_offset: see
            :class:`DDPMScheduler`.
        set_alpha_to_one: True makes the last step lead to alpha_bar = 1, False to that of timestep
            0.

    Raises:
        ValueError: a setting is unknown or out of range.
    """

    set_alpha_to_one: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.final_alpha_cumprod = (
            torch.tensor(1.0) if self.set_alpha_to_one else self.alphas_cumprod[0]
        )

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, Tensor]:
        """Returns x_{t-1} for x_t (Song et al. 2021, equation 12).

        As in diffusers, the step leads to timestep t - T // S, whatever the spacing.

        Args:
            model_output: float [B, ..., d].
            timestep: t.
            sample: x_t, float [B, ..., d].
            eta: 0 is deterministic, 1 as noisy as DDPM.
            use_clipped_model_output: True computes eps from the clipped x_0.
            generator: generator of the noise; None takes torch's global one.
            variance_noise: the noise itself, in place of a generator.
            return_dict: False returns a plain tuple.

        Raises:
            ValueError: :meth:`set_timesteps` was not called, or both a generator and noise are
                given.
        """
        if self.num_inference_steps is None:
            raise UserError("call set_timesteps before step")
        if generator is not None and variance_noise is not None:
            raise UserError("generator and variance_noise exclude each other, got both")
        t = int(timestep)
        before = t - self.num_train_timesteps // self.num_inference_steps
        a = self.alphas_cumprod[t]
        prev = self.alphas_cumprod[before] if before >= 0 else self.final_alpha_cumprod
        x_0, eps = self._predict(model_output, a, sample)
        if use_clipped_model_output:
            eps = (sample - a**0.5 * x_0) / (1 - a) ** 0.5
        sigma = eta * ((1 - prev) / (1 - a) * (1 - a / prev)) ** 0.5
        z = None
        if eta > 0:
            z = _noise_like(model_output, generator) if variance_noise is None else variance_noise
        x_prev = _combine(x_0, eps, z, prev**0.5, (1 - prev - sigma**2) ** 0.5, sigma)
        output = StepOutput(x_prev, x_0)
        return output if return_dict else (output.prev_sample, output.pred_original_sample)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _combine(
    x: Tensor, y: Tensor, z: Tensor | None, c_x: Tensor, c_y: Tensor, c_z: Tensor
) -> Tensor:
    """Returns c_x x + c_y y + c_z z, computed by one :func:`reverse_step`."""
    coefficients = torch.stack((c_x, c_y, c_z, torch.tensor(0.0))).to(x.device)
    z = None if z is None else _rows(z)
    return reverse_step(_rows(x), _rows(y), coefficients, z=z).reshape(x.shape).to(x.dtype)


def _noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws noise on the device of the generator, as diffusers does."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
