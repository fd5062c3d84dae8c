"""What is measured of a run while it trains: samples under the data, and held-out points."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .data import Points
from .errors import UserError
from .metrics import kde_band, kde_nll
from .run_folder import records_of
from .run_record import VALIDATION_SAMPLES, density_data
from .sampling import sample
from .settings import Settings
from .training import Trainer

_STEPS = 50  # reverse steps of the samples


class Validation:
    """The likelihood of a few samples, and the losses on held-out points, step by step.

    Args:
        points: the data.
        settings: settings of the run.
        held_out: the points that are held out of the training; None for none.
        device: where samples are drawn.
        seed: seed of the samples.

    Attributes:
        nlls: pairs (step, NLL of the samples) so far.
        losses: pairs (step, loss on the held-out points) so far, by network.
        band: ends of the band of real draws' NLL; None until :meth:`find_band` finds one.
    """

    def __init__(
        self,
        points: Points,
        settings: Settings,
        held_out: Points | None,
        device: torch.device,
        seed: int,
    ):
        self._points, self._settings, self._held_out = points, settings, held_out
        self._device, self._seed = device, seed
        self._density_data: Tensor | None = None
        self.nlls: list[tuple[int, float]] = []
        self.losses: dict[str, list[tuple[int, float]]] = {}
        self.band: tuple[float, float] | None = None

    def state(self) -> dict[str, Any]:
        """Returns what :meth:`load_state` goes on with."""
        return {"validation": self.nlls, "validation_losses": self.losses}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes up the state of a training; of older versions it has no losses."""
        self.losses = records_of(state.get("validation_losses", {}))
        self.nlls = [(int(step), float(nll)) for step, nll in state["validation"]]

    def record(self) -> dict[str, Any]:
        """Returns the numbers so far as ``metrics.json`` holds them."""
        return {
            "validation": [{"step": step, "nll": nll} for step, nll in self.nlls],
            "validation_losses": {
                name: [{"step": step, "loss": loss} for step, loss in pairs]
                for name, pairs in self.losses.items()
            },
        }

    def find_band(self, say: Callable[[str], None]) -> None:
        """Finds the band of real draws; without one :meth:`of_samples` measures nothing.

        Args:
            say: called with a line where not all points count, or none.
        """
        data = density_data(self._points, self._settings.seed)
        if len(data) < len(self._points):
            say(
                f"the likelihood of samples during the training is that under {len(data):,} of "
                f"the {len(self._points):,} points"
            )
        try:
            self.band, self._density_data = kde_band(data, VALIDATION_SAMPLES), data
        except UserError as error:
            say(f"the likelihood under a density estimate is left out: {error}")

    def of_samples(self, denoiser: Trainer) -> dict[str, float]:
        """Measures the likelihood of a few samples, if there is one; returns it by name."""
        if self._density_data is None:
            return {}
        schedule = self._settings.schedule
        x = sample(
            denoiser.model(),
            schedule,
            VALIDATION_SAMPLES,
            method="ddim",
            num_steps=min(_STEPS, schedule.num_steps),
            seed=self._seed,
            device=self._device,
        ).x
        nll = kde_nll(x, self._density_data)
        self.nlls.append((denoiser.step, nll))
        return {"nll": nll}

    def of_held_out(self, name: str, trainer: Trainer) -> dict[str, float]:
        """Measures the loss on the held-out points, if there are any; returns it by name.

        Args:
            name: ``denoiser`` or ``classifier``.
            trainer: its training.
        """
        if self._held_out is None:
            return {}
        loss = trainer.validation_loss(self._held_out)
        self.losses.setdefault(name, []).append((trainer.step, loss))
        return {"validation_loss": loss}

    def notes(self, name: str) -> dict[str, str]:
        """Returns the last numbers of a network, for its progress."""
        notes = {}
        if self.losses.get(name):
            notes["held out"] = f"{self.losses[name][-1][1]:.4f}"
        if self.nlls and name == "denoiser":
            notes["NLL"] = f"{self.nlls[-1][1]:.3f}"
        return notes
