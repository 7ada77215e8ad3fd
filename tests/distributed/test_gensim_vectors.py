"""Files that gensim trained and saved, loaded into sharded tables."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_embed.data.languages.synthetic import SyntheticLanguage
from dist_embed.data.tokenizer import SPACE, Tokenizer
from dist_embed.errors import UserError
from dist_embed.vectors.fasttext_binary import FastTextBinary
from dist_embed.vectors.formats import open_vectors
from tests.distributed.pool import RemoteError, WorkerPool
from tests.distributed.started_rows import run, start_from
from tests.unit.vector_entries import read

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
        workers, num_workers, uri, start_from(), vocabulary=vocabulary, width=WIDTH, block=500
    )
    known = {word: i for word, i in words_of(vocabulary).items() if word in model.wv}
    assert len(known) == len(model.wv) == coverage.entries
    for word, i in known.items():
        np.testing.assert_array_equal(rows[i], model.wv[word])


@pytest.mark.parametrize("kind", ["Word2Vec", "FastText", "Doc2Vec"])
@pytest.mark.parametrize("name", ["v.model", "v.kv"])
def test_what_gensim_saves_is_refused_with_the_line_that_writes_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentences: Any, kind: str, name: str
) -> None:
    from gensim import models

    texts = sentences
    if kind == "Doc2Vec":
        texts = [models.doc2vec.TaggedDocument(words, [n]) for n, words in enumerate(sentences)]
    model = getattr(models, kind)(texts, vector_size=WIDTH, min_count=2, epochs=1, workers=1)
    (model if name == "v.model" else model.wv).save(str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="pickled") as caught:
        open_vectors(name, None)
    _, _, line = str(caught.value).partition("writes what is: ")
    exec(line.replace("FILE", repr(name)), {"gensim": gensim})
    written = open_vectors("vectors.bin", None)
    assert not isinstance(written, FastTextBinary)
    words, vectors = read(written)
    assert words == model.wv.index_to_key
    np.testing.assert_array_equal(vectors, [model.wv[word] for word in words])


def saved_model(path: Path, sentences: Any, **settings: Any) -> Any:
    """A fastText model in the form of Facebook's program; what gensim reads from it."""
    from gensim.models.fasttext import FastText, load_facebook_vectors, save_facebook_model

    model = FastText(
        sentences, vector_size=WIDTH, min_count=2, epochs=1, workers=1, seed=1, **settings
    )
    save_facebook_model(model, str(path))
    return load_facebook_vectors(str(path))


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("missing", ["subword", "random", "mean"])
@pytest.mark.parametrize(("shortest", "longest", "buckets"), [(3, 6, 500), (1, 2, 50), (2, 4, 1)])
def test_fasttext_models_and_the_words_outside_them(
    workers: WorkerPool, tmp_path: Path, sentences: Any, vocabulary: Tokenizer, num_workers: int,
    missing: Any, shortest: int, longest: int, buckets: int,
) -> None:  # fmt: skip
    uri = tmp_path / "model.bin"
    theirs = saved_model(uri, sentences, min_n=shortest, max_n=longest, bucket=buckets)
    rows, coverage = run(
        workers, num_workers, str(uri), start_from(missing=missing), vocabulary=vocabulary,
        width=WIDTH, parts=40, block=200,
    )  # fmt: skip
    words = words_of(vocabulary)
    known = [word for word in words if word in theirs.key_to_index]
    assert coverage.entries == len(theirs.key_to_index)
    assert sum(coverage.found_words.values()) == len(known)
    for word in known:
        np.testing.assert_allclose(rows[words[word]], theirs[word], rtol=1e-5, atol=1e-7)
    others = [i for word, i in words.items() if word not in known]
    if missing == "subword":
        # gensim leaves the n-grams of one sign at a word's edge in.
        for word in OUTSIDE if shortest > 1 else ():
            np.testing.assert_allclose(rows[words[word]], theirs[word], rtol=1e-5, atol=1e-7)
        assert coverage.composed_words == len(others)
    else:
        assert coverage.composed_words == 0
        assert len(coverage.missing) == len(others)
        assert (len(np.unique(rows[others], axis=0)) == 1) == (missing == "mean")
    # Those of no word are never equal: <pad>, <s>, </s>, and the hashed rows.
    wordless = [0, 2, 3, *range(vocabulary.size, len(rows))]
    assert len(np.unique(rows[wordless], axis=0)) == len(wordless)


