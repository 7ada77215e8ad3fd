"""Files that gensim trained and saved, loaded into sharded tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_embed.data.synthetic import SyntheticLanguage
from dist_embed.data.tokenizer import SPACE, Tokenizer
from dist_embed.embedding.pretrained import StartSettings
from tests.distributed.pool import WorkerPool
from tests.distributed.test_pretrained import run

gensim = pytest.importorskip("gensim")
WIDTH = 8
OUTSIDE = ["überall", "thethe", "mabru2", "x", "東京"]


@pytest.fixture(scope="module")
def sentences() -> list[list[str]]:
    language = SyntheticLanguage(20, 10, 5, 1)
    return [source.split() for source, _ in language.pairs(300, "train", 1)]


@pytest.fixture(scope="module")
def vocabulary(sentences: list[list[str]]) -> Tokenizer:
    words = sorted({word for sentence in sentences for word in sentence}) + OUTSIDE
    return Tokenizer.from_words(
        [SPACE + word for word in words], lowercase=False, split_punctuation=False
    )


def words_of(vocabulary: Tokenizer) -> dict[str, int]:
    return {token.removeprefix(SPACE): i for i, token in enumerate(vocabulary.tokens()) if i > 3}


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz", "v.bin"])
def test_word2vec_files(
    workers: WorkerPool, tmp_path: Path, sentences: Any, vocabulary: Tokenizer, num_workers: int,
    name: str,
) -> None:  # fmt: skip
    from gensim.models import Word2Vec

    model = Word2Vec(sentences, vector_size=WIDTH, min_count=2, epochs=1, workers=1, seed=1)
    uri = str(tmp_path / name)
    model.wv.save_word2vec_format(uri, binary=name.endswith("bin"))
    rows, coverage = run(
        workers, num_workers, uri, StartSettings(), vocabulary=vocabulary, width=WIDTH, block=500
    )
    known = {word: i for word, i in words_of(vocabulary).items() if word in model.wv}
    assert len(known) == len(model.wv) == coverage.entries
    for word, i in known.items():
        np.testing.assert_array_equal(rows[i], model.wv[word])


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(("shortest", "longest", "buckets"), [(3, 6, 500), (1, 2, 50), (2, 4, 1)])
def test_fasttext_models_and_the_words_outside_them(
    workers: WorkerPool, tmp_path: Path, sentences: Any, vocabulary: Tokenizer, num_workers: int,
    shortest: int, longest: int, buckets: int,
) -> None:  # fmt: skip
    from gensim.models.fasttext import FastText, load_facebook_vectors, save_facebook_model

    model = FastText(
        sentences, vector_size=WIDTH, min_count=2, epochs=1, workers=1, seed=1, min_n=shortest,
        max_n=longest, bucket=buckets,
    )  # fmt: skip
    uri = str(tmp_path / "model.bin")
    save_facebook_model(model, uri)
    theirs = load_facebook_vectors(uri)
    rows, coverage = run(
        workers, num_workers, uri, StartSettings(missing="subword"), vocabulary=vocabulary,
        width=WIDTH,
    )  # fmt: skip
    words = words_of(vocabulary)
    known = [word for word in words if word in theirs.key_to_index]
    assert coverage.entries == len(theirs.key_to_index)
    assert sum(coverage.found_words.values()) == len(known)
    for word in known:
        np.testing.assert_allclose(rows[words[word]], theirs[word], rtol=1e-5, atol=1e-7)
    # gensim leaves the n-grams of one sign at a word's edge in.
    for word in OUTSIDE if shortest > 1 else ():
        np.testing.assert_allclose(rows[words[word]], theirs[word], rtol=1e-5, atol=1e-7)
    assert coverage.composed_words == len(words) - len(known)


def test_without_subwords_a_fasttext_model_gives_the_words_it_lists(
    workers: WorkerPool, tmp_path: Path, sentences: Any, vocabulary: Tokenizer
) -> None:
    from gensim.models.fasttext import FastText, save_facebook_model

    model = FastText(sentences, vector_size=WIDTH, min_count=2, epochs=1, workers=1, bucket=100)
    uri = str(tmp_path / "model.bin")
    save_facebook_model(model, uri)
    rows, coverage = run(
        workers, 2, uri, StartSettings(missing="mean"), vocabulary=vocabulary, width=WIDTH
    )
    assert coverage.composed_words == 0
    words = words_of(vocabulary)
    np.testing.assert_array_equal(rows[words["überall"]], rows[words["東京"]])
    for cut in (100, 5000, -3):
        broken = tmp_path / "cut.bin"
        broken.write_bytes(Path(uri).read_bytes()[:cut])
        with pytest.raises(AssertionError, match=r"cut\.bin.*ends"):
            run(workers, 2, str(broken), StartSettings(), vocabulary=vocabulary, width=WIDTH)
