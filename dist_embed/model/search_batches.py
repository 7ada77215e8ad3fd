"""Which sentences are searched together: as many as a budget of tokens holds."""

from __future__ import annotations

from collections.abc import Sequence


def batches_within(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """The places of sentences of so many tokens, in batches of like lengths, the shortest first.

    A batch padded to its longest sentence, end marks included, has at most ``budget`` tokens; a
    sentence that has more by itself is a batch of its own.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and (len(batches[-1]) + 1) * (lengths[place] + 1) <= budget:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches
