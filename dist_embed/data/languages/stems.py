"""Stems of invented languages: their letters, a number spelled in syllables, and how often which
one is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# A syllable is an onset and a vowel.
ONSETS = [*"bdfgklmnprstvz", "br", "dr", "gr", "kl", "pl", "sk", "st", "tr"]
OTHER_ONSETS = [*"bcdfghjlmnpqrtvwx", "ch", "dw", "sh", "th"]  # of a language beside it
VOWELS = "aeiou"

# So that no stem is as short as the words of one syllable that hold sentences together.
_FEWEST_SYLLABLES = 2


def spelled(numbers: NDArray[np.int64], onsets: list[str], vowels: str) -> Any:
    """[n] strings: each of ``numbers``, which are below n, in the number system of the syllables.

    Different numbers give different stems, all of equally many syllables. A syllable ends with its
    only vowel, so a word tells where its stem ends, and stem + ending is never that of another stem
    or ending.
    """
    syllables = pa.array([onset + vowel for onset in onsets for vowel in vowels])
    base, length = len(syllables), _FEWEST_SYLLABLES
    while base**length < len(numbers):
        length += 1
    digits = [numbers // base**place % base for place in reversed(range(length))]
    return pc.binary_join_element_wise(*[syllables.take(pa.array(d)) for d in digits], "")


def zipf_bounds(count: int, exponent: float) -> NDArray[np.float64]:
    """[count - 1] where [0, 1) is to be cut so that part i has a share ∝ 1 / (i + 1)^exponent.

    ``np.searchsorted(bounds, rng.random(n), side="right")`` draws by Zipf's law (Zipf 1949).
    """
    total = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -exponent)
    bounds: NDArray[np.float64] = (total / total[-1])[:-1]
    return bounds
