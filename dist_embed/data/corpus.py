"""Parallel text, read as a stream: never more than a few lines in memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO

from dist_embed.data.scratch import scratch_folder
from dist_embed.data.settings import Quoting
from dist_embed.data.text.aligned import aligned_lines
from dist_embed.data.text.json_lines import json_pairs
from dist_embed.data.text.lines import LONGEST_LINE, opened
from dist_embed.data.text.members import archive_of, sides_among
from dist_embed.data.text.parquet import parquet_pairs
from dist_embed.data.text.rows import Column, CorpusError, Pair, WrongRow
from dist_embed.data.text.tables import table_pairs
from dist_embed.data.text.tmx import tmx_pairs
from dist_embed.storage import uri as storage
from dist_embed.storage.compressed import (
    ENDINGS,
    OPEN_ERRORS,
    READ_ERRORS,
    files_in,
    is_compressed,
    name_of,
    open_member,
)
from dist_embed.storage.local_file import named


@dataclass(frozen=True)
class ParallelText:
    """Where the two sides of a corpus lie.

    Attributes:
        source: files or globs of the source side; empty where ``pairs`` is given.
        target: files or globs of the target side, aligned file by file with ``source``.
        pairs: files or globs with both sides, of a format that their endings name.
        columns: the source and the target column of ``pairs``.
        quoting: of tables, see `table_pairs`.
        skip_wrong: rows that cannot be read are passed over; otherwise the first one is refused.
        max_line_bytes: longer lines, and cells, cannot be read.
        limit: sentence pairs that are read, the first ones; None: all.
    """

    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    columns: tuple[Column, Column] = ("source", "target")
    quoting: Quoting = "auto"
    skip_wrong: bool = False
    max_line_bytes: int = LONGEST_LINE
    limit: int | None = None


@dataclass
class Skipped:
    """Rows that were passed over: how many, and what is wrong with the first."""

    count: int = 0
    first: str = ""


def read_pairs(corpus: ParallelText, skipped: Skipped | None = None) -> Iterator[Pair]:
    """The sentence pairs in order, without line ends; ``skipped`` counts what is passed over.

    Raises:
        CorpusError: a missing or unreadable file, sides of different length, a missing column, or
            a row that is not to be passed over: no UTF-8, too long, of other columns.
    """
    return islice(_sound_pairs(corpus, skipped or Skipped()), corpus.limit)


def expand(patterns: tuple[str, ...]) -> list[str]:
    """The files of a corpus in the order in which they are read. Raises CorpusError."""
    files: list[str] = []
    for pattern in patterns:
        try:
            found = [pattern] if storage.exists(pattern) else storage.glob(pattern)
        except FileNotFoundError:
            found = []  # no archive of that name
        except (*OPEN_ERRORS, *READ_ERRORS) as exc:
            raise CorpusError(f"cannot read {pattern}: {exc}") from exc
        if not found:
            raise CorpusError(f"no file matches {pattern!r}")
        files += found
    return files


def _sound_pairs(corpus: ParallelText, skipped: Skipped) -> Iterator[Pair]:
    for row in _rows(corpus):
        if not isinstance(row, WrongRow):
            yield row
        elif corpus.skip_wrong:
            skipped.count += 1
            skipped.first = skipped.first or str(row)
        else:
            raise row


def _rows(corpus: ParallelText) -> Iterator[Pair | WrongRow]:
    for uri in expand(corpus.pairs):
        if name_of(uri).endswith(".zip"):
            yield from _zipped_rows(uri, corpus)
        else:
            with opened(uri) as file:
                yield from _rows_of_file(file, uri, uri, corpus, is_packed=is_compressed(uri))
    sources, targets = expand(corpus.source), expand(corpus.target)
    if len(sources) != len(targets):
        raise CorpusError(
            f"{len(sources)} source files but {len(targets)} target files: they must pair up; "
            f"source: {', '.join(sources)}; target: {', '.join(targets)}"
        )
    for names in zip(sources, targets, strict=True):
        with opened(names[0]) as source, opened(names[1]) as target:
            yield from aligned_lines(source, target, names, corpus.max_line_bytes)


def _zipped_rows(uri: str, corpus: ParallelText) -> Iterator[Pair | WrongRow]:
    with archive_of(uri) as archive:
        names = files_in(archive)
        if len(names) == 1:
            if name_of(names[0]).endswith(ENDINGS):
                raise CorpusError(
                    f"{uri}: {names[0]} in it is compressed too; give it as zip://{names[0]}::{uri}"
                )
            with open_member(archive, names[0]) as file:
                called = f"{uri}, {names[0]}"
                yield from _rows_of_file(file, names[0], called, corpus, is_packed=True)
            return
        sides = sides_among(uri, names, corpus.columns)
        with open_member(archive, sides[0]) as source, open_member(archive, sides[1]) as target:
            both = (f"{uri}, {sides[0]}", f"{uri}, {sides[1]}")
            yield from aligned_lines(source, target, both, corpus.max_line_bytes)


def _rows_of_file(
    file: IO[bytes], name: str, uri: str, corpus: ParallelText, *, is_packed: bool
) -> Iterator[Pair | WrongRow]:
    """``file``, whose ending is ``name``'s; messages call it ``uri``."""
    name = name_of(name)
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    how = (file, uri, corpus.columns, corpus.max_line_bytes)
    if name.endswith(".parquet"):
        return _unpacked_parquet(*how) if is_packed else parquet_pairs(*how)
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return json_pairs(*how)
    if name.endswith(".tmx"):
        return tmx_pairs(*how)
    delimiter = "," if name.endswith(".csv") else "\t"
    return table_pairs(*how, delimiter=delimiter, quoting=corpus.quoting)


def _unpacked_parquet(
    file: IO[bytes], uri: str, columns: tuple[Column, Column], limit: int
) -> Iterator[Pair | WrongRow]:
    """As `parquet_pairs`, which goes back and forth, of a file that is read forwards alone."""
    with scratch_folder("dist_embed-parquet-", f"{uri} is unpacked") as folder:
        path = os.path.join(folder, "unpacked")
        with named(path), open(path, "w+b") as whole:
            shutil.copyfileobj(file, whole)
            yield from parquet_pairs(whole, uri, columns, limit)
