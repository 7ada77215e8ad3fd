"""fastText's models, written field by field, and the rows that are put together from them."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dist_embed.data.tokenizer import SPACE, Tokenizer
from dist_embed.embedding import composed_rows, pretrained
from dist_embed.embedding.composed_rows import ComposedRows
from dist_embed.embedding.plan import TableSpec, shard_of
from dist_embed.embedding.pretrained import TableStart
from dist_embed.vectors import fasttext_binary
from dist_embed.vectors.coverage import Coverage
from dist_embed.vectors.fasttext_binary import FastTextBinary
from dist_embed.vectors.file import VectorFileError
from dist_embed.vectors.formats import open_vectors
from dist_embed.vectors.match import VocabularyKeys
from dist_embed.vectors.settings import PretrainedSection
from tests.unit.fasttext_file import (
    BUCKETS,
    LISTED,
    LONGEST,
    SHORTEST,
    WIDTH,
    model,
    rows_of_model,
)
from tests.unit.small_run import ONE

# How rows start from vectors that the test itself opens.
start_from = partial(PretrainedSection, uri="vectors")

WORDS = ["the", "The", "naïve", "東京", "a", "strange", "ß", "thesis"]


def saved(folder: Path, content: bytes, name: str = "model.bin") -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def gram_rows(word: str) -> list[int]:
    """Rows of the n-grams, one after the other: FNV-1a over bytes that count as signed."""
    if word == "</s>":
        return []
    wrapped, found = f"<{word}>", []
    for first in range(len(wrapped)):
        for end in range(first + SHORTEST, min(first + LONGEST, len(wrapped)) + 1):
            value = 2166136261
            for byte in wrapped[first:end].encode():
                signed = byte if byte < 128 else byte - 256
                value = ((value ^ (signed % 2**32)) * 16777619) % 2**32
            found.append(len(LISTED) + value % BUCKETS)
    return found


def expected(word: str) -> NDArray[np.float64]:
    rows = gram_rows(word) + ([LISTED.index(word)] if word in LISTED else [])
    vectors = rows_of_model(len(LISTED) + BUCKETS).astype(np.float64)[rows]
    return np.asarray(vectors.mean(0))


def vocabulary(words: Sequence[str] = WORDS) -> Tokenizer:
    return Tokenizer.from_words(
        [SPACE + word for word in words], lowercase=False, split_punctuation=False
    )


def filled(
    uri: str, settings: PretrainedSection, *, width: int = WIDTH, dtype: torch.dtype = torch.float32
) -> tuple[NDArray[np.float64], Coverage]:
    """Rows by id, two hashed ones behind them, and what was found."""
    tokenizer = vocabulary()
    spec = TableSpec("source", tokenizer.size + 2, width)
    weight = torch.full((spec.num_rows, width), torch.nan, dtype=dtype)
    start = TableStart(
        weight, spec, shard_of(spec.num_rows, 0, 1), ONE, tokenizer, settings, seed=1,
        fresh_scale=1.0,
    )  # fmt: skip
    counts = np.arange(tokenizer.size, 0, -1, dtype=np.int64)
    found = start.fill(open_vectors(uri, None), counts)
    return weight[spec.order.rows_of(torch.arange(spec.num_rows))].double().numpy(), found


@pytest.fixture(params=[1, 1000], ids=["small blocks", "large blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fasttext_binary, "BLOCK_BYTES", 30 * request.param)
    monkeypatch.setattr(fasttext_binary, "_COPIED_ROWS", 2 * request.param)
    monkeypatch.setattr(composed_rows, "PARTS_AT_ONCE", 20 * request.param)
    monkeypatch.setattr(composed_rows, "_WORDS_AT_ONCE", 2 * request.param)
    monkeypatch.setattr(composed_rows, "_LISTED_AT_ONCE", 4 * request.param)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("missing", ["subword", "mean"])
def test_a_word_is_the_mean_of_its_row_and_its_n_grams(
    tmp_path: Path, missing: Any, dtype: torch.dtype
) -> None:
    for name, content in (("m.bin", model()), ("m.bin.gz", gzip.compress(model()))):
        rows, coverage = filled(
            saved(tmp_path, content, name), start_from(missing=missing), dtype=dtype
        )
        near = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"atol": 2e-3}
        found = {word: i for i, word in enumerate(WORDS, start=4) if word in LISTED}
        for word, i in found.items():
            np.testing.assert_allclose(rows[i], expected(word), **near)
        # The end mark has no n-grams, and its own row alone is a vector as any other.
        np.testing.assert_allclose(rows[3], expected("</s>"), **near)
        for i, word in enumerate(WORDS, start=4):
            if word not in found:
                if missing == "subword":
                    np.testing.assert_allclose(rows[i], expected(word), **near)
                else:
                    mean = np.mean([rows[i] for i in (3, *found.values())], axis=0)
                    np.testing.assert_allclose(rows[i], mean, **near)
        assert coverage.found_words == {"as written": 4}
        assert coverage.composed_words == (4 if missing == "subword" else 0)
        assert (coverage.entries, coverage.duplicates, coverage.unreadable) == (6, 0, 0)
        wordless = rows[[0, 2, len(rows) - 2, len(rows) - 1]]
        assert len(np.unique(wordless, axis=0)) == 4


@pytest.mark.usefixtures("blocks")
def test_a_word_in_another_spelling_has_the_n_grams_of_the_models(tmp_path: Path) -> None:
    settings = start_from(match=["lowercase"], missing="subword")
    rows, coverage = filled(saved(tmp_path, model()), settings)
    np.testing.assert_allclose(rows[5], expected("the"), rtol=1e-5, atol=1e-6)
    assert coverage.found_words == {"as written": 4, "after lowercase": 1}


def test_a_model_without_n_grams_knows_its_list_alone(tmp_path: Path) -> None:
    for without in ({"buckets": 0}, {"lengths": (0, 0)}):
        matrix = rows_of_model(len(LISTED) + without.get("buckets", BUCKETS))  # type: ignore[call-overload]
        rows, coverage = filled(
            saved(tmp_path, model(matrix=matrix, **without)),  # type: ignore[arg-type]
            start_from(missing="subword"),
        )
        np.testing.assert_allclose(rows[4], matrix[LISTED.index("the")], rtol=1e-6)
        assert coverage.composed_words == 0


def test_words_that_are_not_utf8_are_counted(tmp_path: Path) -> None:
    words = ["</s>", "the", b"\xffx", "東京", "a", "Straße"]
    rows, coverage = filled(saved(tmp_path, model(words)), start_from())
    np.testing.assert_allclose(rows[7], expected("東京"), rtol=1e-5, atol=1e-6)
    assert (coverage.entries, coverage.unreadable) == (6, 1)
    assert sum(coverage.found_words.values()) == 3


@pytest.mark.parametrize("project", ["pca", "random"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_another_width_is_one_map_of_all_words(
    tmp_path: Path, project: Any, dtype: torch.dtype
) -> None:
    uri = saved(tmp_path, model())
    rows, _ = filled(uri, start_from(missing="subword", project=project), width=2, dtype=dtype)
    wide = np.array([expected(word) for word in WORDS])
    got = rows[4 : 4 + len(WORDS)]
    near = 1e-5 if dtype == torch.float32 else 5e-3
    if project == "pca":  # the two directions in which they vary most
        known = np.concatenate([wide, [expected("</s>")]])
        _, _, directions = np.linalg.svd(known - known.mean(0))
        flat = (wide - known.mean(0)) @ directions[:2].T
        np.testing.assert_allclose(np.abs(got), np.abs(flat), atol=near)
    else:
        basis = pretrained.random_basis(WIDTH, 2, seed=1)
        np.testing.assert_allclose(got, wide @ basis.matrix, atol=near)


def test_directions_are_taken_from_some_of_the_rows(tmp_path: Path) -> None:
    tokenizer = vocabulary()
    ids = np.arange(tokenizer.size + 2)
    file = open_vectors(saved(tmp_path, model()), None)
    assert isinstance(file, FastTextBinary)
    composed = ComposedRows(file, ids, tokenizer, VocabularyKeys(tokenizer, ()), others=True)
    known = ["</s>", *WORDS]
    for count, chosen in ((1, [0]), (2, [0, 8]), (3, [0, 4, 8]), (99, list(range(9)))):
        np.testing.assert_allclose(
            composed.sample(count), [expected(known[i]) for i in chosen], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"abcd" + model()[4:], "not a fastText model"),
        (model(version=11), "version 11 of the format is not known, 12 is"),
        (model(width=0, matrix=rows_of_model(17)), "width 0 with 11 buckets is no model"),
        (model(width=2**16 + 1, matrix=rows_of_model(17)), "width 65537 with 11 buckets"),
        (model(buckets=-1, matrix=rows_of_model(5)), "width 3 with -1 buckets is no model"),
        (model(num_words=5), "promises 5 words, lists 6"),
        (model(num_pruned=3), "is pruned; give the model it was made of"),
        (model(quantised=True), "is quantised"),
        (model(shape=(16, 3)), "a matrix of 16 × 3 does not fit 6 words, 11 buckets and width 3"),
        (model(shape=(17, 2)), "a matrix of 17 × 2 does not fit"),
        (model(["a", ""]), "entry 2: no word"),
        (model([b"\xff", b"\xfe"]), "none of its words is valid UTF-8"),
        (model(["a", "b" * 2**17], output=False), "entry 2: no end of the word found"),
        (model()[:60], "ends at byte 60"),
        (model(output=False)[:-1], r"ends at byte (\d+) of "),
        (model()[:-1], "ends at byte "),
    ],
)  # fmt: skip
def test_what_is_no_whole_model_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    uri = saved(tmp_path, content)
    with pytest.raises(VectorFileError, match=said) as caught:
        FastTextBinary(uri)
    assert str(caught.value).startswith(uri)


def test_a_model_is_whole_with_and_without_what_follows_its_matrix(tmp_path: Path) -> None:
    for content in (model(), model(output=False), model(num_pruned=0), model() + b"more"):
        assert len(FastTextBinary(saved(tmp_path, content)).words) == len(LISTED)
    largest = model(["a"], width=2**16, buckets=0, output=False)
    assert FastTextBinary(saved(tmp_path, largest)).width == 2**16


@pytest.mark.usefixtures("blocks")
def test_a_value_that_is_no_number_is_named_by_its_row(tmp_path: Path) -> None:
    matrix = rows_of_model(len(LISTED) + BUCKETS)
    matrix[4, 2] = np.inf  # of "a"
    with pytest.raises(VectorFileError, match="matrix row 5: a value is not finite"):
        filled(saved(tmp_path, model(matrix=matrix)), start_from())


def test_a_compressed_model_that_is_cut_is_refused_where_it_ends(tmp_path: Path) -> None:
    uri = saved(tmp_path, gzip.compress(model(output=False)[:-12]), "m.bin.gz")
    with pytest.raises(VectorFileError, match="ends before row 17 of 17"):
        filled(uri, start_from(missing="subword"))
