"""What a run rests on beside its checkpoints is what was written, or is refused by name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dist_embed.data.lexicon import Lexicon
from dist_embed.data.lexicon_learning import ensure_lexicon
from dist_embed.data.prepare import read_counts, read_occurrences
from dist_embed.data.proof import FileInfo, sealed, unsealed
from dist_embed.data.token_blocks import open_blocks
from dist_embed.data.token_shards import PreparedData, read_texts, read_tokens
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.errors import UserError
from dist_embed.run.folder import check_tokenizer, tokenizer_digests
from dist_embed.storage import uri as storage
from tests.unit.small_corpus import one_is_this_process, prepare, write_text

FLIPS = 120
WORDS = np.arange(30)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data with a lexicon in two parts, those of another corpus, and a run's copies."""
    folder = tmp_path_factory.mktemp("stored")
    for name, words in (("data", "abcdefgh"), ("other", "xybcdefa")):
        pairs = [(f"{s} {t} {s}", f"{t} {s}") for s in words for t in words if name + t != "otherb"]
        corpora = {split: write_text(folder / name, split, pairs) for split in ("train", "test")}
        data = prepare(folder / name, corpora, "bpe", vocab_size=40, shard_sentences=32)
        learn(folder / name, data)
    for side in ("source", "target"):
        (folder / "run").mkdir(exist_ok=True)
        shutil.copy(folder / "data" / f"tokenizer.{side}.json", folder / "run")
    Lexicon(str(folder / "data")).copy_to(str(folder / "run"))
    return folder


@pytest.fixture
def folder(stored: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(stored, tmp_path / "stored")
    return tmp_path / "stored"


def learn(folder: Path, data: PreparedData) -> None:
    with one_is_this_process(1):
        ensure_lexicon(
            str(folder), data, translations=2, num_processes=1, say=lambda line: None,
            block_pairs=60,
        )  # fmt: skip


def read_train(folder: Path) -> None:
    data = str(folder / "data")
    read_tokens(data, PreparedData.read(data).splits["train"].shards)


def read_blocks(folder: Path) -> None:
    blocks = open_blocks(PreparedData.read(str(folder / "data")), "train")
    blocks.lengths(range(len(blocks)))


def read_test(folder: Path) -> None:
    data = str(folder / "data")
    read_texts(data, PreparedData.read(data).splits["test"])


def read_data_tokenizers(folder: Path) -> None:
    data = str(folder / "data")
    load_tokenizers(data, PreparedData.read(data))


def read_word_counts(folder: Path) -> None:
    data = PreparedData.read(str(folder / "data"))
    for side in ("source", "target"):
        read_counts(data, side)
    read_occurrences(data, ["source", "target"])


def read_lexicon(folder: Path) -> None:
    Lexicon(str(folder / "data")).translations(WORDS, 2)
    Lexicon(str(folder / "data")).frequent_targets()


def read_lexicon_of_run(folder: Path) -> None:
    lexicon = Lexicon(str(folder / "run"))
    lexicon.translations(WORDS, 2)
    lexicon.check_tokenizers(load_tokenizers(str(folder / "run")))


def read_tokenizers_of_run(folder: Path) -> None:
    """As its checkpoint knows them."""
    known = load_tokenizers(str(folder / "data"))
    for side, tokenizer in load_tokenizers(str(folder / "run")).items():
        scalars = {
            name: digest() for name, digest in tokenizer_digests(side, known[side]).items()
        }  # fmt: skip
        check_tokenizer(side, tokenizer, scalars, str(folder / "run"))


READERS: list[tuple[str, Callable[[Path], None]]] = [
    ("data/data.json", read_train),
    ("data/train/shard-00000.parquet", read_train),
    ("data/train/blocks.arrow", read_blocks),
    ("data/test/shard-00001.parquet", read_test),
    ("data/vocabulary.source.parquet", read_word_counts),
    ("data/occurrences.target.parquet", read_word_counts),
    ("data/tokenizer.target.json", read_data_tokenizers),
    ("data/lexicon/lexicon.json", read_lexicon),
    ("data/lexicon/part-00001.parquet", read_lexicon),
    ("data/lexicon/frequent.parquet", read_lexicon),
    ("run/lexicon/lexicon.json", read_lexicon_of_run),
    ("run/lexicon/part-00000.parquet", read_lexicon_of_run),
    ("run/tokenizer.source.json", read_tokenizers_of_run),
]


@pytest.mark.parametrize(("name", "read"), READERS, ids=[name for name, _ in READERS])
def test_a_flipped_bit_is_never_read_as_something_else(
    folder: Path, name: str, read: Callable[[Path], None]
) -> None:
    read(folder)
    path = folder / name
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    # Everywhere, and the end, where indexes have their digests and Parquet its lengths.
    places = [*rng.integers(0, len(content), FLIPS), *range(len(content) - 12, len(content))]
    for place, bit in zip(places, rng.integers(0, 8, len(places)), strict=True):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=path.name):
            read(folder)
    for end in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match=path.name):
            read(folder)


# The lists of frequent words happen to be the same.
OTHERS = [(name, read) for name, read in READERS if "frequent" not in name]


@pytest.mark.parametrize(("name", "read"), OTHERS, ids=[name for name, _ in OTHERS])
def test_a_file_of_another_corpus_is_refused(
    folder: Path, name: str, read: Callable[[Path], None]
) -> None:
    theirs = folder / name.replace("data/", "other/").replace("run/", "other/")
    assert theirs.read_bytes() != (folder / name).read_bytes()
    shutil.copy(theirs, folder / name)
    with pytest.raises(UserError, match=r"expected, .* found; (prepare|remove)|Put back"):
        read(folder)


