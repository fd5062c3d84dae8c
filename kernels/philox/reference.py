"""Philox 4x32-10 in plain PyTorch; the Triton kernels draw the same integers, bit for bit.

A counter has four 32-bit words::

    word 0, 1   the element (a row of the batch, or a pair of data point and timestep), low and high
    word 2      the step, epoch or refresh number
    word 3      the stream (upper 8 bits) and the block of four output words (lower 24 bits)

and the 64-bit seed is the key.
"""

import math
from enum import IntEnum
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import on_cpu
from .rounds import MASK32, philox_rounds

_BLOCK_BITS = 24  # lower bits of counter word 3, for the block; the stream has the upper ones


class Stream(IntEnum):
    """The purposes of random numbers; different streams are independent."""

    DRAW = 0  # index, timestep and noise of a training row
    NOISE = 1  # noise of a reverse step
    PRIOR = 2  # x_T
    ORDER = 3  # round keys of an epoch's permutation
    SEED = 4  # seeds of the parts of an experiment
    CLASS = 5  # the chance that a training row's class is withheld


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Returns four random words per counter, by ten rounds of Philox 4x32.

    Source: Salmon et al. 2011, section 4.2 and table 2.

    Args:
        counter: int64 [4, ...], each word in [0, 2**32).
        key: int64 [2, ...], each word in [0, 2**32); trailing dimensions broadcast with the
            counter's.

    Returns:
        int64 [4, ...]: four random words in [0, 2**32) for each counter.
    """
    if on_cpu.fits(counter, key):
        return on_cpu.ten_rounds([*counter.numpy()], [*key.numpy()])
    return torch.stack(philox_rounds(counter, key))


def seed_tensor(seed: int | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Returns one seed, or one per model, as int64 [M] on ``device``.

    Raises:
        ValueError: the seed is negative or not an integer.
    """
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() > 1:
            raise ValueError(
                f"seed must be an int or an int64 tensor [M], got {seed.dtype} {list(seed.shape)}"
            )
        return seed.reshape(-1).to(device)
    # This copies nothing to a GPU.
    return torch.full((1,), _checked(seed), dtype=torch.int64, device=device)


