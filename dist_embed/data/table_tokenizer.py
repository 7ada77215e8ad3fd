"""The ``word`` tokenizer whose vocabulary is a table on disk.

The `tokenizers` library keeps the path of the text, before the words and after them; it knows no
word but the special tokens. Ids, tokens and digests are those of the library's own `WordLevel`,
which stays the form to export, and to read from what was prepared before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate, chain, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tokenizers import Tokenizer as HFTokenizer

from dist_embed.data.proof import FileInfo
from dist_embed.data.proven_once import at_hand
from dist_embed.data.settings import Form, Pieces
from dist_embed.data.text_form import Lowercase
from dist_embed.data.token_shards import REMEDY
from dist_embed.data.tokenizer import END, PAD, SPACE, SPECIAL_TOKENS, START, UNKNOWN, Tokenizer
from dist_embed.data.word_table import WordTable, joined, letters, write_words

_TOGETHER = 256  # texts
# What may vanish from a text, or begin another part as a space does.
_APART = re.compile(rf"\s|[{SPACE}\ufeff]")


class TableTokenizer(Tokenizer):
    """A tokenizer of words.

    Args:
        path_of_text: what `to_json` writes of one that knows the special tokens alone.
        table: the words by id, the special tokens among them.

    Attributes:
        copied_to: where the table's file lies too, and what proves it: whoever is sent this
            tokenizer, and has no such file as ``table`` is, fetches it from there.
    """

    on_disk = True
    copied_to: tuple[str, FileInfo] | None = None

    def __init__(self, path_of_text: str, table: WordTable) -> None:
        super().__init__(HFTokenizer.from_str(path_of_text))
        self.path_of_text, self.table = path_of_text, table

    @classmethod
    def write(
        cls,
        path: str,
        words: pa.Array,
        *,
        lowercase: Lowercase,
        split_punctuation: bool,
        form: Form = "none",
        pieces: Pieces = "none",
    ) -> TableTokenizer:
        """`Tokenizer.from_words` with its table in a new file."""
        alone = Tokenizer.from_words(
            [], lowercase=lowercase, split_punctuation=split_punctuation, form=form, pieces=pieces
        )
        special = pa.array(SPECIAL_TOKENS, pa.large_string())
        table = write_words(path, pa.concat_arrays([special, words.cast(pa.large_string())]))
        return cls(alone.to_json(), table)

    def __reduce__(self) -> tuple[object, ...]:
        return _opened, (self.path_of_text, self.table.path, self.copied_to)

    def to_json(self) -> str:
        """The content of the library's ``tokenizer.json``: all words are in it."""
        return b"".join(self._json_blocks()).decode()

    @cached_property
    def json_digest(self) -> str:
        """SHA-256, in hex, of `to_json`."""
        digest = hashlib.sha256()
        for block in self._json_blocks():
            digest.update(block)
        return digest.hexdigest()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tokens in the order of their ids, in hex."""
        return self.table.digest()

    def _json_blocks(self) -> Iterator[bytes | memoryview]:
        own = ",".join(f'"{token}":{i}' for i, token in enumerate(SPECIAL_TOKENS))
        before, after = self.path_of_text.split(own)
        yield before.encode()
        start = 0
        for words in self.table.blocks():
            special = pc.match_substring_regex(words, r'["\\\x00-\x1f]')
            if pc.any(special).as_py():
                escaped = [
                    json.dumps(word, ensure_ascii=False)[1:-1]
                    for word in words.filter(special).to_pylist()
                ]
                words = pc.replace_with_mask(words, special, pa.array(escaped, pa.large_string()))
            ids = pa.array(np.arange(start, start + len(words))).cast(pa.large_string())
            yield letters(joined(',"', words, '":', ids))[0 if start else 1 :]
            start += len(words)
        yield after.encode()

    @cached_property
    def size(self) -> int:
        """V, special tokens included."""
        return len(self.table)

    def tokens(self) -> list[str]:
        """The token of every id."""
        found: list[str] = self.table.words.to_pylist()
        return found

    def column(self) -> pa.Array:
        """The token of every id, as an array."""
        return self.table.words

    def token(self, i: int) -> str:
        """The token of one id."""
        return str(self.table.words[i])

    def tokens_of(self, ids: range) -> list[str]:
        """The tokens of some ids."""
        return self.table.words_of(np.arange(ids.start, ids.stop, ids.step))

    def id_of(self, token: str) -> int | None:
        """The id of one token, with its mark; None where there is none."""
        (found,) = self.ids_of([token])
        return None if found == UNKNOWN and token != SPECIAL_TOKENS[UNKNOWN] else found

    def ids_of(self, tokens: list[str]) -> list[int]:
        """The id of each token, `UNKNOWN` where it has none."""
        found: list[int] = self.ids_of_column(pa.array(tokens, pa.large_string())).tolist()
        return found

    def ids_of_column(self, tokens: pa.Array) -> NDArray[np.int32]:
        """Like `ids_of`, of an array."""
        return self.table.ids_of(tokens)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each sentence, without special tokens."""
        parts = self._parts(texts)
        ids = self.ids_of(list(chain.from_iterable(parts)))
        ends = accumulate(map(len, parts), initial=0)
        return [ids[start:end] for start, end in pairwise(ends)]

    def _parts(self, texts: list[str]) -> list[list[str]]:
        """`split` of each text. Without spaces many are split as one: a call takes as long as some
        words.
        """
        parts: list[list[str]] = []
        for first in range(0, len(texts), _TOGETHER):
            some = texts[first : first + _TOGETHER]
            found = None
            if self.mark and all(some) and not _APART.search("".join(some)):
                found = self._together(some)
            parts += found or [self.split(text) for text in some]
        return parts

    def _together(self, texts: list[str]) -> list[list[str]] | None:
        """The parts of texts without spaces; None where it cannot be told what belongs to which."""
        parts = self.split(" ".join(texts))
        begins = [at for at, part in enumerate(parts) if part.startswith(self.mark)]
        if len(begins) != len(texts):  # NFKC makes spaces of U+00A8 and others
            return None
        return [parts[start:end] for start, end in pairwise([*begins, len(parts)])]

    def decode(self, ids: list[list[int]], *, unknown: str = SPECIAL_TOKENS[UNKNOWN]) -> list[str]:
        """The sentence of each list of ids. What is unknown shows as ``unknown``, a word of its
        own.
        """
        kept = [[i for i in sentence if i not in (PAD, START, END)] for sentence in ids]
        words = self.table.words_of(list(chain.from_iterable(kept)))
        part = self.unknown_part(unknown)
        shown = [
            part if i == UNKNOWN else word
            for i, word in zip(chain.from_iterable(kept), words, strict=True)
        ]
        ends = accumulate(map(len, kept), initial=0)
        return [self.join(shown[start:end]) for start, end in pairwise(ends)]


def _opened(path_of_text: str, path: str, copied_to: tuple[str, FileInfo] | None) -> TableTokenizer:
    if copied_to is None or os.path.exists(path):
        return TableTokenizer(path_of_text, WordTable(path))
    file = at_hand(*copied_to, REMEDY)
    return TableTokenizer(path_of_text, WordTable(file.path, file))
