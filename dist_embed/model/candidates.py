"""Candidate lists: search among the frequent words and the translations of the sentence's words.

As in Jean et al. 2015 (arXiv 1412.2007, section 3.3): the K most frequent target words, the same
for all sentences, and up to K' likely translations of each word of the sentence. Probabilities are
those of the softmax over the list. The rows of the list are fetched once for a search; a step of it
then costs what the list costs, whatever the vocabulary, and asks no other worker for logits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_embed.data.tokenizer import PAD
from dist_embed.embedding.sharded_tables import ShardedTables

# Target ids of source ids, strongest first, at most so many of each:
# `dist_embed.data.lexicon.Lexicon.translations`.
Translations = Callable[[NDArray[np.int64], int], dict[int, NDArray[np.int32]]]


class CandidateWords:
    """A `NextWords` over candidate lists.

    Args:
        lookup: the tables.
        num_frequent: K, at most V.
        num_translations: K'.
        translations: the lexicon.
        block_bytes: upper bound for one block of logits.
        by_frequency: the words that may be among the frequent ones, special tokens first and then
            the most frequent; None: all ids, which are ordered so.
    """

    def __init__(
        self,
        lookup: ShardedTables,
        num_frequent: int,
        num_translations: int,
        translations: Translations,
        block_bytes: int,
        by_frequency: NDArray[np.int64] | None = None,
    ) -> None:
        self._lookup = lookup
        table = lookup.specs[lookup.table_of["output"]]
        if by_frequency is None:
            by_frequency = np.arange(table.num_rows)
        self._frequent_ids = np.sort(by_frequency[:num_frequent])
        self._num_translations = num_translations
        self._translations = translations
        self._block_bytes = block_bytes
        self._known: dict[int, NDArray[np.int32]] = {}
        # [K, D] rows of the frequent words, of `open`: training goes on between two searches.
        self._frequent = torch.empty((0, table.width), device=lookup.group.device)
        self._beam = 1
        # Of the sentences of the search under way: ids [B, L] of their own candidates, -1 behind
        # the last, and their vectors [B, L, D].
        self._ids = torch.empty((0, 0), dtype=torch.int64)
        self._own = self._frequent.new_empty((0, 0, table.width))

    def open(self, sources: list[list[int]]) -> None:
        """Fetch the frequent words' rows; read the translations of all words of the sentences.

        Collective.
        """
        self._frequent = self._vectors(torch.from_numpy(self._frequent_ids))
        words = np.fromiter((word for ids in sources for word in ids), dtype=np.int64)
        self._known = self._translations(words, self._num_translations)

    def begin(self, sources: list[list[int]], beam: int) -> None:
        """Fetch the rows of the sentences' own candidates. Collective."""
        self._beam = beam
        own = [self.own_candidates(ids) for ids in sources]
        longest = max(map(len, own), default=0)
        padded = np.full((len(own), longest), -1, dtype=np.int64)
        for row, ids in zip(padded, own, strict=True):
            row[: len(ids)] = ids
        self._ids = torch.from_numpy(padded).to(self._frequent.device)
        self._own = self._vectors(self._ids.clamp(min=0))

    def own_candidates(self, source: list[int]) -> NDArray[np.int64]:
        """Translations of a sentence's words that are not among the frequent ones, ascending."""
        found = [self._known[word] for word in set(source) if word in self._known]
        ids = np.unique(np.concatenate([np.empty(0, np.int64), *found]))
        place = np.searchsorted(self._frequent_ids, ids).clip(max=len(self._frequent_ids) - 1)
        return ids[self._frequent_ids[place] != ids]

    def keep(self, places: list[int]) -> None:
        """See `NextWords.keep`."""
        index = torch.tensor(places, dtype=torch.int64, device=self._ids.device)
        self._ids, self._own = self._ids.index_select(0, index), self._own.index_select(0, index)

    def top(self, hidden: Tensor, tokens_of_worker: list[int], k: int) -> tuple[Tensor, Tensor]:
        """See `NextWords.top`; needs no other worker."""
        sentences, own = self._ids.shape
        width = len(self._frequent_ids) + own
        step = max(1, self._block_bytes // (4 * width * self._beam))
        by_sentence = hidden.view(sentences, self._beam, hidden.shape[1])
        found = [
            self._top(by_sentence[first : first + step], slice(first, first + step), min(k, width))
            for first in range(0, sentences, step)
        ]
        if not found:
            return hidden.new_empty((0, min(k, width))), self._ids.new_empty((0, min(k, width)))
        values, ids = zip(*found, strict=True)
        return torch.cat(values), torch.cat(ids)

    def _top(self, hidden: Tensor, sentences: slice, k: int) -> tuple[Tensor, Tensor]:
        ids, own = self._ids[sentences], self._own[sentences]
        logits = torch.cat([hidden @ self._frequent.t(), hidden @ own.transpose(1, 2)], dim=2)
        num_frequent = len(self._frequent_ids)
        logits[:, :, num_frequent:].masked_fill_(ids.unsqueeze(1) < 0, float("-inf"))
        values, place = logits.log_softmax(2).topk(k, dim=2)
        frequent = torch.from_numpy(self._frequent_ids).to(place.device)
        words = frequent[place.clamp(max=num_frequent - 1)]
        if ids.shape[1]:
            # Behind the last of a shorter list: impossible words, which must still be ids.
            behind = (place - num_frequent).clamp(min=0)
            chosen = ids.clamp(min=PAD).unsqueeze(1).expand(-1, self._beam, -1).gather(2, behind)
            words = torch.where(place < num_frequent, words, chosen)
        return values.flatten(0, 1), words.flatten(0, 1)

    def _vectors(self, ids: Tensor) -> Tensor:
        """Output rows of ``ids``: their shape + [D]. Collective."""
        with torch.no_grad():
            rows = self._lookup.lookup({"output": [ids.to(self._lookup.group.device)]})
            return rows.vectors("output", 0)
