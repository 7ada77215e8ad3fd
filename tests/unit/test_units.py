from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_embed.data.units import (
    SLOT_TOKENS,
    UNIT_TOKENS,
    Indices,
    PoolPlan,
    _edges,
    _stream_blocks,
    plan_pool,
)
from tests.unit.lengths import Lengths, captions, lognormal

PAIRS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=120)
BUDGETS = st.integers(1, 4000)


def sides(pairs: list[tuple[int, int]]) -> Lengths:
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def plan(lengths: Lengths, budget: int, seed: int = 1, block: int = 2048) -> PoolPlan:
    count = len(lengths[0])
    blocks = [min(block, count - first) for first in range(0, count, block)]
    return plan_pool(*lengths, blocks, budget, np.random.default_rng(seed))


def steps_of(made: PoolPlan, num_parts: int = 1) -> list[list[list[list[int]]]]:
    """By step, part and rectangle the sentences."""
    return [
        [[unit.tolist() for unit in made.rectangles(first, end)] for first, end in pairwise(bounds)]
        for bounds in (made.parts(step, num_parts) for step in range(len(made)))
    ]


def flat(steps: list[list[list[list[int]]]]) -> list[int]:
    return [i for parts in steps for units in parts for unit in units for i in unit]


def size(unit: list[int], lengths: Lengths) -> int:
    return len(unit) * max(int(side[unit].max()) for side in lengths)


def work(units: list[list[int]], lengths: Lengths) -> int:
    return sum(len(unit) * sum(int(side[unit].max()) for side in lengths) for unit in units)


def work_before(made: PoolPlan, bounds: Indices) -> Indices:
    """Padded tokens of both sides before each bound, its unit's sides counted for a cut one."""
    unit = np.minimum(np.searchsorted(made.units, bounds, side="right"), len(made.units) - 1) - 1
    of_each = np.diff(made.work)[unit] // np.diff(made.units)[unit]
    return made.work[unit] + (bounds - made.units[unit]) * of_each


@settings(max_examples=50)
@given(PAIRS, BUDGETS, st.integers(1, 9))
def test_every_sentence_is_in_one_unit_of_one_part(
    pairs: list[tuple[int, int]], budget: int, num_parts: int
) -> None:
    steps = steps_of(plan(sides(pairs), budget, block=7), num_parts)
    assert sorted(flat(steps)) == list(range(len(pairs)))
    assert all(unit for parts in steps for units in parts for unit in units)
    assert all(any(parts) for parts in steps)


@settings(max_examples=50)
@given(PAIRS, BUDGETS)
def test_padded_steps_stay_within_the_budget(pairs: list[tuple[int, int]], budget: int) -> None:
    lengths = sides(pairs)
    for (units,) in steps_of(plan(lengths, budget)):
        assert sum(size(unit, lengths) for unit in units) <= budget or sum(map(len, units)) == 1


@pytest.mark.parametrize("longest", [600, 1200, 2000, 3000, 5000])
def test_long_sentences_keep_steps_within_the_budget_too(longest: int) -> None:
    budget, draw = 4 * SLOT_TOKENS, np.random.default_rng(5)
    alike = np.full(300, longest)
    mixed = np.where(draw.random(3000) < 0.1, longest, draw.integers(5, 60, 3000))
    for side in (alike, mixed):
        lengths = side, side
        made = plan(lengths, budget, block=100)
        sizes = [sum(size(unit, lengths) for unit in parts[0]) for parts in steps_of(made)]
        assert max(sizes) <= max(budget, longest)
        assert sorted(flat(steps_of(made))) == list(range(len(side)))


def test_slots_and_units_stay_within_theirs() -> None:
    lengths = lognormal(20_000)
    made = plan(lengths, 10 * SLOT_TOKENS)
    assert made.num_streams == 10
    sizes = [size(unit, lengths) for parts in steps_of(made) for unit in parts[0]]
    assert max(sizes) <= UNIT_TOKENS
    assert np.mean(sizes) > 0.9 * UNIT_TOKENS
    of_slots = np.add.reduceat(sizes, made.slots[:-1])
    assert of_slots.max() <= SLOT_TOKENS


