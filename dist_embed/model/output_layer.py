"""A table as the output layer of a model: which rows a step needs, and the loss that follows.

`ExactSoftmax` and `SampledSoftmax` are used alike, by any model whose hidden states are as wide as
the table. A step with one micro-batch, of n tokens here and N on all W workers, whose ids come on
the host; the lines from `lookup` on are collective::

    negatives = output.draw(step, [targets])
    ids = {"context": [contexts], "word": output.words([targets], negatives)}
    rows = tables.lookup(ids)
    hidden = rows.vectors("context")  # or what a model makes of it
    targets = targets.to(device)
    negatives = negatives and negatives.to(device)  # None of an exact softmax
    step_loss = output.start(rows, negatives, 1, 1 / N)
    loss, _ = step_loss.of(hidden, 0, targets, tokens_of_worker)
    (loss * W / N).backward()
    step_loss.finish()
    rows.backward()

With an exact softmax over ``word`` the table says ``trained_whole``. Inside ``torch.no_grad()``
the lines up to that with ``of`` give a loss without a gradient, of an exact softmax over any table.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from dist_embed.arguments import of_kind, real_number, shown, whole_number
from dist_embed.embedding.memory import logits_block_bytes
from dist_embed.embedding.own_rows import OwnRows
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.step_ids import pieces_of
from dist_embed.embedding.step_rows import StepRows
from dist_embed.errors import UserError
from dist_embed.model.batch_negatives import BatchNegatives, WordShares, with_batch
from dist_embed.model.loss_inputs import LossInputs
from dist_embed.model.output import OutputShard, sharded_cross_entropy
from dist_embed.model.sampled_output import sampled_cross_entropy
from dist_embed.model.sampler import Negatives, Sampler
from dist_embed.parallel.collectives import (
    least_over_workers,
    stack_over_workers,
    start_gather_rows,
    start_sum_and_scatter_rows,
)
from dist_embed.parallel.device import memory_bytes
from dist_embed.parallel.errors import all_or_none
from dist_embed.parallel.group import Group

_ROWS = "what the step's lookup has given"
_NEGATIVES = "what `draw` has given"


class StepLoss(Protocol):
    """The loss of one step, micro-batch by micro-batch."""

    def of(
        self, hidden: Tensor, micro: int, targets: Tensor, tokens_of_worker: list[int],
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Sums over tokens (see ``OutputLayer.counts_own_tokens``) of the smoothed loss and of
        -log p; the gradients are those of this worker's tokens and rows. Collective.

        Args:
            hidden: [n, D] of this worker's tokens, n may be 0; computed with as float32.
            micro: number of the micro-batch; each comes once, in order.
            targets: [n] ids of its right answers.
            tokens_of_worker: n of every worker.
            label_smoothing: ε.

        Raises UserError, on the worker that it concerns: one of these cannot be.
        """

    def finish(self) -> None:
        """After the backward of the last loss: all gradients are on the step's rows. Collective.

        Raises UserError: there was no such backward, or it has been called already.
        """


class OutputLayer(Protocol):
    """What a training step asks of an output layer. It keeps nothing from step to step."""

    counts_own_tokens: bool  # whether losses are sums of this worker's tokens, or of all workers'

    def draw(
        self,
        step: int,
        targets: list[Tensor],
        sentences: Callable[[], list[Tensor]] | None = None,
    ) -> Negatives | None:
        """The negatives of a step, if the layer has any. Not collective.

        Args:
            step: its number.
            targets: of every micro-batch [n] ids of this worker's right answers.
            sentences: gives of every micro-batch [n] which sentence of the step each belongs to;
                asked where that decides: where right answers are negatives too.
        """

    def words(self, targets: list[Tensor], negatives: Negatives | None) -> list[Tensor]:
        """Ids whose output rows a step looks up, given its micro-batches' right answers.

        Not collective.
        """

    def start(
        self, rows: StepRows, negatives: Negatives | None, micro_batches: int, weight_scale: float,
        *, agreed: bool = False,
    ) -> StepLoss:  # fmt: skip
        """Before a step's first loss. Collective.

        Args:
            rows: what it has looked up.
            negatives: its own, on the device.
            micro_batches: how many losses there will be.
            weight_scale: what their sum is multiplied by: 1 / tokens of all workers.
            agreed: all workers are known to have the same ``tokens_of_worker``. Else an exchange
                finds that out where a layer gathers by them, and has a GPU's host wait.
        """