def _checked(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer from 0 to 2**63 - 1, got {seed!r}")
    return int(seed)


def seed_of_each(seed: int | Tensor, models: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns the seed of each of M models, int64 [M] on ``device``; all can share one.

    Raises:
        ValueError: a seed is negative or not an integer, or the number of seeds is neither 1 nor M.
    """
    seeds = seed_tensor(seed, device)
    if len(seeds) not in (1, models):
        raise ValueError(f"seed must be one, or one for each of {models} models, got {len(seeds)}")
    return seeds.expand(models)


def random_words(
    seed: Tensor, stream: Stream, step: int | Tensor, element: Tensor, words: int
) -> Tensor:
    """Draws independent 32-bit words for each element.

    Args:
        seed: int64 [M], one per model.
        stream: the purpose of the numbers.
        step: step, epoch or refresh number in [0, 2**32), an int or int64 [M, 1] or [M, R].
        element: int64 [R] or [M, R], the 64-bit identity of each row.
        words: number of words of each row; rounded up to a multiple of four.

    Returns:
        int64 [M, R, words rounded up], values in [0, 2**32).
    """
    elements = element if element.dim() > 1 else element[None]
    planes = _word_planes(seed, stream, step, elements, -(-words // 4))
    return planes.permute(1, 2, 3, 0).flatten(2)


def _word_planes(
    seed: Tensor, stream: Stream, step: int | Tensor, element: Tensor, blocks: int
) -> Tensor:
    """Returns the four words of each block apart, int64 [4, M, R, blocks].

    Seeds are [M], elements [M or 1, R], and steps broadcast with elements.
    """
    if on_cpu.fits(seed, step, element):
        numbers = step.numpy() if isinstance(step, Tensor) else np.array([step])
        block = np.arange(blocks)
        return on_cpu.ten_rounds(
            *_counter_and_key(stream, seed.numpy(), numbers, element.numpy(), block)
        )
    step = step if isinstance(step, Tensor) else element.new_full((1,), step)
    blocks_of_row = torch.arange(blocks, device=element.device)
    return torch.stack(philox_rounds(*_counter_and_key(stream, seed, step, element, blocks_of_row)))


def _counter_and_key(
    stream: Stream, seed: Any, step: Any, element: Any, block: Any
) -> tuple[list[Any], list[Any]]:
    """Returns the words of counters [M, R, blocks] and keys, which broadcast.

    All are tensors or all are numpy's arrays.
    """
    seed = seed[:, None, None]
    element = element[..., None]
    blocks = (int(stream) << _BLOCK_BITS) + block
    counter = [element & MASK32, (element >> 32) & MASK32, step[..., None], blocks]
    return counter, [seed & MASK32, (seed >> 32) & MASK32]


def words_of_one(seed: int, stream: Stream, step: int, element: int, words: int) -> list[int]:
    """Returns the :func:`random_words` of one element, without the cost of tensors.

    Args:
        seed: the seed, from 0 to 2**63 - 1.
        stream: the purpose of the numbers.
        step: step, epoch or refresh number in [0, 2**32).
        element: the 64-bit identity of the row.
        words: number of words; rounded up to a multiple of four.
    """
    key = (seed & MASK32, seed >> 32)
    low, high, stream_bits = element & MASK32, element >> 32, int(stream) << _BLOCK_BITS
    blocks = range(stream_bits, stream_bits + -(-words // 4))
    return [word for block in blocks for word in philox_rounds((low, high, step, block), key)]


def uniform_integers(words: Tensor, n: int | Tensor) -> Tensor:
    """Returns integers in [0, n): the upper halves of the products of 32-bit words and n.

    Args:
        words: int64, values in [0, 2**32).
        n: bound in [1, 2**31], an int or an int64 tensor that broadcasts. The values are uniform
            up to n / 2**32.

    Returns:
        int64, the shape of ``words``.
    """
    return (words * n) >> 32


def uniform(words: Tensor) -> Tensor:
    """Returns numbers in (0, 1), float32: each word chooses the middle of one of 2**24 cells."""
    return (words >> 8).float() * 2.0**-24 + 2.0**-25


def normals(words: Tensor, dim: int | None = None) -> Tensor:
    """Returns standard normal numbers from pairs of words (Box and Muller 1958).

    Args:
        words: int64 [..., W], values in [0, 2**32).
        dim: number of normal numbers per row, computed from its first words; if it is odd, the
            last pair gives one number only. None uses all W words, an even number.

    Returns:
        float32 [..., dim]; the largest possible magnitude is 5.9.
    """
    dim = words.shape[-1] if dim is None else dim
    used = words[..., : dim + dim % 2]
    return on_cpu.box_muller(used, dim) if on_cpu.fits(words) else box_muller(used, dim)


def box_muller(words: Tensor, dim: int) -> Tensor:
    """Returns the :func:`normals` of words in plain PyTorch."""
    pairs = uniform(words).unflatten(-1, (-1, 2))
    radius = torch.sqrt(-2.0 * torch.log(pairs[..., 0]))
    angle = 2.0 * math.pi * pairs[..., 1]
    numbers = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten(-2)
    return numbers[..., :dim]


def normal_rows(
    seed: int | Tensor, stream: Stream, step: int | Tensor, rows: Tensor, dim: int
) -> Tensor:
    """Draws a standard normal vector for each row.

    Args:
        seed: one seed, or int64 [M], one per model.
        stream: the purpose of the numbers.
        step: step, epoch or refresh number in [0, 2**32), an int or int64 [1], [M, 1] or [M, R].
        rows: int64 [R] or [M, R], the 64-bit identity of each row.
        dim: dimension d of a vector.

    Returns:
        float32 [M, R, d].

    Raises:
        ValueError: the seed is negative or not an integer.
    """
    words = random_words(seed_tensor(seed, rows.device), stream, step, rows, dim + dim % 2)
    return normals(words, dim)


def normal_row(
    seed: int, stream: Stream, step: int, row: int, dim: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Draws the vector of one row of :func:`normal_rows`, float32 [d], bit for bit.

    What is exact is computed in Python, where it costs a tenth.
    """
    words = words_of_one(seed, stream, step, row, dim + dim % 2)
    exact = [(word >> 8) * 2.0**-24 + 2.0**-25 for word in words[: dim + dim % 2]]
    pairs = torch.tensor([exact[0::2], exact[1::2]], dtype=torch.float32, device=device)
    radius, angle = torch.sqrt(-2.0 * torch.log(pairs[0])), 2.0 * math.pi * pairs[1]
    numbers = (torch.stack((angle.cos(), angle.sin())) * radius).T.reshape(-1)
    return numbers if dim % 2 == 0 else numbers[:dim]


def child_seed(seed: int, part: int) -> int:
    """Returns the seed of one part of an experiment, independent of the other parts' seeds.

    Args:
        seed: seed of the experiment, from 0 to 2**63 - 1.
        part: number of the part, from 0.
    """
    low, high, *_ = words_of_one(_checked(seed), Stream.SEED, 0, int(part), 2)
    return low | (high & 0x7FFFFFFF) << 32
