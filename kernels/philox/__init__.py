"""Counter-based randomness: every value is a pure function of (seed, stream, step, element).

Nothing here has state, so a run can be resumed, sharded over devices or replayed on another
backend and still see the same numbers.

* :func:`philox4x32` is the generator of Salmon et al., "Parallel random numbers: as easy as
  1, 2, 3" (SC 2011), the same as Triton's ``tl.randint4x``.
* :func:`random_words` lays its output out as one row of 32-bit words per element.
* :func:`uniform_integers`, :func:`uniform` and :func:`normals` turn words into timesteps,
  indices, chances and noise.
* :func:`permute` is a keyed bijection of [0, n): an epoch's order that needs no memory.
"""

from .permutation import permute
from .reference import (
    Stream,
    child_seed,
    normals,
    philox4x32,
    random_words,
    seed_of_each,
    seed_tensor,
    uniform,
    uniform_integers,
)

__all__ = [
    "Stream",
    "child_seed",
    "normals",
    "permute",
    "philox4x32",
    "random_words",
    "seed_of_each",
    "seed_tensor",
    "uniform",
    "uniform_integers",
]
