"""Batches of one worker, in the background, from an exact position.

The order of everything follows from (seed, epoch). Blocks are planned a pool at a time, and of a
pool a worker reads the blocks that its own sentences lie in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from dist_embed.data.bands import BandsPool, pools_of_shards
from dist_embed.data.batch import Batch
from dist_embed.data.pool import UnitsPool, pools_of_blocks, read_pool
from dist_embed.data.pool_sizes import POOL_SENTENCES, POOL_STEPS
from dist_embed.data.proof import FileInfo
from dist_embed.data.read_ahead import ReadAhead
from dist_embed.data.token_blocks import TokenBlocks
from dist_embed.data.token_shards import ShardInfo, read_tokens
from dist_embed.data.units import Indices
from dist_embed.storage.json_text import as_kind

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Position:
    """Where in the endless sequence of batches a run stands: the next batch to train on.

    Attributes:
        epoch: from 0.
        pool: of the epoch.
        batch: of the pool.
        plan: how batches are made: of ``units`` (`data/units.py`); a run begun before there were
            any goes on with its ``bands`` (`data/bands.py`).
    """

    epoch: int = 0
    pool: int = 0
    batch: int = 0
    plan: Literal["units", "bands"] = "units"

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Position:
        """The position of a checkpoint; one without a plan was saved before there were units.
        Raises ValueError.
        """
        return as_kind(cls, {"plan": "bands"} | values)


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


class _Pool(Protocol):
    """The steps of a pool, for one worker."""

    def __len__(self) -> int: ...

    def step(self, number: int) -> tuple[list[Batch], list[list[int]]]:
        """Micro-batches, and of each the target tokens of every worker."""


# Reads and plans a pool with the generator given.
_ReadPool = Callable[[np.random.Generator], _Pool]


class Loader:
    """Endless steps of one worker.

    Args:
        data_uri: the prepared data.
        shards: of one split; any of them.
        index: what proves their index of blocks; None: there is none, and each is a block.
        batch_tokens: budget of a global batch.
        seed: with the epoch, decides the order.
        rank: this worker.
        num_workers: W.
        accumulate: micro-batches per worker and step.
        num_ids: for each side the number of ids that its table has rows for.
        pool_sentences: sentences planned together, or
        pool_steps: so many steps of them, whichever is more.

    Not collective: workers agree because they compute the same plan.
    """

    def __init__(
        self,
        data_uri: str,
        shards: list[ShardInfo],
        *,
        index: FileInfo | None = None,
        batch_tokens: int,
        seed: int,
        rank: int,
        num_workers: int,
        accumulate: int,
        num_ids: dict[str, int] | None = None,
        pool_sentences: int = POOL_SENTENCES,
        pool_steps: int = POOL_STEPS,
    ) -> None:
        self._data_uri = data_uri
        self._shards = shards
        self._index = index
        self._batch_tokens = batch_tokens
        self._seed = seed
        self._rank = rank
        self._num_workers = num_workers
        self._accumulate = accumulate
        self._num_ids = num_ids
        self._pool_sentences = pool_sentences
        self._pool_tokens = pool_steps * batch_tokens

    def steps(self, start: Position) -> Iterator[StepBatches]:
        """Steps from ``start`` on, without end, in the calling thread."""
        return self._steps(start, self._pools(start))

    def prefetched(
        self,
        start: Position,
        prepare: Callable[[StepBatches], StepBatches] = lambda step: step,
        ahead: int = 4,
    ) -> ReadAhead[StepBatches]:
        """Like `steps`, built ``ahead`` of their use by a background thread. A second one reads and
        plans the next pool meanwhile: of no more than two pools this worker holds plan and tokens.

        ``prepare`` is called in the first, for one step after the other, and may do what can be
        done of a step before its turn.
        """

        def steps() -> Iterator[StepBatches]:
            pools = ReadAhead(self._pools(start), name="pools")
            try:
                yield from map(prepare, self._steps(start, pools))
            finally:
                pools.close()
            # A `StopIteration` from within looks the same; who waits would be told of an end.
            raise RuntimeError("there are no more steps, but steps of training have no end")

        return ReadAhead(steps(), ahead=ahead, name="prefetch")

    def _steps(
        self, start: Position, pools: Iterator[tuple[Position, bool, _Pool]]
    ) -> Iterator[StepBatches]:
        first_batch = start.batch
        for at, last_pool, pool in pools:
            for number in range(first_batch, len(pool)):
                if number + 1 < len(pool):
                    after = replace(at, batch=number + 1)
                elif last_pool:
                    after = Position(at.epoch + 1, plan=at.plan)
                else:
                    after = replace(at, pool=at.pool + 1)
                yield StepBatches(*pool.step(number), after)
            first_batch = 0

    def _pools(self, start: Position) -> Iterator[tuple[Position, bool, _Pool]]:
        """The pools from that of ``start`` on, without end: where each begins, and whether it is
        its epoch's last.
        """
        read = self._units() if start.plan == "units" else self._bands()
        epoch, first_pool = start.epoch, start.pool
        while True:
            pools = read(epoch)
            for number in range(first_pool, len(pools)):
                rng = np.random.default_rng([self._seed, epoch, 1 + number])
                at = Position(epoch, number, plan=start.plan)
                yield at, number + 1 == len(pools), pools[number](rng)
            epoch, first_pool = epoch + 1, 0

    def _order(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, epoch, 0])

    def _units(self) -> Callable[[int], list[_ReadPool]]:
        """What reads the pools of an epoch."""
        blocks = TokenBlocks.of(self._data_uri, self._shards, self._index)

        def pools(epoch: int) -> list[_ReadPool]:
            return [
                partial(self._units_pool, blocks, numbers)
                for numbers in pools_of_blocks(
                    blocks, self._pool_sentences, self._pool_tokens, self._order(epoch)
                )
            ]

        return pools

    def _units_pool(
        self, blocks: TokenBlocks, numbers: Indices, rng: np.random.Generator
    ) -> UnitsPool:
        return read_pool(
            blocks, numbers, self._batch_tokens, rng, rank=self._rank,
            num_workers=self._num_workers, accumulate=self._accumulate, num_ids=self._num_ids,
        )  # fmt: skip

    def _bands(self) -> Callable[[int], list[_ReadPool]]:
        def pools(epoch: int) -> list[_ReadPool]:
            return [
                partial(self._bands_pool, shards)
                for shards in pools_of_shards(
                    self._shards, self._pool_sentences, self._order(epoch)
                )
            ]

        return pools

    def _bands_pool(self, shards: list[ShardInfo], rng: np.random.Generator) -> BandsPool:
        tokens = read_tokens(self._data_uri, shards, self._num_ids)
        return BandsPool(
            tokens, self._batch_tokens, rng, rank=self._rank, num_workers=self._num_workers,
            accumulate=self._accumulate,
        )  # fmt: skip
