"""A model of fastText, field by field."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WIDTH, BUCKETS, SHORTEST, LONGEST = 3, 11, 2, 4
# The model's list; the rest of the vocabulary is not in it.
LISTED = ["</s>", "the", "naïve", "東京", "a", "Straße"]


def model(
    words: Sequence[str | bytes] = LISTED,
    *,
    labels: Sequence[str] = ("__label__x",),
    width: int = WIDTH,
    buckets: int = BUCKETS,
    lengths: tuple[int, int] = (SHORTEST, LONGEST),
    version: int = 12,
    num_words: int | None = None,
    num_pruned: int = -1,
    quantised: bool = False,
    shape: tuple[int, int] | None = None,
    matrix: NDArray[np.float32] | None = None,
    output: bool = True,
) -> bytes:
    settings = [width, 5, 1, 1, 5, 1, 2, 2, buckets, *lengths, 100]
    parts = [struct.pack("<ii12id", 793712314, version, *settings, 1e-4)]
    told = len(words) if num_words is None else num_words
    parts.append(struct.pack("<iiiqq", len(words) + len(labels), told, len(labels), 99, num_pruned))
    for kind, names in enumerate((words, labels)):
        for name in names:
            raw = name.encode() if isinstance(name, str) else name
            parts.append(raw + b"\0" + struct.pack("<qb", 7, kind))
    values = rows_of_model(len(words) + buckets, width) if matrix is None else matrix
    parts.append(struct.pack("<?qq", quantised, *(shape or values.shape)) + values.tobytes())
    if output:
        parts.append(struct.pack("<?qq", False, 2, width) + bytes(8 * width))
    return b"".join(parts)


def rows_of_model(count: int, width: int = WIDTH) -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal((count, width)).astype("<f4")
