from __future__ import annotations

import gzip
import os
import threading
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_embed.data.batch import MERGE_TOKENS, Batch, build_batch, merged
from dist_embed.data.loader import Loader, Position, StepBatches
from dist_embed.data.token_blocks import index_of
from dist_embed.data.token_shards import ShardInfo, TokenPairs, read_tokens, write_shard
from dist_embed.data.tokenizer import END, PAD, START, Tokenizer
from dist_embed.errors import UserError
from tests.unit.small_corpus import Prepared, Sentence, count, sentences
from tests.unit.step_content import epoch_of, same, source_rows, step_content, target_rows

BATCH_TOKENS = 150
POOL = 130  # two of the shared corpus's shards


def loader(prepared: Prepared, rank: int = 0, num_workers: int = 1, **changes: int) -> Loader:
    options = {
        "batch_tokens": BATCH_TOKENS, "seed": 5, "accumulate": 1, "pool_sentences": POOL,
        "pool_steps": 1,
    }  # fmt: skip
    return Loader(
        prepared.uri, prepared.data.splits["train"].shards, index=index_of(prepared.data, "train"),
        rank=rank, num_workers=num_workers, **(options | changes),
    )  # fmt: skip


def padded_tokens(batch: Batch) -> int:
    return batch.source.numel() + batch.target_input.numel()


def real_tokens(batch: Batch) -> int:
    return int(batch.source_lengths.sum()) + batch.target_output.numel()


def everything(prepared: Prepared) -> Counter[Sentence]:
    shards = prepared.data.splits["train"].shards
    return count(sentences(read_tokens(prepared.uri, shards)))


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_sentence_comes_exactly_once_an_epoch(
    prepared: Prepared, num_workers: int, accumulate: int
) -> None:
    for epoch in (0, 1):
        seen: Counter[Sentence] = Counter()
        for rank in range(num_workers):
            worker = loader(prepared, rank, num_workers, accumulate=accumulate)
            for step in epoch_of(worker.steps(Position(epoch)), epoch):
                assert len(step.batches) == accumulate
                seen.update(step_content(step))
        assert seen == everything(prepared)


@pytest.mark.parametrize(("num_workers", "accumulate"), [(2, 1), (3, 1), (2, 2), (1, 3), (7, 2)])
def test_global_batches_are_the_same_for_any_number_of_workers(
    prepared: Prepared, num_workers: int, accumulate: int
) -> None:
    alone = epoch_of(loader(prepared).steps(Position()))
    workers = [
        epoch_of(loader(prepared, rank, num_workers, accumulate=accumulate).steps(Position()))
        for rank in range(num_workers)
    ]
    for expected, *parts in zip(alone, *workers, strict=True):
        together = [sentence for part in parts for sentence in step_content(part)]
        assert count(together) == count(step_content(expected))
        assert {part.after for part in parts} == {expected.after}
        assert {part.global_tokens for part in parts} == {expected.global_tokens}


@pytest.mark.parametrize(("num_workers", "accumulate"), [(1, 1), (2, 1), (3, 2)])
def test_token_counts_tell_what_every_worker_holds(
    prepared: Prepared, num_workers: int, accumulate: int
) -> None:
    workers = [
        epoch_of(loader(prepared, rank, num_workers, accumulate=accumulate).steps(Position()))
        for rank in range(num_workers)
    ]
    for parts in zip(*workers, strict=True):
        held = [
            [parts[rank].batches[micro].target_output.numel() for rank in range(num_workers)]
            for micro in range(accumulate)
        ]
        assert all(part.token_counts == held for part in parts)
        assert parts[0].global_tokens == sum(map(sum, held))


