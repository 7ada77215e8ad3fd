"""Words whose neighbours a run records as it goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dist_embed.data.prepare import read_occurrences
from dist_embed.data.token_shards import PreparedData
from dist_embed.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from dist_embed.data.words import find_word, shown_word
from dist_embed.embedding.nearest_rows import nearest_rows
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.errors import UserError
from dist_embed.model.settings import ShareEmbeddings
from dist_embed.model.translation_tables import sides_of_table
from dist_embed.parallel.collectives import copy_from_worker
from dist_embed.parallel.errors import all_or_none

NEIGHBORS_KEPT = 8


class WatchedWords:
    """The nearest words of some words of the source side, among those that occur in training.

    Args:
        words: as a user writes them.
        tokenizer: of the source side.
        data: that the run is trained on.
        share: which roles share a table.
        tables: the run's.

    Raises UserError for a word that is not in the vocabulary, or does not occur in training.
    Collective.
    """

    def __init__(
        self,
        words: Sequence[str],
        tokenizer: Tokenizer,
        data: PreparedData,
        share: ShareEmbeddings,
        tables: ShardedTables,
    ) -> None:
        self._tokenizer, self._tables = tokenizer, tables
        self._ids: dict[str, int] = {}
        self._allowed = torch.ones(tokenizer.size, dtype=torch.bool)
        self._allowed[: len(SPECIAL_TOKENS)] = False
        with all_or_none(tables.group):
            for word in words:
                found = find_word(tokenizer, word)
                if found is None or found < len(SPECIAL_TOKENS):
                    raise UserError(
                        f"train.neighbors_of: {word!r} is not allowed: not a word of the source "
                        f"vocabulary ({tokenizer.size:,} words)"
                    )
                self._ids[word] = found
            if tables.group.is_first:  # the counts are larger than all else here
                self._leave_out_untrained(read_occurrences(data, sides_of_table(share, "source")))
        copy_from_worker(self._allowed, 0, tables.group)

    def _leave_out_untrained(self, counts: NDArray[np.int64] | None) -> None:
        if counts is None:
            return
        self._allowed &= torch.from_numpy(counts > 0)
        for word, i in self._ids.items():
            if not self._allowed[i]:
                raise UserError(
                    f"train.neighbors_of: {word!r} is not allowed: no training pair has it"
                )

    def neighbors(self) -> dict[str, list[tuple[str, float]]]:
        """Of each word, the nearest first, with their cosine. Collective."""
        cosines, ids = nearest_rows(
            self._tables, self._tables.table_of["source"], torch.tensor([*self._ids.values()]),
            NEIGHBORS_KEPT, self._allowed,
        )  # fmt: skip
        return {
            word: [
                (shown_word(self._tokenizer, i), round(cosine, 4))
                for i, cosine in zip(near, values, strict=True)
                if math.isfinite(cosine)
            ]
            for word, near, values in zip(self._ids, ids.tolist(), cosines.tolist(), strict=True)
        }
