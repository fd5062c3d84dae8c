"""Checks that arguments are what the annotations of a function name."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

_Function = TypeVar("_Function", bound=Callable)


class _Kind(NamedTuple):
    """What an argument may be: any of some classes."""

    classes: tuple[type, ...]
    words: str  # of the classes, for messages
    items: "_Kind | None" = None  # of a sequence
    length: int | None = None  # of a sequence, if it is fixed
    fields: tuple[tuple[str, "_Kind"], ...] = ()  # of a NamedTuple
    truth: bool = False  # True and False are allowed, which Python takes for integers
    simple: bool = True  # there are neither items nor fields


_WORDS = {
    Tensor: "a tensor",
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a string",
    NoneType: "None",
    nn.Module: "an nn.Module",
    torch.device: "a torch.device",
    torch.dtype: "a torch.dtype",
}
# Symbolic integers stand for sizes in compiled code; integers will do for numbers.
_CLASSES: dict[type, tuple[type, ...]] = {
    int: (int, torch.SymInt),
    float: (float, int, Real, torch.SymInt),
}
_NO_SEQUENCES = (str, bytes, dict)


def checked(function: _Function) -> _Function:
    """Makes a function check that its arguments are what their annotations name.

    The TypeError names the argument, what is allowed and what was given. Of NamedTuples the fields
    are checked, too, and of sequences the items.
    """
    parameters = inspect.signature(function).parameters
    hints = {name: parameter.annotation for name, parameter in parameters.items()}
    kinds = {
        name: _kind_of(hint) for name, hint in hints.items() if hint not in (Any, inspect._empty)
    }

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        if _is_traced():
            return function(*args, **options)
        for name, value in (*zip(parameters, args, strict=False), *options.items()):
            if name in kinds:
                _check(name, value, kinds[name])
        return function(*args, **options)

    return run  # type: ignore[return-value]


def check_fields(value: Any) -> None:
    """Raises TypeError unless the fields of a dataclass are what their annotations name."""
    if _is_traced():
        return
    for name, kind in _kinds_of_fields(value.__class__):
        _check(name, getattr(value, name), kind)


def _is_traced() -> bool:
    """Returns True under a compiler or tracer, for which integers may be something else."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@functools.cache
def _kinds_of_fields(cls: Any) -> tuple[tuple[str, _Kind], ...]:
    hints = get_type_hints(cls)
    return tuple((name, _kind_of(hint)) for name, hint in hints.items() if hint is not Any)


def _kind_of(hint: Any) -> _Kind:
    """Returns the kind that an annotation names."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _any_of([_kind_of(each) for each in inner])
    if origin is tuple:
        length = None if Ellipsis in inner else len(inner)
        item = _kind_of(inner[0])
        count = "" if length is None else f"{length} "
        words = f"a tuple of {count}{_plural(item)}"
        return _Kind((tuple, list), words, item, length, simple=False)
    if origin in (Sequence, Iterable):
        item = _kind_of(inner[0])
        return _Kind((Iterable,), f"a sequence of {_plural(item)}", item, simple=False)
    if origin is Callable:
        return _Kind((Callable,), "a function")
    fields = _kinds_of_fields(hint) if hasattr(hint, "_fields") else ()
    words = _WORDS.get(hint, hint.__name__)
    classes = _CLASSES.get(hint, (hint,))
    return _Kind(classes, words, fields=fields, truth=hint is bool, simple=not fields)


def _any_of(kinds: list[_Kind]) -> _Kind:
    """Returns the kind of what is of any of some kinds."""
    special = next((kind for kind in kinds if kind.items or kind.fields), kinds[0])
    return special._replace(
        classes=tuple(cls for kind in kinds for cls in kind.classes),
        words=" or ".join(kind.words for kind in kinds),
        truth=any(kind.truth for kind in kinds),
    )


def _plural(kind: _Kind) -> str:
    return kind.words.removeprefix("an ").removeprefix("a ") + "s"


def _check(name: str, value: Any, kind: _Kind) -> None:
    """Raises TypeError unless a value is of a kind."""
    if kind.simple and type(value) in kind.classes:
        return  # soon: small networks wait for Python
    if not isinstance(value, kind.classes) or (isinstance(value, bool) and not kind.truth):
        raise _error(name, value, kind)
    if kind.items is not None and value is not None:
        if isinstance(value, _NO_SEQUENCES) or getattr(value, "shape", None) == ():
            raise _error(name, value, kind)
        items = _items(name, value, kind)
        if not all(type(item) in kind.items.classes for item in items):
            for number, item in enumerate(items):
                _check(f"{name}[{number}]", item, kind.items)
    elif kind.fields and hasattr(value, "_fields"):
        for field, inner in kind.fields:
            part = getattr(value, field)
            if not (inner.simple and type(part) in inner.classes):
                _check(f"{name}.{field}", part, inner)


def _items(name: str, value: Any, kind: _Kind) -> Sequence[Any]:
    """Returns the items of a sequence; none of an iterator, which can be read only once."""
    if not hasattr(value, "__len__"):
        return ()
    if kind.length is not None and len(value) != kind.length:
        raise _error(name, value, kind)
    return value


def _error(name: str, value: Any, kind: _Kind) -> TypeError:
    plain = value is None or isinstance(value, bool | int | float | complex | str)
    cls = value if isinstance(value, type) else type(value)
    given = repr(value) if plain else f"{cls.__module__}.{cls.__name__}"
    return TypeError(f"{name} must be {kind.words}, got {given}")
