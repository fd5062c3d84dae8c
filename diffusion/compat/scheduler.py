"""What the schedulers of variance-preserving processes share: betas, noise and the arithmetic."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...kernels import q_sample, reverse_step
from ...kernels.default_state import methods_in_default_state
from ..errors import ScheduleWarning, UserError, shown
from ..noise_levels import BETAS as CURVES
from ..schedules import Schedule
from . import checks
from .config import Configured

# In float32 as diffusers computes them: 1 - alpha_bar at the first timesteps shows every bit.
_FLOAT32: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


def _from_alpha_bar(steps: int, curve: Callable[[float], float]) -> Tensor:
    """Returns beta for alpha_bar on a curve over [0, 1], at most 0.999."""
    levels = [curve(i / steps) for i in range(steps + 1)]
    betas = [min(1 - levels[i + 1] / levels[i], 0.999) for i in range(steps)]
    return torch.tensor(betas, **_FLOAT32)


def _laplace(u: float) -> float:
    """Returns sqrt(alpha_bar) of a Laplace distribution of the log of the signal-to-noise ratio."""
    ratio = math.exp(-0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6))
    return math.sqrt(ratio / (1 + ratio))


_BETAS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": lambda steps, start, end: torch.linspace(start, end, steps, **_FLOAT32),
    "scaled_linear": lambda steps, start, end: (
        torch.linspace(start**0.5, end**0.5, steps, **_FLOAT32) ** 2
    ),
    "squaredcos_cap_v2": lambda *arguments: CURVES["cosine"](*arguments).float(),
    "sigmoid": lambda steps, start, end: (
        torch.linspace(-6, 6, steps, **_FLOAT32).sigmoid() * (end - start) + start
    ),
    "exp": lambda steps, start, end: _from_alpha_bar(steps, lambda u: math.exp(-12.0 * u)),  # noqa: ARG005
    "laplace": lambda steps, start, end: _from_alpha_bar(steps, _laplace),  # noqa: ARG005
}
_NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
_PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}

ONE, ZERO = torch.tensor(1.0, **_FLOAT32), torch.tensor(0.0, **_FLOAT32)

_Self = TypeVar("_Self", bound="Scheduler")


@methods_in_default_state
class Scheduler(Configured):
    """What schedulers of variance-preserving processes share."""

    init_noise_sigma: Any = 1.0
    # Whether a chain may start where no data is left at all.
    _starts_from_noise: ClassVar[bool] = True

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str
    trained_betas: Sequence[float] | np.ndarray | Tensor | None
    prediction_type: str
    timestep_spacing: str
    steps_offset: int
    # Not all have these settings.
    rescale_betas_zero_snr = False
    thresholding = False
    dynamic_thresholding_ratio = 0.995
    sample_max_value = 1.0
    clip_sample = False
    clip_sample_range = 1.0

    num_inference_steps: int | None
    timesteps: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.num_train_timesteps
        if self.trained_betas is None:
            self.betas = _BETAS[self.beta_schedule](count, self.beta_start, self.beta_end)
        else:
            self.betas = torch.tensor(self.trained_betas, **_FLOAT32)
        if not (self.betas >= 0).all() or not 0 < self.betas[0] < 1:
            raise UserError(
                "betas must be from 0 to 1 (excluded), the first above 0, "
                f"got {self.betas.min():g} to {self.betas.max():g}"
            )
        if self.rescale_betas_zero_snr:
            self.betas = _with_zero_terminal_snr(self.betas)
        self.alphas = 1 - self.betas
        self.alphas_cumprod = self.alphas.cumprod(0)
        self._check_end()
        self.num_inference_steps = None
        self.timesteps = torch.arange(count - 1, -1, -1, device="cpu")

    def _check_end(self) -> None:
        """Finds the timesteps that some data is left at: from 0 to below ``_usable``."""
        left = self.alphas_cumprod > 0
        self._usable = int(left.to(torch.int64).cumprod(0).sum())
        if self.rescale_betas_zero_snr:
            self._usable += 1  # to the last one, which none is left at
        if self._usable >= len(self.betas):
            self._usable = len(self.betas)
            return
        text = f"got 0 from timestep {self._usable} of {len(self.betas)} on"
        if not self._starts_from_noise:
            raise UserError(f"betas must leave alpha_bar above 0 in float32, {text}")
        warnings.warn(
            f"betas should leave alpha_bar above 0 in float32, {text}, where steps are refused",
            ScheduleWarning,
            stacklevel=6,  # who called the constructor
        )

    def __len__(self) -> int:
        return self.num_train_timesteps

    @classmethod
    def from_schedule(cls: type[_Self], schedule: Schedule, **changes: Any) -> _Self:
        """Returns a scheduler for the forward process that a model was trained with.

        Args:
            schedule: the forward process, a variance-preserving one, and what the model predicts:
                eps, x0 or v.
            **changes: further settings.

        Raises:
            ValueError: the schedule is another one, or a setting is unknown, of the wrong type or
                out of range.
        """
        if not isinstance(schedule, Schedule):
            raise UserError(f"schedule must be a Schedule, got {shown(schedule)}")
        if schedule.name not in CURVES or schedule.prediction not in _PREDICTIONS:
            raise UserError(
                f"schedule must be variance-preserving, of a model that predicts eps, x0 or v, for "
                f"{cls.__name__}, got {schedule.name} and {schedule.prediction}"
            )
        config: dict[str, Any] = {
            "num_train_timesteps": schedule.num_steps,
            "prediction_type": _PREDICTIONS[schedule.prediction],
        }
        if schedule.zero_terminal_snr:
            config["rescale_betas_zero_snr"] = True
        if schedule.name in _NAMES:
            config |= {
                "beta_schedule": _NAMES[schedule.name],
                "beta_start": schedule.beta_start,
                "beta_end": schedule.beta_end,
            }
        else:  # not all of diffusers' schedulers know these by name
            curve = CURVES[schedule.name]
            betas = curve(schedule.num_steps, schedule.beta_start, schedule.beta_end)
            config["trained_betas"] = betas.tolist()
        return cls.from_config(config, **changes)

    def _alpha_bar(self, t: int) -> Tensor:
        """Returns alpha_bar_t on the CPU, wherever a script has put the table."""
        return self.alphas_cumprod[t].cpu()

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Returns the sample as it is: these schedulers need no scaling."""
        return sample

    def _levels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns signal and noise level of each timestep, [T], as precise as x."""
        alpha_bar = self.alphas_cumprod.to(torch.promote_types(x.dtype, torch.float32))
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def _velocity(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Returns v (Salimans and Ho 2022) of x_0 and noise [B, ..., d] at timesteps [B] or [1]."""
        return mixed(noise, -x_0, t, *self._levels(x_0))

    def _predict(
        self, output: Tensor, x_t: Tensor, signal: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns x_0, within its bounds, and eps of a model's output.

        Args:
            output: the output [B, ..., d].
            x_t: signal x_0 + noise eps, the shape of the output.
            signal, noise: float [] on the CPU; the sum of their squares is 1.
        """
        if self.prediction_type == "epsilon":
            x_0, eps = (x_t - noise * output) / signal, output
        elif self.prediction_type == "sample":
            x_0, eps = output, (x_t - signal * output) / noise
        else:
            x_0, eps = signal * x_t - noise * output, signal * output + noise * x_t
        return self._within_bounds(x_0), eps

    def _within_bounds(self, x_0: Tensor) -> Tensor:
        if self.thresholding and len(x_0):
            return self._thresholded(x_0)
        if self.clip_sample:
            return x_0.clamp(-self.clip_sample_range, self.clip_sample_range)
        return x_0

    def _thresholded(self, x_0: Tensor) -> Tensor:
        """Returns x_0 by dynamic thresholding (Saharia et al. 2022, section 2.3).

        A row is clipped to a quantile of its absolute values, if that is above 1, and divided by
        it.
        """
        rows = at_least_float32(x_0).reshape(len(x_0), -1)
        bound = torch.quantile(rows.abs(), self.dynamic_thresholding_ratio, dim=1, keepdim=True)
        bound = bound.clamp(1, self.sample_max_value)  # [B, 1]
        return (rows.clamp(-bound, bound) / bound).reshape(x_0.shape).to(x_0.dtype)


def _with_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Returns betas [T] that leave no data at T - 1 (Lin et al. 2024, algorithm 1), in float32."""
    signal = (1 - betas).cumprod(0).sqrt()
    alpha_bar = ((signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))) ** 2
    return 1 - torch.cat((alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]))