def test_words_of_a_model_that_are_not_utf8_are_passed_over_and_counted(
    workers: WorkerPool, tmp_path: Path, sentences: Any, vocabulary: Tokenizer
) -> None:
    uri = tmp_path / "model.bin"
    theirs = saved_model(uri, sentences, bucket=100)
    spoiled = theirs.index_to_key[2]
    word = spoiled.encode() + b"\0"
    content = uri.read_bytes()
    assert content.count(b"\0" + word) <= 1
    uri.write_bytes(content.replace(word, b"\xba" + word[1:], 1))
    rows, coverage = run(
        workers, 2, str(uri), start_from(), vocabulary=vocabulary, width=WIDTH, block=200
    )
    words = words_of(vocabulary)
    known = [word for word in words if word in theirs.key_to_index and word != spoiled]
    for word in known:
        np.testing.assert_allclose(rows[words[word]], theirs[word], rtol=1e-5, atol=1e-7)
    assert sum(coverage.found_words.values()) == len(known)
    assert (coverage.entries, coverage.unreadable) == (len(theirs.key_to_index), 1)
    assert "; 1 words are empty or not UTF-8)" in coverage.lines()[0]


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("project", ["pca", "random"])
def test_a_fasttext_model_of_another_width(
    workers: WorkerPool, tmp_path: Path, sentences: Any, vocabulary: Tokenizer, num_workers: int,
    project: Any,
) -> None:  # fmt: skip
    uri = tmp_path / "model.bin"
    theirs = saved_model(uri, sentences, bucket=100)
    settings = start_from(missing="subword", project=project)
    rows, _ = run(workers, num_workers, str(uri), settings, vocabulary=vocabulary, width=5, parts=9)
    words = words_of(vocabulary)
    wide = np.array([theirs[word] for word in words], dtype=np.float64)
    got = rows[list(words.values())].astype(np.float64)
    # One linear map, and a shift, for all words.
    wide = np.concatenate([wide, np.ones((len(wide), 1))], axis=1)
    solved, *_ = np.linalg.lstsq(wide, got, rcond=None)
    np.testing.assert_allclose(wide @ solved, got, atol=1e-6)
    if project == "pca":
        np.testing.assert_allclose(got.mean(0), 0, atol=1e-6)
        spread = got.T @ got
        np.testing.assert_allclose(spread, np.diag(np.diag(spread)), atol=1e-6)


def test_a_compressed_model_is_the_same_model(
    workers: WorkerPool, tmp_path: Path, sentences: Any, vocabulary: Tokenizer
) -> None:
    uri = tmp_path / "model.bin"
    saved_model(uri, sentences, bucket=100)
    packed = tmp_path / "model.bin.gz"
    packed.write_bytes(gzip.compress(uri.read_bytes()))
    settings = start_from(missing="subword")
    plain, _ = run(workers, 2, str(uri), settings, vocabulary=vocabulary, width=WIDTH)
    unpacked, _ = run(workers, 2, str(packed), settings, vocabulary=vocabulary, width=WIDTH)
    np.testing.assert_array_equal(plain, unpacked)


def test_a_model_of_pieces_has_them_inside_words_too(
    workers: WorkerPool, tmp_path: Path, sentences: Any
) -> None:
    texts = [" ".join(sentence) for sentence in sentences]
    pieces = Tokenizer.train(iter(texts), "bpe", vocab_size=60, min_count=1, lowercase=False)
    cut = pieces.encode(texts)
    names = pieces.tokens()
    uri = tmp_path / "model.bin"
    theirs = saved_model(uri, [[names[i] for i in ids] for ids in cut], bucket=50)
    rows, coverage = run(workers, 2, str(uri), start_from(), vocabulary=pieces, width=WIDTH)
    known = [i for i in range(4, pieces.size) if names[i] in theirs.key_to_index]
    assert any(not names[i].startswith(SPACE) for i in known)
    assert sum(coverage.found_words.values()) == len(known)
    for i in known:
        np.testing.assert_allclose(rows[i], theirs[names[i]], rtol=1e-5, atol=1e-7)


def test_damaged_models_are_refused(
    workers: WorkerPool, tmp_path: Path, sentences: Any, vocabulary: Tokenizer
) -> None:
    uri = tmp_path / "model.bin"
    theirs = saved_model(uri, sentences, bucket=100)
    whole = uri.read_bytes()
    broken = tmp_path / "cut.bin"
    for cut in (100, 5000, -3):
        broken.write_bytes(whole[:cut])
        with pytest.raises(RemoteError, match=r"cut\.bin.*ends"):
            run(workers, 2, str(broken), start_from(), vocabulary=vocabulary, width=WIDTH)
    first = theirs.vectors_vocab[0].astype("<f4").tobytes()
    at, size = whole.index(first), len(first) * (len(theirs.vectors_vocab) + 100)
    for value, said in ((np.nan, "matrix row 1: a value is not finite"), (3e38, "too large")):
        matrix = np.full(size // 4, value, "<f4").tobytes()
        broken.write_bytes(whole[:at] + matrix + whole[at + size :])
        with pytest.raises(RemoteError, match=said):
            run(workers, 2, str(broken), start_from(), vocabulary=vocabulary, width=WIDTH)
