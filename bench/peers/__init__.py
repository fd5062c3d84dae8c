"""The competitors of ours, each doing the same work in its own best way.

* :mod:`.eager`: ordinary PyTorch with fused AdamW.
* :mod:`.compiled`: the same through ``torch.compile``, in its default mode, with its CUDA graphs
  (``reduce-overhead``), and captured by hand.
* :mod:`.graph`: eager PyTorch, captured in a CUDA graph by hand.
* :mod:`.jax_scan`: JAX, the whole loop one ``lax.scan`` under ``jit`` (optional: the extra
  ``bench``).
* :mod:`.states_script`: the structure of a classic script for this experiment.
"""

import os
from collections.abc import Callable
from functools import partial

import torch

from ..problem import Problem
from .base import Peer
from .compiled import Compiled, CompiledGraph
from .eager import Eager
from .graph import Graph
from .states_script import StatesScript


def _jax(*arguments) -> Peer:
    # By default JAX reserves three quarters of the GPU's memory, which the others need too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from .jax_scan import JaxScan  # only this peer needs jax

    return JaxScan(*arguments)


# Functions that make the peers, by name: (problem, device, precision) -> Peer.
PEERS: dict[str, Callable[[Problem, torch.device, str], Peer]] = {
    "eager": Eager,
    "graph": Graph,
    "compile": Compiled,
    "compile reduce-overhead": partial(Compiled, mode="reduce-overhead"),
    "compile graph": CompiledGraph,
    "jax": _jax,
    "states script": StatesScript,
}
GPU_ONLY = ("graph", "compile graph")  # there are no CUDA graphs elsewhere

__all__ = ["GPU_ONLY", "PEERS", "Peer"]
