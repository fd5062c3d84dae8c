"""DPM-Solver and DPM-Solver++ as a scheduler, with the interface and numbers of diffusers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...kernels.default_state import methods_in_default_state
from ..errors import UserError
from . import checks
from .grids import chosen, spaced_before_end, timesteps_of
from .outputs import PrevOutput
from .scheduler import ZERO, at_least_float32, checked_pair, combine, mixed, noise_like
from .settings import PREDICTION_TYPES, VARIANCE_TYPES
from .solvers import OfNoiseLevels, exactly_one

_FEW_STEPS = 15  # chains of fewer end with lower orders, if lower_order_final


@methods_in_default_state
@dataclass(eq=False)
class DPMSolverMultistepScheduler(OfNoiseLevels):
    """The multistep solvers of Lu et al. 2022, "DPM-Solver" and "DPM-Solver++".

    The numbers are those of ``diffusers.DPMSolverMultistepScheduler``, the arguments have its
    names, order and defaults. A step remembers what the model predicted at those before it.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, thresholding,
            dynamic_thresholding_ratio, sample_max_value, timestep_spacing, steps_offset: see
            :class:`DDPMScheduler`.
        solver_order: 1 (DDIM), 2 or 3.
        prediction_type: the model predicts ``epsilon``, the ``sample`` x_0, ``v_prediction``, or
            eps - x_0 with ``use_flow_sigmas``, ``flow_prediction``.
        algorithm_type: ``dpmsolver++`` integrates x_0, ``dpmsolver`` eps; ``sde-dpmsolver++`` and
            ``sde-dpmsolver`` add noise, of order 1 or 2.
        solver_type: second order by ``midpoint`` or ``heun``.
        lower_order_final: True ends chains of fewer than 15 steps with lower orders.
        euler_at_final: True makes the last step one of order 1.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas, rescale_betas_zero_snr,
            final_sigmas_type: see :class:`EulerDiscreteScheduler`.
        use_lu_lambdas: spaces the log of the signal-to-noise ratio evenly.
        use_flow_sigmas: x_t is (1 - sigma) x_0 + sigma eps.
        flow_shift: moves these sigmas to flow_shift sigma / (1 + (flow_shift - 1) sigma).
        lambda_min_clipped: timesteps whose log(signal / noise) is below it are left out.
        variance_type: ``learned`` and ``learned_range`` say that the second half of the model's
            output is a variance, which is left out.
        use_dynamic_shifting: lets ``set_timesteps`` choose ``flow_shift``.
        time_shift_type: only ``exponential``.

    Raises:
        ValueError: a setting is unknown, of the wrong type or out of range, or two exclude each
            other.
    """

    _choices: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        "prediction_type": (*PREDICTION_TYPES, "flow_prediction"),
        "variance_type": (None, *VARIANCE_TYPES),
        "time_shift_type": ("exponential",),
    }

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Sequence[float] | np.ndarray | Tensor | None = None
    solver_order: int = 2
    prediction_type: str = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0
    final_sigmas_type: str = "zero"
    lambda_min_clipped: float = -math.inf
    variance_type: str | None = None
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    use_dynamic_shifting: bool = False
    time_shift_type: str = "exponential"

    def __post_init__(self) -> None:
        # Names of the same in the configs of DEIS and UniPC, which diffusers reads so, too.
        if self.algorithm_type == "deis":
            self.algorithm_type = "dpmsolver++"
        if self.solver_type in ("logrho", "bh1", "bh2"):
            self.solver_type = "midpoint"
        super().__post_init__()
        self._integrates_data = self.algorithm_type.endswith("++")
        self._adds_noise = self.algorithm_type.startswith("sde")
        if self.final_sigmas_type == "zero" and not self._integrates_data:
            raise UserError(
                f"final_sigmas_type must be sigma_min with algorithm_type={self.algorithm_type!r}, "
                "got 'zero'"
            )
        if self.prediction_type == "flow_prediction" and not self._integrates_data:
            raise UserError(
                "algorithm_type must be dpmsolver++ or sde-dpmsolver++ with flow_prediction, "
                f"got {self.algorithm_type!r}"
            )
        if self.solver_order == 3 and self._adds_noise:
            raise UserError(
                f"solver_order must be 1 or 2 with algorithm_type={self.algorithm_type!r}, got 3"
            )
        self.alpha_t, self.sigma_t = self._levels(self.betas)
        self.lambda_t = self.alpha_t.log() - self.sigma_t.log()
        self._begin(self.timesteps.float(), self._sigma_table(), None)
        self.num_inference_steps = None

    def _begin(self, timesteps: Tensor, sigmas: Tensor, device: str | torch.device | None) -> None:
        self._use(timesteps, sigmas, device)
        self.num_inference_steps = len(timesteps)
        self.model_outputs: list[Tensor | None] = [None] * self.solver_order
        self.lower_order_nums = 0

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        timesteps: Sequence[int] | np.ndarray | Tensor | None = None,
    ) -> None:
        """Chooses the timesteps of the chain, into ``timesteps``, and its noise levels.

        Args:
            num_inference_steps: number of steps, at most ``num_train_timesteps``.
            device: device of ``timesteps``; None is the CPU.
            mu: logarithm of ``flow_shift``, with ``use_dynamic_shifting``.
            timesteps: in place of their number the timesteps themselves, descending integers.

        Raises:
            ValueError: not exactly one of the number and timesteps is given, one is out of range or
                rises, a setting chooses the noise levels, or there is no such device.
        """
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps)
        if mu is not None:
            if not self.use_dynamic_shifting:
                raise UserError("mu must be left out without use_dynamic_shifting")
            shift = math.exp(checks.number("mu", mu, -80, 80))
            object.__setattr__(self, "flow_shift", shift)
        total = self.num_train_timesteps
        if timesteps is not None:
            steps = checks.timesteps(timesteps, None, total).numpy()
            steps = self._own_timesteps(steps, total, strictly=True)
            count = len(steps)
            if self.use_flow_sigmas:
                raise UserError("timesteps must be left out with use_flow_sigmas=True")
        else:
            count = checks.integer("num_inference_steps", num_inference_steps, 1, total)
            low = torch.searchsorted(self.lambda_t.flip(0), self.lambda_min_clipped)
            last = total - int(low)
            steps = spaced_before_end(self.timestep_spacing, last, total, count, self.steps_offset)
        table = self._sigma_table().numpy()
        steps, levels = self._levels_of(steps.astype(np.int64), table, count)
        after = table[0] if self.final_sigmas_type == "sigma_min" else 0.0
        sigmas = np.concatenate((levels, [after])).astype(np.float32)
        self._begin(torch.from_numpy(steps.astype(np.int64)), torch.from_numpy(sigmas), device)

    def _levels_of(
        self, steps: np.ndarray, table: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the timesteps that are visited, and their noise levels, both [S].

        Args:
            steps: timesteps by their spacing.
            table: the noise level of each timestep, [T].
            count: number of noise levels that a setting chooses.
        """
        logs = np.log(table)
        if self.use_lu_lambdas:
            levels = np.linspace(float(logs[-1]), float(logs[0]), count)
            grid: np.ndarray | None = np.exp(levels)
        else:
            grid = chosen(self, float(table[-1]), float(table[0]), count)
        if grid is not None:
            steps = timesteps_of(grid, logs)
            rounded = self.use_karras_sigmas or self.use_lu_lambdas
            if rounded and self.beta_schedule != "squaredcos_cap_v2":
                steps = steps.round()
            return steps, grid
        if self.use_flow_sigmas:
            levels = 1.0 - np.linspace(1, 1 / self.num_train_timesteps, count + 1)
            levels = self.flow_shift * levels / (1 + (self.flow_shift - 1) * levels)
            levels = levels[::-1][:-1]
            return levels * self.num_train_timesteps, levels
        return steps, np.interp(steps, np.arange(len(table)), table)

    def add_noise(
        self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | Sequence[int] | int
    ) -> Tensor:
        """Returns x_t of clean points and noise.

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
        return mixed(x_0, noise, places, *self._signal_and_noise(self.sigmas))

    def _signal_and_noise(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        if self.use_flow_sigmas:
            return 1 - sigma, sigma
        signal = 1 / (sigma**2 + 1) ** 0.5
        return signal, sigma * signal

    def convert_model_output(self, model_output: Tensor, *, sample: Tensor) -> Tensor:
        """Returns what the solver integrates: the x_0, or the eps, of a model's output.

        Args:
            model_output: float [B, ..., d], or [B, 2 d] with a learned variance.
            sample: x_t of the next step, float [B, ..., d].
        """
        if self.variance_type is not None and self.variance_type.startswith("learned"):
            model_output = model_output[:, : sample.shape[1]]
        place = 0 if self._step_index is None else self._step_index
        signal, noise = self._signal_and_noise(self.sigmas[place])
        if self.prediction_type == "flow_prediction":
            return self._within_bounds(sample - self.sigmas[place] * model_output)
        x_0, eps = self._predict(model_output, sample, signal, noise)
        if self._integrates_data:
            return x_0
        return (sample - signal * x_0) / noise if self.thresholding else eps

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> PrevOutput | tuple[Tensor, ...]:
        """Returns x at the next timestep.

        Args:
            model_output: float [B, ..., d], or [B, 2 d] with a learned variance.
            timestep: one of ``timesteps``; looked up at the first step alone.
            sample: x_t, float [B, ..., d].
            generator: generator of the noise of the ``sde`` algorithms, or a list of one for each
                row; None takes torch's global one.
            variance_noise: the noise itself, in place of a generator.
            return_dict: False returns a plain tuple.

        Raises:
            ValueError: :meth:`set_timesteps` was not called, the timestep is none of the chain's,
                the chain has ended, or a tensor is of the wrong shape or type or on a CPU not
                finite.
        """
        if self.num_inference_steps is None:
            raise UserError("num_inference_steps is not known: call set_timesteps before step")
        learned = self.variance_type in ("learned", "learned_range")
        doubled = learned and getattr(model_output, "shape", None) != getattr(sample, "shape", None)
        output, sample = self._checked_step(model_output, sample, doubled)
        generator = checks.generators(generator, len(sample))
        if variance_noise is not None:
            checks.like("variance_noise", variance_noise, "sample", sample)
        place = self._enter(timestep)
        converted = self.convert_model_output(output, sample=sample)
        self.model_outputs = [*self.model_outputs[1:], converted]
        z = None
        if self._adds_noise:
            z = variance_noise
            z = noise_like(converted, generator, torch.float32) if z is None else z
        # From here on in float32, whatever the sample, as in diffusers.
        prev = self._combined(sample.float(), z, place, self._order_at(place))
        self.lower_order_nums = min(self.lower_order_nums + 1, self.solver_order)
        self._step_index = place + 1
        result = PrevOutput(prev.to(converted.dtype))
        return result if return_dict else result.to_tuple()

    def _order_at(self, place: int) -> int:
        """Returns the order of a step: lower at the beginning, where less is known, and the end."""
        count = len(self.timesteps)
        few = self.lower_order_final and count < _FEW_STEPS
        order = min(self.solver_order, self.lower_order_nums + 1)
        if place == count - 1 and (few or self.euler_at_final or self.final_sigmas_type == "zero"):
            return 1
        return min(order, 2) if place == count - 2 and few else order

    def _combined(self, x: Tensor, z: Tensor | None, place: int, order: int) -> Tensor:
        """Returns x of the next step (Lu et al. 2022, "DPM-Solver++", algorithm 2 and appendix B).

        Every algorithm is c_x x + weight (m + differences of m) + c_z z, with the same functions
        of h, the growth of log(signal / noise). They are computed in float32, as in diffusers.

        Args:
            x: x_t, float [B, ..., d].
            z: noise, or None.
            place: place of the step in the chain.
            order: 1, 2 or 3.
        """
        if self.sigmas[place + 1] == self.sigmas[place]:
            order = 1  # nothing moves; higher orders would divide by the length of the step
        sigmas = self.sigmas[[place + 1 - i for i in range(order + 1)]]
        signal, noise = self._signal_and_noise(sigmas)
        ratio = signal.log() - noise.log()
        h = ratio[0] - ratio[1]
        if self._integrates_data:
            scale, u, c_x, c_z = signal[0], -h, noise[0] / noise[1], ZERO
            if self._adds_noise:
                u, c_x = -2.0 * h, c_x * (-h).exp()
                c_z = noise[0] * (1 - u.exp()).sqrt()
        else:
            scale, u, c_x, c_z = noise[0], h, signal[0] / signal[1], ZERO
            if self._adds_noise:
                scale, c_z = 2 * scale, scale * ((2 * h).exp() - 1).sqrt()
        weight = -scale * (u.exp() - 1)
        m = self._differences(ratio, weight, scale, u)
        return combine(x, m, z, c_x, weight, c_z)

    def _differences(self, ratio: Tensor, weight: Tensor, scale: Tensor, u: Tensor) -> Tensor:
        """Returns m, and its differences divided by the weight of m.

        Args:
            ratio: log(signal / noise) after the step, at it, and at those before, [order + 1].
            weight, scale, u: see :meth:`_combined`.
        """
        m = [at_least_float32(each) for each in self.model_outputs[::-1] if each is not None]
        if len(ratio) == 2:
            return m[0]
        h = ratio[0] - ratio[1]
        r_0 = (ratio[1] - ratio[2]) / h
        first = (m[0] - m[1]) / r_0
        heun = -scale * ((u.exp() - 1) / u - 1) / weight
        if len(ratio) == 3:
            return m[0] + (0.5 if self.solver_type == "midpoint" else heun) * first
        r_1 = (ratio[2] - ratio[3]) / h
        change = first - (m[1] - m[2]) / r_1
        third = -scale * ((u.exp() - 1 - u) / u**2 - 0.5) / weight
        return m[0] + heun * (first + r_0 / (r_0 + r_1) * change) + third / (r_0 + r_1) * change
