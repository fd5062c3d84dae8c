"""Operations whose results do not depend on PyTorch's global settings.

Autocast, the default dtype and device, inference mode and the precision of float32 products on a
CPU are settings of a user's script for its own code. An operation under :func:`in_default_state`
runs as if none of them had been changed, and leaves them as they are.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, TypeVar

import torch

from ._dispatch import run_by_compiler

_CPU = torch.device("cpu")
_KINDS = ("cpu", "cuda", "mps", "xpu")  # of devices that have an autocast of their own
# The precision of products of float32 on a CPU, and its settings that are exact.
_CPU_PRODUCTS: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
_EXACT = ("none", "ieee")
_SPECIAL = ("__init__", "__post_init__", "__call__", "__getitem__", "__getitems__")

_Function = TypeVar("_Function", bound=Callable)
_Class = TypeVar("_Class", bound=type)


def in_default_state(function: _Function) -> _Function:
    """Makes a function run in the default state, see :func:`default_state`."""
    return _wrapped(function, leave_inference_mode=True)


def in_place_in_default_state(function: _Function) -> _Function:
    """Makes a function that writes to its arguments run in the default state.

    It stays in inference mode: tensors made there can be changed only there.
    """
    return _wrapped(function, leave_inference_mode=False)


def _wrapped(function: _Function, leave_inference_mode: bool) -> _Function:
    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        if _is_default(leave_inference_mode):
            return function(*args, **options)
        if torch.compiler.is_compiling():  # a compiler takes no other contexts than these
            with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                return function(*args, **options)
        with default_state(leave_inference_mode=leave_inference_mode):
            return function(*args, **options)

    return run  # type: ignore[return-value]


def methods_in_default_state(cls: _Class) -> _Class:
    """Makes the public methods and properties of a class run in the default state.

    Those that it inherits stay as they are.
    """
    for name, member in list(vars(cls).items()):
        if name.startswith("_") and name not in _SPECIAL:
            continue
        if isinstance(member, cached_property):
            member.func = in_default_state(member.func)
        elif isinstance(member, property) and member.fget is not None:
            setattr(cls, name, property(in_default_state(member.fget), member.fset, member.fdel))
        elif isinstance(member, classmethod):
            setattr(cls, name, classmethod(in_default_state(member.__func__)))
        elif callable(member) and not isinstance(member, type | staticmethod):
            setattr(cls, name, in_default_state(member))
    return cls


@contextmanager
def default_state(*, leave_inference_mode: bool = True) -> Iterator[None]:
    """Runs its block without autocast, on the CPU by default, with float32 as the default dtype.

    Products of float32 on a CPU are exact. Gradients are recorded as before, in inference mode they
    are not.

    Args:
        leave_inference_mode: True makes new tensors ordinary ones, False leaves the mode as it is.
    """
    with ExitStack() as stack:
        for kind in filter(torch.is_autocast_enabled, _KINDS):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != _CPU:
            stack.enter_context(_CPU)
        if leave_inference_mode and torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        dtype = torch.get_default_dtype()
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        precision = _CPU_PRODUCTS.fp32_precision
        if precision not in _EXACT:
            stack.callback(_set_cpu_precision, precision)
            _set_cpu_precision("ieee")
        yield


def _set_cpu_precision(precision: str) -> None:
    _CPU_PRODUCTS.fp32_precision = precision


@run_by_compiler  # compiled code is guarded by these settings anyway
def _is_default(leave_inference_mode: bool) -> bool:
    """Returns True if :func:`default_state` would change nothing."""
    return not (
        any(map(torch.is_autocast_enabled, _KINDS))
        or torch.get_default_dtype() != torch.float32
        or (leave_inference_mode and torch.is_inference_mode_enabled())
        or (torch._C._len_torch_function_stack() > 0 and torch.get_default_device() != _CPU)
        or _CPU_PRODUCTS.fp32_precision not in _EXACT
    )
