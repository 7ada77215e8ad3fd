"""The two output layers as training uses them: which rows a step needs of the output's table, and
the loss that follows from them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from dist_embed.embedding.lookup import RowLookup
from dist_embed.embedding.step_rows import StepRows
from dist_embed.model.output import OutputShard, sharded_cross_entropy
from dist_embed.model.sampled_output import sampled_cross_entropy
from dist_embed.model.sampler import Negatives, Sampler
from dist_embed.parallel.collectives import start_gather_rows, start_sum_and_scatter_rows


class OutputLayer(Protocol):
    """What a training step asks of an output layer."""

    counts_own_tokens: bool  # whether `loss` gives sums of this worker's tokens, or of all workers'

    def words(self, step: int, targets: list[Tensor]) -> list[Tensor]:
        """Ids whose output rows step ``step`` looks up, given its micro-batches' right answers.

        Called for one step after the other, before `start` and after `finish` of the step before.
        Not collective.
        """

    def start(self, rows: StepRows, weight_scale: float) -> None:
        """Before the step's first loss, given what it has looked up, and what the sums of its
        losses are multiplied by: 1 / tokens of all workers. Collective.
        """

    def loss(
        self, hidden: Tensor, rows: StepRows, micro: int, targets: Tensor,
        tokens_of_worker: list[int], label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Sums over tokens (see ``counts_own_tokens``) of the smoothed loss and of -log p; the
        gradients are those of this worker's tokens and rows. Collective.

        Args:
            hidden: [n, D] float32 of this worker's tokens.
            rows: what the step has looked up.
            micro: number of the micro-batch.
            targets: [n] ids of its right answers.
            tokens_of_worker: n of every worker.
            label_smoothing: ε.
        """

    def finish(self, rows: StepRows) -> None:
        """After the backward of the step's last loss: all gradients are on ``rows``.

        Collective.
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
        self._weight_scale = 1.0

    def words(self, step: int, targets: list[Tensor]) -> list[Tensor]:
        """None by id: the layer reads its own shard where it lies."""
        return []

    def start(self, rows: StepRows, weight_scale: float) -> None:
        """Note the scale: `loss` adds to the gradient of own rows itself."""
        self._weight_scale = weight_scale

    def loss(
        self, hidden: Tensor, rows: StepRows, micro: int, targets: Tensor,
        tokens_of_worker: list[int], label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """See `OutputLayer.loss` and `sharded_cross_entropy`."""
        own = rows.own_output
        assert own is not None, "the lookup was built without own_output"
        return sharded_cross_entropy(
            hidden, self._lookup.output_rows_of(targets), own.weight, self._shard, tokens_of_worker,
            label_smoothing, own.gradient, self._weight_scale,
        )  # fmt: skip

    def finish(self, rows: StepRows) -> None:
        """Nothing to do."""


class SampledOutput:
    """The softmax over the right answer and negatives that all tokens of a step share.

    Each worker looks up a part of the negatives, all gather them, and their gradients go back the
    same way. If every worker looked up all of them, a shard would be asked for each of its rows
    among them by every worker, and update it with as many parts of its gradient. Both exchanges go
    on beside the model: the vectors travel during its first forward, the gradients during its last
    backward, which begins with them.

    Args:
        sampler: draws the negatives.
        seed: decides them, with the step.
        shard: whose words, block size, type and group are used.
    """

    counts_own_tokens = True

    def __init__(self, sampler: Sampler, seed: int, shard: OutputShard) -> None:
        self._sampler = sampler
        self._seed = seed
        self._shard = shard
        self._negatives: Negatives | None = None
        self._negatives_of_worker: list[int] = []  # negatives that each worker looks up
        self._backwards = 0  # that are still to come in this step
        self._arriving: Callable[[], Tensor] | None = None
        self._vectors: Tensor | None = None
        self._leaving: Callable[[], Tensor] | None = None

    def words(self, step: int, targets: list[Tensor]) -> list[Tensor]:
        """The right answers of every micro-batch, then this worker's part of the negatives."""
        group = self._shard.group
        self._negatives = self._sampler.draw(self._seed, step).to(group.device)
        parts = self._negatives.ids.tensor_split(group.num_workers)
        self._negatives_of_worker = [part.numel() for part in parts]
        self._backwards = len(targets)
        return [*targets, parts[group.rank]]

    def start(self, rows: StepRows, weight_scale: float) -> None:
        """Begin to bring the negatives' vectors together: [S, D] on every worker."""
        del weight_scale  # they are leaves
        own = rows.vectors("output", -1).detach()
        self._arriving = start_gather_rows(own, self._negatives_of_worker, self._shard.group)

    def loss(
        self, hidden: Tensor, rows: StepRows, micro: int, targets: Tensor,
        tokens_of_worker: list[int], label_smoothing: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """See `OutputLayer.loss` and `sampled_cross_entropy`; the last backward is collective."""
        assert self._negatives is not None, "words() comes first"
        if self._vectors is None:
            assert self._arriving is not None, "start() comes first"
            self._vectors = self._arriving().requires_grad_()
            self._vectors.register_post_accumulate_grad_hook(self._after_backward)
            self._arriving = None
        return sampled_cross_entropy(
            hidden, rows.vectors("output", micro), self._vectors, targets, self._negatives,
            num_words=self._shard.num_rows, block_bytes=self._shard.block_bytes,
            dtype=self._shard.dtype, label_smoothing=label_smoothing,
        )  # fmt: skip

    def finish(self, rows: StepRows) -> None:
        """Hand the sum over workers of each negative's gradient to who has looked it up."""
        assert self._leaving is not None, "a loss has not been differentiated"
        rows.add_gradient("output", -1, self._leaving())
        self._vectors = self._leaving = None

    def _after_backward(self, vectors: Tensor) -> None:
        self._backwards -= 1
        if not self._backwards:
            assert vectors.grad is not None
            self._leaving = start_sum_and_scatter_rows(
                vectors.grad, self._negatives_of_worker, self._shard.group
            )
