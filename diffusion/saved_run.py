"""A run that was saved: its networks, what it left in its folder, and new samples of it.

The report and the viewer are made from it.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels.philox import child_seed
from . import files
from .checkpoints import load
from .data import Points
from .errors import UserError
from .reverse_steps import timesteps
from .run_folder import RunFolder
from .run_record import check_data
from .sampling import Samples, sample

# Streams of random numbers: 0 for samples that are drawn where the run has none. The report uses
# 0 to 5, the viewer 100 to 103.
_SAMPLES = 0
_NUM_SAMPLES = 1500

_NEEDED = {"data", "seed", "sampling_steps"}  # settings that reports tell


class SavedRun:
    """A trained run, and the data that it was trained on.

    Args:
        folder: folder of the run.
        points: the data that it was trained on.
        device: device on which samples are drawn.
        seed: seed of every sample that is drawn.
        other_data: takes other data than those that it was trained on, of the same dimension.
        figure_format: format of the figures that are drawn of it.

    Attributes:
        config: settings of the run.
        metrics: metrics by kind of samples; empty if nothing was measured.
        schedule: the forward process.
        denoiser, classifier: the networks; a run may have no classifier, None then.

    Raises:
        ValueError: the folder holds no run, or a run of other data.
    """

    def __init__(
        self,
        folder: Path,
        points: Points,
        device: torch.device,
        seed: int,
        *,
        other_data: bool = False,
        figure_format: str = "png",
    ):
        self.folder, self.points, self.device, self.seed = RunFolder(folder), points, device, seed
        self.figure_format = figure_format
        config = self.folder.config()
        if config is None:
            raise UserError(f"{folder} is no folder of a run: it has no config.json")
        loaded = load(folder)
        missing = _NEEDED - config.keys()
        if missing:
            raise UserError(f"file {self.folder.config_file} does not say {', '.join(missing)}")
        if not other_data:
            check_data(self.folder, points)
        dim = loaded.model.shape.widths[-1]
        if dim != points.dim:
            raise UserError(
                f"run {folder} was trained on points of dimension {dim}, not {points.dim}"
            )
        self.config, self.metrics = config, self.folder.metrics()
        self.schedule, self.denoiser = loaded.schedule, loaded.model
        self.classifier = loaded.classifier

    def check_files(self) -> None:
        """Reads what the run has left, so that a damaged file is told before any work.

        Raises:
            ValueError: a file is damaged or belongs to another run.
        """
        self.folder.history()
        for label in (None, *range(self.points.num_classes)):
            path = self.folder.samples_file(label)
            if path.exists():
                self._saved(path)

    @property
    def title(self) -> str:
        """Name of the data and of the folder, as a heading."""
        return f"{self.points.name}: {self.folder.path.resolve().name}"

    @cached_property
    def samples(self) -> Tensor:
        """The run's samples [n, d] without guidance, or new ones where it has none."""
        path = self.folder.samples_file()
        if path.exists():
            return self._saved(path)
        options = {
            name: self.config[name]
            for name in ("method", "s_churn", "s_noise")
            if name in self.config
        }
        steps = self.config["sampling_steps"]
        return self.sample(_NUM_SAMPLES, _SAMPLES, num_steps=steps, **options)

    @cached_property
    def guided(self) -> list[Tensor]:
        """The run's samples [n, d] of each class; empty where it has none."""
        paths = [self.folder.samples_file(label) for label in range(self.points.num_classes)]
        return [self._saved(path) for path in paths if path.exists()]

    def _saved(self, path: Path) -> Tensor:
        """Returns saved samples [n, d], mapped as the data are."""
        x = files.load(path)
        if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != self.points.dim or not len(x):
            raise UserError(
                f"file {path} must hold samples [n, {self.points.dim}] of the run, got "
                f"{list(x.shape) if isinstance(x, Tensor) else type(x).__name__}"
            )
        return self.points.from_units(x)

    def sample(self, n: int, stream: int, **options: Any) -> Tensor:
        """Draws samples [n, d].

        Args:
            n: number of samples.
            stream: number of the stream of random numbers.
            **options: options of :func:`~flashpoint.diffusion.sample`.
        """
        return self._draw(n, stream, **options).x.cpu()

    def trajectory(self, n: int, stream: int, num_steps: int | None, **options: Any) -> Tensor:
        """Draws samples and returns their way from noise to data, [K + 1, n, d] on the device.

        Each x_t is divided by :attr:`Schedule.size`.

        Args:
            n: number of samples.
            stream: number of the stream of random numbers.
            num_steps: number K of reverse steps; None for all.
            **options: options of :func:`~flashpoint.diffusion.sample`.
        """
        way = self._draw(n, stream, num_steps=num_steps, keep_every=1, **options).trajectory
        steps = timesteps(self.schedule, num_steps, method=options.get("method", "ddpm"))
        size = torch.ones(len(way), device=way.device)
        size[:-1] = self.schedule.size[steps]
        return way / size[:, None, None]

    def _draw(self, n: int, stream: int, **options: Any) -> Samples:
        seed = child_seed(self.seed, stream)
        return sample(self.denoiser, self.schedule, n, seed=seed, device=self.device, **options)
