"""Which form of a kernel runs: the portable one in Triton, or one for Hopper GPUs in Gluon.

The table of configurations (:mod:`.mlp.config`) names the form of each kernel. Where that form
cannot run, the portable one does. This module needs neither triton nor a GPU, and does not import
Gluon.
"""

import os
from importlib.util import find_spec
from itertools import groupby
from typing import NamedTuple

import torch

from ._dispatch import capability_of, problem_of
from .mlp.config import COUNTED, HOPPER_KERNELS, Config, steps_of

# Versions of triton whose names in Gluon :mod:`.gluon` knows: (major, minor), both included.
_KNOWN = (3, 6), (3, 9)
_HOPPER = (9, 0)
# Operations by the kernel in the table that runs them.
_OPERATIONS = {
    "training step": "mlp",
    "perceptron": "mlp",
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
    if capability != _HOPPER:
        problem = f"compute capability {capability[0]}.{capability[1]}, the Hopper form needs 9.0"
    elif config.form == "portable":
        problem = "no measurement shows the Hopper form faster"
    else:
        problem = problem_of_gluon() or _problem_of_interpreter() or gap
    return Form("hopper", "measured to be faster") if problem is None else Form("portable", problem)


def problem_of_gluon() -> str | None:
    """Returns why kernels in Gluon cannot be used with this triton, or None if they can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    from triton import __version__ as version

    major, minor = version.split(".")[:2]
    if not _KNOWN[0] <= (int(major), int(minor)) <= _KNOWN[1]:
        oldest, newest = (".".join(map(str, known)) for known in _KNOWN)
        return f"the Gluon of triton {version}, known are those of {oldest} to {newest}"
    return None


def _problem_of_interpreter() -> str | None:
    return "Triton's interpreter" if os.environ.get("TRITON_INTERPRET") == "1" else None


def forms_on(device: torch.device) -> list[tuple[str, Form]]:
    """Returns operations and the forms that they take on a device, in half precision.

    An operation has an entry for each form that it takes for some number of rows.
    """
    if device.type != "cuda":
        return [(name, Form("PyTorch", "kernels need a CUDA device")) for name in _OPERATIONS]
    problem = problem_of(device)
    if problem is not None:
        return [(name, Form("PyTorch", f"a kernel {problem}")) for name in _OPERATIONS]
    capability = capability_of(device)
    return [
        (name, form)
        for name, kernel in _OPERATIONS.items()
        for form in _forms_of_kernel(kernel, capability)
    ]


def _forms_of_kernel(kernel: str, capability: tuple[int, int]) -> list[Form]:
    """Returns the forms of a kernel, that of the fewest rows first."""
    if kernel not in HOPPER_KERNELS:
        return [Form("portable", "its only form")]
    steps = steps_of("fp16", capability, kernel)
    starts = [(tiles, form_of(config, capability)) for tiles, config in steps]
    changes = [next(same) for _, same in groupby(starts, key=lambda start: start[1])]
    return [_from_tiles(form, tiles) for tiles, form in changes]


def _from_tiles(form: Form, tiles: int) -> Form:
    """Returns a form whose reason says from how many rows on it is taken."""
    rows = (tiles - 1) * COUNTED + 1
    return form._replace(why=f"from {rows:,} rows on: {form.why}") if tiles else form
