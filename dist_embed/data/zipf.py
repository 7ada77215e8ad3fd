"""Words as frequent as in a natural text, for measurements without one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def zipf(draw: np.random.Generator, num_words: int, count: int) -> NDArray[np.int32]:
    """``count`` ids with p(i) ∝ log((i + 2) / (i + 1)), most frequent first."""
    ids = np.exp(draw.random(count) * np.log(num_words + 1)).astype(np.int64) - 1
    return ids.clip(0, num_words - 1).astype(np.int32)


def zipf_probability(ids: NDArray[np.int64], num_words: int) -> NDArray[np.float64]:
    """p(i) of ``ids``, same shape."""
    return np.log1p(1 / (ids + 1.0)) / np.log1p(num_words)
