"""Which sentences form a step's batch, and which worker gets which of them.

A *unit* is a small batch of sentences of like length, with a padded size of its own. A step takes
units of mixed lengths. Its budget is divided into K *slots*, and K *streams* fill one slot each,
step by step: the pool's blocks lie on a line, in the epoch's order, which is cut into K pieces of
equal cost. So a worker, whose slots are neighbours, reads neighbouring blocks and no others.
Everything comes from lengths, budget and generator; the number of workers only says where a step
is cut.

What is shuffled: blocks are in a new order every epoch, and so others lie in a pool and a stream
together; of a stream's sentences those of one length and shape are mixed, and its units. What is
not: within a pool no unit has sentences of two streams, so of blocks that lie far apart.

docs/decisions/0031-batches-of-units.md has the reasons and what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

# Tokens, padding included (sentences × longest side). Of a slot: about that many.
SLOT_TOKENS = 1024
# Of a unit: at most, and such a part of a slot that a whole number of them fills one.
UNIT_TOKENS = 512
# A stream of a pool has at least so many; below, the longest sentences of a unit are far apart.
_STREAM_TOKENS = 16 * SLOT_TOKENS
_KEY = 1 << 16  # values that a part of the sorting key has


@dataclass(frozen=True)
class PoolPlan:
    """The steps of one pool. Arrays over sentences follow the steps.

    Attributes:
        order: [n] numbers of sentences: step by step, slot by slot, unit by unit.
        units: [U + 1] where each unit begins in ``order``, and its end.
        slots: [steps * K + 1] where each slot of each step begins, and the end.
        work: [n + 1] padded tokens of both sides before each sentence: of a unit of b sentences
            b · (S + T).
        targets: [n + 1] target tokens before each sentence.
        num_streams: K.
        stream_blocks: [K, 2] first block of each stream, and the one behind its last.
    """

    order: Indices
    units: Indices
    slots: Indices
    work: Indices
    targets: Indices
    num_streams: int
    stream_blocks: Indices

    def __len__(self) -> int:
        return (len(self.slots) - 1) // self.num_streams

    def parts(self, step: int, num_parts: int) -> Indices:
        """Cut a step into ``num_parts`` runs of slots with equal work: their bounds in ``order``,
        [num_parts + 1]. Where a bound lies within a slot, the slot is cut between two sentences.

        Parts are empty where there are fewer sentences than parts.
        """
        slots = self.slots[step * self.num_streams : (step + 1) * self.num_streams + 1]
        slot, rest = np.divmod(np.arange(num_parts + 1) * self.num_streams, num_parts)
        bounds = slots[slot]
        inside = np.flatnonzero(rest)
        if len(inside):
            first, end = slots[slot[inside]], slots[slot[inside] + 1]
            below, above = self.work[first], self.work[end]
            wanted = below + (above - below) * rest[inside] / num_parts
            # A sentence belongs to the part in which its middle lies.
            cut = np.searchsorted(self.work, wanted, side="right") - 1
            behind = np.minimum(cut + 1, len(self.order))
            cut += wanted > (self.work[cut] + self.work[behind]) / 2
            bounds[inside] = np.clip(cut, first, end)
        return bounds

    def rectangles(self, first: int, end: int) -> list[Indices]:
        """The sentences ``order[first:end]``, unit by unit."""
        if first == end:
            return []
        begin = np.searchsorted(self.units, first, side="right")
        cuts = self.units[begin : np.searchsorted(self.units, end)]
        return np.split(self.order[first:end], cuts - first)

    def target_tokens(self, bounds: Indices) -> list[int]:
        """Target tokens of each of the runs between ``bounds``."""
        found: list[int] = np.diff(self.targets[bounds]).tolist()
        return found

    def blocks(self, first_part: int, end_part: int, num_parts: int) -> range:
        """The blocks that the parts ``first_part`` to ``end_part`` (of so many) of all steps lie
        in.
        """
        first = first_part * self.num_streams // num_parts
        last = -(-end_part * self.num_streams // num_parts) - 1
        return range(int(self.stream_blocks[first, 0]), int(self.stream_blocks[last, 1]))


def plan_pool(
    source_lengths: NDArray[np.int64],
    target_lengths: NDArray[np.int64],
    blocks: Sequence[int],
    batch_tokens: int,
    rng: np.random.Generator,
) -> PoolPlan:
    """Divide the sentences of a pool into steps whose padded size stays within ``batch_tokens``.

    A step's size is the sum over its units of sentences × longest side. A sentence longer than a
    slot is alone in one.

    Args:
        source_lengths: [n] tokens the encoder sees, block by block.
        target_lengths: [n] tokens the decoder predicts.
        blocks: sentences of each block.
        batch_tokens: the budget.
        rng: the source of all randomness.
    """
    longest = np.maximum(source_lengths, target_lengths)
    num_streams = _num_streams(int(longest.sum()), batch_tokens)
    slot_tokens = batch_tokens / num_streams
    stream, order, stream_blocks = _streams(longest, blocks, num_streams, rng)
    # Longest first: as many follow as the budget of a unit has room for.
    shape = np.clip(source_lengths - target_lengths + _KEY // 2, 0, _KEY - 1)
    key = _KEY - 1 - np.minimum(longest, _KEY - 1)
    parts = (stream, key[order], shape[order], rng.integers(0, _KEY, len(order)))
    combined = np.zeros(len(order), np.uint64)
    for part in parts:
        combined = combined * np.uint64(_KEY) + part.astype(np.uint64)
    by_length = np.argsort(combined, kind="stable")
    order, stream = order[by_length], stream[by_length]
    unit_tokens = int(slot_tokens / max(2, np.ceil(slot_tokens / UNIT_TOKENS)))
    starts = _cut(longest[order], stream, num_streams, unit_tokens)

    count = np.diff(starts, append=len(order))
    sides = [np.maximum.reduceat(side[order], starts) if len(starts) else starts
             for side in (source_lengths, target_lengths)]  # fmt: skip
    step, num_steps = _pack(
        count * np.maximum(*sides), count * (sides[0] + sides[1]), stream[starts], num_streams,
        slot_tokens, rng,
    )  # fmt: skip
    slot = step * num_streams + stream[starts]
    placed = np.argsort(slot, kind="stable")
    return _plan(
        order, starts[placed], count[placed], (sides[0] + sides[1])[placed],
        np.bincount(slot, count, num_steps * num_streams).astype(np.int64), target_lengths,
        num_streams, stream_blocks,
    )  # fmt: skip


def _plan(
    order: Indices, starts: Indices, count: Indices, sides: Indices, slot_sizes: Indices,
    target_lengths: NDArray[np.int64], num_streams: int, stream_blocks: Indices,
) -> PoolPlan:  # fmt: skip
    """Of units in the order of the steps: where each starts in ``order``, its sentences, S + T."""
    units = _sums(count)
    order = order[np.repeat(starts - units[:-1], count) + np.arange(len(order))]
    return PoolPlan(
        order, units, _sums(slot_sizes), _sums(np.repeat(sides, count)),
        _sums(target_lengths[order]), num_streams, stream_blocks,
    )  # fmt: skip


def _sums(values: Indices) -> Indices:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])


def _num_streams(pool_tokens: int, batch_tokens: int) -> int:
    wanted = min(round(batch_tokens / SLOT_TOKENS), pool_tokens // _STREAM_TOKENS, _KEY - 1)
    return max(1, wanted)


def _streams(
    longest: Indices, blocks: Sequence[int], num_streams: int, rng: np.random.Generator
) -> tuple[Indices, Indices, Indices]:
    """Sentences on a line, block by block and mixed within each, cut into streams of equal cost.

    Returns the stream of each place of the line, the sentence there, and the blocks of each stream.
    """
    ends = np.cumsum(blocks, dtype=np.int64)
    firsts = ends - blocks
    line = [rng.permutation(int(n)) + first for n, first in zip(blocks, firsts, strict=True)]
    order = np.concatenate([np.zeros(0, np.int64), *line])
    cost = np.cumsum(longest[order])
    total = int(cost[-1]) if len(cost) else 1
    stream = (2 * cost - longest[order]) * num_streams // (2 * total)  # of its middle
    edges = np.searchsorted(stream, np.arange(num_streams + 1))
    found = np.empty((num_streams, 2), np.int64)
    found[:, 0] = np.searchsorted(ends, edges[:-1], side="right")
    found[:, 1] = np.searchsorted(ends, edges[1:] - 1, side="right") + 1
    found[edges[1:] == edges[:-1], 1] = found[edges[1:] == edges[:-1], 0]
    return stream, order, found


def _cut(longest: Indices, stream: Indices, num_streams: int, unit_tokens: int) -> Indices:
    """Where units start: ``longest`` descends within each stream, whose sentences lie together.

    All streams are gone through at once, unit by unit.
    """
    edges = np.searchsorted(stream, np.arange(num_streams + 1))
    place, end = edges[:-1], edges[1:]
    starts = []
    while True:
        going_on = place < end
        place, end = place[going_on], end[going_on]
        if not len(place):
            break
        starts.append(place)
        place = place + np.maximum(1, unit_tokens // longest[place])
    return np.sort(np.concatenate([np.zeros(0, np.int64), *starts]))


def _pack(
    size: Indices, work: Indices, stream: Indices, num_streams: int, slot_tokens: float,
    rng: np.random.Generator,
) -> tuple[Indices, int]:  # fmt: skip
    """The step of each unit, so that every step takes nearly equal work from a stream, and no slot
    more than it holds; and how many steps that takes.

    Units go by work, the largest first, and as many at a time as there are steps: the largest of
    them to the step that has least so far (LPT by rows; all streams at once).
    """
    if not len(size):
        return np.zeros(0, np.int64), 0
    by_work = np.lexsort((rng.random(len(size)), -work, stream))
    counts = np.bincount(stream, minlength=num_streams)
    rank = np.arange(len(size)) - np.repeat(np.cumsum(counts) - counts, counts)
    needed = np.bincount(stream, size, num_streams).max() / slot_tokens
    most = int(counts.max())  # with one unit in each, no step is empty, and none holds too much
    num_steps = min(int(np.ceil(needed)), most)
    while True:
        step = np.empty(len(size), np.int64)
        held, done = np.zeros((2, num_streams, num_steps), np.int64)
        units = np.zeros((num_streams, num_steps), np.int64)
        row = rank // num_steps
        for number in range(int(row.max()) + 1):
            units_of_row = by_work[row == number]
            place = rank[row == number] % num_steps
            least = np.argsort(done, axis=1, kind="stable")
            where = stream[units_of_row], least[stream[units_of_row], place]
            step[units_of_row] = where[1]
            held[where] += size[units_of_row]
            done[where] += work[units_of_row]
            units[where] += 1
        if not ((held > slot_tokens) & (units > 1)).any():
            break
        num_steps = min(max(num_steps + 1, num_steps * 201 // 200), most)
    mixed = rng.permuted(np.tile(np.arange(num_steps), (num_streams, 1)), axis=1)
    return mixed[stream, step], num_steps
