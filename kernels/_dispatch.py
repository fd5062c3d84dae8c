"""Chooses the backend of an operation and prepares launches; works without triton and a GPU."""

import logging
import os
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache
from importlib.util import find_spec
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

_MIN_CAPABILITY = (8, 0)
_logger = logging.getLogger("flashpoint")


def use_triton(
    backend: str | None,
    name: str,
    tensor: Tensor,
    gap: str | None = None,
    precision: str | None = None,
) -> bool:
    """Returns True if the Triton kernels run an operation, False if the reference does.

    CUDA tensors go to Triton, all others to the reference. With ``TRITON_INTERPRET=1`` the kernels
    also run on a CPU if the caller asks for them.

    Args:
        backend: the caller's choice: None, "torch" or "triton".
        name, tensor: the argument whose device decides, and its name for messages.
        gap: a reason why the kernels do not cover this call, or None. The reference then runs, and
            the reason is logged once.
        precision: precision of the kernels' matrix products, or None if there are none.

    Raises:
        RuntimeError: "triton" was asked for and cannot run.
        ValueError: "triton" was asked for and would multiply wrongly in this precision.
    """
    if backend == "torch" or (backend is None and not tensor.is_cuda):
        return False
    problem = problem_of(tensor.device)
    if problem is not None:
        if backend == "triton":
            raise RuntimeError(f"backend 'triton' {problem} ({name} is on {tensor.device})")
        gap = problem
    if gap is None:
        gap = gap_of_precision(precision)
        if gap is not None and backend == "triton":
            raise ValueError(
                "precision must be fp16, tf32, tf32x3 or fp32 in Triton's interpreter, which "
                "multiplies bf16 wrongly, got 'bf16'"
            )
    if gap is not None:
        log_once(f"plain PyTorch instead of Triton kernels: {gap}")
        return False
    return True


def runs_in_pieces(backend: str | None, tensor: Tensor) -> bool:
    """Returns True if an operation runs on a CPU in pieces, side by side, and not as the reference.

    It does unless the caller chose a backend, or something has to see each PyTorch operation.
    """
    return (
        backend is None
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and onlooker() is None
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def elementwise_gap(*tensors: Tensor | None) -> str | None:
    """Returns why element-wise kernels do not cover these tensors, or None if they do.

    The kernels compute in float32 and record no gradients.
    """
    watcher = onlooker()
    if watcher is not None:
        return watcher
    given = [tensor for tensor in tensors if tensor is not None]
    if any(tensor.dtype == torch.float64 for tensor in given):
        return "float64"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return "gradients with respect to the points"
    return None


_Function = TypeVar("_Function", bound=Callable)


def run_by_compiler(function: _Function) -> _Function:
    """Makes ``torch.compile`` run the function once and keep its result, instead of tracing it.

    ``torch.compiler.assume_constant_result`` does the same, but would load the compiler now.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@run_by_compiler
def problem_of(device: torch.device) -> str | None:
    """Returns why kernels cannot run on a device, or None if they can."""
    return _find_problem(device)


def gap_of_precision(precision: str | None) -> str | None:
    """Returns why kernels would multiply wrongly in a precision, or None if they do not.

    Triton's interpreter takes the bit patterns of bf16 for integers (its issue 11584).
    """
    return "bf16 in Triton's interpreter" if precision == "bf16" and is_interpreted() else None


@run_by_compiler
def is_interpreted() -> bool:
    """Returns True if Triton's interpreter runs the kernels, by the words that Triton takes."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@run_by_compiler
def in_forward_mode() -> bool:
    """Returns True if tensors may carry tangents, which kernels would lose."""
    return forward_ad._current_level >= 0


@run_by_compiler
def onlooker() -> str | None:
    """Returns the name of a transform that must see each PyTorch operation, or None.

    Kernels would hide the operations from it.
    """
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms"
    if in_forward_mode():
        return "forward-mode differentiation"
    if torch._C._is_tracing():
        return "torch.jit.trace"
    return "torch.export" if torch.compiler.is_exporting() else None


@run_by_compiler
def log_once(message: str) -> None:
    """Logs a message at its first call in this process."""
    _log(message)


@lru_cache
def _find_problem(device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    if device.type != "cuda":
        if device.type == "cpu" and is_interpreted():
            return None
        return "needs CUDA tensors, or CPU tensors and TRITON_INTERPRET=1 in the environment"
    capability = torch.cuda.get_device_capability(device)
    if capability < _MIN_CAPABILITY:
        return f"needs compute capability 8.0 or more, got {capability[0]}.{capability[1]}"
    return None


@lru_cache
def _log(message: str) -> None:
    _logger.info(message)


# The compute capability that launches on a CPU are made for, interpreted or compiled offline.
imitated_capability = ContextVar("imitated_capability", default=(9, 0))


def capability_of(device: torch.device) -> tuple[int, int]:
    """Returns the compute capability of a CUDA device, or the imitated one on a CPU."""
    return _capability(device) if device.type == "cuda" else imitated_capability.get()


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def model_stride(tensor: Tensor) -> int:
    """Returns the number of elements from one model to the next, 0 if all models share one."""
    return tensor.stride(0) if tensor.shape[0] > 1 else 0


def step_arguments(step: int | Tensor) -> dict[str, int | Tensor | None]:
    """Returns the arguments ``step_ptr`` and ``step`` of a kernel, which reads a tensor's value."""
    if isinstance(step, Tensor):
        return {"step_ptr": step, "step": 0}
    return {"step_ptr": None, "step": step}
