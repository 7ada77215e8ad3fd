"""Two texts whose lines belong together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from dist_embed.data.text.lines import lines_of
from dist_embed.data.text.rows import CorpusError, Pair, WrongRow


def aligned_lines(
    source: IO[bytes], target: IO[bytes], names: tuple[str, str], limit: int
) -> Iterator[Pair | WrongRow]:
    """Pairs of the lines of two open files. Raises CorpusError where one of them has more."""
    sides = [
        lines_of(file, name, limit) for file, name in zip((source, target), names, strict=True)
    ]
    count = 0
    while True:
        left, right = (next(side, None) for side in sides)
        if left is None or right is None:
            break
        count += 1
        if isinstance(left, WrongRow):
            yield left
        elif isinstance(right, WrongRow):
            yield right
        else:
            yield left, right
    left_count, right_count = (
        count + (one is not None) + sum(1 for _ in side)
        for one, side in zip((left, right), sides, strict=True)
    )
    if left_count != right_count:
        raise CorpusError(
            f"source and target differ in length: {names[0]} has {left_count} lines, "
            f"{names[1]} has {right_count}"
        )
