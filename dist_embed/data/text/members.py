"""Archives of text: ``.zip`` with one file, or with one for each side, as OPUS has them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from dist_embed.data.text.rows import Column, CorpusError, listed
from dist_embed.storage import uri as storage
from dist_embed.storage.compressed import OPEN_ERRORS, READ_ERRORS


@contextmanager
def archive_of(uri: str) -> Iterator[zipfile.ZipFile]:
    """An open ``.zip`` for the length of a block.

    Raises CorpusError, also for what goes wrong with the file in the block.
    """
    with ExitStack() as held:
        try:
            file = held.enter_context(storage.open_file(uri))
            archive = held.enter_context(zipfile.ZipFile(file))
        except OPEN_ERRORS as exc:
            reason = "no such file" if isinstance(exc, FileNotFoundError) else exc
            raise CorpusError(f"cannot read {uri}: {reason}") from exc
        try:
            yield archive
        except READ_ERRORS as exc:
            raise CorpusError(f"cannot read {uri}: {exc}") from exc


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