def test_a_budget_below_a_slot_makes_smaller_units() -> None:
    lengths = lognormal(4_000)
    for budget in (600, 1500):
        sizes = [[size(unit, lengths) for unit in parts[0]]
                 for parts in steps_of(plan(lengths, budget))]  # fmt: skip
        assert np.mean([sum(step) for step in sizes]) > 0.85 * budget
        assert np.mean([len(step) for step in sizes]) > 1.9


@settings(max_examples=50)
@given(PAIRS, BUDGETS, st.integers(2, 9))
def test_parts_are_cut_out_of_the_same_steps(
    pairs: list[tuple[int, int]], budget: int, num_parts: int
) -> None:
    """And at the same work: a bound is off by half a sentence at most, padding included."""
    lengths = sides(pairs)
    made = plan(lengths, budget, block=20)
    together, apart = steps_of(made), steps_of(made, num_parts)
    longest = max((sum(pair) for pair in pairs), default=0)
    for step, (whole, parts) in enumerate(zip(together, apart, strict=True)):
        assert flat([whole]) == flat([parts])
        assert len(parts) == num_parts
        bounds = made.parts(step, num_parts)
        tokens = [int(lengths[1][flat([[units]])].sum()) for units in parts]
        assert made.target_tokens(bounds) == tokens
        done = work_before(made, bounds) - work_before(made, bounds[:1])
        even = done[-1] * np.arange(num_parts + 1) / num_parts
        assert np.abs(done - even).max() <= longest


