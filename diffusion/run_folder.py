"""The folder of a run: the place of every file, and plain readers of what the files hold.

::

    config.json                         the settings of the run
    checkpoints/denoiser.pt             state_dict of the denoiser's averaged weights
    checkpoints/classifier.pt           the same of the classifier, if the data has labels
    checkpoints/training.pt             the state of the training, for ``--resume``
    outputs/uncond_gen_samples.pt       float32 [n, d]
    outputs/cond_gen_samples_<c>.pt     float32 [n, d], guided to class c
    metrics.json                        every number, beside the score of real data
    figures/*.png
    report.md, report.html, view.html   written by ``flashpoint report`` and ``flashpoint view``
    exports/                            written by ``flashpoint export``
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from . import files
from .errors import UserError
from .schedules import Schedule

NETWORKS = ("denoiser", "classifier")


class History(NamedTuple):
    """The course of a training."""

    losses: dict[str, Tensor]  # of every step done, float32 [K], by network
    validation: list[tuple[int, float]]  # (step, NLL of a few samples)


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run.

    Args:
        path: the folder; it need not exist.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config_file(self) -> Path:
        """The file with the settings of the run."""
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        """The file with the metrics of the samples."""
        return self.path / "metrics.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of networks and training state."""
        return self.path / "checkpoints"

    @property
    def outputs(self) -> Path:
        """The folder of samples."""
        return self.path / "outputs"

    @property
    def figures(self) -> Path:
        """The folder of figures."""
        return self.path / "figures"

    @property
    def exports(self) -> Path:
        """The folder of networks in the formats of other programs."""
        return self.path / "exports"

    @property
    def report_markdown(self) -> Path:
        """The report in Markdown."""
        return self.path / "report.md"

    @property
    def report_page(self) -> Path:
        """The report as one page of HTML."""
        return self.path / "report.html"

    @property
    def view_page(self) -> Path:
        """The page of the viewer."""
        return self.path / "view.html"

    @property
    def training_file(self) -> Path:
        """The file with the state of the training."""
        return self.checkpoints / "training.pt"

    def network_file(self, name: str) -> Path:
        """Returns the file with the weights of ``denoiser`` or ``classifier``."""
        return self.checkpoints / f"{name}.pt"

    def samples_file(self, label: int | None = None) -> Path:
        """Returns the file with the samples of a class, or with those without guidance."""
        name = "uncond_gen_samples" if label is None else f"cond_gen_samples_{label}"
        return self.outputs / f"{name}.pt"

    def make(self) -> None:
        """Makes the folders that a run writes to.

        Raises:
            ValueError: a folder cannot be written to.
        """
        for folder in (self.path, self.checkpoints, self.outputs, self.figures):
            files.make_folder(folder)

    def config(self) -> dict[str, Any] | None:
        """Reads the settings of the run; returns None if there are none.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.config_file.is_file():
            return None
        try:
            config = json.loads(self.config_file.read_text())
            Schedule(**config["schedule"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"file {self.config_file} does not hold the settings of a run"
            ) from error
        return config

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Reads the metrics by kind of samples; returns an empty dict if nothing was measured."""
        if not self.metrics_file.is_file():
            return {}
        return json.loads(self.metrics_file.read_text())["metrics"]

    def history(self) -> History | None:
        """Reads the course of the training; returns None if nothing was trained.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.training_file.is_file():
            return None
        state = files.load(self.training_file)
        losses = {name: _recorded(state[name]["losses"]) for name in NETWORKS if name in state}
        return History(losses, state["validation"])


def _recorded(losses: Tensor) -> Tensor:
    """Returns the losses [K] of the steps done from [1, K], or [K]; those of later steps are 0."""
    losses = losses.flatten()
    return losses[: int(losses.nonzero().max()) + 1] if losses.any() else losses[:1]
