"""The protocol of ours and of each peer."""

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
        device: device that does the work.
        precision: precision of matrix products: ``fp32``, ``tf32``, or ``half`` (fp16 or bf16,
            whichever the peer trains in).
    """

    def __init__(self, problem: Problem, device: torch.device, precision: str):
        self.problem, self.device, self.precision = problem, device, precision

    @abstractmethod
    def losses(self, batches: Sequence[Batch], classify: bool) -> list[float]:
        """Trains one step on each batch and returns the losses before the updates."""

    @abstractmethod
    def end_of(self, chain: Chain, x_T: Tensor, labels: Tensor | None) -> Tensor:
        """Returns the end of a noiseless chain, float32 [n, 2]; guided to the labels, if any."""

    @abstractmethod
    def training(self, rows: int, classify: bool = False) -> Runner:
        """Returns training steps on batches of fresh rows."""

    @abstractmethod
    def epoch(self, rows: int, steps: int) -> Runner:
        """Returns ``steps`` steps over pairs (point, timestep) in random order, as one work."""

    @abstractmethod
    def sampling(self, chain: Chain, rows: int, labels: Tensor | None = None) -> Runner:
        """Returns a chain with fresh noise; guided to the labels int64 [rows], if any."""
