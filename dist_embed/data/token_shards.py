"""Prepared data: token shards in Parquet, and ``data.json``, written last, that lists them.

It lists every file with its size and digest, and all are proven when they are read; what was
prepared before (format 1) has no digests. Since format 3 the words of a vocabulary are a table on
disk, and what checkpoints know tokenizers by is written here.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_embed.data.inputs import Inputs
from dist_embed.data.proof import FileInfo, read_table, sealed, unsealed
from dist_embed.errors import UserError
from dist_embed.storage import uri as storage
from dist_embed.storage.json_text import Count, as_kind, from_json
from dist_embed.storage.parquet import ParquetReader, parquet_of_lists

FORMAT = 3
FORMAT_BEFORE = 2
UNPROVEN_FORMAT = 1  # without digests and inputs, and all files in the folder itself
INDEX_NAME = "data.json"
SIDES = ("source", "target")
SPLITS = ("train", "validation", "test")
# Rows of a row group, the smallest part of a shard that is read: some 270 KiB. Object stores are
# asked for a few hundred KiB at a time, and a shard of 50,000 pairs has 20 of them.
BLOCK_SENTENCES = 2_500
REMEDY = "prepare the data again with `dist-embed prepare CONFIG --force`"


@dataclass(frozen=True)
class ShardInfo:
    """One token shard: its file below the data folder, what it holds, and what proves it.

    Attributes:
        name: of the file.
        sentences: pairs.
        source_tokens: of all of them.
        target_tokens: likewise.
        file: what proves the file. None, as ``content``: prepared before there were digests.
        content: `content_digest` of its sentences.
    """

    name: str
    sentences: Count
    source_tokens: Count
    target_tokens: Count
    file: FileInfo | None = None
    content: str | None = None


@dataclass
class Split:
    """One part of the data: its shards and what was left out while writing them."""

    shards: list[ShardInfo] = field(default_factory=list)
    dropped_empty: int = 0
    dropped_long: int = 0
    cut: int = 0
    dropped_ratio: int = 0
    dropped_wrong: int = 0

    @property
    def sentences(self) -> int:
        """Sentence pairs in all shards."""
        return sum(shard.sentences for shard in self.shards)

    def identity(self) -> str:
        """What tells these sentences and their order from others, wherever the folder lies: their
        number, and a digest of the shards' names and counts. The same text prepared again with the
        same settings has the same.
        """
        shards = [[s.name, s.sentences, s.source_tokens, s.target_tokens] for s in self.shards]
        digest = hashlib.sha256(json.dumps(shards).encode()).hexdigest()
        return f"{self.sentences:,} pairs in {len(shards):,} shards ({digest[:16]})"

    def content(self) -> str | None:
        """SHA-256, in hex, of all sentences in their order, whatever wrote them into files; None
        where that is not known.
        """
        known = [shard.content for shard in self.shards if shard.content]
        if len(known) < len(self.shards):
            return None
        return hashlib.sha256(" ".join(known).encode()).hexdigest()

    @property
    def target_tokens(self) -> int:
        """Tokens that a model has to predict in one epoch, the ends of sentences among them."""
        return sum(shard.target_tokens + shard.sentences for shard in self.shards)


@dataclass
class PreparedData:
    """What ``data.json`` says.

    Attributes:
        settings: the settings that decided the content, dotted key to value.
        vocabulary_size: V for source and target.
        shared_vocabulary: whether both sides have one vocabulary.
        splits: train and, where given, validation and test.
        format: of ``data.json``.
        files: what proves the files beside the shards, by name: vocabularies and tokenizers.
        digests: by side what checkpoints know its tokenizer by, ``tokenizer`` and ``vocabulary``;
            empty: nobody wrote it down.
        word_tables: whether tokenizers are of words in tables on disk, which take no memory.
        inputs: the files it was prepared from; none for generated text; None: nobody wrote it down.
        folder_uri: where it was read from, or written to; no part of what it says.
    """

    settings: dict[str, Any]
    vocabulary_size: dict[str, Count]
    shared_vocabulary: bool
    splits: dict[str, Split]
    format: int = FORMAT
    files: dict[str, FileInfo] = field(default_factory=dict)
    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    word_tables: bool = False
    inputs: Inputs | None = None
    folder_uri: str = field(default="", compare=False)

    def held_out(self, name: str, data_uri: str) -> Split:
        """The split of that name. Raises UserError where there is none, or it is for training."""
        names = [split for split in self.splits if split != "train"]
        if name not in names:
            raise UserError(
                f"split {name!r} is not among the held-out data in {data_uri}; "
                f"there are {', '.join(names) or 'none'}"
            )
        return self.splits[name]

    def not_proven(self, data_uri: str) -> str | None:
        """A line for the user of data without digests; None where there are some."""
        if self.format != UNPROVEN_FORMAT:
            return None
        return (
            f"{data_uri} was prepared before data carried digests: it is read, but not proven. "
            "Prepared again, it is"
        )

    def to_json(self) -> str:
        """The content of ``data.json``."""
        values = asdict(self)
        del values["folder_uri"]
        for split in values["splits"].values():
            for later in ("dropped_ratio", "dropped_wrong"):
                if not split[later]:  # as before it was counted
                    del split[later]
        if self.inputs is None:
            del values["inputs"]
        if self.format < FORMAT:
            del values["digests"], values["word_tables"]
        if self.format != UNPROVEN_FORMAT:
            return sealed(values)
        del values["files"]
        for split in values["splits"].values():
            for shard in split["shards"]:
                del shard["file"], shard["content"]
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"

    def digest(self) -> str:
        """SHA-256 of ``data.json`` without its inputs, whose names and times may become others."""
        return hashlib.sha256(replace(self, inputs=None).to_json().encode()).hexdigest()

    @classmethod
    def read(cls, data_uri: str) -> PreparedData:
        """Read ``data.json``. Raises FileNotFoundError; UserError for another format."""
        uri = storage.join(data_uri, INDEX_NAME)
        content = storage.read_bytes(uri)  # a store that fails is a ValueError, and no damage
        try:
            data = cls._from_text(content.decode(), uri)
            data.folder_uri = data_uri
            return data
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise UserError(f"{uri} is damaged ({type(exc).__name__}: {exc}); {REMEDY}") from exc

    @classmethod
    def _from_text(cls, text: str, uri: str) -> PreparedData:
        values = from_json(text)
        found = values.get("format")
        if found not in (UNPROVEN_FORMAT, FORMAT_BEFORE, FORMAT):
            raise UserError(
                f"{uri}: format {found!r}; this version reads {UNPROVEN_FORMAT} to {FORMAT}"
            )
        if found != UNPROVEN_FORMAT:
            values = unsealed(text)
        data = as_kind(cls, values)
        if found == UNPROVEN_FORMAT and (
            "train" not in data.splits or set(SIDES) - data.vocabulary_size.keys()
        ):
            raise ValueError("it has no training data, or no vocabulary of a side")
        return data


@dataclass
class TokenPairs:
    """Sentence pairs as flat token arrays; sentence i is ``tokens[offsets[i]:offsets[i + 1]]``."""

    source_tokens: NDArray[np.int32]
    source_offsets: NDArray[np.int64]
    target_tokens: NDArray[np.int32]
    target_offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.source_offsets) - 1

    @classmethod
    def of(cls, table: pa.Table) -> TokenPairs:
        """Of the columns ``source`` and ``target``, lists of ids."""
        arrays: list[Any] = []
        for lists in _lists(table):
            offsets = np.asarray(lists.offsets, dtype=np.int64)
            # The values of a chunk may start behind an offset.
            arrays.append(np.asarray(lists.values, dtype=np.int32)[offsets[0] : offsets[-1]])
            arrays.append(offsets - offsets[0])
        return cls(*arrays)

    @property
    def source_lengths(self) -> NDArray[np.int64]:
        """Tokens of each source sentence."""
        return np.diff(self.source_offsets)

    @property
    def target_lengths(self) -> NDArray[np.int64]:
        """Tokens of each target sentence."""
        return np.diff(self.target_offsets)


def lists_of(content: bytes) -> list[pa.ListArray]:
    """The token lists of both sides of a shard with these bytes."""
    return _lists(ParquetReader(io.BytesIO(content)).read(SIDES))


def _lists(table: pa.Table) -> list[pa.ListArray]:
    columns = map(table.combine_chunks().column, SIDES)
    empty = pa.array([], pa.list_(pa.int32()))
    return [column.chunk(0) if column.num_chunks else empty for column in columns]


def content_digest(source: pa.ListArray, target: pa.ListArray) -> str:
    """SHA-256, in hex, of the token lists of both sides: of their lengths and ids, int32, little
    endian. A file of the same lists may have other bytes, by another version of what writes it.
    """
    digest = hashlib.sha256()
    for lists in (source, target):
        for numbers in (pc.list_value_length(lists), lists.flatten()):
            digest.update(numbers.to_numpy().astype("<i4", copy=False))
    return digest.hexdigest()


def shard_content(
    source: pa.ListArray | list[list[int]],
    target: pa.ListArray | list[list[int]],
    texts: tuple[list[str], list[str]] | None = None,
) -> bytes:
    """The bytes of one shard: token lists, and the texts where they are needed again (held-out
    data), in row groups of `BLOCK_SENTENCES`.
    """
    ids, text = pa.list_(pa.int32()), pa.string()
    columns: dict[str, Any] = {"source": source, "target": target}
    schema = {"source": ids, "target": ids}
    if texts is not None:
        columns |= {"source_text": texts[0], "target_text": texts[1]}
        schema |= {"source_text": text, "target_text": text}
    return parquet_of_lists(pa.table(columns, pa.schema(schema)), SIDES, rows=BLOCK_SENTENCES)


def write_shard(
    uri: str,
    source: pa.ListArray | list[list[int]],
    target: pa.ListArray | list[list[int]],
    texts: tuple[list[str], list[str]] | None = None,
) -> FileInfo:
    """Write one shard, see `shard_content`; returns what proves it."""
    content = shard_content(source, target, texts)
    storage.write_bytes(uri, content)
    return FileInfo.of(content)


def read_tokens(
    data_uri: str, shards: list[ShardInfo], num_ids: dict[str, int] | None = None
) -> TokenPairs:
    """The token pairs of shards, one after the other.

    Args:
        data_uri: the prepared data.
        shards: at least one.
        num_ids: for each side the number of ids there are; None: not looked at.

    Raises:
        UserError: a shard is missing or not the one that was written, or holds an id that is none.
    """
    return joined([_read_shard(data_uri, shard, num_ids) for shard in shards])


def _read_shard(data_uri: str, shard: ShardInfo, num_ids: dict[str, int] | None) -> TokenPairs:
    pairs = TokenPairs.of(_read(data_uri, shard, list(SIDES)))
    uri = storage.join(data_uri, shard.name)
    for side, expected, tokens in (
        ("source", shard.source_tokens, pairs.source_tokens),
        ("target", shard.target_tokens, pairs.target_tokens),
    ):
        if len(tokens) != expected:
            raise UserError(
                f"token shard {uri} is not the one that was written: {expected:,} {side} tokens "
                f"expected, {len(tokens):,} found; {REMEDY}"
            )
    check_ids(pairs, num_ids, uri)
    return pairs


def joined(pairs: Sequence[TokenPairs]) -> TokenPairs:
    """Sentence pairs one after the other."""
    start = np.zeros(1, np.int64)
    return TokenPairs(
        np.concatenate([np.zeros(0, np.int32), *(p.source_tokens for p in pairs)]),
        np.cumsum(np.concatenate([start, *(p.source_lengths for p in pairs)])),
        np.concatenate([np.zeros(0, np.int32), *(p.target_tokens for p in pairs)]),
        np.cumsum(np.concatenate([start, *(p.target_lengths for p in pairs)])),
    )


def check_ids(pairs: TokenPairs, num_ids: dict[str, int] | None, uri: str, first: int = 0) -> None:
    """Raises UserError for the first id that is none: ``num_ids`` of each side there are.

    ``uri`` is the shard; the pairs begin with its sentence ``first``, counted from 0.
    """
    for side, tokens, offsets in (
        ("source", pairs.source_tokens, pairs.source_offsets),
        ("target", pairs.target_tokens, pairs.target_offsets),
    ):
        if num_ids is None or not len(tokens):
            continue
        limit = num_ids[side]
        if tokens.min() >= 0 and tokens.max() < limit:
            continue
        place = int(np.flatnonzero((tokens < 0) | (tokens >= limit))[0])
        sentence = int(np.searchsorted(offsets, place, side="right")) - 1
        raise UserError(
            f"token shard {uri}: {side} token {place - offsets[sentence] + 1} of sentence "
            f"{first + sentence + 1} is id {tokens[place]}, but the {side} table has ids 0 to "
            f"{limit - 1}; {REMEDY}"
        )


def read_texts(data_uri: str, split: Split) -> tuple[list[str], list[str]]:
    """Source and target sentences of a held-out split."""
    tables = [_read(data_uri, shard, ["source_text", "target_text"]) for shard in split.shards]
    table = pa.concat_tables(tables)
    return table.column("source_text").to_pylist(), table.column("target_text").to_pylist()


def _read(data_uri: str, shard: ShardInfo, columns: list[str]) -> pa.Table:
    return read_table(
        storage.join(data_uri, shard.name), columns, shard.file,
        what="token shard", remedy=REMEDY, rows=shard.sentences,
    )  # fmt: skip