def test_epochs_and_seeds_have_their_own_order(prepared: Prepared) -> None:
    def order(epoch: int, seed: int) -> list[Sentence]:
        steps = epoch_of(loader(prepared, seed=seed).steps(Position(epoch)), epoch)
        return [sentence for step in steps for sentence in step_content(step)]

    orders = [order(0, 5), order(1, 5), order(2, 5), order(0, 6)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert order(1, 5) == orders[1]


def test_one_shard_has_a_new_order_every_epoch_too(prepared: Prepared) -> None:
    shards = prepared.data.splits["train"].shards[:1]

    def order(epoch: int, seed: int = 5) -> list[list[Sentence]]:
        worker = Loader(
            prepared.uri, shards, batch_tokens=BATCH_TOKENS, seed=seed, rank=0, num_workers=1,
            accumulate=1,
        )  # fmt: skip
        return [step_content(step) for step in epoch_of(worker.steps(Position(epoch)), epoch)]

    orders = [order(0), order(1), order(2), order(0, seed=6)]
    for number, one in enumerate(orders):
        for other in orders[:number]:
            assert one != other
            # Other sentences stand together: equal lengths are shuffled too.
            assert {count(batch).total() for batch in one} == {len(batch) for batch in one}
            assert [sorted(batch) for batch in one] != [sorted(batch) for batch in other]
            assert sorted(map(sorted, one)) != sorted(map(sorted, other))
            assert count([s for b in one for s in b]) == count([s for b in other for s in b])


def test_pools_have_a_new_order_every_epoch_and_each_its_own(prepared: Prepared) -> None:
    shards = prepared.data.splits["train"].shards

    def pools(shards: list[ShardInfo], epoch: int) -> list[list[Sentence]]:
        worker = Loader(
            prepared.uri, shards, batch_tokens=BATCH_TOKENS, seed=5, rank=0, num_workers=1,
            accumulate=1, pool_sentences=1, pool_steps=1,
        )  # fmt: skip
        found: list[list[Sentence]] = [[] for _ in shards]
        pool = 0
        for step in epoch_of(worker.steps(Position(epoch)), epoch):
            found[pool] += step_content(step)
            pool = step.after.pool
        return found

    orders = [[frozenset(pool) for pool in pools(shards, epoch)] for epoch in range(4)]
    assert len(set(map(tuple, orders))) > 2
    assert {frozenset(order) for order in orders} == {frozenset(orders[0])}
    # The same sentences twice in an epoch do not come in the same order.
    first, second = pools([shards[0]] * 2, 0)
    assert count(first) == count(second)
    assert first != second


def test_global_batches_stay_within_the_budget(prepared: Prepared) -> None:
    """Rectangles that became one, see `merged`, may pad a little more."""
    sizes, real = [], []
    for step in epoch_of(loader(prepared).steps(Position())):
        rectangles = step.batches[0].rectangles
        sizes.append(sum(count * max(source, target) for count, source, target in rectangles))
        pairs = step_content(step)
        real.append(sum(max(len(source), len(target)) + 1 for source, target in pairs))
    assert max(real) <= BATCH_TOKENS
    assert max(sizes) <= BATCH_TOKENS + MERGE_TOKENS
    assert np.mean(real) > 0.75 * BATCH_TOKENS


@pytest.mark.parametrize("pool", [1, POOL, 10_000])
def test_any_position_continues_exactly(prepared: Prepared, pool: int) -> None:
    # The last shard is shorter; pools of one, two and all shards.
    whole = list(islice(loader(prepared, 1, 2, pool_sentences=pool).steps(Position()), 90))
    assert whole[-1].after.epoch >= 1
    for number in range(0, 85, 4):
        start = whole[number].after
        restored = Position(**start.to_dict())
        again = loader(prepared, 1, 2, pool_sentences=pool).steps(restored)
        for expected, found in zip(whole[number + 1 : number + 4], islice(again, 3), strict=True):
            assert same(expected, found)


@pytest.mark.parametrize(
    ("bound", "steps", "sizes"),
    [(1, 0, [60] * 4), (90, 0, [60, 120, 60]), (120, 0, [120] * 2), (159, 0, [120] * 2),
     (161, 0, [240]), (1, 1000, [240])],
)  # fmt: skip
def test_pools_are_of_like_size(
    prepared: Prepared, bound: int, steps: int, sizes: list[int]
) -> None:
    worker = Loader(
        prepared.uri, prepared.data.splits["train"].shards[:4], batch_tokens=BATCH_TOKENS, seed=5,
        rank=0, num_workers=1, accumulate=1, pool_sentences=bound, pool_steps=steps,
    )  # fmt: skip
    found: Counter[int] = Counter()
    pool = 0
    for step in epoch_of(worker.steps(Position())):
        found[pool] += len(step_content(step))
        pool = step.after.pool
    assert [found[pool] for pool in sorted(found)] == sizes


def test_an_uneven_end_gives_well_formed_empty_batches(prepared: Prepared) -> None:
    # A budget of one token: every sentence a batch of its own, for three workers.
    steps = [next(loader(prepared, rank, 3, batch_tokens=1).steps(Position())) for rank in range(3)]
    empty = [step.batches[0] for step in steps if step.batches[0].target_output.numel() == 0]
    assert len(empty) == 2
    for batch in empty:
        assert batch.source.shape == batch.target_input.shape == (0,)
        assert batch.rectangles == ((0, 0, 0),)
        assert batch.source_lengths.shape == batch.target_output.shape == (0,)
        assert batch.token_positions.shape == (0,)
        assert batch.source.dtype == batch.target_output.dtype == torch.int64
        assert real_tokens(batch) == padded_tokens(batch) == 0
        # Nothing is copied that is there already.
        assert batch.to(torch.device("cpu")).source is batch.source
    assert sum(steps[0].token_counts[0]) == steps[0].global_tokens > 0


def test_a_batch_holds_marks_padding_and_positions() -> None:
    tokens = TokenPairs(
        np.array([10, 11, 12, 20, 30, 31], dtype=np.int32), np.array([0, 3, 4, 6]),
        np.array([50, 60, 61, 62, 70, 71], dtype=np.int32), np.array([0, 1, 4, 6]),
    )  # fmt: skip
    batch = build_batch(tokens, [np.array([1, 0])])
    assert source_rows(batch) == [[20, END, PAD, PAD], [10, 11, 12, END]]
    assert batch.source_lengths.tolist() == [2, 4]
    assert target_rows(batch) == [[START, 60, 61, 62], [START, 50, PAD, PAD]]
    assert batch.target_output.tolist() == [60, 61, 62, END, 50, END]
    assert batch.token_positions.tolist() == [0, 1, 2, 3, 4, 5]
    assert (batch.target_output.numel(), real_tokens(batch), padded_tokens(batch)) == (6, 12, 16)


def test_a_batch_holds_one_rectangle_behind_the_other() -> None:
    tokens = TokenPairs(
        np.array([10, 11, 20, 30], dtype=np.int32), np.array([0, 2, 3, 4]),
        np.array([50, 60, 61, 70], dtype=np.int32), np.array([0, 1, 3, 4]),
    )  # fmt: skip
    batch = build_batch(tokens, [np.array([2]), np.array([0, 1])])
    assert batch.rectangles == ((1, 2, 2), (2, 3, 3))
    assert source_rows(batch) == [[30, END], [10, 11, END], [20, END, PAD]]
    assert batch.source_lengths.tolist() == [2, 3, 2]
    assert target_rows(batch) == [[START, 70], [START, 50, PAD], [START, 60, 61]]
    assert batch.target_output.tolist() == [70, END, 50, END, 60, 61, END]
    assert batch.token_positions.tolist() == [0, 1, 2, 3, 5, 6, 7]
    assert batch.sentence_of_token().tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert build_batch(tokens, []).sentence_of_token().tolist() == []


def test_units_that_pad_little_together_become_one() -> None:
    lengths = np.array([10, 10, 9, 9, 30, 40]), np.array([10, 10, 9, 10, 30, 20])
    units = [np.array(unit) for unit in ([5], [2, 3, 2], [4], [0, 1, 0])]
    found = [unit.tolist() for unit in merged(units, lengths)]
    # 40 + 20 and 30 + 30 in one of 40 + 30 are 20 more; three of 10 + 10 among them, 150 more.
    assert found == [[5, 4], [0, 1, 0, 2, 3, 2]]
    many = [np.repeat(unit, MERGE_TOKENS) for unit in units]
    assert [set(unit.tolist()) for unit in merged(many, lengths)] == [{5}, {4}, {0, 1}, {2, 3}]
    assert merged([], lengths) == []


def test_positions_skip_padding() -> None:
    tokens = TokenPairs(
        np.array([10, 20], dtype=np.int32), np.array([0, 1, 2]),
        np.array([50, 60, 61], dtype=np.int32), np.array([0, 1, 3]),
    )  # fmt: skip
    batch = build_batch(tokens, [np.array([0, 1])])
    assert target_rows(batch) == [[START, 50, PAD], [START, 60, 61]]
    assert batch.target_output.tolist() == [50, END, 60, 61, END]
    assert batch.token_positions.tolist() == [0, 1, 3, 4, 5]


def test_empty_sides_hold_their_end_mark_alone() -> None:
    tokens = TokenPairs(
        np.array([], dtype=np.int32), np.array([0, 0]),
        np.array([], dtype=np.int32), np.array([0, 0]),
    )  # fmt: skip
    batch = build_batch(tokens, [np.array([0])])
    assert source_rows(batch) == [[END]]
    assert target_rows(batch) == [[START]]
    assert batch.target_output.tolist() == [END]


def test_shards_without_sentences_are_passed_over(tmp_path: Path) -> None:
    write_shard(str(tmp_path / "a"), [[5, 6], [7]], [[8], [9]])
    write_shard(str(tmp_path / "b"), [], [])
    shards = [ShardInfo("b", 0, 0, 0), ShardInfo("a", 2, 3, 2), ShardInfo("b", 0, 0, 0)]
    for epoch in range(6):  # in every order of the shards
        worker = Loader(
            str(tmp_path), shards, batch_tokens=50, seed=1, rank=0, num_workers=1, accumulate=1,
            pool_sentences=1, pool_steps=1,
        )  # fmt: skip
        first, second = islice(worker.steps(Position(epoch)), 2)
        assert count(step_content(first)) == count(step_content(second))
        assert same(next(worker.steps(first.after)), second)


def test_a_missing_or_damaged_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"not parquet")
    for name in ("gone", "bad"):
        with pytest.raises(UserError, match=rf"{tmp_path}/{name}.*--force"):
            read_tokens(str(tmp_path), [ShardInfo(name, 1, 1, 1)])


