from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_embed.data.bands import Indices, deal, plan_batches
from dist_embed.data.loader import Loader, Position
from dist_embed.data.token_shards import ShardInfo, write_shard

LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=120)


def sides(lengths: list[tuple[int, int]]) -> tuple[Indices, Indices]:
    table = np.array(lengths, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def plan(lengths: list[tuple[int, int]], batch_tokens: int, seed: int = 1) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [batch.tolist() for batch in plan_batches(*sides(lengths), batch_tokens, rng)]


@settings(max_examples=50)
@given(LENGTHS, st.integers(1, 400))
def test_every_sentence_is_in_one_batch(lengths: list[tuple[int, int]], budget: int) -> None:
    batches = plan(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(batches)


@settings(max_examples=50)
@given(LENGTHS, st.integers(1, 400))
def test_padded_batches_stay_within_the_budget(lengths: list[tuple[int, int]], budget: int) -> None:
    for batch in plan(lengths, budget):
        size = len(batch) * max(max(lengths[i]) for i in batch)
        assert size <= budget or len(batch) == 1


def test_batches_are_filled() -> None:
    batches = plan([(10, 10)] * 95, 100)
    assert sorted(map(len, batches)) == [5] + [10] * 9


def test_sentences_of_like_length_go_together() -> None:
    rng = np.random.default_rng(0)
    lengths = [(int(n), int(n)) for n in rng.integers(1, 60, 3000)]
    spread = [
        max(lengths[i][1] for i in b) - min(lengths[i][1] for i in b) for b in plan(lengths, 500)
    ]
    assert np.mean(spread) < 2


def test_sentences_are_sorted_by_target_and_then_by_source() -> None:
    lengths = [(source, target) for target in (10, 20) for source in range(1, 11)] * 10
    for batch in plan(lengths, 200):
        assert len(batch) == 200 // lengths[batch[0]][1]
        assert len({lengths[i][1] for i in batch}) == 1
        assert len({lengths[i][0] for i in batch}) == len(batch) // 10


def test_the_order_comes_from_the_generator_alone() -> None:
    lengths = [(i % 7 + 1, i % 5 + 1) for i in range(200)]
    assert plan(lengths, 40, seed=4) == plan(lengths, 40, seed=4)
    assert plan(lengths, 40, seed=4) != plan(lengths, 40, seed=5)


def test_another_generator_makes_other_batches_not_only_another_order() -> None:
    lengths = [(4, 4)] * 200
    first, second = ({frozenset(b) for b in plan(lengths, 40, seed=s)} for s in (1, 2))
    assert first != second


def test_batches_do_not_come_sorted_by_length() -> None:
    lengths = [(n, n) for n in range(1, 60) for _ in range(10)]
    longest = [max(lengths[i][1] for i in batch) for batch in plan(lengths, 100)]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


@settings(max_examples=50)
@given(LENGTHS, st.integers(1, 9))
def test_parts_are_runs_of_the_batch(lengths: list[tuple[int, int]], num_parts: int) -> None:
    batch = np.random.default_rng(1).permutation(len(lengths))
    parts = deal(batch, *sides(lengths), num_parts)
    assert len(parts) == num_parts
    assert np.concatenate(parts).tolist() == batch.tolist()


@settings(max_examples=50)
@given(LENGTHS, st.integers(1, 9))
def test_parts_have_nearly_equal_token_counts(
    lengths: list[tuple[int, int]], num_parts: int
) -> None:
    parts = deal(np.arange(len(lengths)), *sides(lengths), num_parts)
    tokens = [sum(sum(lengths[i]) for i in part) for part in parts]
    longest = max((sum(pair) for pair in lengths), default=0)
    assert all(abs(n - sum(tokens) / num_parts) <= longest for n in tokens)


def test_a_sentence_belongs_to_the_part_in_which_its_middle_lies() -> None:
    # 4, 2, 6 and 8 tokens of both sides, so the middles are at 2, 5, 9 and 16 of 20.
    lengths = [(1, 3), (1, 1), (4, 2), (2, 6)]
    for num_parts, expected in [
        (1, [[0, 1, 2, 3]]), (2, [[0, 1, 2], [3]]), (3, [[0, 1], [2], [3]]),
        (4, [[0], [1, 2], [], [3]]),
    ]:  # fmt: skip
        parts = deal(np.arange(4), *sides(lengths), num_parts)
        assert [part.tolist() for part in parts] == expected


def test_fewer_sentences_than_parts_leave_empty_parts() -> None:
    parts = deal(np.array([0]), *sides([(3, 4)]), 3)
    assert sorted(map(len, parts)) == [0, 0, 1]
    assert [len(part) for part in deal(np.array([], dtype=np.int64), *sides([]), 2)] == [0, 0]


def test_a_run_of_before_goes_on_with_the_batches_it_would_have_had(tmp_path: Path) -> None:
    """The digest is that of version 9650052, which knew no other plan."""
    rng = np.random.default_rng(7)
    shards = []
    for number in range(3):
        sides = [
            [rng.integers(4, 90, length).tolist() for length in rng.integers(0, 25, 40)]
            for _ in range(2)
        ]
        write_shard(str(tmp_path / str(number)), *sides)
        shards.append(ShardInfo(str(number), 40, *(sum(map(len, side)) for side in sides)))
    worker = Loader(
        str(tmp_path), shards, batch_tokens=120, seed=3, rank=1, num_workers=2, accumulate=2,
        pool_sentences=80,
    )  # fmt: skip
    start = Position.from_dict({"epoch": 2, "pool": 1, "batch": 4})
    digest = hashlib.sha256()
    for step in islice(worker.steps(start), 30):
        for batch in step.batches:
            (rectangle,) = batch.rectangles
            assert rectangle[0] == len(batch.source_lengths)
            for name in (
                "source", "source_lengths", "target_input", "target_output", "token_positions"
            ):  # fmt: skip
                digest.update(getattr(batch, name).numpy().tobytes())
        after = step.after
        digest.update(repr((step.token_counts, after.epoch, after.pool, after.batch)).encode())
    assert step.after.plan == "bands"
    assert digest.hexdigest() == (
        "f6543dc8698b9dafb25720ba204adaa268ed1f701815d34f288a940a9cde8f08"
    )
