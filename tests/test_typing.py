"""Every public function and method says the types of its arguments and of its result."""

import importlib
import inspect
import pkgutil

import flashpoint.diffusion
import flashpoint.kernels


def modules():
    for package in (flashpoint.kernels, flashpoint.diffusion):
        yield package
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not info.name.endswith("__main__"):
                yield importlib.import_module(info.name)


def public_functions(module):
    """Those defined here: functions, and methods of classes, without a leading underscore."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield value
        elif inspect.isclass(value):
            for key, member in vars(value).items():
                function = getattr(member, "fget", None) or getattr(member, "__func__", member)
                if getattr(function, "__module__", None) != module.__name__:
                    continue  # made by a decorator, or inherited
                if inspect.isfunction(function) and (not key.startswith("_") or key == "__init__"):
                    yield function


def missing(function):
    """Names of the arguments, and ``return``, that have no type."""
    names = [
        each.name
        for position, each in enumerate(inspect.signature(function).parameters.values())
        if each.annotation is each.empty and not (position == 0 and each.name in ("self", "cls"))
    ]
    if function.__name__ != "__init__" and "return" not in function.__annotations__:
        names.append("return")
    return names


def untyped(module):
    return {
        f"{module.__name__}.{function.__qualname__}": names
        for function in public_functions(module)
        if not hasattr(function, "__triton__") and (names := missing(function))
    }


def test_public_functions_have_types():
    found = {name: names for module in modules() for name, names in untyped(module).items()}
    assert not found
