"""Which backend runs an operation; nothing here needs triton or a GPU to be there."""

import contextlib
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import lru_cache
from importlib.util import find_spec
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

_MIN_CAPABILITY = (8, 0)
_logger = logging.getLogger("flashpoint")


def use_triton(backend: str | None, name: str, tensor: Tensor, gap: str | None = None) -> bool:
    """Whether the Triton kernels run an operation, or else the reference.

    CUDA tensors go to Triton, all others to the reference; ``TRITON_INTERPRET=1`` lets the
    kernels run on a CPU when they are asked for.

    Args:
        backend: what the caller asked for: None, "torch" or "triton".
        name, tensor: the argument that decides.
        gap: what the kernels do not cover, if anything; the reference then does it, and it is
            logged once.

    Raises:
        RuntimeError: "triton" was asked for and cannot run.
    """
    if backend == "torch" or (backend is None and not tensor.is_cuda):
        return False
    problem = problem_of(tensor.device)
    if problem is not None:
        if backend == "triton":
            raise RuntimeError(f"backend 'triton' {problem} ({name} is on {tensor.device})")
        gap = problem
    if gap is not None:
        log_once(f"plain PyTorch instead of Triton kernels: {gap}")
        return False
    return True


def elementwise_gap(*tensors: Tensor | None) -> str | None:
    """What element-wise kernels do not cover: they compute in float32 and record no gradients."""
    watching = onlooker()
    if watching is not None:
        return watching
    given = [tensor for tensor in tensors if tensor is not None]
    if any(tensor.dtype == torch.float64 for tensor in given):
        return "float64"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return "gradients with respect to the points"
    return None


_Function = TypeVar("_Function", bound=Callable)


def run_by_compiler(function: _Function) -> _Function:
    """``torch.compile`` runs the function instead of tracing it, and keeps the result.

    This is ``torch.compiler.assume_constant_result``, which would load the compiler now.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@run_by_compiler
def problem_of(device: torch.device) -> str | None:
    """Why kernels cannot run on a device."""
    return _find_problem(device)


@run_by_compiler
def in_forward_mode() -> bool:
    """Whether tensors may carry tangents, which kernels would lose."""
    return forward_ad._current_level >= 0


@run_by_compiler
def onlooker() -> str | None:
    """Who wants to see each operation of PyTorch's, if anyone does; kernels would hide them."""
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms"
    if in_forward_mode():
        return "forward-mode differentiation"
    if torch._C._is_tracing():
        return "torch.jit.trace"
    return "torch.export" if torch.compiler.is_exporting() else None


@run_by_compiler
def log_once(message: str) -> None:
    _log(message)


@lru_cache
def _find_problem(device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    if device.type != "cuda":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return "needs CUDA tensors, or TRITON_INTERPRET=1 in the environment"
    capability = torch.cuda.get_device_capability(device)
    if capability < _MIN_CAPABILITY:
        return f"needs compute capability 8.0 or more, got {capability[0]}.{capability[1]}"
    return None


@lru_cache
def _log(message: str) -> None:
    _logger.info(message)


def device_of(tensor: Tensor) -> AbstractContextManager:
    """A context in which launches go to the tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


# The compute capability that launches on a CPU are made for: interpreted, or compiled offline.
imitated_capability = ContextVar("imitated_capability", default=(9, 0))


def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device, or on a CPU the imitated one."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)
    return imitated_capability.get()


def model_stride(tensor: Tensor) -> int:
    """Elements between models along the first axis, 0 if they share one."""
    return tensor.stride(0) if tensor.shape[0] > 1 else 0
