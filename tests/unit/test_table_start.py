"""Which entry of a file a row starts from, in one process; with workers: `test_pretrained`."""

from __future__ import annotations

import shutil
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dist_embed.config.load import config_from_dict
from dist_embed.data.token_shards import PreparedData
from dist_embed.data.tokenizer import SPACE, Tokenizer
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.embedding import pretrained, projection
from dist_embed.embedding.initial_values import fill_initial_rows
from dist_embed.embedding.plan import TableSpec, shard_of
from dist_embed.embedding.pretrained import TableStart
from dist_embed.embedding.projection import Moments, random_basis
from dist_embed.errors import UserError
from dist_embed.model.settings import ShareEmbeddings
from dist_embed.model.translation_tables import TABLE_OF_ROLE
from dist_embed.training.single_tables import start_tables
from dist_embed.vectors.coverage import Coverage
from dist_embed.vectors.file import HeldSegment
from dist_embed.vectors.formats import open_vectors
from dist_embed.vectors.settings import PretrainedSection
from tests.unit.small_corpus import Prepared
from tests.unit.small_run import ONE

# How rows start from vectors that the test itself opens.
start_from = partial(PretrainedSection, uri="vectors")


class File:
    """Segments in any order, as workers' rounds bring them."""

    uri, width, num_stated, doubt = "v.txt", 2, None, None

    def __init__(self, *segments: tuple[int, list[str]]) -> None:
        self.held = [
            HeldSegment(self.uri, origin, words, np.array([[origin + i, 1.0] for i in range(9)]))
            for origin, words in segments
        ]

    def segments(self, part: int, num_parts: int) -> Any:
        return iter(self.held)


def numbers_of_entries(tokenizer: Tokenizer, *segments: tuple[int, list[str]]) -> list[float]:
    """For each word of the vocabulary the number of the entry that its row has taken."""
    spec = TableSpec("source", tokenizer.size, 2)
    weight = torch.zeros(tokenizer.size, 2)
    settings = start_from(match=["lowercase", "digits"], missing="mean")
    start = TableStart(
        weight, spec, shard_of(spec.num_rows, 0, 1), ONE, tokenizer, settings, seed=1,
        fresh_scale=1.0,
    )  # fmt: skip
    coverage = start.fill(File(*segments), None)  # type: ignore[arg-type]
    words = torch.arange(4, tokenizer.size)
    found = [word for _, words in segments for word in words]
    assert coverage.entries == len(found)
    assert coverage.duplicates == len(found) - len(set(found))
    return weight[spec.order.rows_of(words), 0].tolist()


WORDS = ["The", "A1", "x"]


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        # The first of the same words, in whatever order they come.
        ([(0, ["The", "x", "The"]), (10, ["A1", "A1"])], [0, 10, 1]),
        ([(10, ["The", "A1"]), (0, ["A1", "x", "x"])], [10, 0, 1]),
        ([(10, ["The"]), (20, ["The", "x"]), (0, ["A1", "The"])], [1, 0, 21]),
        # What is written the same comes before what is so in lower case, wherever that stands.
        ([(0, ["the", "a1", "x"]), (10, ["The", "a0", "A1"])], [10, 12, 2]),
        ([(10, ["The", "A1"]), (0, ["the", "a1", "x"])], [10, 11, 2]),
        # And that before what is so with other digits.
        ([(0, ["a0", "x"]), (10, ["a1", "the"])], [11, 10, 1]),
        ([(10, ["a1", "the"]), (0, ["a0", "x"])], [11, 10, 1]),
    ],
)
def test_a_row_takes_the_best_entry_and_of_equal_ones_the_first(
    segments: list[tuple[int, list[str]]], expected: list[float]
) -> None:
    tokenizer = Tokenizer.from_words(
        [SPACE + word for word in WORDS], lowercase=False, split_punctuation=False
    )
    assert numbers_of_entries(tokenizer, *segments) == expected


