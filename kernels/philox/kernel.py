"""Philox 4x32-10 as device functions, which draw the integers of :mod:`.reference`.

``tl.philox`` is Philox 4x32 only with 32-bit counters; with 64-bit counters it becomes 4x64.
"""

import triton
import triton.language as tl

from .permutation import _FEISTEL_ROUNDS
from .reference import _BLOCK_BITS, Stream

# The values of :class:`Stream` that kernels use.
DRAW = tl.constexpr(int(Stream.DRAW))
NOISE = tl.constexpr(int(Stream.NOISE))
PRIOR = tl.constexpr(int(Stream.PRIOR))
ORDER = tl.constexpr(int(Stream.ORDER))
CLASS = tl.constexpr(int(Stream.CLASS))

_STREAM_SHIFT = tl.constexpr(_BLOCK_BITS)
_KEY_BLOCKS = tl.constexpr(_FEISTEL_ROUNDS // 4)


@triton.jit
def random_words(seed, STREAM: tl.constexpr, step, element, block):
    """Draws words 4 block ... 4 block + 3 of each element.

    Args:
        seed: int64 scalar.
        STREAM: the purpose of the numbers.
        step: step, epoch or refresh number, a scalar below 2**32.
        element: int64, the identity of each row.
        block: number of the four words, a scalar.

    Returns:
        Four uint32 tensors of the shape of ``element``.
    """
    low = element.to(tl.uint32)
    high = (element >> 32).to(tl.uint32)
    zero = low * 0
    step = (zero + step).to(tl.uint32)
    stream_and_block = (zero + ((STREAM << _STREAM_SHIFT) + block)).to(tl.uint32)
    return tl.philox(seed, low, high, step, stream_and_block)


@triton.jit
def uniform_integers(word, n):
    """Returns integers in [0, n), int64, from uint32 words; n is at most 2**31."""
    return tl.umulhi(word, word * 0 + n.to(tl.uint32)).to(tl.int64)


@triton.jit
def uniform(word):
    """Returns numbers in (0, 1), fp32: each word chooses the middle of one of 2**24 cells."""
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08 + 2.98023223876953125e-08


@triton.jit
def normals(word_0, word_1):
    """Returns two standard normal numbers from two words (Box and Muller 1958), fp32."""
    radius = tl.sqrt_rn(-2.0 * tl.log(uniform(word_0)))
    cosine, sine = _turn(uniform(word_1))
    return radius * cosine, radius * sine


@triton.jit
def _turn(u):
    """Returns cosine and sine of 2 pi u for u in (0, 1), to fp32 rounding.

    The polynomials are those of Cephes (Moshier 1989) for a quarter turn around 0. The sine of
    libdevice also reduces huge angles, which takes a stack frame and most of its instructions.
    """
    quarter = tl.floor(4 * u + 0.5)  # 0 ... 4
    angle = (u - 0.25 * quarter) * 6.283185307179586
    square = angle * angle
    sine = 8.3321608736e-3 - square * 1.9515295891e-4
    sine = angle + angle * square * (square * sine - 1.6666654611e-1)
    cosine = square * 2.443315711809948e-5 - 1.388731625493765e-3
    cosine = 1 - 0.5 * square + square * square * (square * cosine + 4.166664568298827e-2)
    odd = (quarter == 1) | (quarter == 3)
    upside_down = (quarter == 2) | (quarter == 3)
    mirrored = (quarter == 1) | (quarter == 2)
    cosine, sine = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return tl.where(mirrored, -cosine, cosine), tl.where(upside_down, -sine, sine)


@triton.jit
def normal_pair(seed, STREAM: tl.constexpr, step, element, pair):
    """Draws the two normal numbers from words 2 pair and 2 pair + 1 of each element."""
    word_0, word_1, word_2, word_3 = random_words(seed, STREAM, step, element, pair // 2)
    second = pair % 2 == 1
    return normals(tl.where(second, word_2, word_0), tl.where(second, word_3, word_1))


@triton.jit
def normal_columns(seed, STREAM: tl.constexpr, step, element, first_pair, PAIRS: tl.constexpr):
    """Draws PAIRS pairs of normal numbers from ``first_pair`` on, [elements, 2 PAIRS]."""
    pair = first_pair + tl.arange(0, PAIRS)
    z_0, z_1 = normal_pair(seed, STREAM, step, element[:, None], pair[None, :])
    return tl.interleave(z_0, z_1)


@triton.jit
def permute(index, n, seed, epoch):
    """Returns the elements at these positions of a keyed order of [0, n).

    Args:
        index: int64, positions in [0, n).
        n: size of the domain, an int64 scalar up to 2**62.
        seed: int64 scalar.
        epoch: epoch number, a scalar below 2**32.

    Returns:
        int64, values in [0, n), the same as :func:`~.permutation.permute`.
    """
    one = tl.cast(1, tl.int64)
    bits = 0  # of n - 1
    while (one << bits) < n:
        bits += 1
    value = _feistel(index, bits, seed, epoch)
    while tl.max((value >= n).to(tl.int32), axis=0) > 0:
        value = tl.where(value >= n, _feistel(value, bits, seed, epoch), value)
    return value


@triton.jit
def _feistel(value, bits, seed, epoch):
    """Runs the network once over [0, 2**bits); the halves have at most 31 bits."""
    low_bits = bits // 2
    one = tl.cast(1, tl.int64)
    low_mask = ((one << low_bits) - 1).to(tl.uint32)
    high_mask = ((one << (bits - low_bits)) - 1).to(tl.uint32)
    high = (value >> low_bits).to(tl.uint32)
    low = value.to(tl.uint32) & low_mask
    for block in tl.static_range(_KEY_BLOCKS):
        key_0, key_1, key_2, key_3 = random_words(seed, ORDER, epoch, one * block, 0)
        high = high ^ (_mix(low, key_0) & high_mask)
        low = low ^ (_mix(high, key_1) & low_mask)
        high = high ^ (_mix(low, key_2) & high_mask)
        low = low ^ (_mix(high, key_3) & low_mask)
    return (high.to(tl.int64) << low_bits) | low.to(tl.int64)


@triton.jit
def _mix(x, key):
    """Hashes 32-bit integers; every output bit depends on every input bit."""
    x = x + key
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)
