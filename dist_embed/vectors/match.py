"""Which words of a file are which tokens of a vocabulary: exactly, or by a chain of likenesses."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_embed.data.text_form import in_form, lowercased
from dist_embed.data.tokenizer import SPACE, SPECIAL_TOKENS, Tokenizer
from dist_embed.vectors.settings import Likeness

FORMS: dict[Likeness, Callable[[str], str]] = {
    "lowercase": lowercased,
    "nfc": lambda word: unicodedata.normalize("NFC", word),
    "digits": lambda word: re.sub(r"\d", "0", word),
    # As in word2vec's vectors of news, and ConceptNet's.
    "hashes": lambda word: re.sub(r"\d", "#", word) if re.search(r"\d\d", word) else word,
}
_BLOCK = 2**16


@dataclass(frozen=True)
class Matches:
    """Pairs of a file's word and a token. The arrays have one entry for each pair.

    Attributes:
        places: which of the words that were asked for.
        ids: the token.
        ranks: 0 where token and word are written the same, 1 where the word is the token without
            the mark of a space, 2 and more after so many forms less one have been applied.
        counted: whether the pair is the one of its word by which the word is counted.
    """

    places: NDArray[np.int64]
    ids: NDArray[np.int64]
    ranks: NDArray[np.int64]
    counted: NDArray[np.bool_]


class VocabularyKeys:
    """Looks words of a file up in a vocabulary.

    A token is looked for as it is, then as the word it stands for, then after each of ``forms``
    was applied to that word, one after the other. What is compared with is the file's word, in the
    vocabulary's form of text and else as it is written there. Memory: 13 bytes for each different
    spelling, none for their letters.

    Args:
        tokenizer: the vocabulary.
        forms: what is tried where the word itself is not in the file.
        prefix: what the file's words begin with; others stand for no token.
    """

    def __init__(self, tokenizer: Tokenizer, forms: Sequence[Likeness], prefix: str = "") -> None:
        self._tokenizer, self._prefix = tokenizer, prefix
        self._forms = [FORMS[form] for form in forms]
        hashes, ids, ranks = [], [], []
        for first in range(0, tokenizer.size, _BLOCK):
            block = range(first, min(first + _BLOCK, tokenizer.size))
            spellings = [self.spellings(token) for token in tokenizer.tokens_of(block)]
            for rank in range(2 + len(forms)):
                chosen = [
                    (i, word)
                    for i, words in zip(block, spellings, strict=True)
                    if (word := words[rank]) is not None
                ]
                hashes.append(_hashes([word for _, word in chosen]))
                ids.append(np.fromiter((i for i, _ in chosen), np.int32, len(chosen)))
                ranks.append(np.full(len(chosen), rank, dtype=np.int8))
        all_hashes = np.concatenate(hashes)
        order = all_hashes.argsort(kind="stable")
        self._hashes = all_hashes[order]
        self._ids = np.concatenate(ids)[order]
        self._ranks = np.concatenate(ranks)[order]

    def spellings(self, token: str) -> list[str | None]:
        """What the token is looked for as, by rank; None where a rank adds nothing."""
        found: list[str | None] = [token]
        word = word_in(self._tokenizer, token)
        found.append(None if word == token else word)
        for form in self._forms:
            spelled = None if word is None else form(word)
            found.append(None if spelled == word else spelled)
            word = spelled  # the next form goes on from here
        return found

    def match(self, words: Sequence[str]) -> Matches:
        """All tokens that ``words`` stand for."""
        if prefix := self._prefix:
            words = [word[len(prefix) :] if word.startswith(prefix) else "" for word in words]
        form = self._tokenizer.form
        if form != "none":  # ASCII has one form
            words = [word if word.isascii() else in_form([word], form)[0] for word in words]
        hashes = _hashes(words)
        begin = np.searchsorted(self._hashes, hashes, side="left")
        end = np.searchsorted(self._hashes, hashes, side="right")
        found: list[tuple[int, int, int, bool]] = []
        for place in (end > begin).nonzero()[0].tolist():
            pairs = [
                (int(self._ranks[at]), int(self._ids[at])) for at in range(begin[place], end[place])
            ]
            # Two spellings may have one hash.
            pairs = [
                (rank, i)
                for rank, i in pairs
                if self.spellings(self._tokenizer.token(i))[rank] == words[place]
            ]
            # The highest rank, because a piece that is written as the word has the lowest, and may
            # turn out not to be the word.
            found += [(place, i, rank, (rank, i) == max(pairs)) for rank, i in pairs]
        columns = np.array(found, dtype=np.int64).reshape(-1, 4)
        return Matches(columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3].astype(bool))


def word_in(tokenizer: Tokenizer, token: str) -> str | None:
    """The word that a token of a tokenizer stands for, see `word_of`. Of text that subword-nmt has
    cut, a piece that goes on is none; the last one of a word cannot be told from a word.
    """
    if tokenizer.pieces == "subword-nmt" and token.endswith("@@"):
        return None
    return word_of(token, whole_words=tokenizer.knows_words)


def word_of(token: str, *, whole_words: bool) -> str | None:
    """The word that a token stands for; None for a special token, or a piece inside a word.

    Args:
        token: as the tokenizer has it.
        whole_words: whether every token is a word; else only those that begin with the mark of a
            space begin one.
    """
    if token in SPECIAL_TOKENS:
        return None
    if token.startswith(SPACE):
        return token[len(SPACE) :] or None
    return token if whole_words else None


def _hashes(words: Sequence[str]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, words), np.int64, len(words))
