"""The nearest words to given vectors, by cosine, exactly, in one pass over the table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dist_embed.data.tokenizer import SPECIAL_TOKENS
from dist_embed.explore.table import RunTable


def nearest(
    table: RunTable, queries: Tensor, count: int, without: Sequence[Sequence[int]]
) -> list[list[tuple[int, float]]]:
    """For each query the ids with the highest cosine, with it, highest first.

    Special tokens are never among them; nor are words whose vector is zero, nor untrained ones
    (`RunTable.trained`).

    Args:
        table: the table.
        queries: [q, D].
        count: how many.
        without: for each query ids that are left out.
    """
    left_out = [torch.tensor([*range(len(SPECIAL_TOKENS)), *ids]) for ids in without]
    directions, trained = functional.normalize(queries), torch.from_numpy(table.trained)
    best_values = torch.full((len(queries), 0), float("-inf"))
    best_ids = torch.empty((len(queries), 0), dtype=torch.int64)
    for ids, vectors in table.strips():
        cosines = directions @ functional.normalize(vectors).T
        cosines[:, vectors.square().sum(1) == 0] = float("-inf")
        cosines[:, ~trained[ids]] = float("-inf")
        for number, ids_out in enumerate(left_out):
            cosines[number, torch.isin(ids, ids_out)] = float("-inf")
        values = torch.cat([best_values, cosines], dim=1)
        all_ids = torch.cat([best_ids, ids.expand(len(queries), -1)], dim=1)
        best_values, place = values.topk(min(count, values.shape[1]), dim=1)
        best_ids = all_ids.gather(1, place)
    return [
        [(i, value) for i, value in zip(row_ids, row, strict=True) if value > float("-inf")]
        for row_ids, row in zip(best_ids.tolist(), best_values.tolist(), strict=True)
    ]


def neighbors(
    table: RunTable, words: Sequence[str], count: int
) -> dict[str, list[tuple[str, float]]]:
    """The nearest words of each of ``words``, with their cosine.

    Raises UserError for a word that is not in the vocabulary, or untrained.
    """
    ids = [table.trained_id_of(word) for word in words]
    found = nearest(table, table.rows_of(ids), count, [[i] for i in ids])
    return {
        word: [(table.word(i), cosine) for i, cosine in near]
        for word, near in zip(words, found, strict=True)
    }


def analogy(
    table: RunTable, first: str, second: str, third: str, count: int
) -> list[tuple[str, float]]:
    """What ``third`` is to as ``first`` is to ``second``: the words nearest to b - a + c of the
    vectors of unit length (3CosAdd, Mikolov et al. 2013, arXiv 1310.4546), none of the three.

    Raises UserError for a word that is not in the vocabulary, or untrained.
    """
    ids = [table.trained_id_of(word) for word in (first, second, third)]
    a, b, c = functional.normalize(table.rows_of(ids))
    found = nearest(table, (b - a + c).unsqueeze(0), count, [ids])
    return [(table.word(i), cosine) for i, cosine in found[0]]
