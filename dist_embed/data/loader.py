"""Batches of one worker, in the background, from an exact position.

The order of everything follows from (seed, epoch). Shards are read a pool at a time, so a worker
holds one pool of the corpus (and, while it prefetches, the next).
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_embed.data.batching import Indices, deal, plan_batches
from dist_embed.data.token_shards import ShardInfo, TokenPairs, read_tokens
from dist_embed.data.tokenizer import END, PAD, START

# Sentence pairs read, ordered and batched together.
POOL_SENTENCES = 500_000
# What a batch's vectors are looked up by; the model itself reads the others.
IDS = ("source", "target_input")


@dataclass(frozen=True)
class Batch:
    """The sentences of one worker and micro-batch; B may be 0.

    Attributes:
        source: [B, S] ids of the source and its end mark, padded.
        source_lengths: [B].
        target_input: [B, T] start mark and ids: what the decoder reads, padded.
        target_output: [n] ids and end mark: what it is to predict, without padding.
        token_positions: [n] where those lie in the flattened [B * T].
    """

    source: Tensor
    source_lengths: Tensor
    target_input: Tensor
    target_output: Tensor
    token_positions: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``; from pinned memory the host does not wait for it."""
        return self.changed(lambda tensor: tensor.to(device, non_blocking=True))

    def changed(self, change: Callable[[Tensor], Tensor], but: tuple[str, ...] = ()) -> Batch:
        """The same batch with ``change`` of every tensor: pinned, or on another device. Those named
        in ``but`` stay as they are.
        """
        names = [name for name in self.__dataclass_fields__ if name not in but]
        return replace(self, **{name: change(getattr(self, name)) for name in names})


@dataclass(frozen=True)
class Position:
    """Where in the endless sequence of batches a run stands: the next batch to train on."""

    epoch: int = 0
    pool: int = 0
    batch: int = 0

    def to_dict(self) -> dict[str, int]:
        """For a checkpoint."""
        return asdict(self)


@dataclass(frozen=True)
class StepBatches:
    """One step's work of one worker.

    Attributes:
        batches: its micro-batches.
        token_counts: per micro-batch the target tokens of every worker.
        after: the position behind this step.
    """

    batches: list[Batch]
    token_counts: list[list[int]]
    after: Position

    @property
    def global_tokens(self) -> int:
        """Target tokens of the whole step, all workers together."""
        return sum(map(sum, self.token_counts))

    def to(self, device: torch.device) -> Self:
        """The same work on ``device``."""
        return replace(self, batches=[batch.to(device) for batch in self.batches])


class Loader:
    """Endless steps of one worker.

    Args:
        data_uri: the prepared data.
        shards: the training shards.
        batch_tokens: budget of a global batch.
        seed: with the epoch, decides the order.
        rank: this worker.
        num_workers: W.
        accumulate: micro-batches per worker and step.
        num_ids: for each side the number of ids that its table has rows for.
        pool_sentences: sentences read and ordered together.

    Not collective: workers agree because they compute the same plan.
    """

    def __init__(
        self,
        data_uri: str,
        shards: list[ShardInfo],
        *,
        batch_tokens: int,
        seed: int,
        rank: int,
        num_workers: int,
        accumulate: int,
        num_ids: dict[str, int] | None = None,
        pool_sentences: int = POOL_SENTENCES,
    ) -> None:
        self._data_uri = data_uri
        self._shards = shards
        self._batch_tokens = batch_tokens
        self._seed = seed
        self._rank = rank
        self._num_workers = num_workers
        self._accumulate = accumulate
        self._num_ids = num_ids
        self._pool_sentences = pool_sentences

    def steps(self, start: Position) -> Iterator[StepBatches]:
        """Steps from ``start`` on, without end, in the calling thread."""
        epoch, first_pool, first_batch = start.epoch, start.pool, start.batch
        while True:
            pools = self._pools(epoch)
            for pool in range(first_pool, len(pools)):
                tokens = read_tokens(self._data_uri, pools[pool], self._num_ids)
                source_lengths = tokens.source_lengths + 1  # the end mark
                target_lengths = tokens.target_lengths + 1
                rng = np.random.default_rng([self._seed, epoch, 1 + pool])
                plan = plan_batches(source_lengths, target_lengths, self._batch_tokens, rng)
                for number in range(first_batch, len(plan)):
                    last_batch = number + 1 == len(plan)
                    last_pool = last_batch and pool + 1 == len(pools)
                    after = (
                        Position(epoch + 1)
                        if last_pool
                        else Position(epoch, pool + 1)
                        if last_batch
                        else Position(epoch, pool, number + 1)
                    )
                    parts = self._parts(plan[number], source_lengths, target_lengths)
                    yield self._step(tokens, parts, target_lengths, after)
                first_batch = 0
            epoch, first_pool = epoch + 1, 0

    def prefetched(
        self,
        start: Position,
        prepare: Callable[[StepBatches], StepBatches] = lambda step: step,
        ahead: int = 4,
    ) -> PrefetchedSteps:
        """Like `steps`, built ``ahead`` of their use by a background thread.

        ``prepare`` is called in that thread, for one step after the other, and may do what can be
        done of a step before its turn.
        """
        return PrefetchedSteps(map(prepare, self.steps(start)), ahead)

    def _pools(self, epoch: int) -> list[list[ShardInfo]]:
        """The shards of each pool of an epoch, in a new order every epoch."""
        order = np.random.default_rng([self._seed, epoch, 0]).permutation(len(self._shards))
        pools: list[list[ShardInfo]] = [[]]
        held = 0
        for place in order:
            shard = self._shards[place]
            if pools[-1] and held + shard.sentences > self._pool_sentences:
                pools.append([])
                held = 0
            pools[-1].append(shard)
            held += shard.sentences
        return pools

    def _parts(
        self, batch: Indices, source_lengths: NDArray[np.int64], target_lengths: NDArray[np.int64]
    ) -> list[list[Indices]]:
        """Sentences by micro-batch, then by worker."""
        # Micro-batch m of worker w is part m * W + w of the batch.
        parts = deal(batch, source_lengths, target_lengths, self._num_workers * self._accumulate)
        width = self._num_workers
        return [parts[micro * width : (micro + 1) * width] for micro in range(self._accumulate)]

    def _step(
        self,
        tokens: TokenPairs,
        parts: list[list[Indices]],
        target_lengths: NDArray[np.int64],
        after: Position,
    ) -> StepBatches:
        return StepBatches(
            [build_batch(tokens, micro[self._rank]) for micro in parts],
            [[int(target_lengths[part].sum()) for part in micro] for micro in parts],
            after,
        )


