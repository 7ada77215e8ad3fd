from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers.trainers import WordLevelTrainer

from dist_embed.data.finished_shards import FINISHED
from dist_embed.data.languages.synthetic import SyntheticLanguage
from dist_embed.data.prepare import read_counts, read_occurrences, read_predicted
from dist_embed.data.proof import FileInfo
from dist_embed.data.settings import DataSection, Kind, TokenizerSection
from dist_embed.data.text.rows import CorpusError, Pair
from dist_embed.data.token_shards import (
    PreparedData,
    ShardInfo,
    Split,
    read_texts,
    read_tokens,
)
from dist_embed.data.tokenizer import END, SPECIAL_TOKENS, UNKNOWN, Tokenizer
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.errors import UserError
from dist_embed.storage.parquet import read_parquet
from tests.unit.small_corpus import (
    SHARD_SENTENCES,
    Prepared,
    prepare,
    sentences,
    synthetic_corpora,
    write_text,
)

Item = TypeVar("Item")
MIXED: list[Pair] = [
    ("a b c", "x y z"), ("", "x"), ("a", ""), ("", ""), ("a b c d e", "x"), ("a", "x y z x y"),
    ("a a a a a a", "x x x x x x"), ("b", "y"), ("a b c d", "x y z x"),
]  # fmt: skip


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def words(text: str) -> list[str]:
    """A sentence's word tokens; a mark that stands alone leaves its space a token of its own."""
    return [
        token for word in text.split() for token in (["▁", "."] if word == "." else ["▁" + word])
    ]


@pytest.mark.parametrize(
    ("kind", "shared", "learning"),
    [("word", True, ["counting words"]),
     ("bpe", True, ["learning pieces", "counting pieces"]),
     ("bpe", False, ["learning source pieces", "learning target pieces", "counting pieces"])],
)  # fmt: skip
def test_all_passes_over_the_text_are_watched(
    prepared: Prepared, tmp_path: Path, kind: Kind, shared: bool, learning: list[str]
) -> None:
    watched = Counter[str]()

    def watch(what: str, items: Iterable[Item], unit: str = "pairs") -> Iterator[Item]:
        for item in items:
            if unit == "pairs":
                watched[what] += 1
            yield item

    prepare(tmp_path / "data", prepared.corpora, kind, watch=watch, shared=shared)
    sizes = {f"encoding {name}": len(pairs) for name, pairs in prepared.pairs.items()}
    assert watched == dict.fromkeys(learning, len(prepared.pairs["train"])) | sizes


def test_preparing_again_gives_the_same_bytes(prepared: Prepared, tmp_path: Path) -> None:
    prepare(tmp_path / "again", prepared.corpora)
    again, first = files_below(tmp_path / "again"), files_below(Path(prepared.uri))
    assert sorted(again) == sorted(first)
    assert [name for name in first if again[name] != first[name]] == []


def test_preparing_pieces_again_gives_the_same_bytes(tmp_path: Path) -> None:
    corpora, _ = synthetic_corpora(tmp_path / "text")
    for name in ("one", "two"):
        prepare(tmp_path / name, corpora, "bpe", vocab_size=200)
    one, two = files_below(tmp_path / "one"), files_below(tmp_path / "two")
    assert [name for name in one if one[name] != two[name]] == []


def test_shards_keep_the_order_of_the_text(prepared: Prepared) -> None:
    tokenizer = load_tokenizers(prepared.uri)["source"]
    for name, pairs in prepared.pairs.items():
        split = prepared.data.splits[name]
        full, rest = divmod(len(pairs), SHARD_SENTENCES)
        assert [s.sentences for s in split.shards] == [SHARD_SENTENCES] * full + [rest] * bool(rest)
        tokens = read_tokens(prepared.uri, split.shards)
        expected = zip(
            tokenizer.encode([s for s, _ in pairs]), tokenizer.encode([t for _, t in pairs]),
            strict=True,
        )  # fmt: skip
        assert sentences(tokens) == [(tuple(s), tuple(t)) for s, t in expected]


