"""What the schedulers share that count their steps: Euler, Heun, DPM-Solver and flow matching."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels.default_state import methods_in_default_state
from ..errors import UserError, shown
from . import checks
from .grids import moved
from .scheduler import Scheduler


@methods_in_default_state
class Counting:
    """Counts the steps of a chain, so that timesteps may occur twice and a GPU is not waited for.

    The first step looks its timestep up, or takes :attr:`begin_index`; the others follow.
    """

    timesteps: Tensor
    num_inference_steps: int | None
    sigmas: Tensor  # float32 on the CPU, one more than there are steps
    _step_index: int | None = None
    _begin_index: int | None = None

    @property
    def step_index(self) -> int | None:
        """The place of the next step in the chain; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The place of the first step, see :meth:`set_begin_index`; None if a timestep tells it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Makes the chain begin at a place of ``timesteps``.

        Raises:
            ValueError: there is no such place.
        """
        most = len(self.sigmas) - 1
        self._begin_index = checks.integer("begin_index", begin_index, 0, most)

    def index_for_timestep(
        self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None
    ) -> int:
        """Returns the place of a timestep in the chain; of one that occurs twice, the second.

        Args:
            timestep: the timestep.
            schedule_timesteps: where to look; None is ``timesteps``.

        Raises:
            ValueError: it does not occur.
        """
        where = self.timesteps if schedule_timesteps is None else schedule_timesteps
        return _places([timestep], where)[0]

    def _use(
        self, timesteps: np.ndarray | Tensor, sigmas: Tensor, device: str | torch.device | None
    ) -> None:
        self.timesteps = moved(timesteps, device)
        self.sigmas = sigmas
        self._step_index = self._begin_index = None

    def _enter(self, timestep: Any) -> int:
        """Returns the place of the step that is about to be made.

        Raises:
            ValueError: the timestep does not occur, or the chain has ended.
        """
        if self._step_index is None:
            begin = self._begin_index
            self._step_index = self.index_for_timestep(timestep) if begin is None else begin
        if self._step_index >= len(self.sigmas) - 1:
            raise UserError(
                f"timestep must be one of a chain that has not ended, got {shown(timestep)} after "
                f"{self._step_index} steps: set_timesteps begins another; where the first timestep "
                "occurs twice, set_begin_index(0) makes a chain begin at it"
            )
        return self._step_index

    def _places_of(self, timesteps: Any, rows: int, *, by_begin: bool = True) -> Tensor:
        """Returns the places in the chain at which rows are noised, int64 [B] or [1].

        Args:
            timesteps: some of ``timesteps``, [B], or one for all.
            rows: number of rows B.
            by_begin: True takes the place of the next step if :meth:`set_begin_index` was called.

        Raises:
            ValueError: a timestep does not occur, or there are more or fewer.
        """
        t = checks.tensor(timesteps)
        if t is None or t.numel() not in (1, rows):
            raise UserError(
                f"timesteps must be one of the scheduler's timesteps, or one for each of {rows} "
                f"rows, got {shown(timesteps)}"
            )
        if self._begin_index is None or not by_begin:
            places = _places(t.reshape(-1).tolist(), self.timesteps)
        else:
            places = [self._begin_index if self._step_index is None else self._step_index]
        return torch.tensor(places, device="cpu")

    def _checked_step(
        self, model_output: Any, sample: Any, doubled: bool = False
    ) -> tuple[Tensor, Tensor]:
        sample = checks.points("sample", sample)
        output = checks.like("model_output", model_output, "sample", sample, doubled)
        checks.finite(model_output=output, sample=sample)
        return output, sample


def _places(timesteps: Sequence[float | Tensor], where: Tensor) -> list[int]:
    """Returns the place of each timestep; of one that occurs more than once, the second place."""
    found: dict[float, list[int]] = {}
    for place, each in enumerate(where.tolist()):
        found.setdefault(each, []).append(place)
    result = []
    for timestep in timesteps:
        try:
            places = found[float(timestep)][:2]
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise UserError(
                f"timestep must be one of the scheduler's timesteps, got {shown(timestep)}"
            ) from None
        result.append(places[-1])
    return result


def refuse_integer(name: str, timestep: Any) -> None:
    """Raises :class:`UserError` for an integer, which may be a place and not a timestep."""
    if isinstance(timestep, Tensor):
        whole = not timestep.is_floating_point()
    else:
        whole = isinstance(timestep, int | np.integer)
    if whole:
        raise UserError(
            f"{name} must be one of scheduler.timesteps, which are floating-point numbers, "
            f"got {shown(timestep)}"
        )


def exactly_one(**given: Any) -> None:
    """Raises :class:`UserError` unless exactly one of the arguments is given."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise UserError(
            f"exactly one of {', '.join(given)} must be given, got {' and '.join(names) or 'none'}"
        )


@methods_in_default_state
class OfNoiseLevels(Counting, Scheduler):
    """What Euler, Heun and DPM-Solver share: noise levels from betas, and settings of grids."""

    _starts_from_noise = False

    use_karras_sigmas: bool
    use_exponential_sigmas: bool
    use_beta_sigmas: bool
    # Not all have this setting.
    use_lu_lambdas = False

    def _check_end(self) -> None:
        """Leaves a little of the data at the last timestep, as diffusers does."""
        if self.rescale_betas_zero_snr:
            self.alphas_cumprod[-1] = 2**-24
        super()._check_end()

    def _sigma_table(self) -> Tensor:
        """Returns the noise level of each timestep, float32 [T]."""
        alpha_bar = self.alphas_cumprod.cpu()
        return ((1 - alpha_bar) / alpha_bar) ** 0.5

    def _own_timesteps(self, timesteps: Any, total: int, *, strictly: bool) -> np.ndarray:
        """Returns the timesteps that a script gave, float64, descending.

        Raises:
            ValueError: they rise or are out of range, or a setting chooses the noise levels.
        """
        for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas"):
            if getattr(self, f"use_{name}"):
                raise UserError(f"timesteps must be left out with use_{name}=True")
        steps = checks.numbers("timesteps", timesteps)
        checks.falling("timesteps", steps, timesteps, strictly=strictly)
        if steps[-1] < 0 or steps[0] > total - 1:
            raise UserError(
                f"timesteps must be from 0 to {total - 1}, got {steps[-1]:g} to {steps[0]:g}"
            )
        return steps