def test_files_that_changed_places_are_refused(folder: Path) -> None:
    for names, read in (
        (("data/train/shard-00000.parquet", "data/train/shard-00001.parquet"), read_train),
        (("data/test/shard-00000.parquet", "data/test/shard-00001.parquet"), read_test),
        (("data/lexicon/part-00000.parquet", "data/lexicon/part-00001.parquet"), read_lexicon),
    ):
        first, second = (folder / name for name in names)
        one = first.read_bytes()
        shutil.copy(second, first)
        second.write_bytes(one)
        with pytest.raises(UserError, match=first.name):
            read(folder)


def test_a_whole_lexicon_of_another_corpus_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "run" / "lexicon")
    Lexicon(str(folder / "other")).copy_to(str(folder / "run"))
    with pytest.raises(UserError, match="was learned with another source tokenizer"):
        read_lexicon_of_run(folder)


def test_what_is_said_names_the_file_what_was_found_and_what_to_do(folder: Path) -> None:
    path = folder / "data" / "train" / "shard-00001.parquet"
    written = FileInfo.of(path.read_bytes())
    path.write_bytes(b"other")
    with pytest.raises(UserError) as caught:
        read_train(folder)
    assert str(caught.value) == (
        f"{path} is not the file that was written: {written.size_bytes:,} bytes with SHA-256 "
        f"{written.sha256[:16]}… expected, 5 bytes with SHA-256 d9298a10d1b07358… found; "
        "prepare the data again with `dist-embed prepare CONFIG --force`"
    )


def unproven(folder: Path) -> PreparedData:
    """As data were prepared before: without digests."""
    data = PreparedData.read(str(folder))
    for split in data.splits.values():
        split.shards[:] = [replace(shard, file=None, content=None) for shard in split.shards]
    data = replace(data, format=1, files={}, digests={}, word_tables=False)
    (folder / "data.json").write_text(data.to_json())
    return data


def test_data_without_digests_are_told_by_their_numbers(folder: Path) -> None:
    data = unproven(folder / "data")
    assert PreparedData.read(str(folder / "data")) == data
    told = data.not_proven("here")
    assert told is not None
    assert told.startswith("here was prepared before data carried digests")
    for read in (read_train, read_test, read_data_tokenizers, read_word_counts):
        read(folder)
    short = [(f"{word}", f"{word}") for word in "ab"]
    few = prepare(
        folder / "few", {s: write_text(folder / "few", s, short) for s in ("train", "test")}, "bpe",
        vocab_size=9,
    )  # fmt: skip
    assert few.not_proven("there") is None
    for name, read, told in (
        ("train/shard-00000.parquet", read_train, r"32 rows expected, 2 found"),
        ("test/shard-00000.parquet", read_test, r"32 rows expected, 2 found"),
        ("vocabulary.source.parquet", read_word_counts, r"\d+ rows expected, 9 found"),
        ("tokenizer.source.json", read_data_tokenizers, r"\d+ words expected, 9 found"),
    ):
        shutil.copy(folder / "few" / name, folder / "data" / name)
        with pytest.raises(UserError, match=rf"{name}.*{told}; prepare the data again"):
            read(folder)
    shard = data.splits["train"].shards[1]
    more = replace(shard, target_tokens=shard.target_tokens + 1)
    with pytest.raises(UserError, match=r"shard-00001.*target tokens expected"):
        read_tokens(str(folder / "data"), [more])


def test_an_older_checkpoint_knows_less_of_a_tokenizer(folder: Path) -> None:
    ours, others = (load_tokenizers(str(folder / name))["source"] for name in ("data", "other"))
    tokens = {"source vocabulary": ours.digest}
    for scalars in ({}, tokens, {"target tokenizer": "x"}):
        check_tokenizer("source", ours, scalars, "run")
    check_tokenizer("source", others, {}, "run")
    with pytest.raises(
        UserError, match=f"SHA-256 {ours.digest[:16]}… expected, {others.digest[:9]}"
    ):
        check_tokenizer("source", others, tokens, "run")


def test_a_disk_that_fails_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(uri: str) -> bytes:
        raise OSError("bad block")

    data = PreparedData.read(str(folder / "data"))
    monkeypatch.setattr(storage, "read_bytes", fail)
    with pytest.raises(UserError, match=r"shard-00000\.parquet cannot be read \(bad block\)$"):
        read_tokens(str(folder / "data"), data.splits["train"].shards)


def test_a_file_that_is_gone_may_have_been_replaced_meanwhile(folder: Path) -> None:
    (folder / "data" / "train" / "shard-00001.parquet").unlink()
    told = (
        r"shard-00001\.parquet cannot be read .* it was removed, or others were prepared .*--force"
    )
    with pytest.raises(UserError, match=told):
        read_train(folder)


def test_a_sealed_text_is_plain_json_and_itself_alone() -> None:
    text = sealed({"a": [1, "ö"], "b": {}})
    # To the letter: by a digest of such a text a lexicon knows its data.
    body = '{\n "a": [\n  1,\n  "ö"\n ],\n "b": {}'
    digest = hashlib.sha256(body.encode()).hexdigest()
    assert text == f'{body},\n "sha256": "{digest}"\n}}\n'
    values = json.loads(text)
    assert list(values) == ["a", "b", "sha256"]
    assert unsealed(text) == {"a": [1, "ö"], "b": {}}
    for other in ("", "{}\n", text[:-1], text.replace("1", "2"), text.replace(" ", "  ")):
        with pytest.raises(ValueError, match="SHA-256"):
            unsealed(other)
