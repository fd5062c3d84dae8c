"""Training on several devices: ``torchrun --nproc-per-node=N -m flashpoint.diffusion ...``.

Every rank holds the whole data set and the same weights, and takes its share of the rows of each
batch. One all-reduce per step adds up the gradients, losses and numbers of terms, so that all ranks
make the same update. A row's random numbers are keyed by its number in the whole batch, never by
the rank: N ranks draw exactly the rows that one would.
"""

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, distributed

from ..device import own_device
from ..errors import UserError

_GO_ON = "the last checkpoint is good: start the same command again with --resume"


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those of a run.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """True in the process that writes files and shows progress."""
        return self.rank == 0

    def share(self, rows: int) -> tuple[int, int]:
        """Returns the first row and the number of rows of this rank's share of all rows."""
        first, end = (rows * rank // self.size for rank in (self.rank, self.rank + 1))
        return first, end - first

    def add_up(self, tensor: Tensor) -> None:
        """Replaces a tensor by the sum over all ranks, on every rank.

        Raises:
            ValueError: another rank is gone.
        """
        self._together(distributed.all_reduce, tensor)

    def take_first(self, tensor: Tensor) -> None:
        """Replaces a tensor by that of the first rank, on every rank.

        Raises:
            ValueError: another rank is gone.
        """
        self._together(partial(distributed.broadcast, src=0), tensor)

    def _together(self, operation: Callable[[Tensor], object], tensor: Tensor) -> None:
        if self.size == 1:
            return
        try:
            operation(tensor)
        except RuntimeError as error:
            raise UserError(
                f"rank {self.rank} has lost another of the {self.size} ranks; {_GO_ON}"
            ) from error

    def any(self, flag: bool) -> bool:
        """Returns True if the flag is set on any rank."""
        if self.size == 1:
            return flag
        total = torch.tensor([float(flag)], device=_device())
        self.add_up(total)
        return total.item() > 0

    def wait(self) -> None:
        """Waits until all ranks have come here."""
        self.any(False)

    def first(self, action: Callable[[], None]) -> None:
        """Calls the action on the first rank, while the others wait for it.

        Raises:
            ValueError: the action raised it on the first rank; the others stop too.
        """
        error = None
        if self.writes:
            try:
                action()
            except UserError as raised:
                error = raised
        if self.any(error is not None):
            raise error or UserError(f"rank {self.rank} stops, as the first rank does")


def _device() -> torch.device:
    """Returns the device on which the process group wants its tensors."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _leave() -> None:
    """Leaves the process group, whose threads may otherwise abort the process at exit."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def join(device: str | torch.device | None = None) -> tuple[Ranks, str | torch.device | None]:
    """Joins the processes that torchrun started, if any; returns this process's place and device.

    Args:
        device: the device asked for; on CUDA each rank takes the device of its local number.

    Raises:
        ValueError: there is no such device, or there are more ranks than devices.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks(), device
    device = own_device(device)
    on_cuda = device is not None and torch.device(device).type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if on_cuda else "gloo")
        atexit.register(_leave)
    return Ranks(distributed.get_rank(), distributed.get_world_size()), device
