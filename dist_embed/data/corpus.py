"""Parallel text, read as a stream: never more than a few lines in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO

import pyarrow as pa

from dist_embed.errors import UserError
from dist_embed.storage import uri as storage
from dist_embed.storage.compressed import OPEN_ERRORS, READ_ERRORS, open_decompressed
from dist_embed.storage.parquet import ParquetError, ParquetReader

Pair = tuple[str, str]
# Passes the pairs of a text on, and shows for what how many have been read.
Watch = Callable[[str, Iterable[Pair]], Iterable[Pair]]


def unwatched(what: str, pairs: Iterable[Pair]) -> Iterable[Pair]:
    """A `Watch` that shows nothing."""
    del what
    return pairs


_LINE_ENDS = re.compile(r"[\r\n]+")


class CorpusError(UserError):
    """A corpus cannot be read; the message names the file and the line."""


@dataclass(frozen=True)
class ParallelText:
    """Where the two sides of a corpus lie.

    Attributes:
        source: files or globs of the source side; empty where ``pairs`` is given.
        target: files or globs of the target side, aligned file by file with ``source``.
        pairs: TSV or Parquet files or globs with both sides in named columns.
        columns: names of the source and the target column of ``pairs``.
        limit: sentence pairs that are read, the first ones; None: all.
    """

    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    columns: tuple[str, str] = ("source", "target")
    limit: int | None = None


def read_pairs(corpus: ParallelText) -> Iterator[Pair]:
    """The sentence pairs in order, without line ends.

    Raises:
        CorpusError: a missing or unreadable file, invalid UTF-8, sides of different length, a
            missing column.
    """
    return islice(_all_pairs(corpus), corpus.limit)


def _all_pairs(corpus: ParallelText) -> Iterator[Pair]:
    if corpus.pairs:
        for uri in expand(corpus.pairs):
            name = uri.removesuffix(".gz").removesuffix(".zst")
            if name.lower().endswith(".parquet"):
                yield from _parquet_pairs(uri, corpus.columns)
            else:
                yield from _tsv_pairs(uri, corpus.columns)
        return
    sources, targets = expand(corpus.source), expand(corpus.target)
    if len(sources) != len(targets):
        raise CorpusError(
            f"{len(sources)} source files but {len(targets)} target files: they must pair up; "
            f"source: {', '.join(sources)}; target: {', '.join(targets)}"
        )
    for source, target in zip(sources, targets, strict=True):
        yield from _aligned_lines(source, target)


def read_lines(uri: str) -> Iterator[str]:
    """The lines of a text file (``.gz`` and ``.zst`` are decompressed), without line ends.

    Raises:
        CorpusError: the file is missing or unreadable, or a line is not UTF-8.
    """
    with _open(uri) as file:
        try:
            yield from decoded_lines(file, uri)
        except READ_ERRORS as exc:
            raise CorpusError(f"cannot read {uri}: {exc}") from exc


def decoded_lines(file: Iterable[bytes], name: str) -> Iterator[str]:
    """The UTF-8 lines of an open file, without line ends. Raises CorpusError naming the line."""
    for number, line in enumerate(file, start=1):
        try:
            yield line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as exc:
            raise CorpusError(
                f"{name}, line {number}: not valid UTF-8 (byte {exc.object[exc.start]:#04x} "
                f"at column {exc.start + 1})"
            ) from None


def expand(patterns: tuple[str, ...]) -> list[str]:
    """The files of a corpus in the order in which they are read. Raises CorpusError."""
    files: list[str] = []
    for pattern in patterns:
        try:
            found = [pattern] if storage.exists(pattern) else storage.glob(pattern)
        except ValueError as exc:
            raise CorpusError(str(exc)) from exc
        if not found:
            raise CorpusError(f"no file matches {pattern!r}")
        files += found
    return files


def _open(uri: str) -> IO[bytes]:
    try:
        return open_decompressed(uri)
    except OPEN_ERRORS as exc:
        reason = "no such file" if isinstance(exc, FileNotFoundError) else exc
        raise CorpusError(f"cannot read {uri}: {reason}") from exc


def _aligned_lines(source: str, target: str) -> Iterator[Pair]:
    source_lines, target_lines = read_lines(source), read_lines(target)
    count = 0
    while True:
        left, right = next(source_lines, None), next(target_lines, None)
        if left is None or right is None:
            break
        count += 1
        yield left, right
    left_count = count + (left is not None) + sum(1 for _ in source_lines)
    right_count = count + (right is not None) + sum(1 for _ in target_lines)
    if left_count != right_count:
        raise CorpusError(
            f"source and target differ in length: {source} has {left_count} lines, "
            f"{target} has {right_count}"
        )


def _tsv_pairs(uri: str, columns: tuple[str, str]) -> Iterator[Pair]:
    rows = (line.split("\t") for line in read_lines(uri))
    header = next(rows, [])
    if len(header) == 1:
        raise CorpusError(
            f"{uri}, line 1: expected names of columns with tabs between them, among them "
            f"{columns[0]!r} and {columns[1]!r}, found {header[0][:80]!r}; other files of pairs "
            "end in .parquet"
        )
    places = [_column(uri, header, name) for name in columns]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise CorpusError(
                f"{uri}, line {number}: {len(row)} columns, the header has {len(header)}"
            )
        yield row[places[0]], row[places[1]]


def _parquet_pairs(uri: str, columns: tuple[str, str]) -> Iterator[Pair]:
    with _open(uri) as file:
        try:
            parquet = ParquetReader(file)
            for name in columns:
                place = _column(uri, parquet.schema.names, name)
                kind = parquet.schema.types[place]
                kind = kind.value_type if pa.types.is_dictionary(kind) else kind
                if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                    raise CorpusError(f"{uri}: column {name!r} holds {kind}, not text")
            for batch in parquet.batches(columns, rows=4096):
                left, right = (batch.column(name).to_pylist() for name in columns)
                for source, target in zip(left, right, strict=True):
                    yield _one_line(source), _one_line(target)
        except (ParquetError, OSError) as exc:
            raise CorpusError(f"cannot read {uri}: {exc}") from exc


def _one_line(cell: str | None) -> str:
    return _LINE_ENDS.sub(" ", cell or "")


def _column(uri: str, names: list[str], wanted: str) -> int:
    if wanted not in names:
        raise CorpusError(f"{uri}: no column {wanted!r}; there are {', '.join(names) or 'none'}")
    return names.index(wanted)
