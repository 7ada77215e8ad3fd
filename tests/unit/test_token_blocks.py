"""Parts of shards: what is known of them beforehand, what is read of them, what proves it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from dist_embed.data import token_shards
from dist_embed.data.block_index import index_name, pack_lengths, unpack_lengths
from dist_embed.data.token_blocks import TokenBlocks, open_blocks
from dist_embed.data.token_shards import PreparedData, Split, read_tokens
from dist_embed.errors import UserError
from dist_embed.storage import uri as storage
from tests.unit.small_corpus import Sentence, prepare, sentences, synthetic_corpora

OLD = Path(__file__).parent / "old_data" / "format-1"
BLOCK = 7  # sentences, of shards with 60


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """A corpus in shards of several blocks: 8 of 7 sentences and one of 4."""
    folder = tmp_path_factory.mktemp("blocks")
    corpora, _ = synthetic_corpora(folder / "text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_shards, "BLOCK_SENTENCES", BLOCK)
        return prepare(folder / "data", corpora)


@pytest.fixture
def folder(stored: PreparedData, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(stored.folder_uri, tmp_path / "data")
    return tmp_path / "data"


def expected_blocks(folder_uri: str, split: Split, size: int) -> list[list[Sentence]]:
    """The sentences of each block, as a plain reading of the shards has them."""
    blocks = []
    for shard in split.shards:
        found = sentences(read_tokens(folder_uri, [shard]))
        for first in range(0, len(found), size):
            part = found[first : first + size]
            blocks.append(sorted(part, key=lambda pair: (len(pair[1]), len(pair[0]))))
    return blocks


def check(blocks: TokenBlocks, expected: list[list[Sentence]]) -> None:
    """All that is known and read of blocks, in one order and another."""
    assert len(blocks) == len(expected)
    assert blocks.sentences.tolist() == [len(block) for block in expected]
    for side, tokens in enumerate((blocks.source_tokens, blocks.target_tokens)):
        assert tokens.tolist() == [sum(len(p[side]) for p in block) for block in expected]
    mixed = np.random.default_rng(1).permutation(len(expected))
    for order in (mixed, mixed[:1], range(len(expected))):
        wanted = [pair for block in order for pair in expected[block]]
        source, target = blocks.lengths(order)
        assert source.tolist() == [len(s) for s, _ in wanted]
        assert target.tolist() == [len(t) for _, t in wanted]
        assert sentences(blocks.read(order)) == wanted
    assert len(blocks.read([])) == len(blocks.lengths([])[0]) == 0


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_blocks_are_what_the_shards_hold_in_the_order_of_lengths(
    stored: PreparedData, name: str
) -> None:
    split = stored.splits[name]
    blocks = open_blocks(stored, name)
    check(blocks, expected_blocks(stored.folder_uri, split, BLOCK))
    assert len(blocks) > len(split.shards)
    some = split.shards[-1:]
    index = stored.files[index_name(some[0].name)]
    check(
        TokenBlocks.of(stored.folder_uri, some, index),
        expected_blocks(stored.folder_uri, Split(some), BLOCK),
    )


def test_shards_without_an_index_are_a_block_each(
    stored: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = stored.splits["train"].shards
    blocks = TokenBlocks.of(stored.folder_uri, shards)
    check(blocks, expected_blocks(stored.folder_uri, stored.splits["train"], 1000))
    # Lengths that are known are not read again.
    monkeypatch.setattr(storage, "read_bytes", lambda uri: pytest.fail(uri))
    blocks.lengths(range(len(shards)))


def test_old_data_are_read_without_an_index() -> None:
    old = PreparedData.read(str(OLD))
    assert not old.files
    check(open_blocks(old, "train"), expected_blocks(str(OLD), old.splits["train"], 1000))


def test_only_the_blocks_asked_for_are_fetched_and_neighbours_at_once(
    stored: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []
    read_range = storage.read_range

    def recorded(uri: str, start: int, end: int) -> bytes:
        fetched.append((Path(uri).name, end - start))
        return read_range(uri, start, end)

    blocks = open_blocks(stored, "train")
    monkeypatch.setattr(storage, "read_range", recorded)
    monkeypatch.setattr(storage, "read_bytes", lambda uri: pytest.fail(uri))
    size = blocks.stored_bytes
    # The last two of the first shard, and the first of the second one.
    blocks.read([9, 2, 7, 8, 3, 5])
    assert fetched == [
        ("shard-00000.parquet", size[2] + size[3]),
        ("shard-00000.parquet", size[5]),
        ("shard-00000.parquet", size[7] + size[8]),
        ("shard-00001.parquet", size[9]),
    ]
    whole = stored.splits["train"].shards[0].file
    assert whole is not None
    assert size[:9].sum() < whole.size_bytes
    fetched.clear()
    blocks.lengths(range(len(blocks)))
    assert fetched == []
    # Of held-out data the texts, which lie between the ids of blocks, stay where they are.
    held_out = open_blocks(stored, "test")
    held_out.read(range(len(held_out)))
    assert [size for _, size in fetched] == held_out.stored_bytes.tolist()


@pytest.fixture
def remote(stored: PreparedData) -> Iterator[str]:
    """The same data in a store."""
    fs = MemoryFileSystem()
    fs.put(stored.folder_uri, "/blocks-data", recursive=True)
    yield "memory://blocks-data"
    fs.rm("/blocks-data", recursive=True)


def test_a_store_is_read_by_ranges(stored: PreparedData, remote: str) -> None:
    data = PreparedData.read(remote)
    expected = expected_blocks(stored.folder_uri, stored.splits["train"], BLOCK)
    check(open_blocks(data, "train"), expected)
    uri = storage.join(remote, "train", "shard-00002.parquet")
    storage.write_bytes(uri, storage.read_bytes(uri)[:1000])
    with pytest.raises(UserError, match=f"{uri}: sentences .* are not those that were written"):
        open_blocks(data, "train").read(range(len(expected)))
    storage.remove(uri)
    with pytest.raises(UserError, match=f"{uri} cannot be read .* it was removed"):
        open_blocks(data, "train").read([20])


def test_a_flipped_bit_is_told_with_the_shard_and_the_sentences(folder: Path) -> None:
    blocks = open_blocks(PreparedData.read(str(folder)), "train")
    path = folder / "train" / "shard-00001.parquet"
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    sound = blocks.read([9, 11]).source_tokens.tolist()
    # Block 10 is the second one of the second shard.
    start = content.index(b"PAR1") + 4 + int(blocks.stored_bytes[9])
    for place in rng.integers(start, start + int(blocks.stored_bytes[10]), 60):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(
            UserError,
            match=rf"^token shard {path}: sentences 8 to 14 are not those that were written: "
            r".*expected, .* found; prepare the data again",
        ):
            blocks.read([3, 10])
        assert blocks.read([9, 11]).source_tokens.tolist() == sound


def test_an_id_beyond_the_table_is_told_by_its_place_in_the_shard(stored: PreparedData) -> None:
    shards = stored.splits["train"].shards
    worst = []  # of each shard: where its highest id stands first, and that id
    for shard in shards:
        ids = [source for source, _ in sentences(read_tokens(stored.folder_uri, [shard]))]
        highest = max(map(max, ids))
        place = next(i for i, source in enumerate(ids) if highest in source)
        worst.append((place, ids[place].index(highest), highest))
    number = max(range(len(shards)), key=lambda number: worst[number])
    place, token, limit = worst[number]
    assert place > BLOCK
    told = (
        rf"{shards[number].name}: source token {token + 1} of sentence {place + 1} is id {limit}, "
        f"but the source table has ids 0 to {limit - 1}"
    )
    for blocks, block in (
        (open_blocks(stored, "train"), 9 * number + place // BLOCK),
        (TokenBlocks.of(stored.folder_uri, shards), number),
    ):
        blocks.read([block], {"source": limit + 1, "target": 1000})
        with pytest.raises(UserError, match=told):
            blocks.read([block], {"source": limit, "target": 1000})


def test_an_index_of_other_shards_is_refused(stored: PreparedData) -> None:
    shards = stored.splits["train"].shards
    index = stored.files["train/blocks.arrow"]
    more = [replace(shards[0], sentences=61), *shards[1:]]
    with pytest.raises(UserError, match=r"61 pairs of train/shard-00000\S+ expected, 60 found"):
        TokenBlocks.of(stored.folder_uri, more, index)
    unknown = [replace(shards[0], name="train/shard-9.parquet")]
    with pytest.raises(UserError, match=r"60 pairs of train/shard-9\.parquet expected, 0 found"):
        TokenBlocks.of(stored.folder_uri, unknown, index)


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)), max_size=20))
def test_any_lengths_are_packed_and_unpacked(pairs: list[tuple[int, int]]) -> None:
    source, target = np.array(pairs, np.int64).reshape(-1, 2).T
    found = unpack_lengths(pack_lengths(source, target))
    assert [side.tolist() for side in found] == [source.tolist(), target.tolist()]


def test_lengths_in_their_order_take_a_fraction_of_what_they_are(stored: PreparedData) -> None:
    rng = np.random.default_rng(1)
    source = np.clip(rng.lognormal(3.1, 0.6, 2500), 2, 256).astype(np.int64)
    target = np.clip(source * rng.lognormal(0.05, 0.25, 2500), 2, 256).astype(np.int64)
    order = np.lexsort((source, target))
    assert len(pack_lengths(source[order], target[order])) < 2500 * 0.55
    assert len(pack_lengths(source, target)) > 2500 * 1.5