@pytest.mark.parametrize(
    ("side", "num_ids", "found"),
    [("source", {"source": 9, "target": 11}, "source token 2 of sentence 2 is id 9"),
     ("target", {"source": 11, "target": 11}, "target token 1 of sentence 3 is id -1")],
)  # fmt: skip
def test_an_id_without_a_row_is_named(
    tmp_path: Path, side: str, num_ids: dict[str, int], found: str
) -> None:
    write_shard(str(tmp_path / "good"), [[4, 8]], [[7]])
    write_shard(str(tmp_path / "bad"), [[4], [8, 9], [10]], [[5], [7], [-1, 8]])
    good, bad = ShardInfo("good", 1, 2, 1), ShardInfo("bad", 3, 4, 4)
    assert len(read_tokens(str(tmp_path), [good], num_ids)) == 1
    told = f"{tmp_path}/bad: {found}, but the {side} table has ids 0 to {num_ids[side] - 1};"
    with pytest.raises(UserError, match=told):
        read_tokens(str(tmp_path), [good, bad], num_ids)


def test_prefetched_steps_are_the_same_steps(prepared: Prepared) -> None:
    worker = loader(prepared, 0, 2)
    start = Position(1, 1, 2)
    ahead = worker.prefetched(start, ahead=2)
    for expected, found in zip(islice(worker.steps(start), 40), islice(ahead, 40), strict=True):
        assert same(expected, found)
    ahead.close()


