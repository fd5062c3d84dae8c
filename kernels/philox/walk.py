"""The keyed order of an epoch on a CPU: the numbers of the plain form, in a fraction of the time.

Halves of 32 bits wrap by themselves, in numpy's unsigned integers, and only the values that are
still outside walk on.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .rounds import LAST_SHIFT, MIXING

_BLOCK = 16384  # values at once, whose halves stay in a core's cache
# Numbers of no dimension, which numpy's functions take faster than Python's.
_MIXING = [tuple(np.array(number, np.uint32) for number in pair) for pair in MIXING]
_LAST_SHIFT = np.array(LAST_SHIFT, np.uint32)


def permute(index: Tensor, domains: Sequence[tuple[int, int, int, int]], keys: Tensor) -> Tensor:
    """Returns the :func:`~.permutation.permute` of positions, int64 [M, R].

    Args:
        index: int64 [M, R], positions in the domain of each model.
        domains: size, bits of the lower half, and masks of both halves; one for each model.
        keys: int64 [M, rounds], the keys of each model's order.
    """
    models, rows = index.shape
    sizes = np.array([domain[:2] for domain in domains], np.int64).T  # [2, M]
    words = np.array([domain[2:] for domain in domains], np.uint32).T
    words = np.concatenate((words, keys.numpy().T.astype(np.uint32)))  # [2 + rounds, M]
    values = index.numpy().reshape(-1).copy()
    model = np.repeat(np.arange(models), rows)
    for start in range(0, len(values), _BLOCK):
        block = slice(start, start + _BLOCK)
        _walk(values[block], model[block] if models > 1 else None, sizes, words)
    return torch.from_numpy(values.reshape(models, rows))


def _walk(
    values: np.ndarray, model: np.ndarray | None, sizes: np.ndarray, words: np.ndarray
) -> None:
    """Leads values [n] of these models along their cycles in place, until all are inside."""
    outside = np.arange(len(values))
    while outside.size:
        which = 0 if model is None else model[outside]
        moved = _feistel(values[outside], sizes[1, which], words[:, which])
        values[outside] = moved
        outside = outside[moved >= sizes[0, which]]


def _feistel(values: np.ndarray, low_bits: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Runs the network once; ``low_bits`` and each of ``words`` are of all values or [n]."""
    low_mask, high_mask = words[0, ...], words[1, ...]
    high = (values >> low_bits).astype(np.uint32)
    low = values.astype(np.uint32) & low_mask
    mixed, shifted = np.empty((2, len(values)), np.uint32)
    for number in range(2, len(words)):
        np.add(low, words[number, ...], mixed)
        for shift, multiplier in _MIXING:
            np.right_shift(mixed, shift, shifted)
            np.bitwise_xor(mixed, shifted, mixed)
            np.multiply(mixed, multiplier, mixed)
        np.right_shift(mixed, _LAST_SHIFT, shifted)
        np.bitwise_xor(mixed, shifted, mixed)
        np.bitwise_and(mixed, high_mask, mixed)
        np.bitwise_xor(high, mixed, high)
        # The next round updates the other half.
        high, low, high_mask, low_mask = low, high, low_mask, high_mask
    return high.astype(np.int64) << low_bits | low
