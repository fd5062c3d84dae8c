"""What the schedulers DDPM and DDIM share: settings, timesteps, noise and the arithmetic."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...kernels import q_sample, reverse_step
from ...kernels.default_state import methods_in_default_state
from .. import files
from ..errors import UserError, shown
from ..noise_levels import BETAS
from ..schedules import Schedule
from . import checks, settings
from .settings import SchedulerConfig

# In float32 as diffusers computes them: 1 - alpha_bar at the first timesteps shows every bit.
_FLOAT32: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
_BETAS: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": lambda steps, start, end: torch.linspace(start, end, steps, **_FLOAT32),
    "scaled_linear": lambda steps, start, end: (
        torch.linspace(start**0.5, end**0.5, steps, **_FLOAT32) ** 2
    ),
    "squaredcos_cap_v2": lambda *arguments: BETAS["cosine"](*arguments).float(),
    "sigmoid": lambda steps, start, end: (
        torch.linspace(-6, 6, steps, **_FLOAT32).sigmoid() * (end - start) + start
    ),
}
_NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
# Where a chain starts with so much more alpha_bar than the last timestep has, samples from pure
# noise are visibly off: by about a tenth of the data's mean.
_MOST_SIGNAL = 0.01

ONE, ZERO = torch.tensor(1.0, **_FLOAT32), torch.tensor(0.0, **_FLOAT32)

_Self = TypeVar("_Self", bound="Scheduler")


@methods_in_default_state
class Scheduler:
    """What DDPM and DDIM share; a subclass is a dataclass whose fields are its settings."""

    order: ClassVar[int] = 1
    config_name: ClassVar[str] = settings.CONFIG_NAME

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str
    trained_betas: Sequence[float] | np.ndarray | Tensor | None
    clip_sample: bool
    clip_sample_range: float
    prediction_type: str
    timestep_spacing: str
    steps_offset: int

    def __new__(cls: type[_Self], *_: Any, **given: Any) -> _Self:
        """Refuses a setting that the class does not have, before ``__init__`` meets it."""
        parameters = inspect.signature(cls.__init__).parameters
        if all(each.kind != each.VAR_KEYWORD for each in parameters.values()):
            for name in given.keys() - parameters.keys():
                raise settings.unknown(name, given[name], cls._names(), cls.__name__)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, value in settings.checked(self._settings(), _BETAS).items():
            object.__setattr__(self, name, value)
        count = self.num_train_timesteps
        if self.trained_betas is None:
            self.betas = _BETAS[self.beta_schedule](count, self.beta_start, self.beta_end)
        else:
            self.betas = torch.tensor(self.trained_betas, **_FLOAT32)
        if not ((self.betas >= 0) & (self.betas < 1)).all() or self.betas[0] == 0:
            raise UserError(
                f"betas must be from 0 to 1 (excluded), the first above 0, "
                f"got {self.betas.min():g} to {self.betas.max():g}"
            )
        self.alphas = 1 - self.betas
        self.alphas_cumprod = self.alphas.cumprod(0)
        if not self.alphas_cumprod[-1] > 0:
            raise UserError(
                "betas must leave alpha_bar above 0 in float32, got 0 from timestep "
                f"{int((self.alphas_cumprod > 0).sum())} of {count} on"
            )
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(count - 1, -1, -1, device="cpu")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._names() and "timesteps" in self.__dict__:
            raise UserError(
                f"{name} cannot be changed in place; "
                f"from_config(scheduler.config, {name}=...) makes a scheduler with another setting"
            )
        object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return self.num_train_timesteps

    @classmethod
    def _names(cls) -> tuple[str, ...]:
        return tuple(cls.__dataclass_fields__)  # type: ignore[attr-defined]

    @property
    def config(self) -> SchedulerConfig:
        """Every setting, under diffusers' names; it cannot be changed."""
        return SchedulerConfig(self._settings())

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names()}

    @classmethod
    def from_config(cls: type[_Self], config: Mapping[str, Any], **changes: Any) -> _Self:
        """Returns a scheduler with these settings, for example those of another scheduler.

        Settings of diffusers' other schedulers are left out, with a warning if they would have
        changed the steps.

        Args:
            config: settings of a scheduler of this package or of diffusers.
            **changes: settings that replace those of the config.

        Raises:
            ValueError: a setting is unknown, of the wrong type or out of range, or only diffusers'
                own schedulers have it, such as thresholding and zero terminal signal.
        """
        if not isinstance(config, Mapping):
            raise UserError(f"config must be a dict of settings, got {shown(config)}")
        return cls(**settings.own({**config, **changes}, cls._names(), cls.__name__))

    @classmethod
    def from_pretrained(
        cls: type[_Self],
        pretrained_model_name_or_path: str | Path,
        subfolder: str | None = None,
        **changes: Any,
    ) -> _Self:
        """Reads ``scheduler_config.json`` of a folder, as either package writes it.

        Args:
            pretrained_model_name_or_path: a folder on this machine, or the file itself; nothing is
                downloaded.
            subfolder: a folder inside it, such as ``"scheduler"`` of a saved pipeline.
            **changes: settings that replace those of the file.

        Raises:
            ValueError: there is no such file, or its settings are not supported.
        """
        return cls.from_config(settings.read(pretrained_model_name_or_path, subfolder), **changes)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes ``scheduler_config.json``, which diffusers reads too, into a folder.

        Raises:
            ValueError: it cannot be written.
        """
        target = (
            files.make_folder(checks.path("save_directory", save_directory)) / settings.CONFIG_NAME
        )
        files.save_json(target, {"_class_name": type(self).__name__, **self.config})

    save_config = save_pretrained

    @classmethod
    def from_schedule(cls: type[_Self], schedule: Schedule, **changes: Any) -> _Self:
        """Returns a scheduler for the forward process that a model was trained with.

        Args:
            schedule: the forward process.
            **changes: further settings.

        Raises:
            ValueError: a setting is unknown, of the wrong type or out of range.
        """
        if not isinstance(schedule, Schedule):
            raise UserError(f"schedule must be a Schedule, got {shown(schedule)}")
        config: dict[str, Any] = {"num_train_timesteps": schedule.num_steps}
        if schedule.name in _NAMES:
            config |= {
                "beta_schedule": _NAMES[schedule.name],
                "beta_start": schedule.beta_start,
                "beta_end": schedule.beta_end,
            }
        else:  # not all of diffusers' schedulers know these by name
            config["trained_betas"] = schedule.beta.tolist()
        return cls.from_config(config, **changes)

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Chooses the timesteps of the chain, into ``timesteps``.

        Args:
            num_inference_steps: number of steps, at most ``num_train_timesteps``.
            device: device of ``timesteps``; None is the CPU.

        Raises:
            ValueError: the number is out of range, ``steps_offset`` leads beyond the last
                timestep, or there is no such device.
        """
        total = self.num_train_timesteps
        count = checks.integer("num_inference_steps", num_inference_steps, 1, total)
        # numpy's ranges, rounding included, are those of diffusers.
        steps: np.ndarray
        if self.timestep_spacing == "linspace":
            steps = np.linspace(0, total - 1, count).round()[::-1]
        elif self.timestep_spacing == "leading":
            steps = np.arange(count)[::-1] * (total // count) + self.steps_offset
        else:
            steps = np.arange(total, 0, -total / count).round() - 1
        if steps[0] >= total:
            raise UserError(
                f"steps_offset must be at most {total - 1 - (count - 1) * (total // count)} with "
                f"{count} of {total} steps, got {self.steps_offset}"
            )
        self._use(steps, device)
        self.num_inference_steps = count
        signal, least = self.alphas_cumprod[[int(steps[0]), -1]].tolist()
        if steps[0] + total // count < total and signal > least + _MOST_SIGNAL:
            warnings.warn(
                f"timestep_spacing='leading' with {count} of {total} steps starts at timestep "
                f"{int(steps[0])}, whose alpha_bar is {signal:.3g}: samples from pure noise are "
                "off; timestep_spacing='trailing' starts at the last one",
                stacklevel=5,
            )

    def _use(self, timesteps: np.ndarray, device: str | torch.device | None) -> None:
        try:
            self.timesteps = torch.from_numpy(timesteps.astype(np.int64)).to(device=device)
        except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
            raise UserError(
                f"device must be one that this machine has, got {shown(device)}"
            ) from error

    def _next_of(self, t: int) -> int:
        """Returns the timestep after t in ``timesteps``; -1 after the last."""
        places = (self.timesteps == t).nonzero()
        if not len(places):
            raise UserError(f"timestep must be one of the scheduler's timesteps, got {t}")
        place = int(places[0]) + 1
        return -1 if place == len(self.timesteps) else int(self.timesteps[place])

    def _alpha_bar(self, t: int) -> Tensor:
        """Returns alpha_bar_t on the CPU, wherever a script has put the table."""
        return self.alphas_cumprod[t].cpu()

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Returns the sample as it is: these schedulers need no scaling."""
        return sample

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
        x_0 = checks.points("original_samples", original_samples)
        noise = checks.like("noise", noise, "original_samples", x_0)
        checks.finite(original_samples=x_0, noise=noise)
        return self._mixed(x_0, noise, timesteps)

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
        x_0 = checks.points("sample", sample)
        noise = checks.like("noise", noise, "sample", x_0)
        checks.finite(sample=x_0, noise=noise)
        return self._mixed(noise, -x_0, timesteps)

    def _mixed(self, x: Tensor, y: Tensor, timesteps: Any) -> Tensor:
        """Returns sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) y."""
        t = checks.timesteps(timesteps, len(x), self.num_train_timesteps).to(x.device)
        dtype = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(dtype), y.to(dtype)
        rows = _rows(x)
        t = t.reshape(-1, *[1] * (x.dim() - 2)).expand(x.shape[: max(x.dim() - 1, 1)])  # [B, ...]
        return q_sample(rows, self.alphas_cumprod.to(x.device), t.reshape(-1), _rows(y)).reshape(
            x.shape
        )

    def _checked_step(
        self, model_output: Any, timestep: Any, sample: Any, doubled: bool = False
    ) -> tuple[Tensor, int, Tensor]:
        sample = checks.points("sample", sample)
        output = checks.like("model_output", model_output, "sample", sample, doubled)
        t = checks.integer("timestep", timestep, 0, self.num_train_timesteps - 1)
        checks.finite(model_output=output, sample=sample)
        return output, t, sample

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


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]) if x.dim() > 1 else x[:, None]


def combine(
    x: Tensor, y: Tensor, z: Tensor | None, c_x: Tensor, c_y: Tensor, c_z: Tensor
) -> Tensor:
    """Returns c_x x + c_y y + c_z z, computed by one :func:`reverse_step`."""
    dtype = torch.promote_types(x.dtype, y.dtype)
    coefficients = torch.stack((c_x, c_y, c_z, ZERO)).to(x.device)
    z = None if z is None else _rows(z.to(dtype))
    x_prev = reverse_step(_rows(x.to(dtype)), _rows(y.to(dtype)), coefficients, z=z)
    return x_prev.reshape(x.shape).to(dtype)


def noise_like(x: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    """Draws noise on the device of the generator, as diffusers does; with one for each row too."""
    if generator is None or isinstance(generator, torch.Generator):
        device = x.device if generator is None else generator.device
        return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
    return torch.cat([noise_like(row[None], one) for row, one in zip(x, generator, strict=True)])
