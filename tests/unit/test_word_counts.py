from __future__ import annotations

import errno
import itertools
import tempfile
import threading
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_embed.data import word_spills
from dist_embed.data.languages.synthetic import SyntheticLanguage
from dist_embed.data.processes import ThisMachine
from dist_embed.data.text.rows import Pair
from dist_embed.data.word_counts import count_words, most_frequent
from dist_embed.data.word_spills import (
    PARTITIONS,
    WordSplitting,
    read_sums,
    split_and_count,
    sum_partitions,
    write_spill,
)
from dist_embed.errors import UserError
from tests.unit import small_corpus
from tests.unit.small_corpus import odd_texts, one_is_this_process

SPLITTINGS = [
    *(WordSplitting(lower, split) for lower in (False, True) for split in (False, True)),
    WordSplitting(lowercase=False, split_punctuation=True, form="nfc"),
    WordSplitting(lowercase=True, split_punctuation=False, form="nfkc"),
]
PLAIN = WordSplitting(lowercase=False, split_punctuation=True)


def plain_count(texts: Iterable[str], splitting: WordSplitting) -> Counter[str]:
    return small_corpus.count_words(texts, **asdict(splitting))


def plain_choice(counts: Counter[str], keep: int, min_count: int) -> list[tuple[str, int]]:
    often = [(word, n) for word, n in counts.items() if n >= min_count]
    return sorted(often, key=lambda row: (-row[1], row[0]))[:keep]


def rows(table: pa.Table | pa.RecordBatch) -> list[tuple[str, int]]:
    return list(zip(*table.to_pydict().values(), strict=True))


