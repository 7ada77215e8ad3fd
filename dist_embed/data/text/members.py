"""Archives of text: ``.zip`` with one file, or with one for each side, as OPUS has them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from dist_embed.data.text.rows import Column, CorpusError, listed
from dist_embed.storage import uri as storage
from dist_embed.storage.compressed import OPEN_ERRORS, READ_ERRORS

# RuntimeError: it wants a password. NotImplementedError is one: a compression that Python has not.
_ERRORS = (*OPEN_ERRORS, *READ_ERRORS, RuntimeError)


@contextmanager
def archive_of(uri: str) -> Iterator[zipfile.ZipFile]:
    """An open ``.zip`` for the length of a block. Raises CorpusError."""
    try:
        with storage.open_file(uri) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except _ERRORS as exc:
        reason = "no such file" if isinstance(exc, FileNotFoundError) else exc
        raise CorpusError(f"cannot read {uri}: {reason}") from exc


def open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A file of an archive, to be read line by line."""
    member: Any = archive.open(name)
    return io.BufferedReader(member)  # whose lines of limited length are not Python's


def sides_among(uri: str, names: Sequence[str], columns: tuple[Column, Column]) -> tuple[str, str]:
    """The files of both sides, which end in the columns: ``Europarl.de-en.en``.

    Raises CorpusError.
    """
    found = []
    for column in map(str, columns):
        ours = [name for name in names if name.endswith(f".{column}")]
        if len(ours) != 1:
            raise CorpusError(
                f"{uri}: {len(ours)} files end in .{column}; there are {listed(names)}. Columns "
                "are the endings of the files of both sides, such as languages; unpack a file that "
                "has both"
            )
        found += ours
    return found[0], found[1]
