"""Euler's method for flow matching as a scheduler object, with the interface of diffusers."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...kernels.default_state import methods_in_default_state
from ..errors import UserError, shown
from ..schedules import Schedule
from . import checks
from .config import Configured
from .grids import chosen
from .outputs import PrevOutput
from .scheduler import ONE, ZERO, checked_pair, combine, mixed, noise_like
from .solvers import Counting, refuse_integer

_MOST_STEPS = 1_000_000

_Self = TypeVar("_Self", bound="FlowMatchEulerDiscreteScheduler")


@methods_in_default_state
@dataclass(eq=False)
class FlowMatchEulerDiscreteScheduler(Counting, Configured):
    """Euler's method along the flow x_t = (1 - sigma) x_0 + sigma eps (Lipman et al. 2023).

    The numbers are those of ``diffusers.FlowMatchEulerDiscreteScheduler``, the arguments have its
    names, order and defaults. The model predicts eps - x_0; timesteps are T sigma.

    Args:
        num_train_timesteps: T.
        shift: moves the noise levels to shift sigma / (1 + (shift - 1) sigma) (Esser et al. 2024,
            equation 23).
        use_dynamic_shifting: True moves them by the ``mu`` of ``set_timesteps`` instead.
        base_shift, max_shift, base_image_seq_len, max_image_seq_len: read by pipelines, which
            compute ``mu`` from them.
        invert_sigmas: True goes from sigma = 0 to 1.
        shift_terminal: the last noise level, to which all are stretched.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: see
            :class:`EulerDiscreteScheduler`; between the first and the last of the shifted levels.
        time_shift_type: how ``mu`` moves them: ``exponential`` or ``linear``.
        stochastic_sampling: True draws fresh noise at each step.

    Raises:
        ValueError: a setting is unknown, of the wrong type or out of range.
    """

    _process: ClassVar[str] = "flow"

    num_train_timesteps: int = 1000
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    invert_sigmas: bool = False
    shift_terminal: float | None = None
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    time_shift_type: str = "exponential"
    stochastic_sampling: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        total = self.num_train_timesteps
        sigmas = torch.arange(total, 0, -1, dtype=torch.float32, device="cpu") / total
        if not self.use_dynamic_shifting:
            sigmas = self.shift * sigmas / (1 + (self.shift - 1) * sigmas)
        self.num_inference_steps = None
        self._use(sigmas * total, sigmas, None)
        self.sigma_min, self.sigma_max = sigmas[-1].item(), sigmas[0].item()

    def __len__(self) -> int:
        return self.num_train_timesteps

    @classmethod
    def from_schedule(cls: type[_Self], schedule: Schedule, **changes: Any) -> _Self:
        """Returns a scheduler for the flow that a model was trained with.

        Its timesteps are those of the schedule plus 1: sigma is t / T for t = 1 ... T.

        Args:
            schedule: the schedule ``flow``, of a model that predicts eps - x_0.
            **changes: further settings.

        Raises:
            ValueError: the schedule is another one, or a setting is unknown, of the wrong type or
                out of range.
        """
        if not isinstance(schedule, Schedule):
            raise UserError(f"schedule must be a Schedule, got {shown(schedule)}")
        if schedule.name != "flow" or schedule.prediction != "flow":
            raise UserError(
                f"schedule must be flow, of a model that predicts flow, for {cls.__name__}, "
                f"got {schedule.name} and {schedule.prediction}"
            )
        return cls.from_config({"num_train_timesteps": schedule.num_steps}, **changes)

    def set_shift(self, shift: float) -> None:
        """Changes the setting ``shift`` for chains to come.

        Raises:
            ValueError: it is no number above 0.
        """
        shift = checks.number("shift", shift, float(np.finfo(np.float32).tiny))
        object.__setattr__(self, "shift", shift)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | np.ndarray | Tensor | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | np.ndarray | Tensor | None = None,
    ) -> None:
        """Chooses the timesteps of the chain, into ``timesteps``, and its noise levels.

        Args:
            num_inference_steps: number of steps; it may be left out beside sigmas or timesteps.
            device: device of ``timesteps``; None is the CPU.
            sigmas: noise levels before they are shifted, from 1 down, above 0.
            mu: how much noise levels are shifted, with ``use_dynamic_shifting``.
            timesteps: timesteps that the model sees; without sigmas, timesteps / T are the noise
                levels before they are shifted, and a warning says so.

        Raises:
            ValueError: the number, sigmas and timesteps are all left out or do not agree, one is
                out of range or rises, mu is missing, or there is no such device.
        """
        if self.use_dynamic_shifting and mu is None:
            raise UserError("mu must be given with use_dynamic_shifting=True")
        own = None if timesteps is None else checks.numbers("timesteps", timesteps)
        levels = None if sigmas is None else checks.numbers("sigmas", sigmas)
        count = _agreed(num_inference_steps, own, levels)
        total = self.num_train_timesteps
        if own is not None:
            own = own.astype(np.float32)
            checks.falling("timesteps", own, timesteps, strictly=True)
        if levels is not None:
            levels = levels.astype(np.float32)
        elif own is not None:
            warnings.warn(
                "timesteps without sigmas: the model sees them as they are, while the noise levels "
                "timesteps / T are shifted by the settings",
                stacklevel=3,
            )
            levels = own / total
        else:
            levels = np.linspace(self.sigma_max * total, self.sigma_min * total, count) / total
        checks.falling("sigmas", levels, sigmas, strictly=True)
        low, high = levels[-1], levels[0]
        if not 0 < low <= high <= 1:
            raise UserError(f"sigmas must be above 0 and at most 1, got {low:g} to {high:g}")
        levels = self._shifted(levels, mu)
        grid = chosen(self, float(levels[0]), float(levels[-1]), count)
        self.num_inference_steps = count
        self._finish(levels if grid is None else grid, own, device)

    def _shifted(self, levels: np.ndarray, mu: float | None) -> np.ndarray:
        if self.use_dynamic_shifting:
            assert mu is not None  # set_timesteps has checked it
            levels = self.time_shift(mu, 1.0, levels)
        else:
            levels = self.shift * levels / (1 + (self.shift - 1) * levels)
        return self.stretch_shift_to_terminal(levels) if self.shift_terminal else levels

    def _finish(
        self, levels: np.ndarray, own: np.ndarray | None, device: str | torch.device | None
    ) -> None:
        """Makes the chain of noise levels [S], or of their complements, and of timesteps."""
        sigmas = torch.from_numpy(levels.astype(np.float32))
        sigmas, end = (1.0 - sigmas, ONE) if self.invert_sigmas else (sigmas, ZERO)
        if own is None or self.invert_sigmas:
            timesteps = sigmas * self.num_train_timesteps
        else:
            timesteps = torch.from_numpy(own)
        self._use(timesteps, torch.cat((sigmas, end[None])), device)

    def time_shift(self, mu: float, sigma: float, t: Any) -> Any:
        """Returns noise levels t moved by mu: w / (w + (1 / t - 1)^sigma), w being e^mu or mu.

        Args:
            mu: how much they are moved.
            sigma: an exponent.
            t: noise levels, an array or tensor.

        Raises:
            ValueError: mu or sigma is out of range.
        """
        sigma = checks.number("sigma", sigma)
        if self.time_shift_type == "exponential":
            weight = math.exp(checks.number("mu", mu, -80, 80))
        else:
            weight = checks.number("mu", mu, float(np.finfo(np.float32).tiny))
        return weight / (weight + (1 / t - 1) ** sigma)

    def stretch_shift_to_terminal(self, t: Any) -> Any:
        """Returns noise levels t, an array or tensor, stretched to end at ``shift_terminal``.

        Raises:
            ValueError: the setting is None, or the last noise level is 1.
        """
        if self.shift_terminal is None:
            raise UserError("shift_terminal must be set to stretch noise levels to it, got None")
        rest = 1 - t
        if not rest[-1] > 0:
            raise UserError(
                "sigmas must end below 1 to be stretched to shift_terminal: in two steps or more, "
                f"got {float(t[-1]):g}"
            )
        return 1 - rest / (rest[-1] / (1 - self.shift_terminal))

    def scale_noise(
        self,
        sample: Tensor,
        timestep: Tensor | Sequence[float] | float,
        noise: Tensor,
    ) -> Tensor:
        """Returns (1 - sigma) x_0 + sigma eps.

        Args:
            sample: x_0, float [B, ..., d].
            timestep: some of the scheduler's ``timesteps``, [B], or one for all.
            noise: eps, the shape of x_0.

        Raises:
            ValueError: a tensor is of the wrong shape or type, or on a CPU not finite; or a
                timestep is none of the chain's.
        """
        x_0, noise = checked_pair("sample", sample, noise)
        places = self._places_of(timestep, len(x_0))
        return mixed(x_0, noise, places, 1 - self.sigmas, self.sigmas)

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
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> PrevOutput | tuple[Tensor, ...]:
        """Returns the sample at the next noise level.

        Args:
            model_output: eps - x_0, float [B, ..., d].
            timestep: one of ``timesteps``; looked up at the first step alone.
            sample: (1 - sigma) x_0 + sigma eps, float [B, ..., d].
            s_churn, s_tmin, s_tmax, s_noise: of no effect in diffusers; any but the defaults are
                refused.
            generator: generator of the noise of ``stochastic_sampling``, or a list of one for each
                row; None takes torch's global one.
            per_token_timesteps: a timestep for each token; refused unless None.
            return_dict: False returns a plain tuple.

        Raises:
            ValueError: the timestep is an integer or none of the chain's, the chain has ended, a
                tensor is of the wrong shape or type or on a CPU not finite, or an argument is given
                that is refused.
        """
        output, sample = self._checked_step(model_output, sample)
        refuse_integer("timestep", timestep)
        if (s_churn, s_tmin, s_tmax, s_noise) != (0.0, 0.0, math.inf, 1.0):
            raise UserError(
                "s_churn, s_tmin, s_tmax and s_noise have no effect on flow matching: leave them "
                f"out, got {s_churn}, {s_tmin}, {s_tmax} and {s_noise}"
            )
        if per_token_timesteps is not None:
            raise UserError("per_token_timesteps must be None: only diffusers' own class takes it")
        generator = checks.generators(generator, len(sample))
        place = self._enter(timestep)
        sigma, after = self.sigmas[place], self.sigmas[place + 1]
        x = sample.float()  # in float32, whatever the sample, as in diffusers
        if self.stochastic_sampling:
            z = noise_like(sample, generator, torch.float32)
            prev = combine(x, output, z, 1 - after, -(1 - after) * sigma, after)
        else:
            prev = combine(x, output, None, ONE, after - sigma, ZERO)
        self._step_index = place + 1
        result = PrevOutput(prev.to(output.dtype))
        return result if return_dict else result.to_tuple()


def _agreed(count: Any, timesteps: np.ndarray | None, sigmas: np.ndarray | None) -> int:
    """Returns the number of steps that all arguments of a chain agree on.

    Raises:
        ValueError: they do not, or all are left out.
    """
    lengths = {
        name: len(each)
        for name, each in (("sigmas", sigmas), ("timesteps", timesteps))
        if each is not None
    }
    if count is not None:
        number = checks.integer("num_inference_steps", count, 1, _MOST_STEPS)
        lengths = {"num_inference_steps": number, **lengths}
    if not lengths:
        raise UserError("num_inference_steps, sigmas or timesteps must be given, got none")
    if len(set(lengths.values())) > 1:
        told = " and ".join(f"{number} ({name})" for name, number in lengths.items())
        raise UserError(f"numbers of steps must agree, got {told}")
    return next(iter(lengths.values()))
