"""What ours and each peer must be able to do."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..problem import Batch, Chain, Problem
from ..timing import Runner

PRECISIONS = ("fp32", "tf32", "half")


class Peer(ABC):
    """A library, or a way of using it, ready to do the work of a :class:`Problem`.

    Args:
        problem: data, schedule and networks at the start of training.
        device: where it works.
        precision: of matrix products: ``fp32``, ``tf32``, or ``half`` (fp16 or bf16, whichever the
            peer trains in).
    """

    def __init__(self, problem: Problem, device: torch.device, precision: str):
        self.problem, self.device, self.precision = problem, device, precision

    @abstractmethod
    def losses(self, batches: Sequence[Batch], classify: bool) -> list[float]:
        """Trains on these batches, one step each; the loss of each before its update."""

    @abstractmethod
    def end_of(self, chain: Chain, x_T: Tensor, labels: Tensor | None) -> Tensor:
        """Where a noiseless chain ends, float32 [n, 2]; guided to the labels, if any."""

    @abstractmethod
    def training(self, rows: int, classify: bool = False) -> Runner:
        """Steps of so many fresh rows."""

    @abstractmethod
    def epoch(self, rows: int, steps: int) -> Runner:
        """``steps`` steps over the pairs (point, timestep) in random order, as one work."""

    @abstractmethod
    def sampling(self, chain: Chain, rows: int, labels: Tensor | None = None) -> Runner:
        """A chain from fresh noise with fresh noise; guided to the labels int64 [rows], if any."""
