"""How often words occur in the target side of a training text, from its prepared tokens.

A word is what stands between spaces, so these counts suit tokenizers of any kind: pieces and
punctuation are put together again. What was unknown when the data were prepared stays unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from dist_embed.data.settings import Form
from dist_embed.data.text_form import in_form
from dist_embed.data.token_shards import PreparedData, TokenPairs, read_tokens
from dist_embed.data.tokenizer import UNKNOWN
from dist_embed.data.tokenizer_files import load_tokenizers

# A text may hold the word "<unk>" itself. This is no character: Unicode keeps it out of texts.
_UNKNOWN_PART = "\ufdd0"


def unknown_share(data_uri: str) -> float:
    """The share of unknown ones among the target tokens of the training text."""
    unknown = total = 0
    for tokens in _training_tokens(PreparedData.read(data_uri)):
        unknown += int(np.count_nonzero(tokens.target_tokens == UNKNOWN))
        total += len(tokens.target_tokens)
    return unknown / total


def count_target_words(data_uri: str, *, lowercase: bool, form: Form) -> Counter[str]:
    """The words of the training text's target side in a form; those with an unknown part are left
    out.

    Memory: some 100 bytes for each distinct word.
    """
    data = PreparedData.read(data_uri)
    tokenizer = load_tokenizers(data_uri, data)["target"]
    counts: Counter[str] = Counter()
    for tokens in _training_tokens(data):
        ids = tokens.target_tokens.tolist()
        sentences = [ids[a:b] for a, b in pairwise(tokens.target_offsets.tolist())]
        decoded = tokenizer.decode(sentences, unknown=_UNKNOWN_PART)
        for text in in_form(decoded, form, lowercase=lowercase):
            counts.update(text.split())
    for word in [word for word in counts if _UNKNOWN_PART in word]:
        del counts[word]
    return counts


def _training_tokens(data: PreparedData) -> Iterator[TokenPairs]:
    for shard in data.splits["train"].shards:
        yield read_tokens(data.folder_uri, [shard])
