"""The rounds of Philox 4x32 in their plain form, on tensors and Python's integers, and constants.

Source: Salmon et al. 2011, section 4.2 and table 2.
"""

from collections.abc import Iterable
from typing import Any

MASK32 = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

# The round function of an epoch's order: shifts and multipliers, and the last shift.
MIXING = ((16, 0x7FEB352D), (15, 0x846CA68B))
LAST_SHIFT = 16


def philox_rounds(
    counter: Iterable[Any], key: Iterable[Any], rounds: int = ROUNDS
) -> tuple[Any, Any, Any, Any]:
    """Returns the four words of each counter after some rounds, each word in [0, 2**32).

    Args:
        counter: four words of any one kind that broadcast, each in [0, 2**32).
        key: the two words of the first round's key, likewise.
        rounds: number of rounds.
    """
    word_0, word_1, word_2, word_3 = counter
    key_0, key_1 = key
    for _ in range(rounds):
        # A 64-bit product wraps, but its bits are those of the unsigned product. Odd words and
        # keys keep bits above the lower 32; masking the even words drops them.
        product_0, product_2 = word_0 * MULTIPLIERS[0], word_2 * MULTIPLIERS[1]
        word_0, word_1 = ((product_2 >> 32) ^ word_1 ^ key_0) & MASK32, product_2
        word_2, word_3 = ((product_0 >> 32) ^ word_3 ^ key_1) & MASK32, product_0
        key_0, key_1 = key_0 + WEYL[0], key_1 + WEYL[1]
    return word_0, word_1 & MASK32, word_2, word_3 & MASK32
