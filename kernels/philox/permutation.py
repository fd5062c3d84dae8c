"""A keyed bijection of [0, n): the order of an epoch as a function, not a table."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import on_cpu, walk
from .reference import Stream, random_words, words_of_one
from .rounds import LAST_SHIFT, MASK32, MIXING

_FEISTEL_ROUNDS = 8


def permute(index: Tensor, n: int | Sequence[int], seed: Tensor, epoch: int | Tensor) -> Tensor:
    """Returns the elements at these positions of a keyed order of [0, n).

    All n positions together give each element exactly once. A Feistel network over the smallest
    power of two that holds n, its halves updated in turn, is a bijection whatever the round
    function. Values outside [0, n) walk along their cycle until they are back inside (Black and
    Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). The power of two is less than
    2n, so fewer than two passes are expected.

    Args:
        index: int64 [R] or [M, R], positions in [0, n).
        n: size of the domain, 1 to 2**62, one for all models or one for each.
        seed: int64 [M], one per model.
        epoch: epoch number in [0, 2**32), an int or int64 [M, 1].

    Returns:
        int64 [M, R], values in [0, n).

    Raises:
        ValueError: n is out of range.
    """
    sizes = [n] if isinstance(n, int) else list(n)
    for size in sizes:
        if not 1 <= size <= 2**62:
            raise ValueError(f"n must be from 1 to 2**62, got {size}")
    domains = [domain(size) for size in sizes]
    index = index.expand(seed.shape[0], -1)
    rounds = torch.arange(_FEISTEL_ROUNDS // 4, device=index.device)
    keys = random_words(seed, Stream.ORDER, epoch, rounds, 4).flatten(1)  # [M, rounds]
    if on_cpu.fits(index, keys):
        return walk.permute(index, domains if len(domains) > 1 else domains * len(index), keys)
    return plain_permute(index, domains, keys)


def plain_permute(
    index: Tensor, domains: Sequence[tuple[int, int, int, int]], keys: Tensor
) -> Tensor:
    """Returns the :func:`permute` of positions [M, R] in plain PyTorch, with keys [M, rounds].

    Domains, of all models or of each, are their size, bits of the lower half, and two masks.
    """
    numbers: Iterable[int] | Tensor = domains[0]
    if len(set(domains)) > 1:  # otherwise ints do, and no step has to make a tensor
        numbers = torch.tensor(domains, device=index.device).T[..., None]  # each [M, 1]
    bound, *halves = numbers
    key_of_rounds = keys[..., None].unbind(1)
    value = _feistel(index, key_of_rounds, *halves)
    while (outside := value >= bound).any():
        value = torch.where(outside, _feistel(value, key_of_rounds, *halves), value)
    return value


def permute_one(index: int, n: int, keys: Sequence[int]) -> int:
    """Returns the :func:`permute` of one position, without the cost of tensors.

    Args:
        index: position in [0, n).
        n: size of the domain, 1 to 2**62.
        keys: the :func:`order_keys` of the order.
    """
    _, *halves = domain(n)
    value = _feistel(index, keys, *halves)
    while value >= n:
        value = _feistel(value, keys, *halves)
    return value


def order_keys(seed: int, epoch: int) -> list[int]:
    """Returns the keys of the order that :func:`permute` gives for a seed and an epoch."""
    rounds = range(_FEISTEL_ROUNDS // 4)
    return [key for row in rounds for key in words_of_one(seed, Stream.ORDER, epoch, row, 4)]


def domain(n: int) -> tuple[int, int, int, int]:
    """Returns n, the number of bits of the lower half of n - 1, and the masks of both halves."""
    bits = (n - 1).bit_length()
    low_bits = bits // 2
    return n, low_bits, (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1


def _feistel(
    value: Any,
    keys: Iterable[Any],
    low_bits: int | Tensor,
    low_mask: int | Tensor,
    high_mask: int | Tensor,
) -> Any:
    """Runs the network once over [0, 2**bits), on tensors or on Python's integers.

    The halves are described by ints or by [M, 1], each key is an int or [M, 1].
    """
    high, low = value >> low_bits, value & low_mask  # [M, R]
    for round_number, key in enumerate(keys):
        if round_number % 2 == 0:
            high = high ^ (_mix(low, key) & high_mask)
        else:
            low = low ^ (_mix(high, key) & low_mask)
    return high << low_bits | low


def _mix(x: Any, key: Any) -> Any:
    """Hashes 32-bit integers; every output bit depends on every input bit."""
    x = (x + key) & MASK32
    for shift, multiplier in MIXING:
        x = ((x ^ (x >> shift)) * multiplier) & MASK32
    return x ^ (x >> LAST_SHIFT)