class PrefetchedSteps:
    """Iterator over steps, without end, that a thread builds ahead. `close` ends the thread.

    What is raised in the thread is raised to whoever asks for the next step.

    A daemon thread that is computing while the interpreter ends may abort the process: before it
    ends, it waits up to 30 s for a pool that is being read.
    """

    def __init__(self, steps: Iterator[StepBatches], ahead: int) -> None:
        self._queue: queue.Queue[StepBatches | BaseException] = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._fill, args=(steps,), name="prefetch", daemon=True
        )
        atexit.register(self.close, 30)
        self._thread.start()

    def _fill(self, steps: Iterator[StepBatches]) -> None:
        try:
            for step in steps:
                if not self._put(step):
                    return
            # A `StopIteration` from within looks the same; who waits would wait for ever.
            raise RuntimeError("there are no more steps, but steps of training have no end")
        except BaseException as exc:  # raised where the steps are used
            self._put(exc)

    def _put(self, item: StepBatches | BaseException) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> PrefetchedSteps:
        return self

    def __next__(self) -> StepBatches:
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._queue.put(item)  # asked again, the answer is the same
            raise item
        return item

    def close(self, seconds: float = 5) -> None:
        """End the background thread; wait so long for it at most."""
        self._closed.set()
        self._thread.join(seconds)
        if not self._thread.is_alive():
            atexit.unregister(self.close)


def build_batch(tokens: TokenPairs, sentences: Indices) -> Batch:
    """Pad the given sentences into one `Batch`."""
    source, source_real = _padded(tokens.source_tokens, tokens.source_offsets, sentences, END)
    target, target_real = _padded(tokens.target_tokens, tokens.target_offsets, sentences, END)
    read = np.full_like(target, PAD)
    if target.size:
        read[:, 0] = START
        read[:, 1:] = np.where(target_real[:, 1:], target[:, :-1], PAD)
    return Batch(
        source=torch.from_numpy(source),
        source_lengths=torch.from_numpy(source_real.sum(1)),
        target_input=torch.from_numpy(read),
        target_output=torch.from_numpy(target[target_real]),
        token_positions=torch.from_numpy(np.flatnonzero(target_real)),
    )


def _padded(
    tokens: NDArray[np.int32], offsets: NDArray[np.int64], sentences: Indices, end: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The sentences with ``end`` behind each as [B, L] ids, and where they are real."""
    starts, lengths = offsets[sentences], offsets[sentences + 1] - offsets[sentences]
    longest = int(lengths.max()) + 1 if len(lengths) else 0
    place = np.arange(longest)
    inside = place < lengths[:, None]
    ids = np.full((len(sentences), longest), PAD, dtype=np.int64)
    ids[inside] = tokens[(starts[:, None] + place)[inside]]
    if longest:
        ids[np.arange(len(sentences)), lengths] = end
    return ids, place <= lengths[:, None]
