"""The losses of M networks: recorded on the device, copied to the host without waiting for it."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_COPIES_AHEAD = 2  # copies under way before the host waits for the oldest


class _Copy(NamedTuple):
    """Losses on their way to the host."""

    done: torch.cuda.Event  # recorded behind the copy
    columns: slice  # of the record
    losses: Tensor  # float32 [M, columns], pinned
    step: int  # number of steps done when the copy was made


class LossRecord:
    """Losses of M networks by step; of a very long run, evenly spread ones.

    Args:
        losses: float32 [M, K] on the device, where training writes them.
        total_steps: number of steps of each of the M networks.
    """

    def __init__(self, losses: Tensor, total_steps: Sequence[int]):
        self._losses, self._total_steps = losses, tuple(total_steps)
        self._on_host = torch.zeros_like(losses, device="cpu") if losses.is_cuda else losses
        self._host_step = 0
        self._copies: deque[_Copy] = deque()

    def until(self, model: int, step: int) -> Tensor:
        """Returns the losses of a network's first steps, float32 [K'] on the device.

        Args:
            model: number of the network.
            step: number of steps.
        """
        return self._losses[model, : self._columns(model, step)]

    def on_host(self, model: int) -> Tensor:
        """Returns the losses that have reached the host, which may lack the latest, [K'] there."""
        return self._on_host[model, : self._columns(model, self._host_step)]

    @property
    def step_on_host(self) -> int:
        """Number of steps whose losses have reached the host."""
        return self._host_step

    def mean_on_host(self, model: int, first: int, step: int) -> float:
        """Returns the mean loss of steps ``first`` to ``step - 1``, counted from 0, on the host.

        Of a very long run, in which no loss of these steps may be kept, it is the last one before.
        """
        end = self._columns(model, step)
        return self._on_host[model, min(self._columns(model, first), end - 1) : end].mean().item()

    def step_of(self, model: int, column: int) -> int:
        """Returns the step, counted from 1, whose loss is in a column."""
        total = self._total_steps[model]
        return column * total // self._kept(model) + 1

    def copy_to_host(self, first: int, step: int) -> None:
        """Starts the copy of the losses of steps ``first`` to ``step - 1``.

        Waits for the oldest copy if more than a few are under way.
        """
        if not self._losses.is_cuda:
            self._host_step = step
            return
        columns = [
            self._columns(model, count) - 1
            for model in range(len(self._losses))
            for count in (first + 1, step)
        ]
        wanted = slice(min(columns), max(columns) + 1)
        losses = self._losses[:, wanted]
        # In one piece and pinned: a copy into anything else would wait for the device.
        copy = torch.empty(losses.shape, dtype=losses.dtype, pin_memory=True)
        copy.copy_(losses, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._copies.append(_Copy(done, wanted, copy, step))
        while len(self._copies) > _COPIES_AHEAD or (self._copies and self._copies[0].done.query()):
            self._receive()

    def wait(self) -> None:
        """Waits until all losses have reached the host."""
        while self._copies:
            self._receive()

    def _receive(self) -> None:
        """Waits for the oldest copy that is under way."""
        done, wanted, copy, self._host_step = self._copies.popleft()
        done.synchronize()
        self._on_host[:, wanted] = copy

    def take_over(self, losses: Tensor, totals: Sequence[int], step: int) -> None:
        """Goes on after ``step`` steps whose losses are in another record.

        Args:
            losses: [M, K], the other record.
            totals: number of steps of each of its M networks.
            step: number of steps done.
        """
        self._losses.zero_()
        for model, before in enumerate(totals):
            columns = torch.arange(self._columns(model, step), device=losses.device)
            total, kept = self._total_steps[model], self._kept(model)
            first = (columns * total + kept - 1) // kept  # step of each column, counted from 0
            there = first * min(before, losses.shape[1]) // before
            self._losses[model, : len(there)] = losses[model, there].to(self._losses)
        self._copies.clear()
        self._host_step = step
        if self._on_host is not self._losses:
            self._on_host.copy_(self._losses)

    def _columns(self, model: int, step: int) -> int:
        """Returns the number of columns that the losses of a network's first steps fill."""
        total = self._total_steps[model]
        return (min(step, total) - 1) * self._kept(model) // total + 1

    def _kept(self, model: int) -> int:
        """Returns the number of losses that are kept of a network."""
        return min(self._total_steps[model], self._losses.shape[1])