@pytest.mark.parametrize(
    ("raised", "expected", "told"),
    [(UserError("no such row"), UserError, "no such row"),
     (StopIteration(), RuntimeError, "there are no more steps")],
)  # fmt: skip
def test_an_error_of_the_preparation_is_raised_in_front(
    prepared: Prepared, raised: Exception, expected: type[Exception], told: str
) -> None:
    """Also one that an iterator would take for its end: no answer would ever come."""
    given = iter([None, raised])

    def prepare(step: StepBatches) -> StepBatches:
        if error := next(given):
            raise error
        return step

    steps = loader(prepared).prefetched(Position(), prepare, ahead=2)
    next(steps)
    steps._thread.join(20)
    assert not steps._thread.is_alive()
    for _ in range(2):
        with pytest.raises(expected, match=told):
            next(steps)
    steps.close()


def test_close_ends_the_threads(prepared: Prepared) -> None:
    before = set(threading.enumerate())
    steps = loader(prepared).prefetched(Position(), ahead=2)
    next(steps)
    threads = set(threading.enumerate()) - before
    assert {thread.name for thread in threads} == {"prefetch", "pools"}
    steps.close()
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.skipif("MULTI30K_DIR" not in os.environ, reason="MULTI30K_DIR is not set")
def test_at_most_a_twentieth_of_multi30k_is_padding(tmp_path: Path) -> None:
    folder = Path(os.environ["MULTI30K_DIR"])
    texts = [
        gzip.decompress((folder / f"train.lc.norm.tok.{side}.gz").read_bytes())
        .decode()
        .splitlines()
        for side in ("en", "de")
    ]
    tokenizer = Tokenizer.train(
        (text for pair in zip(*texts, strict=True) for text in pair), "bpe", vocab_size=10_000,
        min_count=1, lowercase=False,
    )  # fmt: skip
    source, target = (tokenizer.encode(side) for side in texts)
    write_shard(str(tmp_path / "train"), source, target)
    tokens = (sum(map(len, side)) for side in (source, target))
    shard = ShardInfo("train", len(source), *tokens)
    real = padded = held = 0
    for rank in range(2):
        worker = Loader(
            str(tmp_path), [shard], batch_tokens=4096, seed=1,
            rank=rank, num_workers=2, accumulate=1,
        )  # fmt: skip
        for step in epoch_of(worker.steps(Position())):
            real += real_tokens(step.batches[0])
            padded += padded_tokens(step.batches[0])
            held += len(step.batches[0].source_lengths)
    assert held == 29_000
    assert real == sum(map(len, source)) + sum(map(len, target)) + 2 * 29_000
    assert 1 - real / padded <= 0.05