@pytest.mark.parametrize("splitting", SPLITTINGS)
@settings(max_examples=80, deadline=None)
@given(st.one_of(odd_texts, st.lists(st.text(max_size=20), max_size=5)))
def test_words_are_split_as_the_tokenizer_splits_them(
    splitting: WordSplitting, texts: list[str]
) -> None:
    found: Counter[str] = Counter()
    for word, count in rows(split_and_count(texts, splitting)):
        found[word] += count
    assert found == plain_count(texts, splitting)


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.lists(odd_texts, max_size=4),
    keep=st.integers(1, 12),
    min_count=st.integers(1, 3),
    parts=st.integers(1, 5),
    sum_rows=st.integers(1, 40),
)
def test_sums_of_spills_are_a_plain_count(
    blocks: list[list[str]], keep: int, min_count: int, parts: int, sum_rows: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spills = [
            write_spill(texts, PLAIN, f"{folder}/spill-{number}")
            for number, texts in enumerate(blocks)
        ]
        bounds = [PARTITIONS * i // parts for i in range(parts + 1)]
        sums = [
            sum_partitions(
                [spill.range_of(first, end) for spill in spills], min_count, sum_rows,
                f"{folder}/sum-{first}",
            )
            for first, end in itertools.pairwise(bounds)
        ]  # fmt: skip
        kept = rows(most_frequent(sums, keep))
    counts = plain_count((text for texts in blocks for text in texts), PLAIN)
    assert kept == plain_choice(counts, keep, min_count)
    assert sum(part.distinct for part in sums) == len(counts)
    assert sum(spill.running for spill in spills) == counts.total()


def test_a_word_is_in_the_same_partition_of_every_spill(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(2000)]
    spills = [
        write_spill([" ".join(part)], PLAIN, str(tmp_path / f"spill-{number}"))
        for number, part in enumerate((words, words[::-1], words[500:]))
    ]
    where: dict[str, set[int]] = {}
    for spill in spills:
        for number in range(PARTITIONS):
            part = spill.range_of(number, number + 1)
            sums = sum_partitions([part], 1, 100, str(tmp_path / "sums"))
            for word in read_sums(sums.uri).column("word").to_pylist():
                where.setdefault(word, set()).add(number)
    assert {len(numbers) for numbers in where.values()} == {1}
    assert len({number for numbers in where.values() for number in numbers}) > PARTITIONS * 0.9


def test_a_store_that_takes_its_time_is_asked_for_some_ranges_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100 GB of text there are 25,000: one after the other they would take a quarter of an
    hour.
    """
    spills = [write_spill([f"w{n} all"], PLAIN, str(tmp_path / f"s-{n}")) for n in range(8)]
    together, read = threading.Barrier(4), word_spills.storage.read_range

    def slow(*part: Any) -> bytes:
        together.wait(30)
        return read(*part)

    monkeypatch.setattr(word_spills.storage, "read_range", slow)
    monkeypatch.setattr(word_spills, "READ_AT_ONCE", 4)
    ranges = [spill.range_of(0, PARTITIONS) for spill in spills]
    sums = sum_partitions(ranges, 1, 100, str(tmp_path / "sums"))
    assert sorted(read_sums(sums.uri).column("count").to_pylist()) == [1] * 8 + [8]


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    texts = list(SyntheticLanguage(60, 30, 20, seed=5).pairs(400, "x", 5))
    return [("", "a"), *texts, ("<unk> <s>", ""), ("  two", "▁ \u2003"), ("", "")]


@pytest.mark.parametrize(
    ("shared", "keep", "min_count", "num_processes"),
    [(True, 70, 1, 1), (True, 10_000, 3, 2), (False, 50, 2, 1), (False, 10_000, 1, 1)],
)
def test_words_of_a_corpus_are_counted(
    pairs: list[Pair], shared: bool, keep: int, min_count: int, num_processes: int
) -> None:
    with one_is_this_process(num_processes):
        found = count_words(
            iter(pairs), PLAIN, shared=shared, keep=keep, min_count=min_count,
            executor=ThisMachine(num_processes), block_characters=1000, sum_rows=700,
        )  # fmt: skip
    for place, side in enumerate(("source", "target")):
        texts = [text for pair in pairs for text in (pair if shared else [pair[place]])]
        counts = plain_count(texts, PLAIN)
        words = found[side]
        kept = plain_choice(counts, keep, min_count)
        assert list(zip(words.words.to_pylist(), words.counts.tolist(), strict=True)) == kept
        assert (words.distinct, words.running) == (len(counts), counts.total())
        assert words.outside == counts.total() - sum(n for _, n in kept)
        assert words.by_id().tolist() == [0, words.outside, 0, 0, *(n for _, n in kept)]


def test_a_text_without_words_has_none() -> None:
    for pairs in ([], [("", "")]):
        with one_is_this_process(1):
            found = count_words(
                pairs, PLAIN, shared=False, keep=5, min_count=1, executor=ThisMachine(1)
            )  # fmt: skip
        for words in found.values():
            assert (words.words.to_pylist(), words.distinct, words.running) == ([], 0, 0)
            assert words.by_id().tolist() == [0, 0, 0, 0]


def count_in(
    folder: Path, pairs: Iterable[Pair], monkeypatch: pytest.MonkeyPatch, *, apart: bool = False
) -> None:
    """Count in this process, or ``apart``."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with nullcontext() if apart else one_is_this_process(1):
        count_words(
            pairs,
            PLAIN,
            shared=True,
            keep=9,
            min_count=1,
            executor=ThisMachine(1),
            block_characters=10,
        )


def test_temporary_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watching() -> Iterator[Pair]:
        for _ in range(20):
            yield "some text", "more text"
            seen.append(sum(1 for path in tmp_path.rglob("*") if path.is_file()))

    count_in(tmp_path, watching(), monkeypatch)
    assert max(seen) > 5
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_are_removed_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> Iterator[Pair]:
        for _ in range(20):
            yield "some text", "more text"
        assert any(tmp_path.iterdir())
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        count_in(tmp_path, failing(), monkeypatch)
    assert list(tmp_path.iterdir()) == []
    # In a process of the pool: this is no text.
    no_text = [("some text", "more text")] * 9 + [("\ud800", "x")]
    with pytest.raises(UnicodeEncodeError):
        count_in(tmp_path, no_text, monkeypatch, apart=True)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="No space left") as full:
        write_spill(["a"], PLAIN, "/dev/full")
    assert full.value.errno == errno.ENOSPC

    def failing() -> Iterator[Pair]:
        yield "a", "b"
        raise full.value

    with pytest.raises(OSError, match="No space left"):  # on another disk
        count_in(tmp_path, failing(), monkeypatch)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Namespace(free=4096))
    with pytest.raises(UserError, match=rf"no space.*{tmp_path}.*TMPDIR"):
        count_in(tmp_path, failing(), monkeypatch)
    assert list(tmp_path.iterdir()) == []
