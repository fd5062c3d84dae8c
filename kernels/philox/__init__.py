"""Counter-based randomness: every number is a pure function of (seed, stream, step, element).

No generator has a state, so a run can be resumed, sharded over devices or replayed on another
backend and still sees the same numbers.

* :func:`philox4x32` is the generator of Salmon et al., "Parallel random numbers: as easy as
  1, 2, 3" (SC 2011), the same as Triton's ``tl.randint4x``.
* :func:`random_words` lays its output out as one row of 32-bit words per element.
* :func:`uniform_integers`, :func:`uniform` and :func:`normals` turn words into indices and
  timesteps, numbers in (0, 1), and noise.
* :func:`normal_rows` draws the noise of rows in one call.
* :func:`permute` is a keyed bijection of [0, n): the order of an epoch, without a table.
* :func:`words_of_one`, :func:`normal_row` and :func:`permute_one` give the same for one element in
  Python, where tensors would cost many times as much.

On a CPU numpy computes them, in :mod:`.on_cpu` and :mod:`.walk`; elsewhere, and where a compiler or
a transform must see each operation, the plain forms do.
"""

from .permutation import order_keys, permute, permute_one
from .reference import (
    Stream,
    child_seed,
    normal_row,
    normal_rows,
    normals,
    philox4x32,
    random_words,
    seed_of_each,
    seed_tensor,
    uniform,
    uniform_integers,
    words_of_one,
)

__all__ = [
    "Stream",
    "child_seed",
    "normal_row",
    "normal_rows",
    "normals",
    "order_keys",
    "permute",
    "permute_one",
    "philox4x32",
    "random_words",
    "seed_of_each",
    "seed_tensor",
    "uniform",
    "uniform_integers",
    "words_of_one",
]
