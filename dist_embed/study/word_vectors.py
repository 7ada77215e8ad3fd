"""word2vec vectors of a text, trained by gensim once for all runs of a study."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from dist_embed.data.text.lines import read_lines
from dist_embed.installed import require
from dist_embed.storage import uri as storage
from dist_embed.study import unchanged
from dist_embed.study.kept import read_files, read_kept
from dist_embed.study.schema import WordVectors
from dist_embed.vectors.write import Block, write_vectors

# In the file beside the vectors that says how they were made: what the texts were.
_TEXTS = "texts_were"
_WITHOUT = "the vectors are trained anew"


class _Sentences:
    """The sentences of some files, as often as they are asked for."""

    def __init__(self, files: list[str]) -> None:
        self._files = files

    def __iter__(self) -> Iterator[list[str]]:
        for file in self._files:
            for line in read_lines(file):
                yield line.split()


def ensure_word_vectors(wanted: WordVectors, folder: str, say: Callable[[str], None]) -> None:
    """Train the vectors (skip-gram, Mikolov et al. 2013) unless they are there, made like this.

    One thread, so that equal texts give equal vectors.

    Raises UserError where gensim is not installed, a file cannot be read, or the vectors are there
    and their texts have changed since.
    """
    output = storage.join(folder, wanted.output)
    recipe, recipe_uri = wanted.model_dump(mode="json"), f"{output}.json"
    files = [wanted.text] if isinstance(wanted.text, str) else wanted.text
    there = read_kept(recipe_uri, _WITHOUT) or {}
    texts = there.pop(_TEXTS, None)
    if there == recipe:
        recorded = texts and read_files(recipe_uri, texts, _WITHOUT)
        unchanged.check(recorded, files, output, say)
        return
    require("gensim")
    from gensim.models import Word2Vec

    texts = unchanged.record(files, say)
    say(f"training vectors of {', '.join(files)}")
    model = Word2Vec(
        _Sentences(files), vector_size=wanted.width, window=wanted.window, sg=1,
        min_count=wanted.min_count, epochs=wanted.epochs, workers=1, seed=wanted.seed,
    )  # fmt: skip
    words = list(model.wv.index_to_key)
    block = Block(words, model.wv.expandos["count"], model.wv.vectors)
    storage.write_text(recipe_uri, "{}\n")  # if this is broken off, it fits nothing
    write_vectors(output, "word2vec", [block], num_words=len(words), width=wanted.width)
    storage.write_text(recipe_uri, json.dumps(recipe | {_TEXTS: texts}, indent=1) + "\n")
    say(f"{len(words):,} vectors → {output}")