def test_bounds_lie_between_slots_where_they_can() -> None:
    made = plan(lognormal(20_000), 12 * SLOT_TOKENS)
    for step in range(len(made)):
        slots = made.units[made.slots[step * 12 : step * 12 + 13]]
        for num_parts in (1, 2, 3, 4, 6, 12):
            assert made.parts(step, num_parts).tolist() == slots[:: 12 // num_parts].tolist()
        fifths = made.parts(step, 5)
        for bound, place in zip(fifths, np.arange(6) * 12 / 5, strict=True):
            assert slots[int(place)] <= bound <= slots[min(12, int(place) + 1)]


def test_work_is_that_of_the_rectangles() -> None:
    lengths = lognormal(5_000)
    made = plan(lengths, 4 * SLOT_TOKENS)
    for step, parts in enumerate(steps_of(made, 2)):
        found = np.diff(work_before(made, made.parts(step, 2))).tolist()
        assert found == [work(units, lengths) for units in parts]


def test_one_step_has_sentences_of_all_lengths() -> None:
    lengths = lognormal(50_000)
    longest = np.maximum(*lengths)
    means = [longest[flat([parts])].mean() for parts in steps_of(plan(lengths, 16 * SLOT_TOKENS))]
    assert np.std(means) < 0.15 * np.mean(means)


def test_sentences_of_a_unit_are_of_like_length_and_shape() -> None:
    lengths = lognormal(50_000)
    steps = steps_of(plan(lengths, 4 * SLOT_TOKENS))
    padded = sum(size(unit, lengths) for parts in steps for unit in parts[0])
    assert padded < 1.01 * np.maximum(*lengths).sum()
    of_both = sum(work(parts[0], lengths) for parts in steps)
    assert of_both < 1.05 * (lengths[0] + lengths[1]).sum()


def test_the_order_comes_from_the_generator_alone() -> None:
    lengths = captions(3_000)
    first, again, other = (plan(lengths, 4096, seed) for seed in (4, 4, 5))
    assert steps_of(first) == steps_of(again)

    def units(made: PoolPlan) -> set[frozenset[int]]:
        return {frozenset(unit) for parts in steps_of(made) for unit in parts[0]}

    # Other units, not only another order of them.
    assert len(units(first) & units(other)) < 0.05 * len(units(first))


def test_steps_do_not_come_sorted_by_work() -> None:
    lengths = lognormal(60_000)
    made = plan(lengths, 4 * SLOT_TOKENS)
    first = made.work[made.slots[::4]]  # four slots a step
    of_steps = np.diff(first)
    neighbours = np.corrcoef(of_steps[:-1], of_steps[1:])[0, 1]
    assert abs(neighbours) < 0.3


@pytest.mark.parametrize("num_parts", [1, 2, 3, 8, 12, 40])
def test_a_worker_s_sentences_lie_in_its_blocks(num_parts: int) -> None:
    lengths = captions(24_000)
    made = plan(lengths, 16 * SLOT_TOKENS, block=500)
    block_of = np.arange(24_000) // 500
    needed: list[set[int]] = [set() for _ in range(num_parts)]
    for parts in steps_of(made, num_parts):
        for held, units in zip(needed, parts, strict=True):
            held.update(block_of[flat([[units]])].tolist())
    for part, held in enumerate(needed):
        blocks = made.blocks(part, part + 1, num_parts)
        assert held <= set(blocks)
        if 16 % num_parts == 0:  # its streams are its own
            assert held == set(blocks)
    assert set(made.blocks(0, num_parts, num_parts)) == set(range(48))


def test_an_empty_stream_ends_no_earlier_than_the_one_before_it() -> None:
    """As where one sentence is longer than several streams: a worker's blocks go by its last."""
    found = _stream_blocks(np.array([0, 250, 250, 500]), [100] * 5)
    assert found[:, 1].tolist() == [3, 3, 5]
    assert (found[[0, 2], 0].tolist(), int(found[1, 0]) <= 3) == ([0, 2], True)


def test_blocks_without_sentences_are_passed_over() -> None:
    lengths = captions(50)
    made = plan_pool(*lengths, [0, 20, 0, 30, 0], 400, np.random.default_rng(1))
    assert sorted(flat(steps_of(made))) == list(range(50))
    assert list(made.blocks(0, 1, 1)) == [1, 2, 3]
    nothing: Indices = np.zeros(0, np.int64)
    assert len(plan_pool(nothing, nothing, [0, 0], 400, np.random.default_rng(1))) == 0


def fill_and_skew(made: PoolPlan, num_workers: int) -> tuple[float, float]:
    """Target tokens by the budget of 4,096 a worker; the slowest worker's work by the mean."""
    skew = []
    for step in range(len(made)):
        found = np.diff(work_before(made, made.parts(step, num_workers)))
        skew.append(found.max() / found.mean())
    return made.targets[-1] / (len(made) * 4096 * num_workers), float(np.mean(skew))


@pytest.mark.parametrize(
    ("num_workers", "count"),
    [(1, 40_000), (8, 80_000), (64, 400_000),
     pytest.param(512, 6_000_000, marks=pytest.mark.heavy)],
)  # fmt: skip
@pytest.mark.parametrize("kind", [lognormal, captions])
def test_steps_are_full_and_even(
    kind: Callable[[int], Lengths], num_workers: int, count: int
) -> None:
    fill, skew = fill_and_skew(plan(kind(count), 4096 * num_workers), num_workers)
    assert fill >= 0.85
    assert skew <= 1.05


@pytest.mark.parametrize("num_workers", [2, 8, 64])
def test_a_worker_reads_its_part_of_the_corpus(num_workers: int) -> None:
    """At most 1.3 times as much, in blocks of 2,048 sentences, of which there are 8 a worker."""
    count = 8 * 2048 * num_workers
    made = plan(lognormal(count), 4096 * num_workers)
    read = [2048 * len(made.blocks(w, w + 1, num_workers)) for w in range(num_workers)]
    assert max(read) <= 1.3 * count / num_workers


def test_a_sentence_belongs_to_the_stream_in_which_its_middle_lies() -> None:
    # Middles at 2, 5, 9 and 16 of 20.
    longest = np.array([4, 2, 6, 8])
    for num_streams, expected in [(1, [0, 4]), (2, [0, 3, 4]), (4, [0, 1, 3, 3, 4])]:
        assert _edges(longest, num_streams).tolist() == expected
