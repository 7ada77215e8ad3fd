"""All entries of a file of vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dist_embed.vectors.file import VectorFile


def read(file: VectorFile, num_parts: int = 1) -> tuple[list[str], NDArray[np.float32]]:
    """Every entry, as the workers together see them, brought into the file's order."""
    entries: list[tuple[int, str, NDArray[np.float32]]] = []
    for part in range(num_parts):
        last = -1
        for segment in file.segments(part, num_parts):
            assert segment.origin > last
            last = segment.origin + len(segment.words) - 1
            rows = segment.vectors(range(len(segment.words)))
            entries += [
                (segment.origin + n, word, row)
                for n, (word, row) in enumerate(zip(segment.words, rows, strict=True))
            ]
    entries.sort(key=lambda entry: entry[0])
    assert len({number for number, _, _ in entries}) == len(entries)
    return [word for _, word, _ in entries], np.array([row for _, _, row in entries])