def output_shard(tables: ShardedTables, feature: str, *, exact: bool) -> OutputShard:
    """This worker's part of the table of ``feature`` as an output layer, in float32.

    Blocks of logits are as large as those of a run that leaves their size open. ``exact``: whether
    training takes all own rows. Raises UserError: no table has the feature. Collective.
    """
    of_kind("tables", tables, ShardedTables, "a ShardedTables")
    tables.group.require_joined()
    with all_or_none(tables.group):
        if not isinstance(feature, str) or feature not in tables.table_of:
            known = ", ".join(tables.table_of)
            raise UserError(f"feature {feature!r}: no table has it; there are {known}")
    group, table = tables.group, tables.table_of[feature]
    num_rows, device_bytes = tables.specs[table].num_rows, None
    if group.device.type == "cuda":
        device_bytes = least_over_workers(memory_bytes(group.device), group)
    size = logits_block_bytes(
        "auto", num_rows, group.num_workers, exact=exact, device_bytes=device_bytes
    )
    return OutputShard(group, tables.shards[table].first_row, num_rows, size)


class ExactSoftmax:
    """The softmax over all rows of a table; a step reads and trains every row.

    See `dist_embed.model.output` for how it is computed, and from which papers.

    Args:
        tables: the tables.
        feature: by which words to be scored are looked up. For training its table is
            ``trained_whole``; for a loss inside ``torch.no_grad()`` it may be any.
        shard: how it is computed; None: as `output_shard` says, and the constructor is collective.

    Raises UserError: an argument cannot be.
    """

    counts_own_tokens = False

    def __init__(
        self, tables: ShardedTables, feature: str, shard: OutputShard | None = None
    ) -> None:
        self._tables = tables
        self._feature = feature
        self._shard = _given_shard(shard) or output_shard(tables, feature, exact=True)

    def draw(
        self,
        step: int,
        targets: list[Tensor],
        sentences: Callable[[], list[Tensor]] | None = None,
    ) -> None:
        """None."""

    def words(self, targets: list[Tensor], negatives: Negatives | None) -> list[Tensor]:
        """None by id: the layer reads its own shard where it lies.

        Raises UserError where a target is no id; a lookup would find it where there is one.
        """
        for ids in pieces_of("targets", targets):
            self._tables.check_ids(self._tables.table_of[self._feature], ids)
        return []

    def start(
        self, rows: StepRows, negatives: Negatives | None, micro_batches: int, weight_scale: float,
        *, agreed: bool = False,
    ) -> StepLoss:  # fmt: skip
        """See `OutputLayer.start`; nothing has to travel.

        Raises:
            UserError: rows were looked up with a gradient, and the table is not trained whole; or
                an argument cannot be.
        """
        self._shard.group.require_joined()
        of_kind("rows", rows, StepRows, _ROWS)
        weight_scale = real_number("weight_scale", weight_scale)
        table = self._tables.table_of[self._feature]
        own = rows.own.get(table)
        if own is None and rows.train:
            raise UserError(
                f"table {table!r} is not trained whole, as training an exact softmax needs it: say "
                "Table(…, trained_whole=True); a loss without a gradient, of rows looked up inside "
                "torch.no_grad(), needs no such table"
            )
        if own is None:
            own = OwnRows(self._tables.weight(table), None)
        rows_of = self._tables.orders[table].rows_of
        inputs = LossInputs(self._shard, own.weight.shape[1], micro_batches)
        return _ExactLoss(rows_of, self._shard, own, weight_scale, inputs, agreed)


