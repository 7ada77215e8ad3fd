"""Words of a vocabulary as users write and read them."""

from __future__ import annotations

from dist_embed.arguments import is_unicode
from dist_embed.data.tokenizer import SPACE, Tokenizer


def find_word(tokenizer: Tokenizer, word: str) -> int | None:
    """The id of a word, in the tokenizer's form and case; None where it is unknown or no text."""
    if not (word.strip() and is_unicode(word)):
        return None
    word = tokenizer.normalized(word)
    found = tokenizer.id_of(SPACE + word)
    return tokenizer.id_of(word) if found is None else found


def shown_word(tokenizer: Tokenizer, i: int) -> str:
    """What the id stands for, to be shown and to be written into files: different for each id.

    A word without the mark of the space before it, unless the vocabulary has both; pieces of words
    with it.
    """
    token = tokenizer.token(i)
    if not tokenizer.knows_words or not token.startswith(SPACE):
        return token
    word = token[len(SPACE) :]
    return token if not word or tokenizer.id_of(word) is not None else word
