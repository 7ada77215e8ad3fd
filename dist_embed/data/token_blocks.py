"""Parts of token shards: blocks, whose lengths are known before any of them is read.

What a plan of batches needs comes from the index (`block_index`); what a worker needs of its
sentences is read by ranges of bytes, and proven block by block. Shards that were prepared before
there were indexes are one block each.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dist_embed.data.block_index import (
    index_name,
    order_of_lengths,
    pack_lengths,
    read_index,
    unpack_lengths,
)
from dist_embed.data.proof import FileInfo, told_of
from dist_embed.data.token_shards import (
    REMEDY,
    SIDES,
    PreparedData,
    ShardInfo,
    TokenPairs,
    check_ids,
    joined,
    read_tokens,
)
from dist_embed.errors import UserError
from dist_embed.storage import uri as storage
from dist_embed.storage.parquet import FilePart, ParquetReader
from dist_embed.storage.threads import in_threads

Numbers = NDArray[np.int64]

# Ranges that a store is asked for at once.
_REQUESTS = 8


def open_blocks(data: PreparedData, split: str) -> TokenBlocks:
    """The blocks of a split of prepared data. Raises as `TokenBlocks.of`."""
    return TokenBlocks.of(data.folder_uri, data.splits[split].shards, index_of(data, split))


def index_of(data: PreparedData, split: str) -> FileInfo | None:
    """What proves the index of a split; None where it has none."""
    shards = data.splits[split].shards
    return data.files.get(index_name(shards[0].name)) if shards else None


class TokenBlocks(ABC):
    """The blocks of some shards, numbered in the order of the shards.

    **In a block** sentences are numbered by length (target, then source, then place in the file),
    by `lengths` and `read` alike.

    Attributes:
        sentences: [blocks] pairs of each.
        source_tokens: [blocks] of all of them, without end marks.
        target_tokens: likewise.
        stored_bytes: [blocks] what is read of each; 0 where that is not known.

    Calls come from one thread at a time. Nothing here is collective.
    """

    sentences: Numbers
    source_tokens: Numbers
    target_tokens: Numbers
    stored_bytes: Numbers

    @staticmethod
    def of(
        data_uri: str, shards: Sequence[ShardInfo], index: FileInfo | None = None
    ) -> TokenBlocks:
        """The blocks of ``shards``, in the folder ``data_uri``.

        Args:
            data_uri: the prepared data.
            shards: of one split; any of them.
            index: what proves their index; None: there is none, and each is one block.

        Raises:
            UserError: the index is missing, or not the one that was written.
        """
        return _WholeShards(data_uri, shards) if index is None else _Parts(data_uri, shards, index)

    def __len__(self) -> int:
        return len(self.sentences)

    def lengths(self, blocks: Sequence[int]) -> tuple[Numbers, Numbers]:
        """Tokens of each source and target sentence, without end marks: of one block after the
        other, as given. Raises UserError as `read` does, where there is no index.
        """
        found = [unpack_lengths(self._packed_lengths(block)) for block in blocks]
        none = np.zeros(0, np.int64)
        source, target = (np.concatenate([none, *(f[side] for f in found)]) for side in (0, 1))
        return source, target

    def read(self, blocks: Sequence[int], num_ids: dict[str, int] | None = None) -> TokenPairs:
        """The token pairs of one block after the other, as given.

        Args:
            blocks: their numbers, none of them twice.
            num_ids: for each side the number of ids there are; None: not looked at.

        Raises:
            UserError: a shard is missing, a block is not the one that was written, or holds an id
                that is none.
        """
        found = self._fetch(blocks, num_ids)
        return joined([found[block] for block in blocks])

    @abstractmethod
    def _packed_lengths(self, block: int) -> bytes:
        """Those of a block's sentences."""

    @abstractmethod
    def _fetch(
        self, blocks: Sequence[int], num_ids: dict[str, int] | None
    ) -> dict[int, TokenPairs]:
        """The blocks, their sentences by length."""


class _WholeShards(TokenBlocks):
    """Shards without an index: a block each, whose lengths are kept once it has been read."""

    def __init__(self, data_uri: str, shards: Sequence[ShardInfo]) -> None:
        self._data_uri = data_uri
        self._shards = list(shards)
        self._packed: dict[int, bytes] = {}
        self.sentences = _numbers(shard.sentences for shard in shards)
        self.source_tokens = _numbers(shard.source_tokens for shard in shards)
        self.target_tokens = _numbers(shard.target_tokens for shard in shards)
        self.stored_bytes = _numbers(s.file.size_bytes if s.file else 0 for s in shards)

    def _packed_lengths(self, block: int) -> bytes:
        if block not in self._packed:
            tokens = self._read(block, None)
            self._packed[block] = pack_lengths(tokens.source_lengths, tokens.target_lengths)
        return self._packed[block]

    def _fetch(
        self, blocks: Sequence[int], num_ids: dict[str, int] | None
    ) -> dict[int, TokenPairs]:
        return {b: self._read(b, num_ids) for b in blocks}

    def _read(self, block: int, num_ids: dict[str, int] | None) -> TokenPairs:
        return _by_length(read_tokens(self._data_uri, [self._shards[block]], num_ids))


