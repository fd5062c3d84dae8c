"""Devices: the one that launches go to, and the compute capability that they are made for."""

import contextlib
from contextlib import AbstractContextManager
from contextvars import ContextVar

import torch
from torch import Tensor


def device_of(tensor: Tensor) -> AbstractContextManager:
    """Returns a context in which the current device is that of a CUDA tensor.

    Launches, streams and events are those of the current device. For a tensor that is elsewhere the
    context does nothing.
    """
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


# The compute capability that launches on a CPU are made for, interpreted or compiled offline.
imitated_capability = ContextVar("imitated_capability", default=(9, 0))


def capability_of(device: torch.device) -> tuple[int, int]:
    """Returns the compute capability of a CUDA device, or the imitated one on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)
    return imitated_capability.get()
