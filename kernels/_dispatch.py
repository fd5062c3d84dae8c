"""Which backend runs an operation, and on which device."""

import contextlib

import torch
from torch import Tensor


def device_of(tensor: Tensor):
    """A context in which launches go to the tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device; what the interpreter imitates on a CPU is 9.0."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def model_stride(tensor: Tensor) -> int:
    """Elements between models along the first axis, 0 if they share one."""
    return tensor.stride(0) if tensor.shape[0] > 1 else 0