class _Parts(TokenBlocks):
    """Row groups of shards, as an index lists them."""

    def __init__(self, data_uri: str, shards: Sequence[ShardInfo], index: FileInfo) -> None:
        self._uris = [storage.join(data_uri, shard.name) for shard in shards]
        self._is_local = storage.is_local(data_uri)
        uri = storage.join(data_uri, index_name(shards[0].name))
        self._index = read_index(uri, index)
        names = self._index.column("shard").dictionary.to_pylist()
        in_index = {name: number for number, name in enumerate(names)}
        of_rows = self._index.column("shard").indices.to_numpy()
        numbers = [in_index.get(shard.name, len(names)) for shard in shards]
        begin, end = (np.searchsorted(of_rows, numbers, side=s) for s in ("left", "right"))
        # By block: its shard, its row of the index, and that of the shard's first block.
        self._shard_of = np.repeat(np.arange(len(shards)), end - begin)
        self._rows = np.concatenate([np.arange(b, e) for b, e in zip(begin, end, strict=True)])
        self._first_rows = begin[self._shard_of]
        self.sentences = self._column("sentences")
        self.source_tokens = self._column("source_tokens")
        self.target_tokens = self._column("target_tokens")
        self.stored_bytes = self._column("size_bytes")
        self._start = self._column("start")
        self._end = self._start + self.stored_bytes
        # Where it begins in its shard: sentences before it, less those before the shard.
        before = np.cumsum(self.sentences) - self.sentences
        self._first_sentence = before - before[np.searchsorted(self._shard_of, self._shard_of)]
        held = np.bincount(self._shard_of, self.sentences, len(shards)).astype(np.int64)
        for shard, found in zip(shards, held.tolist(), strict=True):
            if found != shard.sentences:
                raise UserError(
                    f"{uri} is not the index of these shards: {shard.sentences:,} pairs of "
                    f"{shard.name} expected, {found:,} found; {REMEDY}"
                )

    def _column(self, name: str) -> Numbers:
        column: Numbers = self._index.column(name).to_numpy()[self._rows]
        return column

    def _value(self, name: str, row: int) -> bytes:
        value: bytes = self._index.column(name)[int(row)].as_py()
        return value

    def _packed_lengths(self, block: int) -> bytes:
        return self._value("lengths", self._rows[block])

    def _fetch(
        self, blocks: Sequence[int], num_ids: dict[str, int] | None
    ) -> dict[int, TokenPairs]:
        found: dict[int, TokenPairs] = {}

        def take(extent: tuple[list[int], bytes]) -> None:
            for block in extent[0]:
                found[block] = _by_length(self._pairs(block, extent, num_ids))

        extents = self._extents(blocks)
        if self._is_local:
            for extent in extents:
                take(self._fetch_extent(extent))
        else:
            in_threads(self._fetch_extent, extents, take, num_threads=_REQUESTS)
        return found

    def _extents(self, blocks: Sequence[int]) -> list[list[int]]:
        """Blocks, in groups of neighbours in a file, each to be fetched as one."""
        extents: list[list[int]] = []
        for block in sorted(blocks):
            before = extents[-1][-1] if extents else block
            if (
                block == before + 1
                and self._shard_of[block] == self._shard_of[before]
                and self._start[block] == self._end[before]
            ):
                extents[-1].append(block)
            else:
                extents.append([block])
        return extents

    def _fetch_extent(self, extent: list[int]) -> tuple[list[int], bytes]:
        uri = self._uris[self._shard_of[extent[0]]]
        with told_of(uri, "token shard", REMEDY):
            return extent, storage.read_range(
                uri, int(self._start[extent[0]]), int(self._end[extent[-1]])
            )

    def _pairs(
        self, block: int, extent: tuple[list[int], bytes], num_ids: dict[str, int] | None
    ) -> TokenPairs:
        """A block of those fetched, proven, in the order of the file."""
        blocks, content = extent
        uri = self._uris[self._shard_of[block]]
        row, first = self._rows[block], self._first_rows[block]
        before = int(self._start[block] - self._start[blocks[0]])
        part = content[before : before + int(self.stored_bytes[block])]
        first_sentence = int(self._first_sentence[block])
        expected = FileInfo(int(self.stored_bytes[block]), self._value("sha256", row).hex())
        if FileInfo.of(part) != expected:
            raise UserError(
                f"token shard {uri}: sentences {first_sentence + 1:,} to "
                f"{first_sentence + self.sentences[block]:,} are not those that were written: "
                f"{expected} expected, {FileInfo.of(part)} found; {REMEDY}"
            )
        footer = zlib.decompress(self._value("footer", first))
        with told_of(uri, "token shard", REMEDY):
            reader = ParquetReader(FilePart(int(self._start[block]), part), footer)
            pairs = TokenPairs.of(reader.read_group(int(row - first), SIDES))
        check_ids(pairs, num_ids, uri, first_sentence)
        return pairs


def _by_length(pairs: TokenPairs) -> TokenPairs:
    """The same pairs in the order of their lengths."""
    order = order_of_lengths(pairs.source_lengths, pairs.target_lengths)
    source = _taken(pairs.source_tokens, pairs.source_offsets, order)
    return TokenPairs(*source, *_taken(pairs.target_tokens, pairs.target_offsets, order))


def _taken(
    tokens: NDArray[np.int32], offsets: Numbers, order: Numbers
) -> tuple[NDArray[np.int32], Numbers]:
    """Sentences in another order, and their offsets."""
    lengths = np.diff(offsets)[order]
    after = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    # int32 reaches as far as the offsets of a shard do, and takes half the time.
    places = np.arange(after[-1], dtype=np.int32)
    places += np.repeat((offsets[:-1][order] - after[:-1]).astype(np.int32), lengths)
    return tokens.take(places), after


def _numbers(values: Iterable[int]) -> Numbers:
    return np.fromiter(values, np.int64)
