"""Where beam search takes the next words of its hypotheses from: the whole vocabulary, exactly."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.model.output import OutputShard
from dist_embed.model.top_words import top_log_probabilities


class NextWords(Protocol):
    """Scores the words that may follow. Every method but `keep` is collective."""

    def open(self, sources: list[list[int]]) -> None:
        """Get ready for sentences (source ids) that this worker will translate."""

    def begin(self, sources: list[list[int]], beam: int) -> None:
        """Get ready for one search over some of them, with ``beam`` hypotheses each."""

    def keep(self, places: list[int]) -> None:
        """Go on with these of the sentences only. Not collective."""

    def top(self, hidden: Tensor, tokens_of_worker: list[int], k: int) -> tuple[Tensor, Tensor]:
        """The k best words of every hypothesis.

        Args:
            hidden: [n, D]; n is the number of sentences × ``beam``, also 0.
            tokens_of_worker: n of every worker.
            k: words wanted of each.

        Returns:
            log probabilities, highest first, and their ids (int64), each [n, k' ≤ k].
        """


class ExactWords:
    """Every word of the vocabulary, sharded over workers.

    Args:
        lookup: the tables.
        shard: how the output layer is sharded.
    """

    def __init__(self, lookup: ShardedTables, shard: OutputShard) -> None:
        self._lookup = lookup
        self._shard = shard
        self._table = lookup.table_of["output"]
        self._own_ids = lookup.ids_of_own_rows(self._table)

    def open(self, sources: list[list[int]]) -> None:
        """Nothing to do: all sentences share the vocabulary."""

    def begin(self, sources: list[list[int]], beam: int) -> None:
        """Nothing to do."""

    def keep(self, places: list[int]) -> None:
        """Nothing to do."""

    def top(self, hidden: Tensor, tokens_of_worker: list[int], k: int) -> tuple[Tensor, Tensor]:
        """See `NextWords.top` and `top_log_probabilities`."""
        return top_log_probabilities(
            hidden, self._lookup.weight(self._table), self._own_ids, self._shard, tokens_of_worker,
            min(k, self._shard.num_rows),
        )  # fmt: skip
