"""Rows from a fastText model: each worker puts its own together from their parts.

A word's parts, its own row of the model's matrix and those of its n-grams, lie all over the matrix.
So every worker reads the matrix, once for every `PARTS_AT_ONCE` parts that its rows have, and adds
what it needs of it to its rows where they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_embed.data.tokenizer import Tokenizer
from dist_embed.embedding.projection import Basis
from dist_embed.vectors.fasttext_binary import FastTextBinary
from dist_embed.vectors.file import Vectors
from dist_embed.vectors.match import VocabularyKeys, word_in

# Of eight bytes each; a word of ten letters has some 30.
PARTS_AT_ONCE = 2**24
_WORDS_AT_ONCE = 2**12
_LISTED_AT_ONCE = 2**16


class ComposedRows:
    """The rows of one shard as a fastText model has them. Nothing here is collective.

    Args:
        file: the model.
        ids: [R] of the shard's rows.
        tokenizer: their words.
        keys: the same, to be looked up.
        others: whether words that the model does not list have the vectors of their n-grams.

    Attributes:
        width: D of the model.
        listed: [R] the place in the model's list of the word that a row stands for, or -1.
        ranks: [R] how it was found, see `Matches`.
    """

    def __init__(
        self,
        file: FastTextBinary,
        ids: NDArray[np.int64],
        tokenizer: Tokenizer,
        keys: VocabularyKeys,
        *,
        others: bool,
    ) -> None:
        self._file, self._ids, self._tokenizer, self._others = file, ids, tokenizer, others
        self.width = file.width
        self.listed = np.full(len(ids), -1, dtype=np.int64)
        self.ranks = np.full(len(ids), np.iinfo(np.int64).max, dtype=np.int64)
        row_of = np.full(int(ids.max(initial=0)) + 1, -1, dtype=np.int64)
        row_of[ids] = np.arange(len(ids))
        for first in range(0, len(file.words), _LISTED_AT_ONCE):
            found = keys.match(file.words.part(first, first + _LISTED_AT_ONCE))
            own = found.ids < len(row_of)
            rows, ranks = row_of[found.ids[own]], found.ranks[own]
            places = found.places[own] + first
            # By one rank a row is found once, so the order of equal ranks does not matter.
            for rank in np.unique(ranks).tolist():
                better = (ranks == rank) & (rows >= 0)
                better[better] = rank < self.ranks[rows[better]]
                self.ranks[rows[better]] = rank
                self.listed[rows[better]] = places[better]

    def write_to(self, weight: Tensor, basis: Basis | None) -> NDArray[np.int64]:
        """Overwrite ``weight`` [R, D]; rows of which the model knows nothing become 0.

        Where the rows are not float32 in this machine's memory, they are added up beside it.

        Returns the rows of which it knows something. Raises VectorFileError.
        """
        in_place = weight.dtype == torch.float32 and weight.device.type == "cpu"
        sums = weight.zero_() if in_place else torch.zeros(weight.shape, dtype=torch.float32)
        counts = self._add_up(np.arange(len(self._ids)), sums, basis)
        found = counts.nonzero()[0]
        for some in () if in_place else _parts(found):
            weight[some.to(weight.device)] = sums[some].to(weight)
        return found

    def sample(self, count: int) -> Vectors:
        """Vectors of ``count`` rows, evenly spread over those of which the model knows something,
        or of all: [n, D of the model]. Raises VectorFileError.
        """
        known = np.array([row for row in range(len(self._ids)) if self._word(row)], dtype=np.int64)
        chosen = known[np.linspace(0, len(known) - 1, min(count, len(known))).astype(np.int64)]
        sums = torch.zeros(len(chosen), self.width)
        counts = self._add_up(chosen, sums, None)
        return sums.numpy()[counts > 0]

    def _add_up(
        self, rows: NDArray[np.int64], sums: Tensor, basis: Basis | None
    ) -> NDArray[np.int64]:
        """Make ``sums`` [n, D], zeros, the means of the parts of ``rows`` [n].

        Returns how many parts each row has: [n].
        """
        counts = np.zeros(len(rows), dtype=np.int64)
        waiting = np.empty(PARTS_AT_ONCE, dtype=np.int64)
        filled = 0
        for first in range(0, len(rows), _WORDS_AT_ONCE):
            some = rows[first : first + _WORDS_AT_ONCE]
            parts = self._file.parts_of(
                [self._word(row) for row in some.tolist()], self.listed[some], first
            )
            if filled + len(parts) > len(waiting):
                self._add(waiting[:filled], sums, counts, basis)
                filled = 0
                if len(parts) > len(waiting):
                    self._add(parts, sums, counts, basis)
                    continue
            waiting[filled : filled + len(parts)] = parts
            filled += len(parts)
        self._add(waiting[:filled], sums, counts, basis)
        sums /= torch.from_numpy(np.maximum(counts, 1).astype(np.float32)).unsqueeze(1)
        if basis is not None:
            moved = torch.from_numpy((basis.origin @ basis.matrix).astype(np.float32))
            for found in _parts(counts.nonzero()[0]):
                sums[found] -= moved
        return counts

    def _add(
        self,
        parts: NDArray[np.int64],
        sums: Tensor,
        counts: NDArray[np.int64],
        basis: Basis | None,
    ) -> None:
        parts.sort()
        for places, vectors in self._file.vectors_of(parts):
            np.add.at(counts, places, 1)
            taken = vectors if basis is None else (vectors @ basis.matrix).astype(np.float32)
            filled = sums[:, : taken.shape[1]]  # the rest of a wider table stays 0
            filled.index_add_(0, torch.from_numpy(places), torch.from_numpy(taken))

    def _word(self, row: int) -> str:
        """The word whose n-grams count: the model's own spelling where it lists the word; empty
        where there is none.
        """
        if self.listed[row] >= 0:
            return self._file.words[int(self.listed[row])]
        i = int(self._ids[row])
        if not self._others or i >= self._tokenizer.size:
            return ""
        return word_in(self._tokenizer, self._tokenizer.token(i)) or ""


def _parts(rows: NDArray[np.int64]) -> Iterator[Tensor]:
    for first in range(0, len(rows), _WORDS_AT_ONCE):
        yield torch.from_numpy(rows[first : first + _WORDS_AT_ONCE])