def test_the_index_says_what_the_shards_hold(prepared: Prepared) -> None:
    assert PreparedData.read(prepared.uri) == prepared.data
    assert set(prepared.data.splits) == {"train", "validation", "test"}
    for name, split in prepared.data.splits.items():
        assert split.sentences == len(prepared.pairs[name])
        for shard in split.shards:
            tokens = read_tokens(prepared.uri, [shard])
            assert len(tokens) == shard.sentences
            assert len(tokens.source_tokens) == shard.source_tokens
            assert len(tokens.target_tokens) == shard.target_tokens
    # Every file but the index itself is proven by it.
    listed = prepared.data.files | {
        shard.name: shard.file for split in prepared.data.splits.values() for shard in split.shards
    }
    there = files_below(Path(prepared.uri))
    del there["data.json"]
    # What is there until data count is none of them.
    there = {name: content for name, content in there.items() if not name.startswith(FINISHED)}
    assert listed == {name: FileInfo.of(content) for name, content in there.items()}


def test_held_out_texts_are_stored_and_training_texts_are_not(prepared: Prepared) -> None:
    for name in ("validation", "test"):
        texts = read_texts(prepared.uri, prepared.data.splits[name])
        assert list(zip(*texts, strict=True)) == prepared.pairs[name]
    with pytest.raises(UserError, match="source_text"):
        read_texts(prepared.uri, prepared.data.splits["train"])


def test_vocabulary_counts_equal_a_plain_count(prepared: Prepared) -> None:
    counts = Counter(w for pair in prepared.pairs["train"] for text in pair for w in words(text))
    for side in ("source", "target"):
        table = read_parquet(f"{prepared.uri}/vocabulary.{side}.parquet").to_pydict()
        assert table["token"] == load_tokenizers(prepared.uri)[side].tokens()
        found = dict(zip(table["token"], table["count"], strict=True))
        assert {token: n for token, n in found.items() if n} == counts
        assert table["count"][4:] == sorted(table["count"][4:], reverse=True)
        assert len(table["token"]) == prepared.data.vocabulary_size[side]


def occurrences_by_token(uri: str, *sides: str) -> dict[str, int]:
    """Those that are not 0."""
    found = read_occurrences(PreparedData.read(uri), sides)
    assert found is not None
    tokens = load_tokenizers(uri)[sides[0]].tokens()
    return {token: n for token, n in zip(tokens, found.tolist(), strict=True) if n}


def test_each_side_has_counts_of_its_own_beside_those_of_both(prepared: Prepared) -> None:
    both: Counter[str] = Counter()
    for place, side in enumerate(("source", "target")):
        own = Counter(w for pair in prepared.pairs["train"] for w in words(pair[place]))
        assert occurrences_by_token(prepared.uri, side) == own
        both += own
    assert occurrences_by_token(prepared.uri, "source", "target") == both


@pytest.mark.parametrize("too_long", ["drop", "cut"])
def test_what_is_left_out_of_training_occurs_nowhere(tmp_path: Path, too_long: str) -> None:
    pairs = [("a b z", "x y"), ("a", "x x"), ("b q q q q", "w"), ("r", "")]
    rule = DataSection(max_tokens=3, too_long=too_long)
    corpora = {name: write_text(tmp_path, name, pairs) for name in ("train", "test")}
    # "z" and "r" are outside the source's vocabulary, and hashed.
    prepare(tmp_path / "data", corpora, rule=rule, shared=False, vocab_size=7, oov_buckets=1,
            shard_sentences=2)  # fmt: skip
    uri, cut = str(tmp_path / "data"), too_long == "cut"
    assert read_counts(PreparedData.read(uri), "source").tolist() == [0, 2, 0, 0, 4, 2, 2]
    kept = {"▁a": 2, "▁b": 2, "▁q": 2} if cut else {"▁a": 2, "▁b": 1}
    assert occurrences_by_token(uri, "source") == kept
    kept = {"▁x": 3, "▁y": 1} | ({"▁w": 1} if cut else {})
    assert occurrences_by_token(uri, "target") == kept
    # What is to be predicted: an end mark for each pair too.
    predicted = read_predicted(PreparedData.read(uri)).tolist()
    tokens = load_tokenizers(uri)["target"].tokens()
    found = {token: n for token, n in zip(tokens, predicted, strict=True) if n}
    assert found == kept | {SPECIAL_TOKENS[END]: 3 if cut else 2}