def at_least_float32(x: Tensor) -> Tensor:
    """Returns x in float32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]) if x.dim() > 1 else x[:, None]


def mixed(x: Tensor, y: Tensor, t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """Returns signal_t x + noise_t y, computed by :func:`q_sample`.

    Args:
        x, y: float [B, ..., d].
        t: places in the tables, int64 [B], or [1] for all.
        signal, noise: tables, float [T].
    """
    dtype = torch.promote_types(x.dtype, y.dtype)
    x, y = x.to(dtype), y.to(dtype)
    rest = torch.zeros_like(signal)
    table = torch.stack((signal, noise, rest, rest, rest), dim=1).to(x.device)
    t = t.to(x.device).reshape(-1, *[1] * (x.dim() - 2))
    t = t.expand(x.shape[: max(x.dim() - 1, 1)]).reshape(-1)  # one for each row of points
    return q_sample(_rows(x), table, t, _rows(y)).reshape(x.shape)


def combine(
    x: Tensor, y: Tensor, z: Tensor | None, c_x: Tensor, c_y: Tensor, c_z: Tensor
) -> Tensor:
    """Returns c_x x + c_y y + c_z z, computed by one :func:`reverse_step`."""
    dtype = torch.promote_types(x.dtype, y.dtype)
    coefficients = torch.stack((c_x, c_y, c_z, ZERO)).to(x.device)
    z = None if z is None else _rows(z.to(dtype))
    x_prev = reverse_step(_rows(x.to(dtype)), _rows(y.to(dtype)), coefficients, z=z)
    return x_prev.reshape(x.shape).to(dtype)


def noise_like(
    x: Tensor,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draws noise on the device of the generator, as diffusers does; with one for each row too."""
    dtype = x.dtype if dtype is None else dtype
    if generator is None or isinstance(generator, torch.Generator):
        device = x.device if generator is None else generator.device
        return torch.randn(x.shape, generator=generator, device=device, dtype=dtype).to(x.device)
    rows = zip(x, generator, strict=True)
    return torch.cat([noise_like(row[None], one, dtype) for row, one in rows])


def checked_pair(name: str, x: Any, noise: Any) -> tuple[Tensor, Tensor]:
    """Returns clean points and noise of their shape, both finite.

    Raises:
        ValueError: they are something else.
    """
    x = checks.points(name, x)
    noise = checks.like("noise", noise, name, x)
    checks.finite(**{name: x, "noise": noise})
    return x, noise
