"""Philox on a CPU: the numbers of the plain forms, bit for bit, in a fraction of the time.

Two things make the plain forms slow on a CPU: PyTorch emulates products and shifts of 64-bit
integers, and each of a hundred operations takes fresh memory. Here numpy computes in blocks that
stay in a core's cache, in place. Every call has buffers of its own, so threads do not meet.
"""

import math
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .._dispatch import onlooker
from .rounds import MASK32, MULTIPLIERS, ROUNDS, WEYL

_BLOCK = 16384
_LOWER, _UPPER = (0, 1) if sys.byteorder == "little" else (1, 0)
_MASK = np.array(MASK32, np.uint64)
_MULTIPLIER_0, _MULTIPLIER_1 = (np.array(each, np.uint64) for each in MULTIPLIERS)
_WEYL_OF_ROUNDS = np.outer(np.arange(ROUNDS), WEYL).astype(np.uint64)  # [rounds, 2]
_LEAST = 512  # from so many counters of a key on, the key is a scalar rather than an array
_CELL, _HALF_CELL = np.array(2.0**-24, np.float32), np.array(2.0**-25, np.float32)
_MINUS_TWO, _TURN = np.array(-2, np.float32), np.array(2 * math.pi, np.float32)


def fits(*tensors: object) -> bool:
    """Returns True if numpy may compute on the tensors: no GPU, compiler or transform is behind."""
    if torch.compiler.is_compiling() or onlooker() is not None:
        return False
    given = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
    return all(type(tensor) is Tensor and tensor.device.type == "cpu" for tensor in given)


def ten_rounds(counter: Sequence[np.ndarray], key: Sequence[np.ndarray]) -> Tensor:
    """Returns the :func:`~.rounds.philox_rounds` of counters, int64 [4, ...].

    Args:
        counter: four arrays of int64 that broadcast with each other and the key.
        key: two arrays of int64 of one shape, likewise.
    """
    shape = np.broadcast(*counter, *key).shape
    words = np.empty((4, *shape), np.int64)
    for number, word in enumerate(counter):
        words[number] = word
    models, columns = 1, words[0].size
    if key[0].size > 1:
        if key[0].shape == (shape[0],) + (1,) * len(shape[1:]) and columns >= _LEAST * shape[0]:
            models, columns = shape[0], columns // shape[0]
        else:
            key = [np.broadcast_to(word, shape) for word in key]  # one for each counter
    flat = words.view(np.uint64).reshape(4, models, columns)
    keys = np.stack(key).view(np.uint64).reshape(2, models, -1)  # [2, models, 1 or columns]
    for model in range(models):
        for start in range(0, columns, _BLOCK):
            block = slice(start, start + _BLOCK)
            one = keys.shape[2] == 1
            _rounds_in_cache(flat[:, model, block], keys[:, model, 0 if one else block])
    return torch.from_numpy(words)


def _rounds_in_cache(words: np.ndarray, key: np.ndarray) -> None:
    """Runs the ten rounds in place on words [4, n] with keys [2] or [2, n], all uint64.

    Words 0 and 2 lie side by side, and so do words 1 and 3: where both are treated alike, one call
    serves both. They are lower halves of 64 bits, which are reached as every other number of 32
    bits. Words 0 and 2 need upper halves of zero, for their products. Words 1 and 3 are lower
    halves of the products before, and stay where they are.
    """
    n = words.shape[1]
    even, odd, products = np.empty((3, 2 * n), np.uint64)
    even_0, even_2 = even[:n], even[n:]
    even_0[:], even_2[:], odd[:n], odd[n:] = words[0], words[2], words[1], words[3]
    lower_even = even.view(np.uint32)[_LOWER::2]
    weyl = _WEYL_OF_ROUNDS if key.ndim == 1 else _WEYL_OF_ROUNDS[..., None]
    keys = (key + weyl) & _MASK  # [rounds, 2] or [rounds, 2, n]
    for number in range(ROUNDS):
        np.multiply(even_2, _MULTIPLIER_1, products[:n])
        np.multiply(even_0, _MULTIPLIER_0, products[n:])
        upper, lower_odd = products.view(np.uint32)[_UPPER::2], odd.view(np.uint32)[_LOWER::2]
        np.bitwise_xor(upper, lower_odd, lower_even)
        np.bitwise_xor(even_0, keys[number, 0, ...], even_0)  # numbers of no dimension are fast
        np.bitwise_xor(even_2, keys[number, 1, ...], even_2)
        odd, products = products, odd
    words[0], words[2] = even_0, even_2
    np.bitwise_and(odd[:n], _MASK, words[1])
    np.bitwise_and(odd[n:], _MASK, words[3])


def box_muller(words: Tensor, dim: int) -> Tensor:
    """Returns ``dim`` standard normal numbers from each row of words, float32 [..., dim].

    Args:
        words: int64 [..., dim rounded up to even], values in [0, 2**32).
        dim: number of normal numbers of a row.
    """
    numbers = torch.empty((*words.shape[:-1], dim), dtype=torch.float32, device="cpu")
    if numbers.numel() == 0:
        return numbers
    pairs = words.numpy().reshape(-1, words.shape[-1] // 2, 2).transpose(2, 0, 1)  # [2, R, pairs]
    flat = numbers.numpy().reshape(-1, dim)
    rows = max(1, _BLOCK // pairs.shape[2])
    for row in range(0, len(flat), rows):
        some = slice(row, row + rows)
        _box_muller_in_cache(pairs[:, some], flat[some])
    return numbers


def _box_muller_in_cache(pairs: np.ndarray, numbers: np.ndarray) -> None:
    """Writes the normal numbers [r, dim] of pairs of words [2, r, p].

    PyTorch computes the functions whose last bit is a library's choice; numpy does what is exact
    or rounded the same everywhere.
    """
    n, shape, odd = pairs[0].size, pairs[0].shape, numbers.shape[1] // 2
    both = torch.empty(2 * n, dtype=torch.float32, device="cpu")
    radius, angle = both[:n], both[n:]
    uniform = both.numpy()
    uniform[:] = (pairs >> 8).reshape(-1)
    uniform *= _CELL
    uniform += _HALF_CELL
    torch.log(radius, out=radius)
    uniform[:n] *= _MINUS_TWO
    torch.sqrt(radius, out=radius)
    uniform[n:] *= _TURN
    sine = angle.sin().numpy()
    cosine = torch.cos(angle, out=angle).numpy()
    cosine *= uniform[:n]
    sine *= uniform[:n]
    numbers[:, 0::2] = cosine.reshape(shape)
    numbers[:, 1::2] = sine.reshape(shape)[:, :odd]
