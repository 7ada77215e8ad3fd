"""Writing vectors in the formats that others read, block by block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from dist_embed.errors import UserError
from dist_embed.observe.events import printable
from dist_embed.storage import uri as storage
from dist_embed.storage.compressed import is_compressed
from dist_embed.storage.parquet import parquet_writer

WrittenFormat = Literal["word2vec", "word2vec-bin", "glove", "parquet"]
WRITTEN_FORMATS: tuple[WrittenFormat, ...] = get_args(WrittenFormat)


class Block(NamedTuple):
    """Some words in the order of their ids.

    Attributes:
        words: n of them.
        counts: [n] how often each occurs in the training data.
        vectors: [n, D] float32.
        ids: [n] of the words; None: 0 and on over all blocks.
    """

    words: list[str]
    counts: NDArray[np.int64]
    vectors: NDArray[np.float32]
    ids: NDArray[np.int64] | None = None


def check_uncompressed(uri: str) -> None:
    """Refuse a name that promises what is not written. Raises UserError."""
    if is_compressed(uri):
        raise UserError(f"{uri!r} is not allowed: vectors are written without compression")


def write_vectors(
    uri: str,
    format: WrittenFormat,
    blocks: Iterable[Block],
    *,
    num_words: int,
    width: int,
    goes_on: bool = False,
) -> None:
    """Write a file that appears when it is whole, and replaces one of that name.

    Text holds the shortest decimal numbers that give the same float32 back. Parquet has the columns
    ``id``, ``word``, ``count`` and ``vector``, a list of D float32.

    Args:
        uri: the file, a local path or URL.
        format: of `WRITTEN_FORMATS`.
        blocks: all words in the order of their ids.
        num_words: how many there are, in all files that are to be read as one.
        width: D.
        goes_on: whether another of these files comes before: then no head is written, so that
            files of any format but Parquet become one by joining their bytes.

    Raises UserError, OSError.
    """
    check_uncompressed(uri)
    with storage.whole_file(uri) as file:
        if format == "parquet":
            _write_parquet(file, blocks, width)
            return
        if format != "glove" and not goes_on:
            file.write(f"{num_words} {width}\n".encode())
        for block in blocks:
            lines = (_binary if format == "word2vec-bin" else _text)(block, uri)
            file.write(b"".join(lines))


def as_line(word: str, uri: str) -> bytes:
    """A word as a line begins with it. Raises UserError where it has the end of a line in it."""
    if "\n" in word:
        raise UserError(
            f"{uri}: the word {printable(word)!r} has a line's end in it, which such a file cannot "
            "hold; Parquet can"
        )
    return word.encode()


def _text(block: Block, uri: str) -> Iterator[bytes]:
    names = [str(column) for column in range(block.vectors.shape[1])]
    table = pa.table([pa.array(column) for column in block.vectors.T.copy()], names=names)
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink, csv.WriteOptions(include_header=False, delimiter=" "))
    numbers = sink.getvalue().to_pybytes().split(b"\n")
    for word, line in zip(block.words, numbers, strict=False):  # an empty one follows the last
        yield b"%b %b\n" % (as_line(word, uri), line)


def _binary(block: Block, uri: str) -> Iterator[bytes]:
    for word, row in zip(block.words, block.vectors.astype("<f4"), strict=True):
        if " " in word:
            raise UserError(
                f"{uri}: the word {printable(word)!r} has a blank in it, which ends words in this "
                "form; text and Parquet can hold it"
            )
        yield b"%b %b\n" % (as_line(word, uri), row.tobytes())


def _write_parquet(file: IO[bytes], blocks: Iterable[Block], width: int) -> None:
    schema = pa.schema(
        [
            ("id", pa.int64()),
            ("word", pa.string()),
            ("count", pa.int64()),
            ("vector", pa.list_(pa.float32(), width)),
        ]
    )
    first = 0
    with parquet_writer(file, schema) as writer:
        for block in blocks:
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.vectors.ravel()), width)
            numbers = range(first, first + len(block.words)) if block.ids is None else block.ids
            ids = pa.array(numbers, pa.int64())
            columns = [ids, pa.array(block.words), pa.array(block.counts), vectors]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            first += len(block.words)
