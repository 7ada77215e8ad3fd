from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dist_embed.data.encoding import EncodingPool, encoding_pool
from dist_embed.data.finished_shards import LeftOut
from dist_embed.data.processes import ThisMachine
from dist_embed.data.settings import DataSection
from dist_embed.data.text.rows import Pair
from dist_embed.data.token_shards import read_tokens
from dist_embed.data.tokenizer import UNKNOWN, Tokenizer
from tests.unit.small_corpus import sentences, train_tokenizer

PAIRS = [(f"w{i % 7} w{i % 3}", f"w{i % 5}") for i in range(50)]
ALL_WORDS = [f"w{i}" for i in range(7)]


def words(texts: list[str]) -> Tokenizer:
    return train_tokenizer("word", texts, vocab_size=50)


@pytest.fixture(scope="module")
def pool() -> Iterator[EncodingPool]:
    """The target side knows fewer words than the source side."""
    with encoding_pool(words(ALL_WORDS), words(ALL_WORDS[:4]), ThisMachine(2)) as pool:
        yield pool


@pytest.mark.parametrize("block", [1, 7, 50, 1000])
def test_counts_do_not_depend_on_the_blocks(pool: EncodingPool, block: int) -> None:
    counts = pool.count_tokens(iter(PAIRS), block)
    source, target = words(ALL_WORDS), words(ALL_WORDS[:4])
    expected = Counter(i for s, _ in PAIRS for i in source.encode([s])[0])
    assert counts["source"].tolist() == [expected[i] for i in range(source.size)]
    expected = Counter(i for _, t in PAIRS for i in target.encode([t])[0])
    assert counts["target"].tolist() == [expected[i] for i in range(target.size)]
    assert counts["target"][UNKNOWN] == 10  # every fifth target is w4


def test_no_pairs_have_no_counts(pool: EncodingPool) -> None:
    assert pool.count_tokens([], 10) == {}


def test_a_corpus_is_never_held_in_memory(pool: EncodingPool, tmp_path: Path) -> None:
    taken = 0

    def endless() -> Iterator[Pair]:
        nonlocal taken
        while True:
            taken += 1
            yield "w1 w2", "w3"

    shards = pool.write_shards(
        endless(),
        str(tmp_path),
        "train",
        shard_sentences=10,
        rule=DataSection(max_tokens=9, too_long="drop"),
    )
    for number in range(3):
        assert next(shards).info.name == f"train/shard-{number:05d}.parquet"
    # Two blocks per process under way, and those that are done.
    assert taken <= 10 * (3 + 2 * 2 + 1)
    shards.close()  # type: ignore[attr-defined]


def test_blocks_come_back_in_order(pool: EncodingPool, tmp_path: Path) -> None:
    # Early blocks are much longer, so that later ones are done before them.
    pairs = [(" ".join(["w1"] * (5000 if i < 4 else 1)), f"w{i % 4}") for i in range(40)]
    blocks = list(
        pool.write_shards(
            pairs,
            str(tmp_path),
            "x",
            shard_sentences=1,
            rule=DataSection(max_tokens=9999, too_long="cut"),
        )
    )
    assert [block.info.name for block in blocks] == [f"x/shard-{i:05d}.parquet" for i in range(40)]
    tokens = read_tokens(str(tmp_path), [block.info for block in blocks])
    target = words(ALL_WORDS[:4])
    assert target.decode([list(t) for _, t in sentences(tokens)]) == [t for _, t in pairs]


def test_a_shard_in_which_nothing_is_left_is_empty(pool: EncodingPool, tmp_path: Path) -> None:
    (block,) = pool.write_shards(
        [("", "w1"), ("w1 w1 w1", "w1")], str(tmp_path), "x", shard_sentences=5,
        rule=DataSection(max_tokens=2, too_long="drop"),
    )  # fmt: skip
    assert (block.info.sentences, block.left_out) == (0, LeftOut(dropped_empty=1, dropped_long=1))
    tokens = read_tokens(str(tmp_path), [block.info])
    assert len(tokens) == 0
    assert tokens.source_offsets.tolist() == [0]
    assert tokens.source_tokens.dtype == np.int32


def test_an_error_while_reading_ends_the_processes() -> None:
    def failing() -> Iterator[Pair]:
        yield "w1", "w1"
        raise OSError("disk gone")

    def count_all() -> None:
        with encoding_pool(words(ALL_WORDS), words(ALL_WORDS), ThisMachine(1)) as own:
            own.count_tokens(failing(), 1)

    with pytest.raises(OSError, match="disk gone"):
        count_all()


def test_unknown_source_words_are_hashed(pool: EncodingPool, tmp_path: Path) -> None:
    pairs = [("w1 new w2", "w1 new"), ("other new", "w3")]
    block = next(
        pool.write_shards(
            iter(pairs), str(tmp_path), "test", shard_sentences=9, rule=None, oov_buckets=5000
        )
    )
    tokens = read_tokens(str(tmp_path), [block.info])
    source = words(ALL_WORDS)
    assert sentences(tokens)[0][0] == tuple(source.encode_hashed([pairs[0][0]], 5000)[0])
    new, other, again = tokens.source_tokens[[1, 3, 4]].tolist()
    assert new == again != other
    assert min(new, other) >= source.size
    assert tokens.target_tokens[1] == UNKNOWN
