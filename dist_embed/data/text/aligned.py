"""Two texts whose lines belong together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
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
    counts = [count, count]
    for place, rest in enumerate((left, right)):
        for line in chain([] if rest is None else [rest], sides[place]):
            counts[place] += 1
            if isinstance(line, WrongRow):  # which may have no end
                yield line
    if counts[0] != counts[1]:
        raise CorpusError(
            f"source and target differ in length: {names[0]} has {counts[0]} lines, "
            f"{names[1]} has {counts[1]}"
        )
