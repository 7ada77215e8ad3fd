"""Pools of many blocks: what each worker reads of them, and what all make of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from dist_embed.data import loader as loader_module
from dist_embed.data.loader import Loader, Position
from dist_embed.data.token_blocks import TokenBlocks
from dist_embed.data.token_shards import ShardInfo, TokenPairs, write_shard
from tests.unit.small_corpus import count
from tests.unit.step_content import epoch_of, same, step_content

BUDGET = 4096  # four slots
Corpus = tuple[str, list[ShardInfo]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """48 blocks of 60 long pairs: two pools of 95,000 tokens. The first target word is the
    block's number.
    """
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(3)
    shards = []
    for number in range(48):
        source, target = (
            [[number + 4, *rng.integers(60, 900, length).tolist()] for length in lengths]
            for lengths in rng.integers(30, 90, (2, 60))
        )
        write_shard(str(folder / str(number)), source, target)
        tokens = (sum(map(len, side)) for side in (source, target))
        shards.append(ShardInfo(str(number), 60, *tokens))
    return str(folder), shards


def worker(corpus: Corpus, rank: int, num_workers: int, accumulate: int = 1) -> Loader:
    return Loader(
        *corpus, batch_tokens=BUDGET, seed=4, rank=rank, num_workers=num_workers,
        accumulate=accumulate, pool_sentences=1440, pool_steps=1,
    )  # fmt: skip


@pytest.mark.parametrize(("num_workers", "accumulate"), [(4, 1), (3, 1), (2, 3)])
def test_workers_read_parts_and_make_the_same_batches_of_them(
    corpus: Corpus, num_workers: int, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = epoch_of(worker(corpus, 0, 1).steps(Position()))
    assert {step.after.pool for step in alone} == {0, 1}
    read: list[int] = []
    reading = TokenBlocks.read

    def noting(
        self: TokenBlocks, blocks: Sequence[int], num_ids: dict[str, int] | None = None
    ) -> TokenPairs:
        read.extend(blocks)
        return reading(self, blocks, num_ids)

    monkeypatch.setattr(TokenBlocks, "read", noting)
    parts = []
    for rank in range(num_workers):
        read.clear()
        parts.append(epoch_of(worker(corpus, rank, num_workers, accumulate).steps(Position())))
        sentences = [pair for step in parts[-1] for pair in step_content(step)]
        assert {target[0] - 4 for _, target in sentences} <= set(read)
        # Four streams a pool: of each that is this worker's in part, and a block at either end.
        streams = 2 if 4 % num_workers else 4 // num_workers
        assert len(read) == len(set(read)) <= 2 * (streams * 6 + 2)
    skew = []
    for expected, *own in zip(alone, *parts, strict=True):
        together = [pair for part in own for pair in step_content(part)]
        assert count(together) == count(step_content(expected))
        assert {part.after for part in own} == {expected.after}
        counts = [
            [own[rank].batches[micro].target_output.numel() for rank in range(num_workers)]
            for micro in range(accumulate)
        ]
        assert all(part.token_counts == counts for part in own)
        work = [b.source.numel() + b.target_input.numel() for p in own for b in p.batches]
        skew.append(max(work) / np.mean(work))
    assert np.mean(skew) < 1.15  # of single sentences, some are a tenth of a part


def test_epochs_bring_other_blocks_together(corpus: Corpus) -> None:
    def of_pools(epoch: int) -> list[frozenset[int]]:
        found: list[set[int]] = [set(), set()]
        pool = 0
        for step in epoch_of(worker(corpus, 0, 1).steps(Position(epoch)), epoch):
            found[pool].update(target[0] - 4 for _, target in step_content(step))
            pool = step.after.pool
        return [frozenset(blocks) for blocks in found]

    first, second = of_pools(0), of_pools(1)
    for pools in (first, second):
        assert not pools[0] & pools[1]
        assert [len(pool) for pool in pools] == [24, 24]
    assert first[0] not in second


def test_a_step_has_sentences_of_all_its_pool_s_blocks(corpus: Corpus) -> None:
    seen: Counter[int] = Counter()
    steps = epoch_of(worker(corpus, 0, 1).steps(Position()))
    for step in steps:
        seen.update({target[0] - 4 for _, target in step_content(step)})
    assert min(seen.values()) > 0.5 * len(steps) / 2  # a block is in one of two pools


def test_the_next_pool_is_read_while_one_is_in_use(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none after it, before its time."""
    made: list[int] = []
    reading = loader_module.read_pool

    def noting(blocks: TokenBlocks, *given: object, **options: object) -> object:
        pool = reading(blocks, *given, **options)  # type: ignore[arg-type]
        made.append(len(pool))
        return pool

    monkeypatch.setattr(loader_module, "read_pool", noting)
    plain = worker(corpus, 0, 2).steps(Position())
    ahead = worker(corpus, 0, 2).prefetched(Position(), ahead=1)
    try:
        assert same(next(ahead), next(plain))
        deadline = 100
        while len(made) < 3 and deadline:  # the plain loader's one, this one's two
            ahead._thread.join(0.1)
            deadline -= 1
        ahead._thread.join(0.3)
        assert len(made) == 3
        for _ in range(made[0] + 3):
            assert same(next(ahead), next(plain))
    finally:
        ahead.close()