@pytest.mark.parametrize("shared", [True, False])
def test_data_prepared_before_do_not_tell_their_sides_apart(tmp_path: Path, shared: bool) -> None:
    corpora = {"train": write_text(tmp_path, "train", [("a b", "x b"), ("a", "y")])}
    data, uri = prepare(tmp_path / "data", corpora, shared=shared), str(tmp_path / "data")
    data.files = {name: file for name, file in data.files.items() if "occurrences" not in name}
    (tmp_path / "data" / "data.json").write_text(data.to_json())
    for side in ("source", "target"):
        found = read_occurrences(PreparedData.read(uri), [side])
        assert (
            found is None
            if shared
            else found.tolist() == read_counts(PreparedData.read(uri), side).tolist()
        )
    if shared:  # for a table of both sides that is enough
        with pytest.raises(UserError, match=r"words belong to which side.* model.batch_negatives"):
            read_predicted(PreparedData.read(uri))
        assert occurrences_by_token(uri, "target", "source") == {"▁a": 2, "▁b": 2, "▁x": 1, "▁y": 1}


def test_separate_vocabularies_hold_their_own_side(prepared: Prepared, tmp_path: Path) -> None:
    data = prepare(tmp_path, {"train": prepared.corpora["train"]}, shared=False)
    tokenizers = load_tokenizers(str(tmp_path))
    for place, side in enumerate(("source", "target")):
        counts = Counter(w for pair in prepared.pairs["train"] for w in words(pair[place]))
        table = read_parquet(str(tmp_path / f"vocabulary.{side}.parquet")).to_pydict()
        found = dict(zip(table["token"], table["count"], strict=True))
        assert {token: n for token, n in found.items() if n} == counts
        assert set(tokenizers[side].tokens()[4:]) == set(counts)
    assert not data.shared_vocabulary
    assert data.vocabulary_size == {side: t.size for side, t in tokenizers.items()}
    texts = [target for _, target in prepared.pairs["train"][:3]]
    tokens = read_tokens(str(tmp_path), data.splits["train"].shards[:1])
    found = [list(target) for _, target in sentences(tokens)[:3]]
    assert tokenizers["target"].decode(found) == texts


def test_shared_tokenizers_are_one(prepared: Prepared) -> None:
    tokenizers = load_tokenizers(prepared.uri)
    assert tokenizers["source"].to_json() == tokenizers["target"].to_json()
    assert prepared.data.shared_vocabulary
    assert len(set(prepared.data.vocabulary_size.values())) == 1


