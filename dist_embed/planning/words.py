"""How often words occur, in groups of words that are equally likely, and what follows for a step.

A group is a probability and how many words have it. Words of a vocabulary of 10⁹ that follow Zipf's
law are some hundred groups, those that were counted as many as there are different counts. So all
sums over words are short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

# Groups of words by Zipf's law: the first ones alone, then each a little wider than the one before.
_ALONE, _WIDER = 256, 1.05


@dataclass(frozen=True)
class Group:
    """Words that are equally likely.

    Attributes:
        first: the id of the first one; ids are ordered by frequency.
        count: how many.
        probability: of each, among the words of a text.
    """

    first: int
    count: int
    probability: float


Words = Sequence[Group]
# Groups, each with the probability by which a word of it is there.
Asked = Sequence[tuple[Group, float]]


def zipf_words(num_words: int) -> Words:
    """By rank: p(i) ∝ log((i + 2) / (i + 1)), Zipf's law as the log-uniform sampler has it."""
    groups, first, width = [], 0, 1.0
    whole = math.log1p(num_words)
    while first < num_words:
        count = min(num_words - first, max(1, int(width)))
        mass = math.log((first + count + 1) / (first + 1)) / whole
        groups.append(Group(first, count, mass / count))
        first += count
        if first >= _ALONE:
            width = max(width, 1.0 / (_WIDER - 1)) * _WIDER
    return groups


def counted_words(counts: Iterable[tuple[int, int]]) -> Words:
    """From pairs of how often words occur and how many words do, in any order."""
    ordered = sorted(counts, reverse=True)
    total = sum(often * words for often, words in ordered) or 1
    groups, first = [], 0
    for often, words in ordered:
        groups.append(Group(first, words, often / total))
        first += words
    return groups


def rarer(words: Words, first: int) -> Words:
    """Those whose ids are ``first`` and more."""
    ends = [group.first + group.count for group in words]
    return [
        Group(max(group.first, first), end - max(group.first, first), group.probability)
        for group, end in zip(words, ends, strict=True)
        if end > first
    ]


def asked_words(words: Words, draws: float, also: Callable[[Group], float] | None = None) -> Asked:
    """What is among so many independent draws.

    ``also``: the probability by which a word of a group is there anyway, as one of the negatives.
    """
    return [(group, _asked(group, draws, also)) for group in words]


def _asked(group: Group, draws: float, also: Callable[[Group], float] | None) -> float:
    if group.probability >= 1:
        return 1.0 if draws else 0.0
    absent = math.exp(draws * math.log1p(-group.probability))
    return 1.0 - absent * (1.0 - also(group) if also else 1.0)


def sampled(
    words: Words, samples: int, weight: Callable[[Group], float]
) -> Callable[[Group], float]:
    """The probability by which a word of a group is among ``samples`` different ones, drawn in
    proportion to ``weight``, which falls from group to group.

    As `model.sampler` draws: none is more likely than 1, and all add up to ``samples``.
    """
    certain, rest = 0, math.fsum(weight(group) * group.count for group in words)
    for group in words:
        if rest <= 0 or weight(group) * (samples - certain) < rest:
            break
        certain += group.count
        rest -= weight(group) * group.count
    scale = max(0, samples - certain) / rest if rest > 0 else 0.0
    return lambda group: 1.0 if group.first < certain else min(1.0, scale * weight(group))


def by_rank(group: Group) -> float:
    """A weight: that of a word by Zipf's law, whatever was counted."""
    return math.log((group.first + group.count + 1) / (group.first + 1)) / group.count
