"""The reference covers what the packages export, and docstrings name every parameter."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PACKAGES = ("flashpoint.kernels", "flashpoint.diffusion")


def exported():
    """Every class and function that a package exports, errors aside."""
    for package in map(importlib.import_module, PACKAGES):
        for name in package.__all__:
            thing = getattr(package, name)
            is_error = inspect.isclass(thing) and issubclass(thing, Exception)
            if inspect.isfunction(thing) or (inspect.isclass(thing) and not is_error):
                yield pytest.param(thing, id=f"{package.__name__}.{name}")


@pytest.mark.parametrize("thing", [*exported()])
def test_the_reference_has_it(thing):
    listed = re.findall(r"^::: (\S+)", "".join(p.read_text() for p in DOCS.glob("api/*.md")), re.M)
    assert {thing.__module__, f"{thing.__module__}.{thing.__qualname__}"} & set(listed)


@pytest.mark.parametrize("thing", [*exported()])
def test_its_docstring_names_every_parameter(thing):
    text = inspect.getdoc(thing)
    assert text
    if inspect.isclass(thing) and issubclass(thing, tuple):
        text = inspect.getsource(thing)  # a NamedTuple's fields have comments
    missing = [
        name
        for name in inspect.signature(thing).parameters
        if name not in ("self", "args", "kwargs") and not re.search(rf"\b{name}\b", text)
    ]
    assert not missing
