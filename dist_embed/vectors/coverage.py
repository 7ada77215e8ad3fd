"""How much of a vocabulary a file of vectors knows: by words, and by how often they occur."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from dist_embed.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from dist_embed.observe.events import printable
from dist_embed.vectors.match import word_in
from dist_embed.vectors.settings import Likeness

MISSING_SHOWN = 20
# How an id was found, beside the ranks of `match`.
COMPOSED, NOT_FOUND = 100, 127


def coverage_name(table: str) -> str:
    """The file in a run's folder that tells what a table has started from."""
    return f"pretrained.{table}.json"


@dataclass
class Coverage:
    """What a table has taken of a file.

    Attributes:
        table: the table.
        uri: the file.
        entries: vectors in the file.
        duplicates: entries for a word that had come before; the first counts.
        unreadable: entries whose word is not UTF-8, or empty.
        words: of the vocabulary that occur on the table's side of the training data. Special
            tokens are none, nor is what `is_word` says no to.
        tokens: how often they do; what is outside the vocabulary is not counted.
        found_words: by the way they were found: as they are, or after which form.
        found_tokens: occurrences of the words found.
        composed_words: words that are not in the file but whose parts are (fastText).
        composed_tokens: their occurrences.
        missing: the most frequent words without a vector, with their occurrences.
        policy: what the rows without a vector start from.
        stated: how many entries the file's header promises; None: nothing.
        file_width: D of the file.
        width: of the table's rows.
        doubt: what somebody should look at in the file.
    """

    table: str
    uri: str
    entries: int
    duplicates: int
    unreadable: int
    words: int
    tokens: int
    found_words: dict[str, int]
    found_tokens: int
    composed_words: int
    composed_tokens: int
    policy: str
    missing: list[tuple[str, int]] = field(default_factory=list)
    stated: int | None = None
    file_width: int | None = None  # what is older has neither
    width: int | None = None
    doubt: str | None = None

    @property
    def token_share(self) -> float:
        """The share of the vocabulary's running words whose word was found in the file."""
        return self.found_tokens / max(1, self.tokens)

    def to_json(self) -> str:
        """For the run's folder."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n"

    def lines(self) -> list[str]:
        """For people."""
        found = sum(self.found_words.values())
        ways = ", ".join(f"{count:,} {way}" for way, count in self.found_words.items() if count)
        lines = [
            f"table {self.table}: {found:,} of {self.words:,} words ({_share(found, self.words)}) "
            f"and {_share(self.found_tokens, self.tokens)} of their running words start from "
            f"{self.uri} ({self.entries:,} vectors{self._way_to_width()}; {ways or 'none'}"
            + (f"; {self.duplicates:,} duplicates passed over" if self.duplicates else "")
            + (f"; {self.unreadable:,} words are empty or not UTF-8" if self.unreadable else "")
            + ")"
        ]
        if self.doubt:
            lines.append(f"table {self.table}: {self.doubt}")
        elif self.stated not in (None, self.entries):
            lines.append(
                f"table {self.table}: {self.uri} holds {self.entries:,} vectors, which are taken; "
                f"its header promises {self.stated:,}"
            )
        if self.composed_words:
            lines.append(
                f"table {self.table}: {self.composed_words:,} more words "
                f"({_share(self.composed_tokens, self.tokens)} of the running words) from their "
                "parts"
            )
        if self.missing:
            shown = ", ".join(f"{printable(word)} ({count:,})" for word, count in self.missing)
            lines.append(f"table {self.table}: without a vector ({self.policy}): {shown}")
        return lines

    def _way_to_width(self) -> str:
        if self.file_width is None or self.width is None or self.file_width == self.width:
            return ""
        way = "widened" if self.file_width < self.width else "projected"
        return f", {way} from {self.file_width:,} to {self.width:,}"


def coverage_of(
    tokenizer: Tokenizer,
    counts: NDArray[np.int64] | None,
    ranks: NDArray[np.int64],
    forms: Sequence[Likeness],
    *,
    table: str,
    uri: str,
    entries: int,
    duplicates: int,
    unreadable: int,
    policy: str,
    stated: int | None = None,
    doubt: str | None = None,
    file_width: int | None = None,
    width: int | None = None,
    pieces: bool = False,
) -> Coverage:
    """Sum up.

    Args:
        tokenizer: the vocabulary.
        counts: [V] occurrences of each id; None: not known here, and all count as words.
        ranks: [V] how each id was found: a rank of `match`, `COMPOSED` or `NOT_FOUND`.
        forms: what the ranks from 2 on stand for.
        table: see `Coverage`.
        uri: see `Coverage`.
        entries: see `Coverage`.
        duplicates: see `Coverage`.
        unreadable: see `Coverage`.
        policy: see `Coverage`.
        stated: see `Coverage`.
        doubt: see `Coverage`.
        file_width: see `Coverage`.
        width: see `Coverage`.
        pieces: whether the file is one of pieces of words, whose pieces all count.
    """
    first = len(SPECIAL_TOKENS)
    ranks = ranks[first:]
    if counts is None:
        counts, counted = np.zeros(len(ranks), np.int64), np.ones(len(ranks), np.bool_)
    else:
        counts = counts[first:]
        counted = counts > 0
        if not pieces:
            for i in counted.nonzero()[0].tolist():
                # What the file has under the very name of a piece is one, and starts the row.
                known = 0 <= ranks[i] < COMPOSED
                counted[i] = known or is_word(tokenizer, tokenizer.token(first + i))
    found = counted & (ranks >= 0) & (ranks < COMPOSED)
    composed = counted & (ranks == COMPOSED)
    ways: dict[str, int] = {"as written": int((found & (ranks < 2)).sum())}
    for number, form in enumerate(forms, start=2):
        ways[f"after {form}"] = int((found & (ranks == number)).sum())
    lacking = (counted & (ranks == NOT_FOUND)).nonzero()[0]
    most = lacking[np.argsort(-counts[lacking], kind="stable")[:MISSING_SHOWN]]
    return Coverage(
        table=table, uri=uri, entries=entries, duplicates=duplicates, unreadable=unreadable,
        words=int(counted.sum()), tokens=int(counts[counted].sum()),
        found_words=ways, found_tokens=int(counts[found].sum()),
        composed_words=int(composed.sum()), composed_tokens=int(counts[composed].sum()),
        policy=policy, stated=stated, doubt=doubt, file_width=file_width, width=width,
        missing=[(_word(tokenizer, first + int(i)), int(counts[i])) for i in most],
    )  # fmt: skip


def is_word(tokenizer: Tokenizer, token: str) -> bool:
    """Whether a token can be a word of a file of words: no piece inside one, nor the bare mark of a
    space, which is left where a punctuation mark behind a space is parted from it, nor blanks.
    """
    return bool((word_in(tokenizer, token) or "").strip())


def _word(tokenizer: Tokenizer, i: int) -> str:
    token = tokenizer.token(i)
    return word_in(tokenizer, token) or token


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"
