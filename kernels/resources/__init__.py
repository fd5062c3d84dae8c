"""Registers, spills, shared memory and tensor-core use of every kernel, compiled offline.

    python -m flashpoint.kernels.resources            compile, print, compare with the record
    python -m flashpoint.kernels.resources --update   write the record

Neither a GPU nor a driver is needed. The parts, in the order of the work:

* :mod:`.cases`: the calls of operations whose kernels are compiled;
* :mod:`.launch`: the calls run on CPU tensors, and their launches are intercepted;
* :mod:`.compilation`: each launch is compiled for each architecture as it would be there;
* :mod:`.sass`: the machine code is read;
* :mod:`.faults`: errors of a kernel that its compiled code shows;
* :mod:`.record`: resources are compared with ``kernels/resources.json``, which has a record for
  each version of triton.

The exit status is 1 if a kernel

* spills more than before, or has lost a kind of tensor-core instruction;
* needs more shared memory than a chip has;
* took more than five seconds of processor time to compile when it was recorded, or takes more than
  five and three times as many as then; in the form for Hopper GPUs eight. On a machine where the
  compilations of a run take longer than recorded, all of it is as many times longer;
* spills more than 64 bytes in that form;
* has a fault: ``serialised``, ptxas lets no two of its wgmmas overlap; ``in flight``, a register of
  a wgmma is touched while the wgmma may still use it, so that results may be wrong; ``tensor
  cores``, a product in half precision or tf32 does without them, or with fewer columns at once
  than possible.

A fault that has to be accepted gets its reason into the record by hand, beside the resources of the
kernel: ``"accepted": {"serialised": "why"}``. ``--update`` keeps the reasons of faults that are
still there.

With another version of triton, in an environment of its own::

    python3.12 -m venv .venv
    .venv/bin/pip install torch==2.11.0 triton==3.6.0 "numpy<2.4" "setuptools>=64"
    .venv/bin/pip install --no-deps --no-build-isolation -e .
    .venv/bin/python -m flashpoint.kernels.resources
"""

# The private names are for tools that compile other cases.
from .cases import CASES, HOPPER, MAIN, VARIETY, _network, _perceptron  # noqa: F401
from .compilation import Resources, compile_offline
from .launch import Launch, _target, launches, without_launches  # noqa: F401

__all__ = [
    "CASES", "HOPPER", "MAIN", "VARIETY", "Launch", "Resources", "compile_offline", "launches",
    "without_launches",
]  # fmt: skip
