"""Rows that start from a file of word vectors, each worker's part of the file to everyone's rows.

Every worker reads its own part of the file, matches its words with the vocabulary, parses the
vectors of those that match, and sends each to the worker that holds the row. So the file is read
and parsed once by all workers together, and nobody ever holds more of it than a segment
(docs/decisions/0014-pretrained-vectors.md). A fastText model is another matter:
`dist_embed.embedding.composed_rows`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_embed.data.tokenizer import END, PAD, SPECIAL_TOKENS, START, Tokenizer
from dist_embed.embedding.composed_rows import ComposedRows
from dist_embed.embedding.initial_values import fill_initial_rows
from dist_embed.embedding.plan import Shard, TableSpec
from dist_embed.embedding.projection import Basis, Moments, random_basis, widened
from dist_embed.errors import UserError
from dist_embed.observe.events import printable
from dist_embed.parallel.collectives import (
    exchange_rows,
    gather_rows,
    stack_over_workers,
    sum_over_workers,
)
from dist_embed.parallel.errors import all_or_none
from dist_embed.parallel.group import Group
from dist_embed.vectors.coverage import COMPOSED, NOT_FOUND, Coverage, coverage_of
from dist_embed.vectors.fasttext_binary import FastTextBinary
from dist_embed.vectors.file import VectorFile, VectorFileError, Vectors
from dist_embed.vectors.fit import check_fit
from dist_embed.vectors.match import VocabularyKeys, word_of
from dist_embed.vectors.settings import PretrainedSection

_FILL_ROWS = 2**12
_BASIS_ROWS = 2**14  # of each worker, where a fastText model's vectors are projected


@dataclass(frozen=True)
class Entries:
    """Entries of the file, each with a row that wants it.

    Attributes:
        rows: [n] numbers of rows in the whole table.
        ranks: [n] how the word was found, see `Matches`; a row takes what has the lowest,
        numbers: [n] and of equal ranks the entry with the lowest number, see `Segment`.
        counted: [n] whether the pair of entry and row is the one by which the entry is counted.
        vectors: [n, D of the file].
    """

    rows: NDArray[np.int64]
    ranks: NDArray[np.int64]
    numbers: NDArray[np.int64]
    counted: NDArray[np.bool_]
    vectors: Vectors

    @classmethod
    def none(cls, width: int) -> Entries:
        """No entry, with vectors of ``width``."""
        nothing = np.empty(0, dtype=np.int64)
        vectors = np.empty((0, width), dtype=np.float32)
        return cls(nothing, nothing, nothing, nothing.astype(bool), vectors)


class TableStart:
    """Fills this worker's rows of one table from a file.

    Args:
        weight: [R, D] live view of the rows of this worker's shard.
        spec: the table.
        shard: which rows they are.
        group: this worker and its peers.
        tokenizer: whose id i is id i of the table; ids behind its vocabulary have no word.
        settings: how. Other rows than those found are, with ``missing: random``, normal values with
            the mean and standard deviation of the vectors found, of each column; so are those that
            a fastText model knows no part of. ``rescale`` makes the root mean square of all that of
            fresh rows.
        seed: with table and row decides random values, as for fresh rows.
        fresh_scale: standard deviation of fresh rows.
    """

    def __init__(
        self,
        weight: Tensor,
        spec: TableSpec,
        shard: Shard,
        group: Group,
        tokenizer: Tokenizer,
        settings: PretrainedSection,
        *,
        seed: int,
        fresh_scale: float,
    ) -> None:
        self._weight, self._spec, self.shard, self._group = weight, spec, shard, group
        self._tokenizer, self._settings = tokenizer, settings
        self._seed, self._fresh_scale = seed, fresh_scale
        # Of the entry that each own row has taken; `Entries` says which is better.
        self._ranks = np.full(shard.num_rows, NOT_FOUND, dtype=np.int8)
        self._numbers = np.zeros(shard.num_rows, dtype=np.int64)
        # Entries by rank and row: each pair of them stands for one way to write a word.
        self._seen = np.zeros((2 + len(settings.match), shard.num_rows), dtype=np.int32)
        self._entries = self._unreadable = 0

    def fill(self, file: VectorFile | FastTextBinary, counts: NDArray[np.int64] | None) -> Coverage:
        """Fill every row. Collective.

        Args:
            file: the vectors.
            counts: [V] how often each id occurs on the table's side of the training data; asked of
                worker 0 alone.

        Returns what was found; how often words occur is known on worker 0 alone.

        Raises:
            UserError: the file cannot be used with this table and these settings, or knows too
                few of its words. Rows may have been written: the run must not go on.
        """
        settings = self._settings
        check_fit(file, settings, table=self._spec.name, width=self._spec.width)
        keys = VocabularyKeys(self._tokenizer, settings.match, settings.prefix)
        if isinstance(file, FastTextBinary):
            self._compose(file, keys)
        else:
            self._read(file, keys)
        pieces = self._drop_words_that_look_like_pieces()
        duplicates = int(np.maximum(self._seen - 1, 0).sum())
        seen = self._sum([self._entries, duplicates, self._unreadable]).tolist()
        entries, duplicates, unreadable = map(int, seen)
        if entries == unreadable and not isinstance(file, FastTextBinary):
            what = "none of its words is valid UTF-8" if entries else "holds no vectors"
            raise VectorFileError(f"{file.uri}: {what}")
        self._finish_rows(file)
        return self._coverage(file, counts, entries, duplicates, unreadable, pieces=pieces)

    def _read(self, file: VectorFile, keys: VocabularyKeys) -> None:
        """Write the vectors of the words found to their rows. Collective."""
        basis = self._basis(file, keys) if self._is_projected(file) else None
        entries = self.wanted(file, keys)
        done = False
        while not done:
            with all_or_none(self._group):
                some = next(entries, None)
                if some is not None:
                    vectors = (
                        widened(some.vectors, self._spec.width)
                        if basis is None
                        else basis.project(some.vectors)
                    )
                    some = replace(some, vectors=vectors)
            done = self._deliver(some)

    def _is_projected(self, file: VectorFile | FastTextBinary) -> bool:
        return file.width != self._spec.width and self._settings.project != "no"

    def wanted(self, file: VectorFile, keys: VocabularyKeys) -> Iterator[Entries]:
        """What this worker has to deliver. Not collective."""
        for segment in file.segments(self._group.rank, self._group.num_workers):
            self.count_entries(len(segment.words), segment.words.count(""))
            found = keys.match(segment.words)
            chosen, of_pair = np.unique(found.places, return_inverse=True)
            vectors = segment.vectors(chosen.tolist())
            yield Entries(
                self.rows_of(found.ids),
                found.ranks,
                segment.origin + found.places,
                found.counted,
                vectors[of_pair],
            )

    def count_entries(self, count: int, unreadable: int) -> None:
        """Note entries of the file that this worker has seen, and those of them without a word."""
        self._entries += count
        self._unreadable += unreadable

    @property
    def is_first(self) -> bool:
        """Whether this is worker 0."""
        return self._group.is_first

    def _compose(self, file: FastTextBinary, keys: VocabularyKeys) -> None:
        """Put the rows of this worker's shard together from their parts. Collective."""
        with all_or_none(self._group):
            others = self._settings.missing == "subword"
            model = ComposedRows(file, self._own_ids(), self._tokenizer, keys, others=others)
            if self.is_first:
                self.count_entries(len(file.words), file.unreadable)
        basis = self._basis_of_model(model) if self._is_projected(file) else None
        with all_or_none(self._group):
            found = model.write_to(self._weight, basis)
        self._ranks[found] = np.where(model.listed >= 0, model.ranks, COMPOSED)[found]

    def _deliver(self, some: Entries | None) -> bool:
        """Exchange one round's entries, and keep those of own rows; True where nobody had any.

        Collective.
        """
        group, device = self._group, self._group.device
        entries = Entries.none(self._spec.width) if some is None else some
        owner = entries.rows // self.shard.physical_rows
        by_owner = owner.argsort(kind="stable")
        to_each = np.bincount(owner, minlength=group.num_workers)
        plan = stack_over_workers(
            torch.tensor([*to_each.tolist(), int(some is None)], device=device), group
        ).cpu()
        if bool(plan[:, -1].all()):
            return True
        send, receive = plan[group.rank, :-1].tolist(), plan[:, group.rank].tolist()
        about = np.stack([entries.rows, entries.ranks, entries.numbers, entries.counted], axis=1)
        got = exchange_rows(torch.from_numpy(about[by_owner]).to(device), send, receive, group)
        vectors = torch.from_numpy(np.ascontiguousarray(entries.vectors[by_owner])).to(device)
        rows, ranks, numbers, counted = got.cpu().numpy().T
        rows = rows - self.shard.first_row
        is_counted = counted.astype(bool)
        np.add.at(self._seen, (ranks[is_counted], rows[is_counted]), 1)
        self._take(rows, ranks, numbers, exchange_rows(vectors, send, receive, group))
        return False

    def _take(
        self,
        rows: NDArray[np.int64],
        ranks: NDArray[np.int64],
        numbers: NDArray[np.int64],
        vectors: Tensor,
    ) -> None:
        """Write to each of the own ``rows`` its best entry, where that is better than what it has:
        found by a lower rank, or by the same and earlier in the file.
        """
        best_first = np.lexsort((numbers, ranks, rows))
        rows, first = np.unique(rows[best_first], return_index=True)
        chosen = best_first[first]
        ranks, numbers = ranks[chosen], numbers[chosen]
        earlier = (ranks == self._ranks[rows]) & (numbers < self._numbers[rows])
        better = (ranks < self._ranks[rows]) | earlier
        rows, chosen = rows[better], chosen[better]
        self._ranks[rows], self._numbers[rows] = ranks[better], numbers[better]
        taken = vectors[torch.from_numpy(chosen).to(vectors.device)]
        self._weight[torch.from_numpy(rows).to(self._weight.device)] = taken.to(self._weight)

    def _drop_words_that_look_like_pieces(self) -> bool:
        """A piece inside a word is not the word that is written the same; that is found only in a
        file of pieces: one in which more words stand with the mark of a space than without.
        Collective.

        Returns whether it is such a file.
        """
        tokenizer = self._tokenizer
        if tokenizer.knows_words:
            return False
        ids = self._own_ids()
        rows = ((self._ranks != NOT_FOUND) & (ids >= len(SPECIAL_TOKENS))).nonzero()[0]
        inner = np.array(
            [word_of(tokenizer.token(int(i)), whole_words=False) is None for i in ids[rows]],
            dtype=bool,
        )
        ranks = self._ranks[rows[~inner]]
        marked, unmarked = self._sum([int((ranks == 0).sum()), int((ranks == 1).sum())]).tolist()
        if marked > unmarked:
            return True
        self._ranks[rows[inner]] = NOT_FOUND
        self._seen[:, rows[inner]] = 0
        return False

    def _finish_rows(self, file: VectorFile | FastTextBinary) -> None:
        """Scale the rows found, and start the others. Collective."""
        found = torch.from_numpy(self._ranks != NOT_FOUND)
        width = self._spec.width
        sums = torch.zeros(3, width, dtype=torch.float64)  # count, sum, sum of squares
        for part in self._parts():
            values = self._weight[part][found[part].to(self._weight.device)].double().cpu()
            sums[0] += len(values)
            sums[1] += values.sum(0)
            sums[2] += values.square().sum(0)
        sums = sum_over_workers(sums.to(self._group.device), self._group).cpu()
        if not sums[0, 0]:
            raise UserError(f"{file.uri}: holds none of the words of table {self._spec.name}")
        if not sums.isfinite().all():
            raise UserError(
                f"{file.uri}: a value of its vectors is too large for the rows of table "
                f"{self._spec.name}, which are {str(self._weight.dtype).removeprefix('torch.')}"
            )
        mean = sums[1] / sums[0]
        deviation = (sums[2] / sums[0] - mean.square()).clamp(min=0).sqrt()
        root_mean_square = math.sqrt(float(sums[2].sum() / sums[0].sum()))
        factor = 1.0
        if self._settings.rescale and root_mean_square:
            factor = self._fresh_scale / root_mean_square
        ids = self._own_ids()
        has_word = (ids < self._tokenizer.size) & ~np.isin(ids, (PAD, START, END))
        for part in self._parts():
            vectors = self._weight[part]
            fresh = torch.empty(len(vectors), width)
            first_row = self.shard.first_row + part.start
            fill_initial_rows(
                fresh, seed=self._seed, table=self._spec.name, first_row=first_row, scale=1.0
            )
            fresh = fresh * deviation.float() + mean.float()
            if self._settings.missing == "mean":
                fresh[torch.from_numpy(has_word[part])] = mean.float()
            kept = found[part].unsqueeze(1).to(vectors.device)
            vectors.copy_(torch.where(kept, vectors, fresh.to(vectors)) * factor)

    def _coverage(
        self,
        file: VectorFile | FastTextBinary,
        counts: NDArray[np.int64] | None,
        entries: int,
        duplicates: int,
        unreadable: int,
        *,
        pieces: bool,
    ) -> Coverage:
        """Sum up on worker 0, and tell everyone. Collective."""
        settings, group = self._settings, self._group
        physical, total = self.shard.physical_rows, self._spec.num_rows
        rows_of_worker = [
            max(0, min(physical, total - w * physical)) for w in range(group.num_workers)
        ]
        own = torch.from_numpy(self._ranks).to(group.device)
        by_row = gather_rows(own, rows_of_worker, group).cpu().numpy()
        by_id = by_row[self.rows_of(np.arange(self._tokenizer.size))].astype(np.int64)
        with all_or_none(group):
            found = coverage_of(
                self._tokenizer, counts, by_id, settings.match, table=self._spec.name,
                uri=file.uri, entries=entries, duplicates=duplicates, unreadable=unreadable,
                stated=None if isinstance(file, FastTextBinary) else file.num_stated,
                doubt=None if isinstance(file, FastTextBinary) else file.doubt,
                file_width=file.width, width=self._spec.width,
                policy=settings.missing, pieces=pieces,
            )  # fmt: skip
            if counts is not None and found.token_share < settings.min_coverage:
                raise UserError(
                    f"{file.uri} knows {found.token_share:.1%} of the running words in table "
                    f"{self._spec.name}; min_coverage asks for {settings.min_coverage:.1%}. Most "
                    "frequent without a vector: "
                    + ", ".join(printable(word) for word, _ in found.missing)
                )
        return found

    def _basis(self, file: VectorFile, keys: VocabularyKeys) -> Basis:
        """How vectors are brought to the table's width. Reads the file for `pca`. Collective."""
        if self._settings.project == "random":
            return random_basis(file.width, self._spec.width, seed=self._seed)
        with all_or_none(self._group):
            moments = Moments(file.width)
            for some in self.wanted(file, keys):
                moments.add(some.vectors)
        self._entries = self._unreadable = 0
        return moments.main_directions(self._spec.width, self._group)

    def _basis_of_model(self, model: ComposedRows) -> Basis:
        """The same for a fastText model, `pca` from a part of the rows. Collective."""
        if self._settings.project == "random":
            return random_basis(model.width, self._spec.width, seed=self._seed)
        with all_or_none(self._group):
            moments = Moments(model.width)
            moments.add(model.sample(_BASIS_ROWS))
        return moments.main_directions(self._spec.width, self._group)

    def _sum(self, values: list[float]) -> Tensor:
        """Sums over workers, float64. Collective."""
        own = torch.tensor(values, dtype=torch.float64, device=self._group.device)
        return sum_over_workers(own, self._group).cpu()

    def _parts(self) -> Iterator[slice]:
        """Own rows, a few at a time."""
        for start in range(0, self.shard.num_rows, _FILL_ROWS):
            yield slice(start, min(start + _FILL_ROWS, self.shard.num_rows))

    def rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where ids lie in the whole table."""
        return self._spec.order.rows_of(torch.from_numpy(ids)).numpy()

    def _own_ids(self) -> NDArray[np.int64]:
        rows = torch.arange(self.shard.first_row, self.shard.end_row)
        return self._spec.order.ids_of(rows).numpy()
