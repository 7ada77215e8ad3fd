"""Text cut at its blanks, so that what occurs often is split or encoded once.

Every tokenizer of ours puts U+2581 before a text, makes each space one, splits before each, and
then looks at one part at a time. So what stands between two spaces, a *stretch*, becomes the same
tokens wherever it stands. Where all blanks are one space each, it is what stands between two of
them: Unicode's normal forms and lower case do not look beyond a blank. Blocks of text have far
fewer distinct stretches than stretches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_embed.data.text_form import BLANK, may_join
from dist_embed.data.tokenizer import SPECIAL_TOKENS, UNKNOWN, Tokenizer


@dataclass(frozen=True)
class Stretches:
    """The stretches of some texts.

    Attributes:
        distinct: [U] each once. An empty one stands for U+2581 alone, or for nothing where blanks
            are folded or text comes in pieces.
        which: [n] numbers in ``distinct``, in the order of the texts.
        per_text: how many each text has; an empty text has none.
    """

    distinct: pa.Array
    which: NDArray[np.int32]
    per_text: NDArray[np.int64]

    @classmethod
    def of(cls, texts: list[str], tokenizer: Tokenizer) -> Stretches:
        """Cut ``texts`` where ``tokenizer`` does not look beyond."""
        column = pa.array([text or None for text in texts], pa.large_string())
        # Most texts have no other blank, and a plain separator is faster by five times.
        if tokenizer.form != "none" and pc.any(pc.match_substring_regex(column, _OTHERS)).as_py():
            column = pc.replace_substring_regex(column, BLANK, " ")
        cut = pc.split_pattern(column, " ")
        per_text = pc.list_value_length(cut).fill_null(0).to_numpy()
        all_of_them = pc.list_flatten(cut).dictionary_encode()
        return cls(all_of_them.dictionary, all_of_them.indices.to_numpy(), per_text)

    def are_words(self, tokenizer: Tokenizer) -> NDArray[np.bool_]:
        """[U] whether the tokenizer makes one part of each: its mark and the stretch, unchanged.

        It does where it would leave every character alone, which it is asked, and where none can
        join the one before it.
        """
        characters: set[str] = set().union(*self.distinct.to_pylist())
        mark = tokenizer.mark
        special = {c for c in characters if tokenizer.split(f"a{c}a") != [f"{mark}a{c}a"]}
        if tokenizer.form != "none":
            special |= {c for c in characters if may_join(c)}
        changed = [f"[{_in_hex(special | {' '})}]"]
        if not tokenizer.split(" "):
            changed.append("^$")
        changed += [f"^{t}$" for t in SPECIAL_TOKENS if tokenizer.split(t) != [f"{mark}{t}"]]
        found = pc.match_substring_regex(self.distinct, "|".join(changed))
        return ~found.to_numpy(zero_copy_only=False)


# Blanks but the space.
_OTHERS = BLANK.replace("\\x{20}", "\\x{1f}")


def _in_hex(characters: set[str]) -> str:
    return "".join(f"\\x{{{ord(c):x}}}" for c in sorted(characters))


def words_of(stretches: pa.Array, tokenizer: Tokenizer) -> pa.Array:
    """The words that stretches are which the tokenizer leaves alone."""
    mark, nothing = (pa.scalar(text, pa.large_string()) for text in (tokenizer.mark, ""))
    return pc.binary_join_element_wise(mark, stretches, nothing)


def encode_column(tokenizer: Tokenizer, texts: list[str], num_buckets: int = 0) -> pa.ListArray:
    """What `Tokenizer.encode` returns, or with buckets `Tokenizer.encode_hashed`, as a column of
    lists of int32.
    """
    stretches = Stretches.of(texts, tokenizer)
    ids, place = _encode_distinct(tokenizer, stretches, num_buckets)
    tokens = ids.take(pa.array(place[stretches.which]))
    ends = np.cumsum(pc.list_value_length(tokens).to_numpy())
    ends = np.concatenate([[0], ends])[np.concatenate([[0], np.cumsum(stretches.per_text)])]
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), tokens.flatten())


def _encode_distinct(
    tokenizer: Tokenizer, stretches: Stretches, num_buckets: int
) -> tuple[pa.ListArray, NDArray[Any]]:
    """The ids of each distinct stretch, and in which list each has them."""
    if tokenizer.knows_words:
        are_words = stretches.are_words(tokenizer)
    else:
        are_words = np.zeros(len(stretches.distinct), dtype=bool)
    words = words_of(stretches.distinct.filter(pa.array(are_words)), tokenizer)
    single = tokenizer.ids_of_column(words)
    others = stretches.distinct.filter(pa.array(~are_words)).to_pylist()
    # Nothing encodes as U+2581 alone, a space as two of them, or as none.
    texts = [stretch or " " for stretch in others]
    if num_buckets:
        encoded = tokenizer.encode_hashed(texts, num_buckets)
        for number in np.flatnonzero(single == UNKNOWN):
            single[number] = tokenizer.hashed(words[number].as_py(), num_buckets)
    else:
        encoded = tokenizer.encode(texts)
    if "" in others:
        empty = others.index("")
        encoded[empty] = encoded[empty][: len(encoded[empty]) // 2]
    lists = pa.ListArray.from_arrays(
        pa.array(np.arange(len(words) + 1), pa.int32()), pa.array(single)
    )
    place = np.empty(len(are_words), dtype=np.int64)
    place[are_words] = np.arange(len(words))
    place[~are_words] = len(words) + np.arange(len(others))
    return pa.concat_arrays([lists, pa.array(encoded, pa.list_(pa.int32()))]), place
