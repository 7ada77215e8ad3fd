"""Lines of UTF-8 text, never more than one of them in memory, and none beyond a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO

from dist_embed.data.text.rows import CorpusError, WrongRow, not_utf8, too_long
from dist_embed.storage.compressed import OPEN_ERRORS, READ_ERRORS, missing, open_decompressed
from dist_embed.storage.first_bytes import PARQUET, ending_of, no_text

# Bytes: a thousand times what a sentence has.
LONGEST_LINE = 2**20


@contextmanager
def opened(uri: str) -> Iterator[IO[bytes]]:
    """An open file, decompressed by its ending, for the length of a block.

    Raises CorpusError, also for what goes wrong with the file in the block.
    """
    try:
        file = open_decompressed(uri)
    except OPEN_ERRORS as exc:
        reason = missing(uri) if isinstance(exc, FileNotFoundError) else exc
        raise CorpusError(f"cannot read {uri}: {reason}") from exc
    with file, _reading(uri):
        yield file


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """What goes wrong with a file in the block is raised as a CorpusError that names it."""
    try:
        yield
    except READ_ERRORS as exc:
        raise CorpusError(f"cannot read {name}: {exc}") from exc


def read_lines(
    uri: str, *, limit: int = LONGEST_LINE, beyond: str = "", markup: bool = False
) -> Iterator[str]:
    """The lines of a text file, decompressed by its ending, without line ends.

    Args:
        uri: the file.
        limit: bytes that a line may have.
        beyond: what is wrong with longer ones.
        markup: web pages and XML are text.

    Raises:
        CorpusError: the file is missing, unreadable or no text; a line is not UTF-8, or too long.
    """
    with opened(uri) as file:
        yield from decoded_lines(file, uri, limit=limit, beyond=beyond, markup=markup)


def decoded_lines(
    file: IO[bytes],
    name: str,
    *,
    limit: int = LONGEST_LINE,
    beyond: str = "",
    markup: bool = False,
) -> Iterator[str]:
    """As `read_lines`, of an open file that messages call ``name``."""
    beyond = beyond or f"longer than {limit:,} bytes"
    for line in lines_of(file, name, limit, lambda _: beyond, markup=markup):
        if isinstance(line, WrongRow):
            raise line
        yield line


def lines_of(
    file: IO[bytes],
    name: str,
    limit: int,
    beyond: Callable[[bytes], str] | None = None,
    *,
    markup: bool = False,
) -> Iterator[str | WrongRow]:
    """The lines of an open file, and what is wrong with those that are none.

    Args:
        file: at its first byte.
        name: what messages call it.
        limit: bytes that a line may have.
        beyond: what is wrong with a longer one that begins so; a corpus' setting is named without.
        markup: as for `read_lines`.

    Raises:
        CorpusError: the file cannot be read, or is no text.
    """
    with _reading(name):  # here, where it is known which of two that are open it is
        yield from _lines(file, name, limit, beyond or (lambda _: too_long(limit)), markup)


def _lines(
    file: IO[bytes], name: str, limit: int, beyond: Callable[[bytes], str], markup: bool
) -> Iterator[str | WrongRow]:
    read = partial(file.readline, limit + 2)  # so that it fits with its end
    for number, line in enumerate(iter(read, b""), start=1):
        if number == 1 and (other := no_text(line, markup=markup) or _packed(line)):
            raise CorpusError(f"{name}: {other}")
        text = line.rstrip(b"\r\n")
        is_long, size = len(text) > limit, len(line)
        while not is_long and line and not line.endswith(b"\n"):  # the rest may be of the end
            line = read()
            size += len(line)
            is_long = bool(line.rstrip(b"\r\n")) or size > limit + LONGEST_LINE
        if is_long:
            yield WrongRow(f"{name}, line {number}: {beyond(text)}")
            while line and not line.endswith(b"\n"):  # only for whoever goes on: it may be endless
                line = read()
            continue
        try:
            yield text.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as exc:
            yield WrongRow(f"{name}, line {number}: {not_utf8(exc)}")


def _packed(line: bytes) -> str | None:
    """What is said of a file that is compressed, or Parquet, where its name told that it is not."""
    ending = ".parquet" if PARQUET.match(line) else ending_of(line)
    return ending and (
        f"begins like a {ending} file: unpack it, let its name end so, or name the file in it, as "
        "tar://NAME::ARCHIVE"
    )
