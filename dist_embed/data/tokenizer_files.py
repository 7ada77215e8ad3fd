"""The tokenizers of a data or run folder: their files, and how they are read.

Of pieces, ``tokenizer.SIDE.json`` is the `tokenizers` library's own file. Of words, it is a page
that says what proves the table of words beside it (`word_table`), and by which digests checkpoints
know it; it carries a digest of its own. What was prepared before has the library's file for words
too, and is read into memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import Field

from dist_embed.data.proof import FileInfo, copy_proven, read_proven, sealed, unsealed
from dist_embed.data.proven_once import at_hand
from dist_embed.data.table_tokenizer import TableTokenizer
from dist_embed.data.token_shards import REMEDY, SIDES, PreparedData
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.data.word_table import WordTable
from dist_embed.errors import UserError
from dist_embed.storage import uri as storage
from dist_embed.storage.json_text import as_kind

_REMEDY_OF_RUN = "put the run's own file back; the data it was trained on have it too"
_HEAD = b'{\n "word_table": '  # no file of the library begins so


# A plain name: whoever trains on the data of others gets a copy of this name into the run.
TableName = Annotated[str, Field(pattern=r"^words\.(source|target)\.arrow$")]


@dataclass(frozen=True)
class WordsPage:
    """What ``tokenizer.SIDE.json`` says of a tokenizer whose words are a table.

    Attributes:
        word_table: its file, in the same folder.
        file: what proves it.
        size: V.
        tokenizer: `Tokenizer.json_digest`.
        vocabulary: `Tokenizer.digest`.
        path_of_text: the library's file of one that knows the special tokens alone.
    """

    word_table: TableName
    file: FileInfo
    size: int
    tokenizer: str
    vocabulary: str
    path_of_text: str

    @classmethod
    def of(cls, content: bytes) -> WordsPage | None:
        """That of a tokenizer's file; None where it is the library's. Raises ValueError."""
        if not content.startswith(_HEAD):
            return None
        return as_kind(cls, unsealed(content.decode()))

    def to_bytes(self) -> bytes:
        """The content of the file."""
        return sealed(asdict(self)).encode()


def tokenizer_name(side: str) -> str:
    """File name of the tokenizer of ``source`` or ``target``."""
    return f"tokenizer.{side}.json"


def read_tokenizer(folder_uri: str, side: str, data: PreparedData | None = None) -> bytes:
    """The file of a tokenizer in a data or run folder, without its table of words. ``data``, what
    is known of a data folder, proves it.

    Raises FileNotFoundError; UserError where it is not the file that was written.
    """
    name = tokenizer_name(side)
    expected = data.files.get(name) if data else None
    return read_proven(storage.join(folder_uri, name), expected, REMEDY)


def load_tokenizers(folder_uri: str, data: PreparedData | None = None) -> dict[str, Tokenizer]:
    """The tokenizers of both sides from a data or run folder; one where they are equal.

    Tables of words are mapped; those of a store are fetched, and all are proven, by one process of
    a machine. ``data``, what is known of a data folder, proves the files beside them; those of a
    run's folder are proven by its checkpoints, `check_tokenizer` in ``run/folder.py``.

    Raises FileNotFoundError; UserError where one is no tokenizer, or not that of the data.
    """
    source, target = (read_tokenizer(folder_uri, side, data) for side in SIDES)
    first = _parsed(source, folder_uri, "source", data)
    second = first if target == source else _parsed(target, folder_uri, "target", data)
    return {"source": first, "target": second}


def _parsed(content: bytes, folder_uri: str, side: str, data: PreparedData | None) -> Tokenizer:
    uri = storage.join(folder_uri, tokenizer_name(side))
    try:
        page = WordsPage.of(content)
        remedy = REMEDY if data else _REMEDY_OF_RUN
        tokenizer = _mapped(page, folder_uri, remedy) if page else Tokenizer.from_file(content)
    except (UserError, OSError):
        raise
    except Exception as exc:  # the library's errors have no type of their own
        raise UserError(f"{uri} cannot be read as a tokenizer: {exc}") from exc
    if data and data.vocabulary_size[side] != tokenizer.size:
        raise UserError(
            f"{uri} is not the one that was written: {data.vocabulary_size[side]:,} words "
            f"expected, {tokenizer.size:,} found; {REMEDY}"
        )
    return tokenizer


def _mapped(page: WordsPage, folder_uri: str, remedy: str) -> TableTokenizer:
    file = at_hand(storage.join(folder_uri, page.word_table), page.file, remedy)
    table = WordTable(file.path, file)
    if len(table) != page.size:
        raise ValueError(f"{page.size:,} words expected, {len(table):,} found")
    tokenizer = TableTokenizer(page.path_of_text, table)
    tokenizer.json_digest, tokenizer.digest = page.tokenizer, page.vocabulary
    return tokenizer


def write_tokenizers(
    folder_uri: str, tokenizers: dict[str, Tokenizer]
) -> tuple[dict[str, FileInfo], dict[str, dict[str, str]]]:
    """Write the tokenizers of both sides, with one table where they are the same one.

    Other machines can be sent them from then on. Returns what proves their files, and by side the
    digests that `known_by` names.
    """
    files: dict[str, FileInfo] = {}
    digests: dict[str, dict[str, str]] = {}
    content, before = b"", None
    for side, tokenizer in tokenizers.items():
        if tokenizer is not before:
            before = tokenizer
            if isinstance(tokenizer, TableTokenizer):
                page = _page(folder_uri, side, tokenizer)
                files[page.word_table] = page.file
                content = page.to_bytes()
            else:
                content = tokenizer.to_json().encode()
        storage.write_bytes(storage.join(folder_uri, tokenizer_name(side)), content)
        files[tokenizer_name(side)] = FileInfo.of(content)
        digests[side] = {"tokenizer": tokenizer.json_digest, "vocabulary": tokenizer.digest}
    return files, digests


def _page(folder_uri: str, side: str, tokenizer: TableTokenizer) -> WordsPage:
    name = f"words.{side}.arrow"
    uri = storage.join(folder_uri, name)
    file = copy_proven(tokenizer.table.path, uri, None, REMEDY)
    tokenizer.copied_to = uri, file
    return WordsPage(
        name, file, tokenizer.size, tokenizer.json_digest, tokenizer.digest, tokenizer.path_of_text
    )


def copy_tokenizers(data: PreparedData, folder_uri: str) -> None:
    """Copy those of prepared data into another folder. A table that is there, and belongs to the
    same page, is not copied again. Raises UserError where one is not the one that was written.
    """
    copied: set[bytes] = set()
    for side in SIDES:
        content = read_tokenizer(data.folder_uri, side, data)
        there = storage.join(folder_uri, tokenizer_name(side))
        page = WordsPage.of(content)
        if page and content not in copied:  # of a shared vocabulary both sides' are the same
            copied.add(content)
            table = storage.join(folder_uri, page.word_table)
            if not (_has(there, content) and _has_size(table, page.file.size_bytes)):
                theirs = storage.join(data.folder_uri, page.word_table)
                copy_proven(theirs, table, page.file, REMEDY)
        storage.write_bytes(there, content)


def _has(uri: str, content: bytes) -> bool:
    return storage.exists(uri) and storage.read_bytes(uri) == content


def _has_size(uri: str, size_bytes: int) -> bool:
    return storage.exists(uri) and storage.stamp(uri).size_bytes == size_bytes


def json_digest_of(content: bytes) -> str:
    """`Tokenizer.json_digest` of a tokenizer's file; no word is read. Raises ValueError."""
    page = WordsPage.of(content)
    return page.tokenizer if page else hashlib.sha256(content).hexdigest()


def without_words(content: bytes) -> Tokenizer:
    """A tokenizer of the same path of text; of pieces, or of what was prepared before, with all
    that it knows. Raises ValueError, and what the library raises.
    """
    page = WordsPage.of(content)
    return Tokenizer.from_json(page.path_of_text) if page else Tokenizer.from_file(content)
