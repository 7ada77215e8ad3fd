"""Row-sharded tables for any model, and their one lookup a step.

Every row that a step asks for by id is fetched by one exchange for each width of tables. What comes
back is in `dist_embed.embedding.step_rows`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.modules.embedding_configs import EmbeddingConfig

from dist_embed.arguments import of_kind, real_number, true_or_false, whole_number
from dist_embed.embedding.bags import in_bags
from dist_embed.embedding.initial_values import fill_initial_rows
from dist_embed.embedding.kernels import Kernels
from dist_embed.embedding.options import Options, require_equal
from dist_embed.embedding.plan import Shard, TableSpec, bags_of_a_table, shard_of
from dist_embed.embedding.row_order import RowOrder
from dist_embed.embedding.settings import Exchange, Memory, Weights
from dist_embed.embedding.step_ids import pieces_of
from dist_embed.embedding.step_rows import RowRequest, StepRows, TableRows, WantedRows
from dist_embed.embedding.table import Table, named_tables
from dist_embed.embedding.tables import (
    build_sharded_tables,
    by_width,
    key_of,
)
from dist_embed.embedding.tiers import find_tier
from dist_embed.errors import UserError
from dist_embed.observe.phases import note_rows, phase, waiting
from dist_embed.parallel.errors import all_or_none
from dist_embed.parallel.group import Group

__all__ = ["ShardedTables", "Table"]


class ShardedTables:
    """Tables of any number and width, split by rows over the workers.

    Ids are looked up by feature: the name of a table, or one of those that it has been given. A
    step; `lookup` and the backward of its rows are collective::

        tables.set_learning_rate(0.05)
        tables.set_step(step)  # from 1; ``adam`` asks for it
        rows = tables.lookup({"word": ids})
        loss = model(rows.vectors("word")).sum() * group.num_workers / ids_of_all_workers
        loss.backward()  # onto the rows, which are leaves
        rows.backward()  # from there to the tables

    Args:
        tables: by name, as `Table` or as TorchRec's ``EmbeddingConfig``; or a list of the latter.
        group: this worker and its peers, see `dist_embed.parallel.group.joined_group`.
        optimizer: fused into the tables' backward: ``rowwise_adagrad``, ``adagrad``, ``sgd``, or on
            CUDA ``adam``.
        learning_rate: its first rate.
        eps: its term against division by zero.
        seed: initial rows come from (seed, table, row), whatever the number of workers.
        memory: where the rows lie: ``device``, or of a GPU in host memory, ``uvm`` or
            ``uvm_caching``; the attribute ``tier`` tells what ``auto`` has become.
        weights: type of the rows, ``fp32`` or on CUDA ``fp16``; lookups give float32 in any case.
        exchange: type in which vectors and gradients cross the network; ``fp16`` and ``bf16`` on
            CUDA alone.
        step_bytes: what a step needs of a GPU beside the tables.
        configured: messages name settings as a configuration file does (``embedding.memory``).

    Attributes:
        specs: the tables' names and sizes.
        shards: which of their rows this worker holds.
        orders: where the row of an id lies in each.
        table_of: the table of each feature.

    Raises:
        UserError: the tables cannot be, or not on this device, or do not fit; or workers were given
            others, or in another order.

    The constructor is collective.
    """

    def __init__(
        self,
        tables: Mapping[str, Table | EmbeddingConfig] | Iterable[EmbeddingConfig],
        group: Group,
        *,
        optimizer: str = "rowwise_adagrad",
        learning_rate: float = 0.05,
        eps: float = 1e-8,
        seed: int = 0,
        memory: Memory = "auto",
        weights: Weights = "fp32",
        exchange: Exchange = "fp32",
        step_bytes: int = 0,
        configured: bool = False,
    ) -> None:
        of_kind("group", group, Group, "what `joined_group` gives in its block")
        group.require_joined()
        options = Options(
            optimizer, learning_rate, eps, seed, memory, weights, exchange, step_bytes
        )
        with all_or_none(group):
            named = named_tables(tables)
            options = options.checked()
            true_or_false("configured", configured)
        require_equal(named, options, group)
        self.group = group
        self._own_rates = {
            name: table.learning_rate
            for name, table in named.items()
            if table.learning_rate is not None
        }
        self.initial_scale = {name: table.scale for name, table in named.items()}
        self.table_of = {
            feature: name for name, table in named.items() for feature in table.features or (name,)
        }
        self.specs: dict[str, TableSpec] = {name: t.spec(name) for name, t in named.items()}
        self.shards: dict[str, Shard] = {
            name: shard_of(spec.num_rows, group.rank, group.num_workers)
            for name, spec in self.specs.items()
        }
        self.orders: dict[str, RowOrder] = {name: spec.order for name, spec in self.specs.items()}
        specs = list(self.specs.values())
        self._tables_of = [[spec.name for spec in of_width] for of_width in by_width(specs)]
        self._num_bags = bags_of_a_table(group.device.type, group.num_workers)
        self._cache_is_newer = False
        self._frozen: frozenset[str] = frozenset()
        self._fetched = 0  # how often rows were fetched for training
        trained_whole = frozenset(name for name, table in named.items() if table.trained_whole)
        self.tier, cached = find_tier(
            options.memory, specs, optimizer, options.weights, options.step_bytes, group,
            trained_whole, configured=configured,
        )  # fmt: skip
        self._modules = self._built(options, cached, trained_whole, configured=configured)
        self._kernels = Kernels(
            self._modules, self.specs, self.shards, group, optimizer=optimizer,
            trained_whole=trained_whole,
        )  # fmt: skip
        for name, shard in self.shards.items():
            fill_initial_rows(
                self.weight(name), seed=options.seed, table=name, first_row=shard.first_row,
                scale=self.initial_scale[name],
            )  # fmt: skip
        self.after_writing()

    def _built(
        self, options: Options, cached: float, trained_whole: frozenset[str], *, configured: bool
    ) -> list[ShardedEmbeddingCollection]:
        """TorchRec's modules, one for each distinct width of tables. Collective."""
        devices = [self.group.device] if self.group.device.type == "cuda" else []
        # TorchRec draws rows of its own, as many as a shard has: the caller's draws would depend on
        # the number of workers.
        with torch.random.fork_rng(devices):
            return build_sharded_tables(
                list(self.specs.values()),
                self.group,
                optimizer=options.optimizer,
                learning_rates=dict.fromkeys(self.specs, options.learning_rate) | self._own_rates,
                eps=options.eps,
                tier=self.tier,
                weights=options.weights,
                exchange=options.exchange,
                cache_share=cached,
                trained_whole=trained_whole,
                configured=configured,
            )

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{name}: {spec.num_rows:,} × {spec.width}" for name, spec in self.specs.items()
        )
        return (
            f"ShardedTables({sizes}; memory {self.tier}, worker {self.group.rank} of "
            f"{self.group.num_workers})"
        )

    def lookup(self, ids: Mapping[str, Tensor | Sequence[Tensor]]) -> StepRows:
        """Fetch the rows of one step: `wanted`, `request`, `fetch`. Collective.

        The ids may be on the group's device or on the host.
        """
        wanted = self.wanted(ids).changed(lambda tensor: tensor.to(self.group.device))
        return self.fetch(self.request(wanted))

    def wanted(self, ids: Mapping[str, Tensor | Sequence[Tensor]]) -> WantedRows:
        """The distinct rows of a step's ids, on the ids' device. Not collective; in any thread.

        Args:
            ids: for features a tensor of ids, or any number of them, of any shape, also empty;
                numpy's arrays are taken too.

        Raises:
            UserError: there is no such feature; or something is no id of its table. On a GPU
                numbers that are too large are not looked for: its host would have to wait.
        """
        allowed = f"give them by feature, as {{{next(iter(self.table_of))!r}: ids}}"
        of_kind("ids", ids, Mapping, allowed)
        for feature in ids:
            if feature not in self.table_of:
                known = ", ".join(self.table_of)
                raise UserError(f"feature {feature!r}: no table has it; there are {known}")
        listed = {
            feature: pieces_of(f"feature {feature!r}", given) for feature, given in ids.items()
        }
        index: dict[str, list[Tensor]] = {}
        rows: dict[str, Tensor] = {}
        everything = [piece for pieces in listed.values() for piece in pieces]
        device = everything[0].device if everything else self.group.device
        for table, order in self.orders.items():
            features = [feature for feature in listed if self.table_of[feature] == table]
            pieces = [piece for feature in features for piece in listed[feature]]
            flat = [torch.empty(0, dtype=torch.int64, device=device)]
            flat += [piece.reshape(-1) for piece in pieces]
            together = torch.cat(flat)
            self.check_ids(table, together)
            # Distinct ones: a frequent word then crosses the network once.
            rows[table], inverse = order.rows_of(together).unique(return_inverse=True)
            parts = iter(inverse.split([piece.numel() for piece in pieces]))
            for feature in features:
                index[feature] = [next(parts).view(piece.shape) for piece in listed[feature]]
        return WantedRows(rows, index)

    def check_ids(self, table: str, ids: Tensor) -> None:
        """Raise UserError where something, int64, is no id of a table; not on a GPU."""
        count = self.specs[table].num_rows
        if ids.device.type != "cpu" or not ids.numel():
            return
        lowest, highest = map(int, ids.aminmax())
        if lowest < 0 or highest >= count:
            raise UserError(
                f"table {table!r}: {lowest if lowest < 0 else highest} is no id; allowed are 0 to "
                f"{count - 1}"
            )

    def request(self, wanted: WantedRows) -> RowRequest:
        """Begin to send what a step wants to the workers that hold the rows. Collective.

        The rows are not looked at before `fetch`, so a step's request may go out while the one
        before is still computing. ``wanted`` is on the group's device.
        """
        of_kind("wanted", wanted, WantedRows, "what `wanted` gives")
        self.group.require_joined()
        contexts, counts = [], []
        with phase("ids exchange"):
            for module, tables in zip(self._modules, self._tables_of, strict=True):
                rows = {key_of(table): wanted.rows[table] for table in tables}
                contexts.append(module.create_context())
                bags = in_bags(rows, self._num_bags, self.group.device)
                counts.append(module.input_dist(contexts[-1], bags))
        return RowRequest(wanted, contexts, counts)

    def fetch(self, request: RowRequest) -> StepRows:
        """The rows as they are now. Collective. A request is fetched once.

        Only what was last fetched for training can be trained: what is held for an update, the
        gradient of a table that is trained whole and a GPU's cache, is the newest step's.
        """
        of_kind("request", request, RowRequest, "what `request` gives")
        self.group.require_joined()
        arrived = request.arrived()
        note_rows(sum(map(len, request.wanted.rows.values())))
        with phase("lookup"):
            return self._look_up(request, arrived)

    def _look_up(self, request: RowRequest, arrived: list[Any]) -> StepRows:
        training, own = torch.is_grad_enabled(), {}
        if training:
            self._fetched += 1
            own = {
                table: kernel.begin_step(trained=table not in self._frozen)
                for table, kernel in self._kernels.own.items()
            }
        on_their_way, taken_here = [], []
        for module, context, asked in zip(self._modules, request.contexts, arrived, strict=True):
            taken = module.compute(context, asked)
            taken_here += [vectors.grad_fn for vectors in taken if vectors.grad_fn is not None]
            on_their_way.append(module.output_dist(context, taken))
        fetched: dict[str, TableRows] = {}
        for coming, tables in zip(on_their_way, self._tables_of, strict=True):
            with waiting():
                found = coming.wait()
            for table in tables:
                values = found[key_of(table)].values()
                if values.shape[1] > self.specs[table].width:  # whose gradient is 0 there
                    values = values[:, : self.specs[table].width]
                leaf = values.detach().requires_grad_(training and table not in self._frozen)
                fetched[table] = TableRows(request.wanted.rows[table], leaf, values)
        number = self._fetched

        def before_update(rows: StepRows, proven: bool) -> None:
            self._before_update(rows, number, proven)

        return StepRows(
            fetched, own, self.table_of, request.wanted.index, before_update, taken_here
        )

    def weight(self, table: str) -> Tensor:
        """Live view of this worker's logical rows of ``table``: [R, D], up to date on return.

        Whoever keeps it over a step calls `before_reading` before it is read again, and whoever
        writes to it `after_writing`. Not collective.
        """
        self._check_tables([table])
        self.before_reading()
        return self._kernels.rows[table]

    def before_reading(self) -> None:
        """Bring the tables up to date: a cache on the GPU may hold newer rows. Not collective."""
        if self._cache_is_newer:
            self._kernels.flush()
            self._cache_is_newer = False

    def after_writing(self) -> None:
        """Drop what a cache on the GPU holds: the tables are newer.

        Not between a `fetch` and the `StepRows.backward` of its rows. Not collective.
        """
        self._kernels.drop_caches()
        self._cache_is_newer = False

    def _before_update(self, rows: StepRows, number: int, proven: bool) -> None:
        """Raise UserError where the rows of the ``number``-th fetch cannot be trained. Collective,
        unless it is ``proven`` that the first half has run.
        """
        self.group.require_joined()
        if number != self._fetched:
            raise UserError(
                "backward: rows were looked up for training again since these; only those looked "
                "up last can be trained"
            )
        if not proven:
            rows.require_first_half(self.group)
        self._cache_is_newer = self.tier == "uvm_caching"

    def optimizer_state(self, table: str) -> dict[str, Tensor]:
        """Live views of the fused optimizer's state of this worker's logical rows.

        Each is [R] (row-wise) or [R, D], by the optimizer's name for it. Not collective.
        """
        self._check_tables([table])
        return self._kernels.optimizer_state(table)

    def set_learning_rate(
        self, learning_rate: float, own_rates: dict[str, float] | None = None
    ) -> None:
        """Set the fused optimizer's rate for the backward of the rows that are fetched next.

        FBGEMM's kernels take the rate when rows are fetched, not when they are updated (fbgemm-gpu
        1.8.0, embedding_split_host_pt2_autograd_template.cpp).

        Args:
            learning_rate: of all tables but
            own_rates: those that were built with rates of their own, which they keep where nothing
                is said here. Tables that were built with equal rates, and have one width, share a
                kernel, and have equal rates for ever.

        Raises:
            UserError: a rate is no number from 0 on, or no table has such a name.

        Not collective.
        """
        learning_rate = real_number("learning_rate", learning_rate)
        if own_rates is not None:
            of_kind("own_rates", own_rates, Mapping, "rates by the names of tables")
        self._check_tables(own_rates or {})
        given = {
            name: real_number(f"learning_rate of table {name!r}", rate)
            for name, rate in (own_rates or {}).items()
        }
        self._kernels.set_rates(dict.fromkeys(self.specs, learning_rate) | self._own_rates | given)

    def freeze(self, tables: Iterable[str]) -> None:
        """Leave ``tables``, their names, and no others, as they are from the next `fetch` on.

        Their leaves ask for no gradient, and nothing but zeros reaches their optimizer. That leaves
        rows as they are; but Adam moves those that it has moments of, unless training takes the
        whole table: that is not updated at all. A single name may be given as text. Not collective.

        Raises UserError: no table has such a name.
        """
        of_kind("tables", tables, Iterable, "names of tables")
        names = [tables] if isinstance(tables, str) else list(tables)
        self._check_tables(names)
        self._frozen = frozenset(names)

    def _check_tables(self, names: Iterable[str]) -> None:
        for name in names:
            if not isinstance(name, str) or name not in self.specs:
                known = ", ".join(self.specs)
                raise UserError(f"table {name!r}: there is none of that name; there are {known}")

    def set_step(self, step: int) -> None:
        """Set the number of the step, from 1, whose rows the next `fetch` is to train.

        A fused Adam takes its bias correction from it. By itself FBGEMM counts every forward pass,
        validations too, and a checkpoint does not hold the count. Not collective.
        """
        self._kernels.set_step(whole_number("step", step, 1))

    def ids_of_own_rows(self, table: str) -> Tensor:
        """The ids whose rows of ``table`` this worker holds, in the order of its rows: [R]."""
        self._check_tables([table])
        shard = self.shards[table]
        rows = torch.arange(shard.first_row, shard.end_row, device=self.group.device)
        return self.orders[table].ids_of(rows)

    @property
    def num_ids(self) -> dict[str, int]:
        """By feature how many ids its table has a row for."""
        return {feature: self.specs[table].num_rows for feature, table in self.table_of.items()}

    @property
    def kernels(self) -> list[SplitTableBatchedEmbeddingBagsCodegen]:
        """FBGEMM's, which hold the tables: for measurements beside them."""
        return self._kernels.each
