"""Checks of arguments; an error is one line with the argument, its value and what is allowed."""

import math

import torch
from torch import Tensor

BACKENDS = ("torch", "triton")
PRECISIONS = ("fp16", "bf16", "tf32", "tf32x3", "fp32")


def check_backend(backend: str | None) -> None:
    """Raises ValueError unless the backend is None or the name of one."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be None or one of {', '.join(BACKENDS)}, got {backend!r}")


def check_precision(precision: str) -> None:
    """Raises ValueError unless it is the name of a precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")


def check_floating_dtype(dtype: torch.dtype | None) -> None:
    """Raises TypeError unless it is None or a floating-point dtype."""
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype or None, got {dtype}")


def check_device(device: torch.device | str | int | None) -> None:
    """Raises ValueError unless PyTorch has the device here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"device must be one that PyTorch has here, got {device!r}") from error


def check_float(name: str, tensor: Tensor) -> None:
    """Raises TypeError unless it is a floating-point tensor."""
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")


def check_last_dim(name: str, tensor: Tensor, size: int) -> None:
    """Raises ValueError unless the last dimension has this size."""
    if tensor.dim() == 0 or tensor.shape[-1] != size:
        raise ValueError(f"{name} must have {size} as its last dimension, got {list(tensor.shape)}")


def check_shape(name: str, tensor: Tensor, shape: tuple[int | str, ...]) -> None:
    """Raises ValueError unless the tensor has this shape, in which a name stands for any size."""
    if not _fits(tensor, shape):
        raise ValueError(f"{name} must be {_named(shape)}, got {list(tensor.shape)}")


def check_of_each_model(
    name: str, tensor: Tensor, models: int, shape: tuple[int | str, ...]
) -> None:
    """Raises ValueError unless the tensor is [M, *shape], or [1, *shape], shared by all models.

    A name in the shape stands for any size.
    """
    if not (_fits(tensor, (models, *shape)) or _fits(tensor, (1, *shape))):
        shared = "" if models == 1 else f" or {_named((1, *shape))}"
        raise ValueError(
            f"{name} must be {_named((models, *shape))}{shared}, got {list(tensor.shape)}"
        )


def _fits(tensor: Tensor, shape: tuple[int | str, ...]) -> bool:
    sizes = tuple(tensor.shape)
    return sizes == shape or (
        len(sizes) == len(shape)
        and all(
            isinstance(want, str) or size == want for size, want in zip(sizes, shape, strict=True)
        )
    )


def _named(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def check_same_device(**tensors: Tensor | None) -> None:
    """Raises ValueError unless all tensors that are not None lie on the device of the first."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first, *rest = given
    for name in rest:
        if given[name].device != given[first].device:
            raise ValueError(
                f"{name} must be on {given[first].device} like {first}, got {given[name].device}"
            )


def check_dtype(dtype: torch.dtype, **tensors: Tensor | None) -> None:
    """Raises ValueError unless all tensors that are not None have this dtype."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}")


def check_like(name: str, tensor: Tensor, x: Tensor, dtype: torch.dtype) -> None:
    """Raises an error unless the tensor lies on the device of x and has this dtype.

    Raises:
        ValueError: it lies elsewhere.
        TypeError: it has another dtype.
    """
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on {x.device} like x, got {tensor.device}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype} like the other tensors, got {tensor.dtype}")


def check_range(name: str, tensor: Tensor, low: int, high: int) -> None:
    """Raises an error unless all values are integers in [low, high); waits for the device.

    It does nothing while a CUDA graph is captured: there are no values then, and waiting is
    forbidden.

    Raises:
        TypeError: the tensor is floating-point.
        ValueError: a value is out of range.
    """
    if tensor.is_floating_point():
        raise TypeError(f"{name} must be an integer tensor, got {tensor.dtype}")
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if tensor.numel() and (tensor.min() < low or tensor.max() >= high):
        raise ValueError(
            f"{name} must be from {low} to {high - 1}, "
            f"got values from {tensor.min().item()} to {tensor.max().item()}"
        )


def check_step(step: int | Tensor, tensor: Tensor, low: int = 0) -> None:
    """Raises ValueError unless the step is a valid number, or a counter on a tensor's device.

    A number is an integer from ``low``, 0 or 1, to 2**32 - 1; a counter is a tensor of one int64
    number.
    """
    if not isinstance(step, Tensor):
        check_positive("step", step, allow_zero=low == 0, below=2**32)
    elif step.dtype != torch.int64 or step.numel() != 1 or step.device != tensor.device:
        raise ValueError(
            f"step must be an int or one int64 number on {tensor.device}, "
            f"got {step.dtype} {list(step.shape)} on {step.device}"
        )


def check_number(name: str, value: float, below: float | None = None) -> None:
    """Raises ValueError unless the value is at least 0 and, if there is a limit, below it."""
    if not (value >= 0 and (below is None or value < below)):
        limits = {None: "", math.inf: " and finite"}
        limit = limits.get(below, f" and less than {below}")
        raise ValueError(f"{name} must be at least 0{limit}, got {value!r}")


def check_positive(name: str, value: int, allow_zero: bool = False, below: int = 2**63) -> None:
    """Raises ValueError unless the value is an integer of at least 1, or 0 if that is allowed.

    It must also be less than ``below``, as all numbers on a device are.
    """
    low = 0 if allow_zero else 1
    if value < low:
        raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")
    if value >= below:
        raise ValueError(f"{name} must be less than {below}, got {value!r}")