class _ExactLoss:
    """See `StepLoss` and `sharded_cross_entropy`, which adds to the gradient of own rows itself."""

    def __init__(
        self,
        rows_of: Callable[[Tensor], Tensor],
        shard: OutputShard,
        own: OwnRows,
        weight_scale: float,
        inputs: LossInputs,
        agreed: bool,
    ) -> None:
        self._rows_of, self._shard = rows_of, shard
        self._own, self._weight_scale = own, weight_scale
        self._inputs, self._agreed = inputs, agreed

    def of(
        self, hidden: Tensor, micro: int, targets: Tensor, tokens_of_worker: list[int],
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        self._shard.group.require_joined()
        hidden, targets, tokens_of_worker = self._inputs.take(
            hidden, micro, targets, tokens_of_worker, label_smoothing
        )
        if not self._agreed:
            _check_equal(tokens_of_worker, self._shard.group)
        with _no_autocast(hidden):
            return sharded_cross_entropy(
                hidden, self._rows_of(targets), self._own.weight, self._shard, tokens_of_worker,
                label_smoothing, self._own.gradient, self._weight_scale,
            )  # fmt: skip

    def finish(self) -> None:
        self._inputs.require_all()


class SampledSoftmax:
    """The softmax over the right answer and negatives that all tokens of a step share.

    What it costs does not grow with the table. See `dist_embed.model.sampled_output` for what it
    estimates, and from which papers.

    Each worker looks up a part of the negatives, all gather them, and their gradients go back the
    same way. If every worker looked up all of them, a shard would be asked for each of its rows
    among them by every worker, and update it with as many parts of its gradient. Both exchanges go
    on beside the model: the vectors travel during its first forward, the gradients during its last
    backward, which begins with them. Each worker receives 4·D·S·(W - 1)/W bytes of vectors and as
    many of gradients; right answers that serve as negatives too add none.

    Args:
        tables: the tables.
        feature: by which right answers and negatives are looked up.
        sampler: draws the negatives, see `dist_embed.model.sampler`.
        seed: decides them, with the step.
        shard: whose words, block size, type and group are used; None: as `output_shard` says,
            as it is in any case: the constructor is collective.
        shares: of words in the training text; where given, right answers of a worker are negatives
            of its other sentences too. They cost no exchange.

    Raises UserError: an argument cannot be.
    """

    counts_own_tokens = True

    def __init__(
        self,
        tables: ShardedTables,
        feature: str,
        sampler: Sampler,
        *,
        seed: int = 0,
        shard: OutputShard | None = None,
        shares: WordShares | None = None,
    ) -> None:
        self._shard = _given_shard(shard) or output_shard(tables, feature, exact=False)
        with all_or_none(self._shard.group):
            if not hasattr(sampler, "draw") or not hasattr(sampler, "probability_of"):
                raise UserError(
                    f"sampler: {shown(sampler)} is not allowed: one of "
                    "dist_embed.model.sampler, such as UnigramSampler"
                )
            if shares is not None:
                of_kind("shares", shares, WordShares, "WordShares, or None")
            self._seed = whole_number("seed", seed, 0)
        self._feature = feature
        self._sampler = sampler
        self._shares = shares

    def draw(
        self,
        step: int,
        targets: list[Tensor],
        sentences: Callable[[], list[Tensor]] | None = None,
    ) -> Negatives:
        """See `OutputLayer.draw`. On the host. Raises UserError: an argument cannot be."""
        drawn = self._sampler.draw(self._seed, step)
        if self._shares is None:
            return drawn
        if sentences is None:
            raise UserError(
                "sentences: None is not allowed with `shares`: right answers are negatives too; "
                "of which sentence is each?"
            )
        pieces = pieces_of("targets", targets)
        return with_batch(drawn, self._sampler, self._shares, pieces, sentences())

    def words(self, targets: list[Tensor], negatives: Negatives | None) -> list[Tensor]:
        """The right answers of every micro-batch, then this worker's part of the samples; and those
        right answers that are negatives too, which adds no row. Raises UserError: these are none.
        """
        of_kind("negatives", negatives, Negatives, _NEGATIVES)
        assert negatives is not None
        group = self._shard.group
        words = pieces_of("targets", targets)
        words.append(negatives.ids.tensor_split(group.num_workers)[group.rank])
        return [*words, negatives.batch_ids] if isinstance(negatives, BatchNegatives) else words

    def start(
        self, rows: StepRows, negatives: Negatives | None, micro_batches: int, weight_scale: float,
        *, agreed: bool = False,
    ) -> StepLoss:  # fmt: skip
        """Begin to bring the samples' vectors together: [S, D] on every worker.

        Raises UserError: an argument cannot be, or others were looked up than `words` gave.
        """
        of_kind("rows", rows, StepRows, _ROWS)
        of_kind("negatives", negatives, Negatives, _NEGATIVES)
        assert negatives is not None
        self._shard.group.require_joined()
        real_number("weight_scale", weight_scale)  # not needed: the rows are leaves
        del agreed  # each worker's tokens stay where they are
        return _SampledLoss(self._feature, self._shard, rows, negatives, micro_batches)


class _SampledLoss:
    """See `StepLoss` and `sampled_cross_entropy`; the last backward is collective too."""

    def __init__(
        self,
        feature: str,
        shard: OutputShard,
        rows: StepRows,
        negatives: Negatives,
        micro_batches: int,
    ) -> None:
        self._feature = feature
        self._shard, self._rows, self._negatives = shard, rows, negatives
        micro_batches = whole_number("micro_batches", micro_batches, 1)
        self._last = micro_batches - 1
        self._drawn, self._in_batch = micro_batches, micro_batches + 1  # among the step's `words`
        parts = negatives.ids.tensor_split(shard.group.num_workers)
        self._negatives_of_worker = [part.numel() for part in parts]
        needed = micro_batches + (2 if isinstance(negatives, BatchNegatives) else 1)
        if rows.count(feature) < needed:
            raise UserError(
                f"rows: {rows.count(feature)} tensors of ids were looked up as {feature!r}; "
                f"{needed} are needed, those of `words` with the targets of each micro-batch"
            )
        own = rows.vectors(feature, self._drawn).detach()
        if own.dim() != 2 or len(own) != self._negatives_of_worker[shard.group.rank]:
            raise UserError("negatives: others are given than `words` was given for the lookup")
        self._inputs = LossInputs(shard, own.shape[1], micro_batches)
        self._trained: bool | None = None  # known by the first loss
        self._finished = False
        self._arriving = start_gather_rows(own, self._negatives_of_worker, shard.group)
        self._leaving: list[Callable[[], Tensor]] = []  # one, once the gradients are on their way

    @cached_property
    def _vectors(self) -> Tensor:
        """[C, D] leaf of all negatives. The first one to ask waits for them."""
        drawn = self._arriving()
        if isinstance(self._negatives, BatchNegatives):
            in_batch = self._rows.vectors(self._feature, self._in_batch).detach()
            drawn = torch.cat([drawn, in_batch])
        return drawn.requires_grad_(bool(self._trained))

    def of(
        self, hidden: Tensor, micro: int, targets: Tensor, tokens_of_worker: list[int],
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        self._shard.group.require_joined()
        hidden, targets, _ = self._inputs.take(
            hidden, micro, targets, tokens_of_worker, label_smoothing
        )
        if self._trained is None:  # inside `torch.no_grad()` it is only looked at
            self._trained = self._rows.train and torch.is_grad_enabled()
            self._rows.unfinished += self._trained
        answers = self._rows.vectors(self._feature, micro)
        if len(answers) != len(hidden):
            raise UserError(
                f"targets: {len(targets)} of micro-batch {micro}; {len(answers)} were looked up"
            )
        if micro == self._last and self._trained:
            group, leaving = self._shard.group, self._leaving
            rows_of_worker, num_drawn = self._negatives_of_worker, self._negatives.ids.numel()

            # The hook holds nothing that leads back to these vectors: a ring through PyTorch's C++,
            # which Python's collector does not see, would keep the step's rows for ever.
            def send_back(vectors: Tensor) -> None:
                assert vectors.grad is not None
                drawn = vectors.grad[:num_drawn]
                leaving.append(start_sum_and_scatter_rows(drawn, rows_of_worker, group))

            self._vectors.register_post_accumulate_grad_hook(send_back)
        with _no_autocast(hidden):
            return sampled_cross_entropy(
                hidden, answers, self._vectors, targets, self._negatives,
                num_words=self._shard.num_rows, block_bytes=self._shard.block_bytes,
                dtype=self._shard.dtype, label_smoothing=label_smoothing, micro=micro,
            )  # fmt: skip

    def finish(self) -> None:
        """Hand the sum over workers of each sample's gradient to who has looked it up."""
        self._inputs.require_all()
        if not self._trained:
            return
        if self._finished or not self._leaving:
            reason = "it has been called already" if self._finished else "call backward() first"
            raise UserError(f"finish: it follows the backward of a step's last loss once; {reason}")
        self._rows.add_gradient(self._feature, self._drawn, self._leaving[0]())
        if isinstance(self._negatives, BatchNegatives):
            assert self._vectors.grad is not None
            own = self._vectors.grad[self._negatives.ids.numel() :]
            self._rows.add_gradient(self._feature, self._in_batch, own)
        self._finished = True
        self._rows.unfinished -= 1


def _given_shard(shard: OutputShard | None) -> OutputShard | None:
    if shard is not None:
        of_kind("shard", shard, OutputShard, "what `output_shard` gives, or None")
    return shard


def _check_equal(tokens_of_worker: list[int], group: Group) -> None:
    """Raise UserError on all workers where they have other numbers: gloo would end the process at
    the first gathering (torch 2.13, gloo's pair.cc: an exception in a thread). Collective.
    """
    own = torch.tensor(tokens_of_worker, device=group.device)
    first, *others = stack_over_workers(own, group).tolist() if group.num_workers > 1 else [[]]
    for rank, numbers in enumerate(others, start=1):
        if numbers != first:
            raise UserError(
                f"tokens_of_worker: all workers give the same; worker 0 has {first}, worker {rank} "
                f"{numbers}"
            )


def _no_autocast(hidden: Tensor) -> AbstractContextManager[None]:
    """Types are the layer's own choice, inside an autocast of the caller too."""
    return torch.autocast(hidden.device.type, enabled=False)
