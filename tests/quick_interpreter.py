"""Makes Triton's interpreter quicker without a change to what it computes.

An interpreted kernel costs Python per operation of each program, whatever the size of its block,
so most of its time is overhead. Two parts of it have no effect and are left out here:

* Each call of a device function replaces the functions of ``triton.language`` by interpreted ones,
  which walks through all names of the package. The launch around it has done so.
* Each sum and product of integers is computed again in 64 bits to find overflows. The finding goes
  to an assertion that the interpreter leaves out, because it runs without ``debug``.
"""

import dataclasses
import inspect

from triton.runtime import interpreter

_walk = interpreter._patch_lang
_replaced = {}  # (packages replaced before, packages to replace): [(object, name, old, new)]
_packages = {}  # function: the packages that it sees
_open = []  # the packages that the launch which runs has replaced, and their changes


class _Launch:
    """The replaced names of a launch."""

    def restore(self):
        """Puts back what was there before the launch."""
        while _open:
            for owner, name, old, _ in reversed(_open.pop()[1]):
                if old is interpreter._MISSING:
                    delattr(owner, name)
                else:
                    setattr(owner, name, old)


class _DeviceFunction:
    """A call inside a launch, which restores nothing."""

    def restore(self):
        """Leaves everything to the launch."""


def _packages_of(function):
    """Returns the names of Triton's packages whose functions this function can call."""
    if function not in _packages:
        modules = filter(inspect.ismodule, function.__globals__.values())
        known = (interpreter.tl, interpreter.tl.core)
        _packages[function] = frozenset(module.__name__ for module in modules if module in known)
    return _packages[function]


def _replace_once(function):
    """Replaces the names that the launch around the call has not replaced yet."""
    wanted, before = _packages_of(function), tuple(packages for packages, _ in _open)
    if wanted in before:
        return _DeviceFunction()
    if (before, wanted) not in _replaced:
        _replaced[before, wanted] = [
            (owner, name, old, vars(owner)[name]) for owner, name, old in _walk(function)._changes
        ]
    else:
        for owner, name, _, new in _replaced[before, wanted]:
            setattr(owner, name, new)
    _open.append((wanted, _replaced[before, wanted]))
    return _DeviceFunction() if before else _Launch()


def install():
    """Makes all launches of this process quicker, for good."""
    interpreter._patch_lang = _replace_once
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
