"""Functions that compute without Python's lock, so that threads do not wait for each other.

One call runs all operations of a TorchScript function, each a few microseconds sooner than Python
starts it, and Python's lock is free meanwhile.
"""

import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable)

# PyTorch does not support TorchScript from this version of Python on.
_TOO_NEW = (3, 14)
_compiling = Lock()


@lru_cache
def scripted(function: _Function) -> _Function:
    """Returns a function, and those that it calls, as TorchScript; itself where there is none.

    It must be written in what TorchScript knows of Python.
    """
    if sys.version_info >= _TOO_NEW:
        return function
    with _compiling, warnings.catch_warnings():
        # PyTorch has nothing else yet that neither holds the lock nor needs a compiler.
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(function)
