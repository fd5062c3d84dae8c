"""A keyed bijection of [0, n): the order of an epoch as a function, not a table."""

import torch
from torch import Tensor

from .reference import _MASK32, Stream, random_words

_FEISTEL_ROUNDS = 8


def permute(index: Tensor, n: int, seed: Tensor, epoch: int) -> Tensor:
    """Where each position of an epoch's order points to; every value of [0, n) exactly once.

    A Feistel network over the smallest power of two that holds n, its halves updated in turn, is
    a bijection whatever the round function; values that fall outside [0, n) walk along their
    cycle until they are back inside (Black and Rogaway, "Ciphers with arbitrary finite domains",
    CT-RSA 2002). The domain is less than 2n, so fewer than two passes are expected.

    Args:
        index: int64 [R] or [M, R], positions in [0, n).
        n: size of the domain, 1 to 2**62.
        seed: int64 [M], one per model.
        epoch: epoch number in [0, 2**32).

    Returns:
        int64 [M, R], values in [0, n).

    Raises:
        ValueError: n is out of range.
    """
    if not 1 <= n <= 2**62:
        raise ValueError(f"n must be from 1 to 2**62, got {n}")
    rounds = torch.arange(_FEISTEL_ROUNDS // 4, device=index.device)
    keys = random_words(seed, Stream.ORDER, epoch, rounds, 4).flatten(1)  # [M, rounds]
    value = _feistel(index.expand(seed.shape[0], -1), n, keys)
    while (outside := value >= n).any():
        value = torch.where(outside, _feistel(value, n, keys), value)
    return value


def _feistel(value: Tensor, n: int, keys: Tensor) -> Tensor:
    """One pass of the network over [0, 2**bits), bits being what n - 1 needs."""
    bits = (n - 1).bit_length()
    low_bits = bits // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    high, low = value >> low_bits, value & low_mask  # [M, R]
    for round_number, key in enumerate(keys.unbind(1)):
        if round_number % 2 == 0:
            high = high ^ (_mix(low, key[:, None]) & high_mask)
        else:
            low = low ^ (_mix(high, key[:, None]) & low_mask)
    return high << low_bits | low


def _mix(x: Tensor, key: Tensor) -> Tensor:
    """A 32-bit integer hash whose every output bit depends on every input bit."""
    x = (x + key) & _MASK32
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * multiplier) & _MASK32
    return x ^ (x >> 16)
