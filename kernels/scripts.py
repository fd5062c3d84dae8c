"""Functions that compute without Python's lock, so that threads do not wait for each other.

One call runs all operations of a TorchScript function, each a few microseconds sooner than Python
starts it, and Python's lock is free meanwhile.
"""

import functools
import sys
import warnings
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable)

# PyTorch does not support TorchScript from this version of Python on.
_TOO_NEW = (3, 14)
_compiling = Lock()


@functools.lru_cache
def scripted(function: _Function) -> _Function:
    """Returns a function, and those that it calls, as TorchScript; itself where there is none.

    It must be written in what TorchScript knows of Python. An error in it is a RuntimeError with
    the message alone, without the lines of TorchScript.
    """
    if sys.version_info >= _TOO_NEW:
        return function
    with _compiling, warnings.catch_warnings():
        # PyTorch has nothing else yet that neither holds the lock nor needs a compiler.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            compiled = torch.jit.script(function)
        except OSError:  # there is no source to compile
            return function

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        try:
            return compiled(*args, **options)
        except RuntimeError as error:
            message = str(error).strip().splitlines()[-1]
            raise RuntimeError(message.removeprefix("RuntimeError: ")) from None

    run.compiled = compiled  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]
