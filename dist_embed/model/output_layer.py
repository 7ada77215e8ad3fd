"""The two output layers as training uses them: which rows a step needs of the output's table, and
the loss that follows from them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from dist_embed.embedding.lookup import RowLookup
from dist_embed.embedding.step_rows import StepRows
from dist_embed.model.batch_negatives import BatchNegatives, WordShares, with_batch
from dist_embed.model.output import OutputShard, sharded_cross_entropy
from dist_embed.model.sampled_output import sampled_cross_entropy
from dist_embed.model.sampler import Negatives, Sampler
from dist_embed.parallel.collectives import start_gather_rows, start_sum_and_scatter_rows


class StepLoss(Protocol):
    """The loss of one step, micro-batch by micro-batch."""

    def of(
        self, hidden: Tensor, micro: int, targets: Tensor, tokens_of_worker: list[int],
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Sums over tokens (see ``OutputLayer.counts_own_tokens``) of the smoothed loss and of
        -log p; the gradients are those of this worker's tokens and rows. Collective.

        Args:
            hidden: [n, D] float32 of this worker's tokens.
            micro: number of the micro-batch; each comes once, in order.
            targets: [n] ids of its right answers.
            tokens_of_worker: n of every worker.
            label_smoothing: ε.
        """

    def finish(self) -> None:
        """After the backward of the last loss: all gradients are on the step's rows. Collective."""


class OutputLayer(Protocol):
    """What a training step asks of an output layer. It keeps nothing from step to step."""

    counts_own_tokens: bool  # whether losses are sums of this worker's tokens, or of all workers'

    def draw(
        self, step: int, targets: list[Tensor], sentences: Callable[[], list[Tensor]]
    ) -> Negatives | None:
        """The negatives of a step, if the layer has any. Not collective.

        Args:
            step: its number.
            targets: of every micro-batch [n] ids of this worker's right answers.
            sentences: gives of every micro-batch [n] which sentence of the step each belongs to;
                asked where that decides.
        """

    def words(self, targets: list[Tensor], negatives: Negatives | None) -> list[Tensor]:
        """Ids whose output rows a step looks up, given its micro-batches' right answers.

        Not collective.
        """

    def start(
        self, rows: StepRows, negatives: Negatives | None, micro_batches: int, weight_scale: float
    ) -> StepLoss:
        """Before a step's first loss. Collective.

        Args:
            rows: what it has looked up.
            negatives: its own, on the device.
            micro_batches: how many losses there will be.
            weight_scale: what their sum is multiplied by: 1 / tokens of all workers.
        """


class ExactOutput:
    """The softmax over the whole vocabulary; a step reads and trains every row.

    Args:
        lookup: the tables, with ``own_output``.
        shard: how the output layer is sharded.
    """

    counts_own_tokens = False

    def __init__(self, lookup: RowLookup, shard: OutputShard) -> None:
        self._lookup = lookup
        self._shard = shard

    def draw(self, step: int, targets: list[Tensor], sentences: Callable[[], list[Tensor]]) -> None:
        """None."""

    def words(self, targets: list[Tensor], negatives: Negatives | None) -> list[Tensor]:
        """None by id: the layer reads its own shard where it lies."""
        return []

    def start(
        self, rows: StepRows, negatives: Negatives | None, micro_batches: int, weight_scale: float
    ) -> StepLoss:
        """See `OutputLayer.start`; nothing has to travel."""
        return _ExactLoss(self._lookup, self._shard, rows, weight_scale)


