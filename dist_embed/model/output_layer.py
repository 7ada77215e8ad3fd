"""The two output layers as training uses them: which rows a step needs of the output's table, and
the loss that follows from them.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dist_embed.embedding.lookup import RowLookup, StepRows
from dist_embed.model.output import OutputShard, sharded_cross_entropy
from dist_embed.model.sampled_output import sampled_cross_entropy
from dist_embed.model.sampler import Negatives, Sampler
from dist_embed.parallel.collectives import sum_over_workers


class OutputLayer(Protocol):
    """What a training step asks of an output layer."""

    own_rows: bool  # whether a step fetches all rows of the own shard

    def words(self, step: int, targets: list[Tensor]) -> list[Tensor]:
        """Ids whose output rows step ``step`` looks up, given its micro-batches' right answers.

        Called once a step, before its losses. Not collective.
        """

    def loss(
        self, hidden: Tensor, rows: StepRows, micro: int, targets: Tensor, counts: list[int],
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Sums over all workers' tokens of the smoothed loss and of -log p, the same on every
        worker; the gradients are those of this worker's tokens and rows. Collective.

        Args:
            hidden: [n, D] float32 of this worker's tokens.
            rows: what the step has looked up.
            micro: number of the micro-batch.
            targets: [n] ids of its right answers.
            counts: n of every worker.
            label_smoothing: ε.
        """


class ExactOutput:
    """The softmax over the whole vocabulary; a step reads and trains every row.

    Args:
        lookup: the tables.
        shard: how the output layer is sharded.
    """

    own_rows = True

    def __init__(self, lookup: RowLookup, shard: OutputShard) -> None:
        self._lookup = lookup
        self._shard = shard

    def words(self, step: int, targets: list[Tensor]) -> list[Tensor]:
        """None by id: the whole shard comes."""
        return []

    def loss(
        self, hidden: Tensor, rows: StepRows, micro: int, targets: Tensor, counts: list[int],
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """See `OutputLayer.loss` and `sharded_cross_entropy`."""
        return sharded_cross_entropy(
            hidden, self._lookup.output_rows_of(targets), rows.output_rows(), self._shard, counts,
            label_smoothing,
        )  # fmt: skip


class SampledOutput:
    """The softmax over the right answer and negatives that all tokens of a step share.

    Args:
        sampler: draws the negatives.
        seed: decides them, with the step.
        shard: whose words, block size, type and group are used.
    """

    own_rows = False

    def __init__(self, sampler: Sampler, seed: int, shard: OutputShard) -> None:
        self._sampler = sampler
        self._seed = seed
        self._shard = shard
        self._negatives: Negatives | None = None

    def words(self, step: int, targets: list[Tensor]) -> list[Tensor]:
        """The right answers of every micro-batch, then the step's negatives."""
        self._negatives = self._sampler.draw(self._seed, step).to(self._shard.group.device)
        return [*targets, self._negatives.ids]

    def loss(
        self, hidden: Tensor, rows: StepRows, micro: int, targets: Tensor, counts: list[int],
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """See `OutputLayer.loss` and `sampled_cross_entropy`."""
        assert self._negatives is not None, "words() comes first"
        smoothed, nll = sampled_cross_entropy(
            hidden, rows.vectors("output", micro), rows.vectors("output", -1), targets,
            self._negatives, num_words=self._shard.num_rows, block_bytes=self._shard.block_bytes,
            dtype=self._shard.dtype, label_smoothing=label_smoothing,
        )  # fmt: skip
        everywhere = sum_over_workers(torch.stack([smoothed.detach(), nll]), self._shard.group)
        # All workers' value with this worker's gradient.
        return smoothed + (everywhere[0] - smoothed.detach()), everywhere[1]
