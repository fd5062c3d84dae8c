"""Which form of a kernel runs: the portable one in Triton, or one for Hopper GPUs in Gluon.

The table of configurations (:mod:`.mlp.config`) names the form of each kernel. Where that form
cannot run, the portable one does. This module needs neither triton nor a GPU, and does not import
Gluon.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import NamedTuple

import torch

from ._dispatch import capability_of, is_interpreted, log_once, problem_of
from .mlp.config import COUNTED, HOPPER_KERNELS, Config, Steps, steps_of

# Versions of triton whose names in Gluon :mod:`.gluon` knows, with which kernels were compiled.
_KNOWN = ("3.6", "3.9")
HOPPER = (9, 0)
# The kernel in the table that runs each operation.
_OPERATIONS = {
    "training step": "training",
    "perceptron": "perceptron",
    "chain": "chain",
    "classifier-free chain": "classifier-free chain",
    "guided chain": "guided chain",
    "AdamW": "adamw",
}


class Form(NamedTuple):
    """The form in which an operation runs, and the reason."""

    name: str  # one of config.FORMS, or "PyTorch"
    why: str


def form_of(config: Config, capability: tuple[int, int], gap: str | None = None) -> Form:
    """Returns the form of a kernel that a call takes.

    Args:
        config: configuration of the call.
        capability: compute capability of the device.
        gap: why the Hopper form does not cover the call, or None.
    """
    problem: str | None
    if capability != HOPPER:
        problem = f"the Hopper form needs capability 9.0, got {capability[0]}.{capability[1]}"
    elif config.form == "portable":
        problem = "no measurement shows the Hopper form faster"
    else:
        problem = problem_of_gluon() or _problem_of_interpreter() or gap
    return Form("hopper", "measured to be faster") if problem is None else Form("portable", problem)


def chosen_form(
    what: str, config: Config, capability: tuple[int, int], gap: Callable[[], str | None]
) -> str:
    """Returns the name of the form that a call takes; logs once if the table names another one.

    Args:
        what: the call, for the log.
        config, capability: as in :func:`form_of`.
        gap: returns why the Hopper form does not cover the call, or None.
    """
    form = form_of(config, capability, gap() if config.form == "hopper" else None)
    if form.name != config.form:
        log_once(f"{what} in the {form.name} form instead of the Hopper form: {form.why}")
    return form.name


def problem_of_gluon() -> str | None:
    """Returns why kernels in Gluon cannot be used with this triton, or None if they can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    from triton import __version__ as version

    if ".".join(version.split(".")[:2]) not in _KNOWN:
        return f"triton {version}, Gluon is known for {' and '.join(_KNOWN)}"
    return None


def _problem_of_interpreter() -> str | None:
    return "Triton's interpreter" if is_interpreted() else None


def forms_on(device: torch.device) -> list[tuple[str, Form]]:
    """Returns the form that each operation takes on a device, in half precision.

    If it takes another one for many rows, an entry ``from ... rows`` follows that of the operation.
    """
    problem = problem_of(device) if device.type == "cuda" else "needs a CUDA device"
    if problem is not None:
        return [(name, Form("PyTorch", problem)) for name in _OPERATIONS]
    capability = capability_of(device)
    found: list[tuple[str, Form]] = []
    for name, kernel in _OPERATIONS.items():
        if kernel not in HOPPER_KERNELS:
            found.append((name, Form("portable", "its only form")))
        else:
            found += _forms_by_rows(name, steps_of("fp16", capability, kernel), capability)
    return found


def _forms_by_rows(
    name: str, steps: Steps, capability: tuple[int, int]
) -> Iterator[tuple[str, Form]]:
    """Yields the form of the fewest rows, and each other one that follows, with a name."""
    before = None
    for tiles, config in steps:
        form = form_of(config, capability)
        if form != before:
            yield f"  from {(tiles - 1) * COUNTED + 1:,} rows" if tiles else name, form
        before = form
