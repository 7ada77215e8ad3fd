"""How well a translation hits its reference's words, by how often training has seen them.

A word is what stands between spaces.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The highest count of each bin; one more bin holds all words above.
HIGHEST = (0, 2, 5, 20, 100, 1000)


@dataclass(frozen=True)
class Recall:
    """One bin of words.

    Attributes:
        least: lowest count in the training text.
        most: highest count; None: no limit.
        words: such words in the references, each as often as it stands there.
        found: how many of them stand in the translation of their sentence.
    """

    least: int
    most: int | None
    words: int
    found: int

    @property
    def share(self) -> float | None:
        """Found words per word; None where there is no word."""
        return self.found / self.words if self.words else None


def recall_by_count(
    translations: Sequence[str], references: Sequence[str], counts: Mapping[str, int]
) -> list[Recall]:
    """The bins, rarest first.

    A reference word counts as found at most as often as its sentence's translation has it.

    Args:
        translations: one for each reference.
        references: the right answers.
        counts: how often a word occurs in the training text; words that are missing never do.
    """
    words, found = [0] * (len(HIGHEST) + 1), [0] * (len(HIGHEST) + 1)
    for translation, reference in zip(translations, references, strict=True):
        there = Counter(translation.split())
        for word, times in Counter(reference.split()).items():
            place = bisect_left(HIGHEST, counts.get(word, 0))
            words[place] += times
            found[place] += min(times, there[word])
    least = (0, *(count + 1 for count in HIGHEST))
    return [
        Recall(*bounds, *numbers)
        for bounds, numbers in zip(
            zip(least, (*HIGHEST, None), strict=True), zip(words, found, strict=True), strict=True
        )
    ]
