"""One table of a trained run, read from a checkpoint in strips, however large it is."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_embed.arguments import begins, is_unicode, one_of, whole_number
from dist_embed.checkpoint.catalogue import open_checkpoints, read_manifest, use_choice
from dist_embed.checkpoint.chunk import DTYPES
from dist_embed.checkpoint.manifest import CheckpointError
from dist_embed.checkpoint.read import CheckpointReader
from dist_embed.data.tokenizer import SPECIAL_TOKENS
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.data.words import find_word, shown_word
from dist_embed.embedding.row_order import RowOrder
from dist_embed.errors import UserError
from dist_embed.explore.occurrences import Occurrences, occurrences
from dist_embed.model.translation_tables import SIDE_OF_ROLE, TABLE_OF_ROLE, sides_of_table
from dist_embed.observe.events import printable
from dist_embed.run.folder import check_tokenizer, read_run_config
from dist_embed.streams import say

Role = Literal["source", "target", "output"]
STRIP_BYTES = 32 * 2**20
# More than these are found by reading the whole table once.
_FEW_ROWS = 64


class RunTable:
    """The words of one side of a run and their vectors.

    Args:
        run_uri: the run's folder or URL.
        role: which of the run's tables.
        step: of which checkpoint; None: that with the lowest validation loss.
        untrained: take words too that never occur on a side that the table serves.

    Attributes:
        run_uri: see above.
        role: see above.
        table: the table's name in the checkpoint.
        step: the checkpoint's.
        num_words: V of the vocabulary.
        num_rows: of the table; more than ``num_words`` where unknown words are hashed to rows.
        width: D.
        itemsize: bytes of a value in the checkpoint, 4 or 2.
        on_sides: on which sides of the training data its words are, for people.

    Raises:
        UserError: there is no such role, run or checkpoint, or it was trained with another
            tokenizer than the run's folder has.

    Rows are read later: CheckpointDamaged where a training has pruned the checkpoint meanwhile.
    Nothing here is collective.
    """

    def __init__(
        self, run_uri: str, role: Role, step: int | None = None, *, untrained: bool = False
    ) -> None:
        one_of("role", role, get_args(Role))
        if step is not None:
            step = whole_number("step", step, 1)
        config = read_run_config(run_uri)
        self._untrained = untrained
        sides = sides_of_table(config.model.share_embeddings, role)
        where = f"the {sides[0]} side" if len(sides) == 1 else "either side"
        self.on_sides = f"on {where} of the training data"
        self.run_uri, self.role = run_uri, role
        self.table = TABLE_OF_ROLE[config.model.share_embeddings][role]
        self.tokenizer = load_tokenizers(run_uri)[SIDE_OF_ROLE[role]]
        self.store = open_checkpoints(run_uri)
        self.manifest = use_choice(run_uri, step, read_manifest)
        self.step = self.manifest.step
        check_tokenizer(SIDE_OF_ROLE[role], self.tokenizer, self.manifest.scalars, run_uri)
        self._name = f"table.{self.table}.weight"
        self._reader = CheckpointReader(self.store, self.manifest)
        info = self.manifest.rows_of(self.table)
        self._order = RowOrder(info.num_rows)
        if self._order.multiplier != self.manifest.row_multipliers[self.table]:
            raise CheckpointError(
                f"{self._name} of step {self.step} was written with another order of rows"
            )
        self.num_words, self.width = self.tokenizer.size, info.shape[1]
        self.num_rows, self.itemsize = info.num_rows, DTYPES[info.dtype].itemsize
        if self.num_words > info.num_rows:
            raise UserError(
                f"{run_uri}: the {SIDE_OF_ROLE[role]} vocabulary has {self.num_words:,} words, "
                f"table {self.table} {info.num_rows:,} rows"
            )

    def find(self, word: str) -> int | None:
        """The id of a word, in the run's form and case; None where it is not known, or no text."""
        return find_word(self.tokenizer, word)

    def find_word(self, word: str) -> int | None:
        """As `find`, but None for special tokens too."""
        found = self.find(word)
        return None if found is None or found < len(SPECIAL_TOKENS) else found

    def id_of(self, word: str) -> int:
        """The id of a word. Raises UserError with what is near, where it is not known."""
        found = self.find(word)
        if found is not None:
            return found
        if not word.strip():
            raise UserError(f"word: {word!r} is not allowed: there is nothing in it")
        if not is_unicode(word):
            raise UserError(f"word: {word!r} is not allowed: it has half of a character")
        near = [
            self.word(i)
            for i in range(len(SPECIAL_TOKENS), min(self.num_words, 50_000))
            if self.word(i)[:1].lower() == word[:1].lower()
        ]
        close = difflib.get_close_matches(word, near, n=3)
        raise UserError(
            f"{begins(word)!r} is not in the {SIDE_OF_ROLE[self.role]} vocabulary of "
            f"{self.run_uri} ({self.num_words:,} words)"
            + (f"; near it: {', '.join(map(printable, close))}" if close else "")
        )  # fmt: skip

    @cached_property
    def occurrences(self) -> Occurrences:
        """How often words occur in the training data. What is not known of it goes to stderr."""
        found = occurrences(self.run_uri, self.role)
        for line in found.told:
            say(line)
        return found

    @cached_property
    def trained(self) -> NDArray[np.bool_]:
        """[V] which words are to be looked at: those that occur on a side that the table serves,
        or all where that is not known, or `untrained` ones are asked for.
        """
        found = None if self._untrained else self.occurrences.trained
        return np.ones(self.num_words, dtype=np.bool_) if found is None else found

    def by_frequency(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ascending ids, those of `trained` words alone: special tokens, then the most frequent on
        this side first.
        """
        ids = ids[self.trained[ids]]
        counts = self.occurrences.on_side
        if counts is None:
            return ids
        first = np.iinfo(np.int64).max
        of_each = np.where(ids < len(SPECIAL_TOKENS), first, counts[ids])
        return ids[np.argsort(-of_each, kind="stable")]

    def frequent_ids(self, count: int) -> list[int]:
        """The first so many of all words by frequency, without special tokens."""
        ids = np.arange(len(SPECIAL_TOKENS), self.num_words)
        counts = self.occurrences.on_side
        if not count:
            return []
        if counts is not None and count < len(ids):
            # Only what can be among them is sorted: a table may have hundreds of millions.
            known = np.where(self.trained[ids], counts[ids], -1)
            ids = ids[known >= np.partition(known, len(ids) - count)[len(ids) - count]]
        found: list[int] = self.by_frequency(ids)[:count].tolist()
        return found

    def trained_id_of(self, word: str) -> int:
        """As `id_of`, of `trained` words alone, without special tokens. Raises UserError."""
        i = self.id_of(word)
        if i < len(SPECIAL_TOKENS):
            raise UserError(f"word: {word!r} is not allowed: a special token, not a word")
        if not self.trained[i]:
            raise UserError(
                f"{word!r} never occurs {self.on_sides} of {self.run_uri}: its vector in "
                f"table {self.table} is untrained (--untrained takes it all the same, in a script "
                "untrained=True)"
            )
        return i

    def word(self, i: int) -> str:
        """See `shown_word`."""
        return shown_word(self.tokenizer, i)

    def rows_of(self, ids: Sequence[int]) -> Tensor:
        """The vectors of some ids: [n, D] float32."""
        wanted, place = torch.tensor(list(ids), dtype=torch.int64).unique(return_inverse=True)
        found = torch.empty(len(wanted), self.width)
        if len(wanted) <= _FEW_ROWS:
            for at, row in enumerate(self._order.rows_of(wanted).tolist()):
                found[at] = self._reader.rows(self._name, row, 1)[0]
        else:
            for strip_ids, vectors in self.strips():
                inside = torch.isin(strip_ids, wanted)
                found[torch.searchsorted(wanted, strip_ids[inside])] = vectors[inside]
        return found[place]

    def parameter(self, name: str) -> Tensor:
        """A replicated parameter of the model, by its name in the checkpoint. Float32."""
        info = self.manifest.tensors.get(name)
        if info is None:
            raise CheckpointError(f"the checkpoint of step {self.step} has no {name}")
        return self._reader.rows(name, 0, info.num_rows).float()

    def strips(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole table: ids [n] and their vectors [n, D] float32, each word once."""
        info = self.manifest.tensors[self._name]
        strip = max(1, STRIP_BYTES // (4 * self.width))
        for first in range(0, info.num_rows, strip):
            count = min(strip, info.num_rows - first)
            vectors = self._reader.rows(self._name, first, count).float()
            ids = self._order.ids_of(torch.arange(first, first + count))
            known = ids < self.num_words
            yield ids[known], vectors[known]
