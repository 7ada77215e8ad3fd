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
_TOGETHER = 1 << 19  # sentences that are sorted at a time, which bounds memory


@dataclass(frozen=True)
class PoolPlan:
    """The steps of one pool.

    Attributes:
        order: [n] numbers of sentences: step by step, slot by slot, unit by unit.
        units: [U + 1] where each unit begins in ``order``, and the end.
        work: [U + 1] padded tokens of both sides before each unit; b sentences have b · (S + T).
        targets: [U + 1] target tokens before each unit.
        slots: [steps * K + 1] the unit that each slot of each step begins with, and the end.
        num_streams: K.
        stream_blocks: [K, 2] first block of each stream, and the one behind its last.
        target_lengths: [n] by number of the sentence.
    """

    order: NDArray[np.int32]
    units: Indices
    work: Indices
    targets: Indices
    slots: Indices
    num_streams: int
    stream_blocks: Indices
    target_lengths: NDArray[np.int32]

    def __len__(self) -> int:
        return (len(self.slots) - 1) // self.num_streams

    def parts(self, step: int, num_parts: int) -> Indices:
        """Cut a step into ``num_parts`` runs of slots with equal work: their bounds in ``order``,
        [num_parts + 1]. Where a bound lies within a slot, the slot is cut between two sentences.

        Parts are empty where there are fewer sentences than parts.
        """
        slots = self.slots[step * self.num_streams : (step + 1) * self.num_streams + 1]
        slot, rest = np.divmod(np.arange(num_parts + 1) * self.num_streams, num_parts)
        bounds = self.units[slots[slot]]
        for place in np.flatnonzero(rest):
            first, end = slots[slot[place]], slots[slot[place] + 1]
            if first < end:
                bounds[place] = self._within(first, end, rest[place] / num_parts)
        return bounds

    def _within(self, first: int, end: int, share: float) -> int:
        """Where so much of the work of the units from ``first`` to ``end`` is done."""
        wanted = self.work[first] + (self.work[end] - self.work[first]) * share
        unit = first + np.searchsorted(self.work[first + 1 : end], wanted, side="right")
        count = self.units[unit + 1] - self.units[unit]
        done = (wanted - self.work[unit]) / (self.work[unit + 1] - self.work[unit])
        # A sentence belongs to the part in which its middle lies.
        return int(self.units[unit] + np.ceil(done * count - 0.5))

    def rectangles(self, first: int, end: int) -> list[Indices]:
        """The sentences ``order[first:end]``, unit by unit."""
        if first == end:
            return []
        begin = np.searchsorted(self.units, first, side="right")
        cuts = self.units[begin : np.searchsorted(self.units, end)]
        return np.split(self.order[first:end].astype(np.int64), cuts - first)

    def target_tokens(self, bounds: Indices) -> list[int]:
        """Target tokens of each of the runs between ``bounds``."""
        unit = np.searchsorted(self.units, bounds, side="right") - 1
        before = self.targets[unit]
        for place in np.flatnonzero(self.units[unit] < bounds):
            cut = self.order[self.units[unit[place]] : bounds[place]]
            before[place] += self.target_lengths[cut].sum()
        found: list[int] = np.diff(before).tolist()
        return found

    def blocks(self, first_part: int, end_part: int, num_parts: int) -> range:
        """The blocks that the parts ``first_part`` to ``end_part`` (of so many) of all steps lie
        in.
        """
        first = first_part * self.num_streams // num_parts
        last = -(-end_part * self.num_streams // num_parts) - 1
        return range(int(self.stream_blocks[first, 0]), int(self.stream_blocks[last, 1]))


@dataclass(frozen=True)
class _Units:
    """By unit, stream by stream: its first place on the line, its sentences, its longest source and
    target, its target tokens, and its stream.
    """

    start: Indices
    count: Indices
    source: Indices
    target: Indices
    targets: Indices
    stream: Indices


def plan_pool(
    source_lengths: Indices,
    target_lengths: Indices,
    blocks: Sequence[int],
    batch_tokens: int,
    rng: np.random.Generator,
) -> PoolPlan:
    """Divide the sentences of a pool into steps whose padded size stays within ``batch_tokens``.

    A step's size is the sum over its units of sentences × longest side. A sentence that is longer
    is a step of its own.

    Args:
        source_lengths: [n] tokens the encoder sees, block by block.
        target_lengths: [n] tokens the decoder predicts.
        blocks: sentences of each block.
        batch_tokens: the budget.
        rng: the source of all randomness.
    """
    longest = np.maximum(source_lengths, target_lengths)
    streams = min(
        round(batch_tokens / SLOT_TOKENS),
        batch_tokens // int(longest.max(initial=1)),  # any of which may be alone in a slot
        int(longest.sum()) // _STREAM_TOKENS,
        _KEY - 1,
    )
    streams = max(1, streams)
    slot_tokens = batch_tokens / streams
    unit_tokens = int(slot_tokens / max(2, np.ceil(slot_tokens / UNIT_TOKENS)))
    line = _line(blocks, rng)
    edges = _edges(longest[line], streams)
    units = _units(line, edges, source_lengths, target_lengths, unit_tokens, rng)
    step, num_steps = _pack(units, streams, slot_tokens, rng)
    slot = step * streams + units.stream
    placed = np.argsort(slot, kind="stable")
    count, begin = units.count[placed], _sums(units.count[placed])
    from_line = np.repeat(units.start[placed] - begin[:-1], count) + np.arange(len(line))
    return PoolPlan(
        order=line[from_line],
        units=begin,
        work=_sums(count * (units.source + units.target)[placed]),
        targets=_sums(units.targets[placed]),
        slots=_sums(np.bincount(slot, minlength=num_steps * streams)),
        num_streams=streams,
        stream_blocks=_stream_blocks(edges, blocks),
        target_lengths=target_lengths.astype(np.int32),
    )


def _sums(values: Indices) -> Indices:
    """[n + 1]: of the values before each."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])


def _line(blocks: Sequence[int], rng: np.random.Generator) -> NDArray[np.int32]:
    """The numbers of all sentences, block by block, mixed within each."""
    firsts = _sums(np.array(blocks, np.int64))[:-1]
    parts = [rng.permutation(count) + first for count, first in zip(blocks, firsts, strict=True)]
    return np.concatenate([np.zeros(0, np.int32), *(part.astype(np.int32) for part in parts)])


def _edges(longest: Indices, num_streams: int) -> Indices:
    """Where the streams begin on the line, and the end: [K + 1]; each has the same sum of
    ``longest``. A sentence belongs to the stream in which its middle lies.
    """
    done = np.cumsum(longest)
    total = int(done[-1]) if len(done) else 0
    first = -(-2 * total * np.arange(num_streams) // num_streams)
    return np.append(np.searchsorted(2 * done - longest, first), len(longest))


def _stream_blocks(edges: Indices, blocks: Sequence[int]) -> Indices:
    ends = np.cumsum(blocks, dtype=np.int64)
    first, last = (np.searchsorted(ends, at, side="right") for at in (edges[:-1], edges[1:] - 1))
    behind = np.where(edges[:-1] < edges[1:], last + 1, first)
    # An empty stream may begin in a block that the one before it ends in.
    return np.stack([first, np.maximum.accumulate(behind)], axis=1)


def _units(
    line: NDArray[np.int32], edges: Indices, source_lengths: Indices, target_lengths: Indices,
    unit_tokens: int, rng: np.random.Generator,
) -> _Units:  # fmt: skip
    """Sort each stream's part of the ``line``, in place, and cut it into units."""
    found: list[tuple[Indices, ...]] = [(np.zeros(0, np.int64),) * 6]
    stream = 0
    while stream + 1 < len(edges):  # some neighbouring streams at a time
        behind = int(np.searchsorted(edges, edges[stream] + _TOGETHER, side="right")) - 1
        behind = max(stream + 1, behind)
        own = edges[stream : behind + 1]
        numbers = line[own[0] : own[-1]]
        of_stream = np.repeat(np.arange(behind - stream), np.diff(own))
        source, target = source_lengths[numbers], target_lengths[numbers]
        order = _by_length(of_stream, source, target, rng)
        line[own[0] : own[-1]] = numbers[order]
        source, target = source[order], target[order]
        starts = _cut(np.maximum(source, target), own - own[0], unit_tokens)
        if len(starts):
            found.append((
                starts + own[0], np.diff(starts, append=len(order)),
                np.maximum.reduceat(source, starts), np.maximum.reduceat(target, starts),
                np.add.reduceat(target, starts), of_stream[starts] + stream,
            ))  # fmt: skip
        stream = behind
    return _Units(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _by_length(
    stream: Indices, source: Indices, target: Indices, rng: np.random.Generator
) -> Indices:
    """Order by stream; in each the longest side first, so that of a unit's first sentence follows
    how many it takes; then how much longer the source is; then by chance.
    """
    longest = np.minimum(np.maximum(source, target), _KEY - 1)
    shape = np.clip(source - target + _KEY // 2, 0, _KEY - 1)
    key = np.zeros(len(stream), np.uint64)
    for part in (stream, _KEY - 1 - longest, shape, rng.integers(0, _KEY, len(stream))):
        key = key * np.uint64(_KEY) + part.astype(np.uint64)
    return np.argsort(key, kind="stable")


def _cut(longest: Indices, edges: Indices, unit_tokens: int) -> Indices:
    """Where units start: ``longest`` descends between two ``edges``.

    All streams are gone through at once, unit by unit.
    """
    place, end = edges[:-1], edges[1:]
    starts = [np.zeros(0, np.int64)]
    while (going_on := place < end).any():
        place, end = place[going_on], end[going_on]
        starts.append(place)
        place = place + np.maximum(1, unit_tokens // longest[place])
    return np.sort(np.concatenate(starts))


def _pack(
    units: _Units, num_streams: int, slot_tokens: float, rng: np.random.Generator
) -> tuple[Indices, int]:
    """The step of each unit, so that every step takes nearly equal work from a stream, and no slot
    more than it holds; and how many steps that takes.

    Units go by work, the largest first, and as many at a time as there are steps: the largest of
    them to the step that has least so far (LPT by rows; all streams at once).
    """
    stream = units.stream
    size = units.count * np.maximum(units.source, units.target)
    work = units.count * (units.source + units.target)
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
        number_of = np.zeros((num_streams, num_steps), np.int64)
        row = rank // num_steps
        for number in range(int(row.max()) + 1):
            units_of_row = by_work[row == number]
            place = rank[row == number] % num_steps
            least = np.argsort(done, axis=1, kind="stable")
            where = stream[units_of_row], least[stream[units_of_row], place]
            step[units_of_row] = where[1]
            held[where] += size[units_of_row]
            done[where] += work[units_of_row]
            number_of[where] += 1
        if not ((held > slot_tokens) & (number_of > 1)).any():
            break
        num_steps = min(max(num_steps + 1, num_steps * 201 // 200), most)
    mixed = rng.permuted(np.tile(np.arange(num_steps), (num_streams, 1)), axis=1)
    return mixed[stream, step], num_steps