class _ExactLoss:
    """See `StepLoss` and `sharded_cross_entropy`, which adds to the gradient of own rows itself."""

    def __init__(
        self, lookup: RowLookup, shard: OutputShard, rows: StepRows, weight_scale: float
    ) -> None:
        assert rows.own_output is not None, "the lookup was built without own_output"
        self._rows_of, self._shard = lookup.output_rows_of, shard
        self._own, self._weight_scale = rows.own_output, weight_scale

    def of(
        self, hidden: Tensor, micro: int, targets: Tensor, tokens_of_worker: list[int],
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return sharded_cross_entropy(
            hidden, self._rows_of(targets), self._own.weight, self._shard, tokens_of_worker,
            label_smoothing, self._own.gradient, self._weight_scale,
        )  # fmt: skip

    def finish(self) -> None: ...


class SampledOutput:
    """The softmax over the right answer and negatives that all tokens of a step share.

    Each worker looks up a part of the negatives, all gather them, and their gradients go back the
    same way. If every worker looked up all of them, a shard would be asked for each of its rows
    among them by every worker, and update it with as many parts of its gradient. Both exchanges go
    on beside the model: the vectors travel during its first forward, the gradients during its last
    backward, which begins with them. Each worker receives 4·D·S·(W - 1)/W bytes of vectors and as
    many of gradients; right answers that serve as negatives too add none.

    Args:
        sampler: draws the negatives.
        seed: decides them, with the step.
        shard: whose words, block size, type and group are used.
        shares: of words in the training text; where given, right answers of a worker are negatives
            of its other sentences too. They cost no exchange.
    """

    counts_own_tokens = True

    def __init__(
        self, sampler: Sampler, seed: int, shard: OutputShard, shares: WordShares | None = None
    ) -> None:
        self._sampler = sampler
        self._seed = seed
        self._shard = shard
        self._shares = shares

    def draw(
        self, step: int, targets: list[Tensor], sentences: Callable[[], list[Tensor]]
    ) -> Negatives:
        """See `OutputLayer.draw`. On the host."""
        drawn = self._sampler.draw(self._seed, step)
        if self._shares is None:
            return drawn
        return with_batch(drawn, self._sampler, self._shares, targets, sentences())

    def words(self, targets: list[Tensor], negatives: Negatives | None) -> list[Tensor]:
        """The right answers of every micro-batch, then this worker's part of the samples; and those
        right answers that are negatives too, which adds no row.
        """
        assert negatives is not None
        group = self._shard.group
        words = [*targets, negatives.ids.tensor_split(group.num_workers)[group.rank]]
        return [*words, negatives.batch_ids] if isinstance(negatives, BatchNegatives) else words

    def start(
        self, rows: StepRows, negatives: Negatives | None, micro_batches: int, weight_scale: float
    ) -> StepLoss:
        """Begin to bring the samples' vectors together: [S, D] on every worker."""
        assert negatives is not None
        del weight_scale  # they are leaves
        return _SampledLoss(self._shard, rows, negatives, micro_batches)


class _SampledLoss:
    """See `StepLoss` and `sampled_cross_entropy`; the last backward is collective too."""

    def __init__(
        self, shard: OutputShard, rows: StepRows, negatives: Negatives, micro_batches: int
    ) -> None:
        self._shard, self._rows, self._negatives = shard, rows, negatives
        self._last = micro_batches - 1
        self._drawn, self._in_batch = micro_batches, micro_batches + 1  # among the step's `words`
        parts = negatives.ids.tensor_split(shard.group.num_workers)
        self._negatives_of_worker = [part.numel() for part in parts]
        self._arriving = start_gather_rows(
            rows.vectors("output", self._drawn).detach(), self._negatives_of_worker, shard.group
        )
        self._leaving: list[Callable[[], Tensor]] = []  # one, once the gradients are on their way

    @cached_property
    def _vectors(self) -> Tensor:
        """[C, D] leaf of all negatives. The first one to ask waits for them."""
        drawn = self._arriving()
        if isinstance(self._negatives, BatchNegatives):
            in_batch = self._rows.vectors("output", self._in_batch).detach()
            drawn = torch.cat([drawn, in_batch])
        return drawn.requires_grad_()

    def of(
        self, hidden: Tensor, micro: int, targets: Tensor, tokens_of_worker: list[int],
        label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if micro == self._last:
            group, leaving = self._shard.group, self._leaving
            rows_of_worker, num_drawn = self._negatives_of_worker, self._negatives.ids.numel()

            # The hook holds nothing that leads back to these vectors: a ring through PyTorch's C++,
            # which Python's collector does not see, would keep the step's rows for ever.
            def send_back(vectors: Tensor) -> None:
                assert vectors.grad is not None
                drawn = vectors.grad[:num_drawn]
                leaving.append(start_sum_and_scatter_rows(drawn, rows_of_worker, group))

            self._vectors.register_post_accumulate_grad_hook(send_back)
        return sampled_cross_entropy(
            hidden, self._rows.vectors("output", micro), self._vectors, targets, self._negatives,
            num_words=self._shard.num_rows, block_bytes=self._shard.block_bytes,
            dtype=self._shard.dtype, label_smoothing=label_smoothing, micro=micro,
        )  # fmt: skip

    def finish(self) -> None:
        """Hand the sum over workers of each sample's gradient to who has looked it up."""
        assert self._leaving, "the last loss has not been differentiated"
        self._rows.add_gradient("output", self._drawn, self._leaving[0]())
        if isinstance(self._negatives, BatchNegatives):
            assert self._vectors.grad is not None
            own = self._vectors.grad[self._negatives.ids.numel() :]
            self._rows.add_gradient("output", self._in_batch, own)
