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
from typing import Protocol

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
from dist_embed.model.output import OutputShard
from dist_embed.model.sampler import Negatives, Sampler
from dist_embed.model.step_loss import ExactLoss, SampledLoss, StepLoss
from dist_embed.parallel.collectives import least_over_workers
from dist_embed.parallel.device import memory_bytes
from dist_embed.parallel.errors import all_or_none

_ROWS = "what the step's lookup has given"
_NEGATIVES = "what `draw` has given"


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
        return ExactLoss(rows_of, self._shard, own, weight_scale, inputs, agreed)


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
        return SampledLoss(self._feature, self._shard, rows, negatives, micro_batches)


def _given_shard(shard: OutputShard | None) -> OutputShard | None:
    if shard is not None:
        of_kind("shard", shard, OutputShard, "what `output_shard` gives, or None")
    return shard
