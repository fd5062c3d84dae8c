"""Recognises residual blocks: modules of any class that compute x + act(linear(x)).

A block is known by the code of its class's ``forward``, not by names. The code may only call what
hangs on ``self`` and add: no branch, no global variable, no other attribute, nothing in place. What
it computes is then the same at each call, and running it once with expressions in place of tensors
tells what that is.
"""

import dis
import inspect
import re
from types import CodeType, FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from ._dispatch import run_by_compiler

# Instructions that load arguments and attributes, call and add, in any version of Python.
_HARMLESS = {
    "CACHE", "RESUME", "NOP", "NOT_TAKEN", "PUSH_NULL", "POP_TOP", "COPY", "SWAP", "LOAD_ATTR",
    "LOAD_METHOD", "PRECALL", "CALL", "BINARY_OP", "RETURN_VALUE",
}  # fmt: skip
_RESIDUAL = re.compile(r"x \+ (\w+)\((\w+)\(x\)\)|(\w+)\((\w+)\(x\)\) \+ x")


class Block(NamedTuple):
    """A class of residual blocks; attributes of its modules are named."""

    linear: str
    activation: str
    code: CodeType  # of forward, from which this was read


@run_by_compiler
def block_of(kind: type[nn.Module]) -> Block | None:
    """Returns how modules of a class are residual blocks, None if they are not."""
    code = getattr(getattr(kind, "forward", None), "__code__", None)
    if kind not in _known or _known[kind][0] is not code:
        _known[kind] = code, _read(kind)
    return _known[kind][1]


# By class: the code of forward, and what was read from it.
_known: WeakKeyDictionary[type, tuple[CodeType | None, Block | None]] = WeakKeyDictionary()


def expression_of(kind: type[nn.Module]) -> str | None:
    """Returns what modules of a class compute, such as "x + act(ff(x))".

    None if that may depend on anything but x and the modules that it names.
    """
    forward: Any = getattr(kind, "forward", None)  # a layer may be missing: None
    if not _is_transparent(forward) or kind.__call__ is not nn.Module.__call__:
        return None
    if (
        kind.__getattr__ is not nn.Module.__getattr__
        or kind.__getattribute__ is not object.__getattribute__
    ):
        return None
    try:
        found = forward(_Self(kind), _Expression("x"))
    except (TypeError, AttributeError):
        return None
    return found.text if isinstance(found, _Expression) else None


def _read(kind: type[nn.Module]) -> Block | None:
    found = _RESIDUAL.fullmatch(expression_of(kind) or "")
    if found is None:
        return None
    activation, linear = found.group(1) or found.group(3), found.group(2) or found.group(4)
    return Block(linear, activation, kind.forward.__code__)


def _is_transparent(function: Any) -> bool:
    """Returns True if a function of self and x does nothing but call attributes and add."""
    if type(function) is not FunctionType:
        return False
    code = function.__code__
    plain = inspect.CO_OPTIMIZED | inspect.CO_NEWLOCALS
    return (
        code.co_argcount == 2
        and code.co_kwonlyargcount == 0
        and code.co_flags & 0xFFFF & ~inspect.CO_NESTED == plain
        and not code.co_freevars
        and not code.co_cellvars
        and all(
            each.opname in _HARMLESS or each.opname.startswith(("LOAD_FAST", "STORE_FAST"))
            for each in dis.get_instructions(code)
        )
    )


class _Expression:
    """Stands for a tensor; supports addition alone, and not in place."""

    def __init__(self, text: str):
        self.text = text

    def __add__(self, other: "_Expression") -> "_Expression":
        if not isinstance(other, _Expression):
            return NotImplemented
        return _Expression(f"{self.text} + {other.text}")

    def __iadd__(self, other: object) -> "_Expression":
        raise TypeError("a tensor is changed in place")


class _Self:
    """Stands for a module: its attributes are modules, unless the class has them itself."""

    def __init__(self, kind: type[nn.Module]):
        self._kind = kind

    def __getattr__(self, name: str):
        if hasattr(self._kind, name):
            raise AttributeError(name)

        def call(x: _Expression) -> _Expression:
            if not isinstance(x, _Expression):
                raise TypeError("only tensors are followed")
            return _Expression(f"{name}({x.text})")

        return call
