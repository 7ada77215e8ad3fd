"""Right answers as negatives, written out: what both references count of a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_embed.data.bands import deal
from dist_embed.data.tokenizer import END
from dist_embed.model.batch_negatives import WordShares
from dist_embed.model.sampler import Negatives, Sampler

Elsewhere = tuple[set[int], float]


def words_elsewhere(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], num_workers: int, accumulate: int
) -> list[Elsewhere]:
    """For each sentence of a step the words that its worker's other sentences have, and how many
    running words those are, for a sentence of mean length.
    """
    lengths = [np.array([len(pair[side]) + 1 for pair in pairs]) for side in (0, 1)]
    parts = deal(np.arange(len(pairs)), *lengths, num_workers * accumulate)
    found = []
    for sentence in range(len(pairs)):
        part = next(number for number, members in enumerate(parts) if sentence in members)
        mine = [int(n) for members in parts[part % num_workers :: num_workers] for n in members]
        words = {word for n in mine if n != sentence for word in (*pairs[n][1], END)}
        running = sum(len(pairs[n][1]) + 1 for n in mine)
        found.append((words, running * (1 - 1 / len(mine))))
    return found


def stood_for(
    drawn: Negatives, sampler: Sampler, elsewhere: Elsewhere, counts: NDArray[np.int64]
) -> Tensor:
    """[V] how many words each word stands for that is drawn or elsewhere, 0 for the others."""
    ids, (words, running) = np.arange(len(counts)), elsewhere
    p = WordShares(counts).of(ids)
    either = 1 - (1 - sampler.probability_of(ids)) * (1 - p) ** running
    chosen = np.isin(ids, [*drawn.ids.tolist(), *words])
    return torch.from_numpy(np.where(chosen, 1 / either, 0.0)).float()
