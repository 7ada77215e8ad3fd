"""Which sentences form a step's batch, and which worker gets which of them.

The order of batches comes from (seed, epoch) and the lengths alone: any number of workers sees the
same global batches. Sentences of like length go together, so that little is padded.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def plan_batches(
    source_lengths: NDArray[np.int64],
    target_lengths: NDArray[np.int64],
    batch_tokens: int,
    rng: np.random.Generator,
) -> list[Indices]:
    """Divide sentences into batches whose padded size stays within ``batch_tokens``.

    Sentences are shuffled, then sorted by target and source length (equal lengths stay shuffled),
    cut into batches, and the batches shuffled. A batch's size is its sentences × its longest side.
    A sentence longer than the budget is a batch of its own.

    Args:
        source_lengths: [n] tokens the encoder sees.
        target_lengths: [n] tokens the decoder predicts.
        batch_tokens: the budget.
        rng: the source of all randomness.

    Returns:
        Arrays of indices; together every index once.
    """
    shuffled = rng.permutation(len(source_lengths))
    order = shuffled[np.lexsort((source_lengths[shuffled], target_lengths[shuffled]))]
    longest_side = np.maximum(source_lengths, target_lengths)[order].tolist()
    starts, longest, count = [0], 0, 0
    for place, length in enumerate(longest_side):
        longest, count = max(longest, length), count + 1
        if count > 1 and longest * count > batch_tokens:
            starts.append(place)
            longest, count = length, 1
    batches = np.split(order, starts[1:]) if len(order) else []
    return [batches[i] for i in rng.permutation(len(batches))]


def deal(
    batch: Indices,
    source_lengths: NDArray[np.int64],
    target_lengths: NDArray[np.int64],
    num_parts: int,
) -> list[Indices]:
    """Divide one batch into ``num_parts`` runs of neighbours with nearly equal token counts.

    Parts are empty where there are fewer sentences than parts.
    """
    cost = np.cumsum(source_lengths[batch] + target_lengths[batch])
    total = cost[-1:].sum()  # of no sentences 0
    # A sentence belongs to the part in which its middle lies.
    middle = cost - (source_lengths[batch] + target_lengths[batch]) / 2
    bounds = np.searchsorted(middle, total * np.arange(1, num_parts) / num_parts)
    return np.split(batch, bounds)