@pytest.mark.parametrize(
    ("settings", "width", "said"),
    [
        (start_from(), 1, r"source from v\.txt: its vectors have width 2, the table has 1; set "
         r"embedding\.width=2"),
        (start_from(project="pca"), 3, "cannot widen vectors, from 2 to 3"),
        (start_from(missing="subword"), 2, "needs a binary fastText model"),
        (start_from(), 2, r"v\.txt: holds none of the words of table source"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(settings: PretrainedSection, width: int, said: str) -> None:
    tokenizer = Tokenizer.from_words([SPACE + "x"], lowercase=False, split_punctuation=False)
    spec = TableSpec("source", tokenizer.size, width)
    start = TableStart(
        torch.zeros(tokenizer.size, width), spec, shard_of(spec.num_rows, 0, 1), ONE, tokenizer,
        settings, seed=1, fresh_scale=1.0,
    )  # fmt: skip
    with pytest.raises(UserError, match=said):
        start.fill(File((0, ["a", "b"])), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # By word the number of its entry: a piece inside a word finds one in a file of pieces,
        # which has more words with the mark of a space than without.
        ([SPACE + "ab", "b", SPACE + "cd"], {SPACE + "ab": 0, SPACE + "cd": 2, "b": 1}),
        (["ab", "b", "cd", "b"], {SPACE + "ab": 0, SPACE + "cd": 2}),
        ([SPACE + "ab", "b", "cd"], {SPACE + "ab": 0, SPACE + "cd": 2}),
    ],
)
def test_pieces_inside_words_are_found_in_files_of_pieces_alone(
    words: list[str], expected: dict[str, float]
) -> None:
    texts = ["ab ab ab cd cd abb cdb"] * 5
    pieces = Tokenizer.train(iter(texts), "bpe", vocab_size=14, min_count=1, lowercase=False)
    names = pieces.tokens()
    assert {SPACE + "ab", SPACE + "cd", "b"} <= set(names)
    spec = TableSpec("source", pieces.size, 2)
    weight = torch.zeros(pieces.size, 2)
    start = TableStart(
        weight, spec, shard_of(spec.num_rows, 0, 1), ONE, pieces, start_from(missing="mean"),
        seed=1, fresh_scale=1.0,
    )  # fmt: skip
    coverage = start.fill(File((0, words)), None)  # type: ignore[arg-type]
    rows = weight[spec.order.rows_of(torch.arange(pieces.size)), 0].tolist()
    assert sum(coverage.found_words.values()) == len(expected)
    assert {name: rows[names.index(name)] for name in expected} == expected
    # A vector that counts for no row is no duplicate.
    assert coverage.duplicates == 0


VECTORS = np.random.default_rng(3).standard_normal((6, 4)).astype(np.float32) * [1, 2, 3, 4] + 1
NAMES = ["w0", "w1", "w2", "w3", "w4", "W5"]


class Held:
    """One segment of `VECTORS` under their names."""

    uri, width, num_stated, doubt = "v.txt", 4, None, None

    def segments(self, part: int, num_parts: int) -> Any:
        return iter([HeldSegment(self.uri, 0, NAMES, VECTORS)])


def filled(
    settings: PretrainedSection,
    *,
    width: int = 4,
    seed: int = 7,
    counts: NDArray[np.int64] | None = None,
    file: Any = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32], Coverage]:
    """The rows, by id, of five words of the file, two others and three hashed ones; fresh rows of
    standard deviation 1 for the same table; what was found.
    """
    tokenizer = Tokenizer.from_words(
        [SPACE + word for word in (*NAMES[:5], "rare", "w5")], lowercase=False,
        split_punctuation=False,
    )  # fmt: skip
    spec = TableSpec("decoder", tokenizer.size + 3, width)
    shard = shard_of(spec.num_rows, 0, 1)
    weight = torch.full((spec.num_rows, width), torch.nan)
    start = TableStart(weight, spec, shard, ONE, tokenizer, settings, seed=seed, fresh_scale=0.25)
    found = start.fill(file or Held(), counts)
    fresh = torch.empty_like(weight)
    fill_initial_rows(fresh, seed=seed, table="decoder", first_row=0, scale=1.0)
    order = spec.order.rows_of(torch.arange(spec.num_rows))
    return weight[order].numpy(), fresh[order].numpy(), found


@pytest.mark.parametrize("missing", ["random", "mean"])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("fill_rows", [3, 4096])
def test_other_rows_follow_the_columns_of_those_found(
    monkeypatch: pytest.MonkeyPatch, missing: Any, rescale: bool, fill_rows: int
) -> None:
    monkeypatch.setattr(pretrained, "_FILL_ROWS", fill_rows)
    rows, fresh, _ = filled(start_from(missing=missing, rescale=rescale))
    known = VECTORS[:5].astype(np.float64)
    factor = 0.25 / np.sqrt(np.square(known).mean()) if rescale else 1.0
    np.testing.assert_allclose(rows[4:9], known * factor, rtol=1e-5)
    for i in (0, 1, 2, 3, 9, 10, 11, 12, 13):
        # Marks and hashed rows are never equal; <unk> and the words that the file lacks may be.
        same = missing == "mean" and i in (1, 9, 10)
        row = known.mean(0) if same else fresh[i] * known.std(0) + known.mean(0)
        np.testing.assert_allclose(rows[i], row * factor, rtol=1e-4, atol=1e-6)


def test_as_much_must_be_found_as_is_asked_for() -> None:
    counts = np.array([99, 99, 99, 99, 5, 4, 3, 2, 1, 5, 0], dtype=np.int64)  # 15 of 20
    *_, coverage = filled(start_from(min_coverage=0.75), counts=counts)
    assert (coverage.found_tokens, coverage.tokens) == (15, 20)
    assert (coverage.entries, coverage.duplicates, coverage.unreadable) == (6, 0, 0)
    assert (coverage.table, coverage.uri, coverage.policy) == ("decoder", "v.txt", "random")
    *_, coverage = filled(start_from(min_coverage=1.0, match=["lowercase"]))  # nothing counted
    assert coverage.tokens == 0
    told = (
        r"v\.txt knows 75\.0% of the running words in table decoder; min_coverage asks for 75\.1%"
    )
    with pytest.raises(UserError, match=rf"{told}\. Most .*: rare$"):
        filled(start_from(min_coverage=0.751), counts=counts)


def test_entries_without_a_word_are_passed_over_and_counted(tmp_path: Path) -> None:
    uri = tmp_path / "v.vec"
    for stated in (5, 4, 1):
        uri.write_bytes(b"%d 4\nw0 1 2 3 4\nw\xff 5 5 5 5\n 6 6 6 6\nw2 7 8 9 9\n" % stated)
        rows, _, found = filled(start_from(), file=open_vectors(str(uri), None))
        assert rows[[4, 6]].tolist() == [[1, 2, 3, 4], [7, 8, 9, 9]]
        assert (found.entries, found.unreadable, found.stated) == (4, 2, stated)
        assert "2 words are empty or not UTF-8" in found.lines()[0]
        told = f"{uri} holds 4 vectors, which are taken; its header promises {stated}"
        assert any(told in line for line in found.lines()) == (stated != 4)
    np.save(tmp_path / "v.npy", np.arange(12.0).reshape(3, 4))
    (tmp_path / "words").write_text("w0\nw1\nw2\nw3\n")
    file = open_vectors(str(tmp_path / "v.npy"), None, words=str(tmp_path / "words"))
    *_, found = filled(start_from(), file=file)
    assert [line for line in found.lines() if "words has one word more than" in line]
    for content, said in (
        (b"1 4\n\xff 1 2 3 4\n", "none of its words is valid UTF-8"),
        (b"9 4\n", "holds no vectors"),
    ):
        uri.write_bytes(content)
        with pytest.raises(UserError, match=rf"v\.vec: {said}"):
            filled(start_from(), file=open_vectors(str(uri), "word2vec"))


@pytest.mark.parametrize("at_once", [2, 4096])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_pca_keeps_the_directions_in_which_the_vectors_found_vary_most(
    monkeypatch: pytest.MonkeyPatch, width: int, at_once: int
) -> None:
    monkeypatch.setattr(projection, "_VECTORS_AT_ONCE", at_once)
    rows, _, coverage = filled(start_from(project="pca"), width=width)
    known = VECTORS[:5].astype(np.float64)
    _, _, directions = np.linalg.svd(known - known.mean(0))
    flat = (known - known.mean(0)) @ directions[:width].T
    np.testing.assert_allclose(np.abs(rows[4:9]), np.abs(flat), atol=1e-5)
    assert (coverage.entries, coverage.duplicates) == (6, 0)  # though the file was read twice


def cosines(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    unit = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(unit @ unit.T)


@pytest.mark.parametrize("width", [4, 5, 7, 50])
@pytest.mark.parametrize("project", ["no", "random"])
def test_widening_changes_no_length_and_no_angle(width: int, project: Any) -> None:
    rows, *_ = filled(start_from(project=project, missing="random"), width=width)
    np.testing.assert_allclose(cosines(rows[4:9]), cosines(VECTORS[:5]), atol=1e-6)
    lengths = np.linalg.norm(VECTORS[:5], axis=1)
    np.testing.assert_allclose(np.linalg.norm(rows[4:9], axis=1), lengths, rtol=1e-6)
    if project == "no":
        np.testing.assert_array_equal(rows[4:9, :4], VECTORS[:5].astype(np.float32))
        assert not rows[:, 4:].any()  # other rows neither: they are spread as the vectors are


@pytest.mark.parametrize("width", [3, 6])
def test_a_random_map_is_that_of_the_seed(width: int) -> None:
    rows, *_ = filled(start_from(project="random"), width=width, seed=7)
    np.testing.assert_allclose(
        rows[4:9], VECTORS[:5] @ random_basis(4, width, seed=7).matrix, rtol=1e-4, atol=1e-5
    )
    assert not np.allclose(
        random_basis(4, width, seed=8).matrix, random_basis(4, width, seed=7).matrix
    )


def test_a_random_map_keeps_lengths_on_average() -> None:
    basis = random_basis(300, 200, seed=1)
    assert not basis.origin.any()
    assert basis.matrix.shape == (300, 200)
    assert basis.matrix.mean() == pytest.approx(0, abs=1e-3)
    assert basis.matrix.var() == pytest.approx(1 / 200, rel=0.02)


def test_no_vectors_have_directions_all_the_same() -> None:
    basis = Moments(4).main_directions(2, ONE)
    assert (basis.origin.tolist(), basis.matrix.shape) == ([0.0] * 4, (4, 2))
    np.testing.assert_allclose(basis.matrix.T @ basis.matrix, np.eye(2), atol=1e-12)


def start_source_from(
    uri: str, data: PreparedData, share: ShareEmbeddings, min_coverage: float
) -> tuple[Coverage, list[str]]:
    """What the source's table takes of a file that must know so many of its running words."""
    file = {"uri": uri, "min_coverage": min_coverage}
    config = config_from_dict(
        {"run": {"uri": "unused"}, "data": {"synthetic": {}}, "train": {"max_steps": 1},
         "embedding": {"tables": {"source": {"pretrained": file}}},
         "model": {"share_embeddings": share}}
    )  # fmt: skip
    tables, size = TABLE_OF_ROLE[share], data.vocabulary_size["source"]
    spec = TableSpec(tables["source"], size, 4)
    lookup: Any = Namespace(
        group=ONE, initial_scale={spec.name: 1.0}, table_of=tables, after_writing=lambda: None,
        specs={spec.name: spec}, shards={spec.name: shard_of(size, 0, 1)},
        weight=lambda name: torch.zeros(size, 4),
    )  # fmt: skip
    said: list[str] = []
    tokenizers = load_tokenizers(data.folder_uri)
    (found,) = start_tables(config, data, lookup, lambda: tokenizers, said.append).values()
    return found, said


def test_a_file_with_every_word_of_a_side_covers_it(prepared: Prepared, tmp_path: Path) -> None:
    """The vocabulary is that of both sides, and full stops leave the space before them."""
    text = [source for source, _ in prepared.pairs["train"]]
    words = {word for sentence in text for word in sentence.split()}
    (tmp_path / "v.txt").write_text("".join(f"{word} 1 2 3 4\n" for word in sorted(words)))
    uri = str(tmp_path / "v.txt")
    for share in ("none", "decoder"):
        found, said = start_source_from(uri, prepared.data, share, 1.0)
        assert (found.words, found.missing) == (len(words), [])
        assert found.tokens == sum(len(sentence.split()) for sentence in text)
        assert f"{len(words)} of {len(words)} words (100.0 %) and 100.0 % of their" in said[0]
        assert len(said) == 1
    # A table of all roles has the other side's words as well; and data prepared before do not know.
    data = replace(prepared.data, files={n: f for n, f in prepared.data.files.items()
                                         if "occurrences" not in n})  # fmt: skip
    (tmp_path / "data.json").write_text(data.to_json())
    for side in ("source", "target"):
        for name in (f"tokenizer.{side}.json", f"vocabulary.{side}.parquet"):
            shutil.copy(Path(prepared.uri) / name, tmp_path)
    shutil.copy(Path(prepared.uri) / "words.source.arrow", tmp_path)
    data = PreparedData.read(str(tmp_path))
    both, said = start_source_from(uri, prepared.data, "all", 0.3)
    assert (both.tokens > found.tokens, len(said)) == (True, 2)
    before, said = start_source_from(uri, data, "decoder", 0.3)
    assert before == replace(both, table="source")
    assert "was prepared before words were counted for each side" in said[0]
    assert len(said) == 3
    with pytest.raises(UserError, match=r"min_coverage asks for 100\.0%"):
        start_source_from(uri, data, "decoder", 1.0)
