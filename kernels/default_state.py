"""Operations whose results do not depend on PyTorch's global settings.

Autocast, the default dtype and device, inference mode and the precision of float32 products on a
CPU are settings of a user's script for its own code. An operation under :func:`in_default_state`
runs as if none of them had been changed, and leaves them as they are.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from threading import Lock
from typing import Any, TypeVar

import torch

from ._dispatch import run_by_compiler

_CPU = torch.device("cpu")
_KINDS = ("cpu", "cuda", "mps", "xpu")  # of devices that have an autocast of their own
_CPU_PRODUCTS: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
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
        for setting in _SETTINGS:
            if not setting.is_default():
                stack.enter_context(setting.at_default())
        yield


class _Setting:
    """A setting of the whole process, which operations in several threads may keep at its default.

    The first of them changes it, the last one changes it back.

    Args:
        read, write: get and set it.
        defaults: values that need no change; the last one is set in place of others.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None], *defaults: Any):
        self._read, self._write, self._defaults = read, write, defaults
        self._lock, self._holders, self._before = Lock(), 0, None

    def is_default(self) -> bool:
        """Returns True if it is at its default and no operation has to keep it there."""
        return self._holders == 0 and self._read() in self._defaults

    @contextmanager
    def at_default(self) -> Iterator[None]:
        """Keeps it at its default while the block runs."""
        with self._lock:
            if self._holders == 0:
                self._before = self._read()
                self._write(self._defaults[-1])
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if self._holders == 0:
                    self._write(self._before)


def _set_cpu_precision(precision: str) -> None:
    _CPU_PRODUCTS.fp32_precision = precision


_SETTINGS = (
    _Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    _Setting(lambda: _CPU_PRODUCTS.fp32_precision, _set_cpu_precision, "none", "ieee"),
)


@run_by_compiler  # compiled code is guarded by these settings anyway
def _is_default(leave_inference_mode: bool) -> bool:
    """Returns True if :func:`default_state` would change nothing."""
    return not (
        torch._C._is_any_autocast_enabled()
        or (leave_inference_mode and torch.is_inference_mode_enabled())
        or (torch._C._len_torch_function_stack() > 0 and torch.get_default_device() != _CPU)
        or not all([setting.is_default() for setting in _SETTINGS])  # noqa: C419  # soon
    )