def learned_by_library(
    texts: list[str], how: TokenizerSection, lowercase: bool
) -> tuple[Tokenizer, list[int]]:
    """A `word` tokenizer by the library's trainer, ids by frequency, and how often each occurs."""
    inner = Tokenizer.from_words(
        [], lowercase=lowercase, split_punctuation=how.split_punctuation
    )._inner
    trainer = WordLevelTrainer(
        vocab_size=how.vocab_size, min_frequency=how.min_count,
        special_tokens=SPECIAL_TOKENS, show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(texts, trainer)
    trained = Tokenizer(inner)
    counts = Counter(i for ids in trained.encode(texts) for i in ids)
    numbers = [counts[i] for i in range(trained.size)]
    return trained.ordered_by(numbers), [*numbers[:4], *sorted(numbers[4:], reverse=True)]


@pytest.mark.parametrize(
    ("vocab_size", "min_count", "shared", "lowercase", "split_punctuation"),
    [(60, 1, True, False, True), (400, 3, False, True, False), (50, 1, False, True, True)],
)
def test_words_are_those_of_the_librarys_trainer(
    tmp_path: Path,
    vocab_size: int,
    min_count: int,
    shared: bool,
    lowercase: bool,
    split_punctuation: bool,
) -> None:
    language = SyntheticLanguage(nouns=20, verbs=10, adjectives=8, seed=4)
    pairs = [
        *language.pairs(200, "train", 4), *MIXED, ("Isn't it <unk>?  «Yes»", "▁ <s></s> a\u00a0b "),
    ]  # fmt: skip
    how = {
        "vocab_size": vocab_size, "min_count": min_count, "shared": shared,
        "split_punctuation": split_punctuation,
    }  # fmt: skip
    prepare(
        tmp_path / "data", {"train": write_text(tmp_path, "train", pairs)}, "word",
        lowercase=lowercase, **how,
    )  # fmt: skip
    for place, side in enumerate(("source", "target")):
        texts = [text for pair in pairs for text in (pair if shared else [pair[place]])]
        expected, counts = learned_by_library(texts, TokenizerSection(**how), lowercase)
        ours = load_tokenizers(str(tmp_path / "data"))[side]
        assert ours.to_json() == expected.to_json()
        digests = {"tokenizer": expected.json_digest, "vocabulary": expected.digest}
        assert PreparedData.read(str(tmp_path / "data")).digests[side] == digests
        tokens = pa.array(expected.tokens(), pa.large_string())
        pq.write_table(
            pa.table({"token": tokens, "count": np.array(counts)}), tmp_path / "expected"
        )
        found = (tmp_path / "data" / f"vocabulary.{side}.parquet").read_bytes()
        assert found == (tmp_path / "expected").read_bytes()
        assert counts[UNKNOWN] > 0


def test_the_number_of_processes_changes_no_byte(tmp_path: Path) -> None:
    corpora, _ = synthetic_corpora(tmp_path / "text")
    for number in (1, 2):
        prepare(tmp_path / str(number), corpora, shared=False, num_processes=number)
    one, two = files_below(tmp_path / "1"), files_below(tmp_path / "2")
    assert sorted(one) == sorted(two)
    assert [name for name in one if one[name] != two[name]] == []


def test_the_size_of_the_vocabulary_is_said(tmp_path: Path) -> None:
    train = {"train": write_text(tmp_path, "train", [("a b a c", "x y"), ("a b", "x x x x")])}

    def said(kind: Kind = "word", **changes: Any) -> list[str]:
        lines: list[str] = []
        prepare(tmp_path / "data", train, kind, say=lines.append, **changes)
        return [line for line in lines if "vocabulary of" in line or " vocabulary: " in line]

    assert said(shared=False, vocab_size=6) == [
        "source vocabulary: 6 words, 4 special tokens among them; the text has 3 different words, "
        "and 1 of its 6 running words (16.67%) are outside the vocabulary",
        "target vocabulary: 6 words, 4 special tokens among them; the text has 2 different words, "
        "and 0 of its 6 running words (0.00%) are outside the vocabulary",
    ]
    assert said(vocab_size=90, min_count=2) == [
        "vocabulary of both sides: 7 words, 4 special tokens among them "
        "(tokenizer.vocab_size=90 allows more); the text has 5 different words, and 2 of its 12 "
        "running words (16.67%) are outside the vocabulary"
    ]
    assert said("bpe", vocab_size=90, shared=False)[1] == (
        "target vocabulary: 9 pieces, 4 special tokens among them "
        "(tokenizer.vocab_size=90 allows more)"
    )


@pytest.mark.parametrize("too_long", ["drop", "cut"])
def test_long_and_empty_training_pairs_are_counted(tmp_path: Path, too_long: str) -> None:
    corpora = {name: write_text(tmp_path, name, MIXED) for name in ("train", "test")}
    rule = DataSection(max_tokens=4, too_long=too_long)
    data = prepare(tmp_path / "data", corpora, rule=rule, shard_sentences=4)
    split = data.splits["train"]
    assert split.dropped_empty == 3
    assert (split.dropped_long, split.cut) == ((3, 0) if too_long == "drop" else (0, 3))
    tokens = read_tokens(str(tmp_path / "data"), split.shards)
    tokenizer = load_tokenizers(str(tmp_path / "data"))["source"]
    found = [tokenizer.decode([list(s), list(t)]) for s, t in sentences(tokens)]
    kept = [pair for pair in MIXED if all(pair) and max(len(s.split()) for s in pair) <= 4]
    cut = [tuple(" ".join(s.split()[:4]) for s in pair) for pair in MIXED if all(pair)]
    assert [tuple(pair) for pair in found] == (kept if too_long == "drop" else cut)
    # Held-out data are left whole: one answer per sentence.
    assert data.splits["test"].sentences == len(MIXED)
    assert data.splits["test"].dropped_empty == data.splits["test"].dropped_long == 0


@pytest.mark.parametrize("too_long", ["drop", "cut"])
def test_pairs_of_unlike_lengths_are_left_out_and_counted(tmp_path: Path, too_long: str) -> None:
    lengths = [(1, 1), (2, 1), (1, 2), (5, 2), (3, 1), (1, 4), (0, 1), (6, 3), (1, 7)]
    pairs = [(" ".join("a" * source), " ".join("b" * target)) for source, target in lengths]
    corpora = {name: write_text(tmp_path, name, pairs) for name in ("train", "test")}
    rule = DataSection(max_tokens=5, too_long=too_long, max_length_ratio=2.0)
    data = prepare(tmp_path / "data", corpora, rule=rule, shard_sentences=4)
    assert PreparedData.read(data.folder_uri) == data
    split = data.splits["train"]
    tokens = read_tokens(data.folder_uri, split.shards)
    found = list(zip(tokens.source_lengths, tokens.target_lengths, strict=True))
    if too_long == "drop":
        assert (split.dropped_long, split.cut, split.dropped_ratio) == (2, 0, 3)
        assert found == [(1, 1), (2, 1), (1, 2)]
    else:  # their ratio is that of the text, before it is cut
        assert (split.dropped_long, split.cut, split.dropped_ratio) == (0, 1, 4)
        assert found == [(1, 1), (2, 1), (1, 2), (5, 3)]
    assert split.dropped_empty == 1
    test = data.splits["test"]
    assert (test.sentences, test.dropped_ratio) == (len(pairs), 0)
    unlike = write_text(tmp_path, "unlike", pairs[1:6])
    with pytest.raises(UserError, match=r"no training pair is left: .*5 had sides .*_ratio=1\.0"):
        prepare(
            tmp_path / "none",
            {"train": unlike},
            rule=DataSection(max_tokens=9, max_length_ratio=1.0),
        )


def test_a_corpus_that_fails_leaves_no_index(prepared: Prepared, tmp_path: Path) -> None:
    broken = write_text(tmp_path, "broken", prepared.pairs["validation"])
    with Path(broken.target[0]).open("a") as file:
        file.write("one line more\n")
    with pytest.raises(CorpusError, match=r"12 lines.*13"):
        prepare(tmp_path / "data", {"train": prepared.corpora["train"], "test": broken})
    assert not (tmp_path / "data" / "data.json").exists()
    with pytest.raises(FileNotFoundError):
        PreparedData.read(str(tmp_path / "data"))


@pytest.mark.parametrize("empty", ["train", "test"])
def test_an_empty_corpus_is_named(prepared: Prepared, tmp_path: Path, empty: str) -> None:
    nothing = write_text(tmp_path, "nothing", [])
    with pytest.raises(UserError, match=r"the corpus is empty: .*nothing\.source\.txt"):
        prepare(tmp_path / "data", prepared.corpora | {empty: nothing})
    assert not (tmp_path / "data").exists()


def test_nothing_left_to_train_on_says_why(tmp_path: Path) -> None:
    text = write_text(tmp_path, "x", [("a b c", "x"), ("", "y"), ("d e f", "z")])
    with pytest.raises(UserError, match=r"1 had an empty side, 2 were longer.*max_tokens=2"):
        prepare(tmp_path / "data", {"train": text}, rule=DataSection(max_tokens=2))
    assert not (tmp_path / "data" / "data.json").exists()


def test_an_index_as_it_was_ever_written_is_read(tmp_path: Path) -> None:
    """Its text is also what a lexicon knows its data by."""
    text = """{
 "settings": {
  "tokenizer.kind": "wörd"
 },
 "vocabulary_size": {
  "source": 9,
  "target": 8
 },
 "shared_vocabulary": false,
 "splits": {
  "train": {
   "shards": [
    {
     "name": "train/shard-00000.parquet",
     "sentences": 3,
     "source_tokens": 7,
     "target_tokens": 9
    },
    {
     "name": "train/shard-00001.parquet",
     "sentences": 2,
     "source_tokens": 4,
     "target_tokens": 5
    }
   ],
   "dropped_empty": 1,
   "dropped_long": 2,
   "cut": 0
  }
 },
 "format": 1
}
"""
    (tmp_path / "data.json").write_text(text)
    data = PreparedData.read(str(tmp_path))
    assert data.to_json() == text
    assert data.digest() == hashlib.sha256(text.encode()).hexdigest()
    train = data.splits["train"]
    assert (train.sentences, train.target_tokens) == (5, 9 + 5 + 5)  # with ends of sentences
    assert (data.vocabulary_size, data.shared_vocabulary) == ({"source": 9, "target": 8}, False)


def test_sentences_are_told_from_others_by_their_shards() -> None:
    shards = [ShardInfo("train/a", 1200, 7, 9), ShardInfo("train/b", 2, 4, 5)]
    identity = Split(shards).identity()
    assert re.fullmatch(r"1,202 pairs in 2 shards \([0-9a-f]{16}\)", identity)
    # It is stored with every checkpoint.
    assert identity.endswith("(ea63f7df66b4a397)")
    assert Split(list(shards), dropped_empty=3, dropped_long=4, cut=5).identity() == identity
    others = [
        shards[::-1], shards[:1], [shards[0], replace(shards[1], name="train/c")],
        [shards[0], replace(shards[1], sentences=3)],
        [shards[0], replace(shards[1], source_tokens=5)],
        [shards[0], replace(shards[1], target_tokens=4)],
    ]  # fmt: skip
    assert len({identity, *(Split(other).identity() for other in others)}) == 7


def test_counts_that_cannot_be_read_are_named(prepared: Prepared, tmp_path: Path) -> None:
    table = read_parquet(f"{prepared.uri}/vocabulary.target.parquet").to_pydict()
    assert read_counts(prepared.data, "target").tolist() == table["count"]
    (tmp_path / "data.json").write_text(replace(prepared.data, format=1, files={}).to_json())
    (tmp_path / "vocabulary.source.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match=r"vocabulary\.source\.parquet cannot be read .*--force"):
        read_counts(PreparedData.read(str(tmp_path)), "source")


def test_every_part_of_a_preparation_is_said(tmp_path: Path) -> None:
    lines: list[str] = []
    corpora = {name: write_text(tmp_path, name, MIXED) for name in ("train", "test")}
    prepare(tmp_path / "data", corpora, say=lines.append)
    first, vocabulary, *encoding = lines
    assert first == "learning the word vocabulary"
    assert vocabulary.startswith("vocabulary of both sides: ")
    assert encoding == ["encoding train", "encoding test"]


def test_what_is_trained_on_is_not_held_out(prepared: Prepared) -> None:
    for name in ("validation", "test"):
        assert prepared.data.held_out(name, "there") is prepared.data.splits[name]
    for name in ("train", "other"):
        told = f"split '{name}' is not among the held-out data in there; there are validation, test"
        with pytest.raises(UserError, match=told):
            prepared.data.held_out(name, "there")
    alone = replace(prepared.data, splits={"train": prepared.data.splits["train"]})
    with pytest.raises(UserError, match="there are none"):
        alone.held_out("test", "there")


def test_another_format_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    values = json.loads((Path(prepared.uri) / "data.json").read_text()) | {"format": 99}
    (tmp_path / "data.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"{tmp_path}/data.json: format 99"):
        PreparedData.read(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}'])
def test_a_damaged_index_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError, match=rf"{tmp_path}/data.json"):
        PreparedData.read(str(tmp_path))
