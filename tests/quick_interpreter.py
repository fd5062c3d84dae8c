"""Makes Triton's interpreter quicker without a change to what it computes.

An interpreted kernel costs Python per operation of each program, whatever the size of its block,
so most of its time is overhead. Three parts of it have no effect and are left out here:

* Each call of a device function replaces the functions of ``triton.language`` by interpreted ones,
  which walks through all names of the package. The launch around it has done so.
* Each sum and product of integers is computed again in 64 bits to find overflows. The finding goes
  to an assertion that the interpreter leaves out, because it runs without ``debug``.
* Each tensor gets a type of its own, and shapes that are checked and wrapped for it alone. Types
  are never changed, so that equal ones can share what they hold.
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


def _share_blocks(block_type):
    """Lets types of blocks of the same element and shape share their attributes."""
    known, begin = {}, block_type.__init__

    def __init__(self, element_ty, shape):
        place = getattr(element_ty, "address_space", None)  # of a pointer; not in its name
        key = (element_ty.name, place, *shape)
        if key in known:
            self.__dict__ = known[key]
        else:
            begin(self, element_ty, shape)
            known[key] = self.__dict__

    block_type.__init__ = __init__


def _share_shapes(tensor):
    """Lets tensors of one type share their attributes but for the handle."""
    begin = tensor.__init__

    def __init__(self, handle, type):
        shared = vars(type).get("of_tensors")
        if shared is None:
            begin(self, handle, type)
            type.of_tensors = {name: one for name, one in vars(self).items() if name != "handle"}
        else:
            self.__dict__.update(shared, handle=handle)

    tensor.__init__ = __init__


def _know_itself(type_):
    """Makes a type equal to itself without a look at its attributes."""
    equal = type_.__eq__

    def __eq__(self, other):
        return self is other or equal(self, other)

    type_.__eq__ = __eq__


def _remember_dtypes():
    """Finds the type of numpy that holds a type of Triton once."""
    find, known = interpreter._get_np_dtype, {}

    def remembered(tt_dtype):
        if tt_dtype.name not in known:
            known[tt_dtype.name] = find(tt_dtype)
        return known[tt_dtype.name]

    interpreter._get_np_dtype = remembered


def install():
    """Makes all launches of this process quicker, for good."""
    core = interpreter.tl.core
    _share_blocks(core.block_type)
    _share_shapes(core.tensor)
    for type_ in (core.dtype, core.pointer_type, core.block_type):
        _know_itself(type_)
    _remember_dtypes()
    interpreter._patch_lang = _replace_once
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
