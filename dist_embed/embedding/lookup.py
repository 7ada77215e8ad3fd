"""One lookup a step: every row that a step asks for by id, fetched by one exchange.

What comes back is in `dist_embed.embedding.step_rows`.
"""

from __future__ import annotations

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbedding

from dist_embed.embedding.bags import bags_of_a_table, in_bags
from dist_embed.embedding.cpu_rows import CpuRows
from dist_embed.embedding.initial_values import fill_initial_rows
from dist_embed.embedding.own_rows import OwnRowsKernel
from dist_embed.embedding.plan import TABLE_OF_ROLE, Shard, shard_of, table_specs
from dist_embed.embedding.settings import Exchange, Memory, Weights
from dist_embed.embedding.step_rows import RowRequest, StepRows, TableRows, WantedRows
from dist_embed.embedding.tables import build_sharded_tables, feature_of
from dist_embed.embedding.tiers import find_tier
from dist_embed.model.settings import ShareEmbeddings
from dist_embed.parallel.group import Group


class RowLookup:
    """The row-sharded tables of a model and the lookup in them.

    Args:
        rows_of_role: vocabulary rows V for the roles ``source``, ``target`` and ``output``.
        width: D.
        sharing: which roles use one table.
        group: this worker and its peers.
        optimizer: fused optimizer, see `dist_embed.embedding.tables.OPTIMIZERS`.
        learning_rate: its first rate.
        eps: its term against division by zero.
        seed: initial rows come from (seed, table, row).
        initial_scale: standard deviation of the initial rows; 0: zeros, for rows that come from
            elsewhere.
        own_output: whether training takes all output rows of the own shard, as the exact output
            layer does: see `dist_embed.embedding.own_rows`.
        memory: where the rows lie; the attribute ``tier`` tells what ``auto`` has become.
        weights: type of the rows; lookups give float32 in any case.
        exchange: type in which vectors and gradients cross the network.
        step_bytes: what a step needs of a GPU beside the tables.
        own_rates: first rates of tables that have another.

    Raises:
        ValueError: roles with different V are to share a table.
        UserError: the tables cannot be on this device, or do not fit.

    The constructor is collective.
    """

    def __init__(
        self,
        rows_of_role: dict[str, int],
        width: int,
        sharing: ShareEmbeddings,
        group: Group,
        *,
        optimizer: str,
        learning_rate: float,
        eps: float,
        seed: int,
        initial_scale: float,
        own_output: bool = False,
        memory: Memory = "auto",
        weights: Weights = "fp32",
        exchange: Exchange = "fp32",
        step_bytes: int = 0,
        own_rates: dict[str, float] | None = None,
    ) -> None:
        self.group = group
        self.width = width
        self.initial_scale = initial_scale
        self.table_of_role = TABLE_OF_ROLE[sharing]
        self.specs = table_specs(rows_of_role, width, sharing)
        self.rows_of_role = rows_of_role
        self.shards: dict[str, Shard] = {
            name: shard_of(spec.num_rows, group.rank, group.num_workers)
            for name, spec in self.specs.items()
        }
        self._orders = {name: spec.order for name, spec in self.specs.items()}
        output_table = self.table_of_role["output"]
        specs = list(self.specs.values())
        trained_whole = output_table if own_output else None
        self.tier, cached = find_tier(
            memory, specs, optimizer, weights, step_bytes, group, trained_whole
        )
        self._module = build_sharded_tables(
            specs,
            group,
            optimizer=optimizer,
            learning_rates=dict.fromkeys(self.specs, learning_rate) | (own_rates or {}),
            eps=eps,
            tier=self.tier,
            weights=weights,
            exchange=exchange,
            cache_share=cached,
            trained_whole=trained_whole,
        )
        tables_of_kernels = self._tables_of_kernels()
        self._kernels = [kernel for kernel, _ in tables_of_kernels]
        self._own: OwnRowsKernel | None = None
        for kernel, tables in tables_of_kernels:
            if own_output and output_table in tables:
                self._own = OwnRowsKernel(kernel, self.shards[output_table].num_rows)
                kernel.forward = self._own
            elif group.device.type == "cpu":
                kernel.forward = CpuRows(kernel)
        # They count steps for themselves, for Adam's bias correction.
        self._counting = self._kernels if optimizer == "adam" else []
        self._num_bags = bags_of_a_table(group.device.type, group.num_workers)
        self._cache_is_newer = False
        self._frozen: frozenset[str] = frozenset()
        state = self._module.state_dict()  # of live views, so it need not be asked for again
        self._weights: dict[str, Tensor] = {
            name: state[f"embeddings.{name}.weight"].local_shards()[0].tensor for name in self.specs
        }
        for name, shard in self.shards.items():
            self._weights[name][shard.num_rows :].zero_()
            fill_initial_rows(
                self.weight(name), seed=seed, table=name, first_row=shard.first_row,
                scale=initial_scale,
            )  # fmt: skip
        self.after_writing()

    def _tables_of_kernels(self) -> list[tuple[SplitTableBatchedEmbeddingBagsCodegen, list[str]]]:
        """FBGEMM's kernels with the names of the tables that each holds."""
        return [
            (module.emb_module, [table.name for table in module.config.embedding_tables])
            for lookup in self._module._lookups  # a plain list: modules() does not descend into it
            for module in lookup.modules()
            if isinstance(module, BatchedFusedEmbedding)
        ]

    def lookup(self, ids: dict[str, list[Tensor]]) -> StepRows:
        """Fetch the rows of one step: `wanted`, `request`, `fetch`. Collective."""
        return self.fetch(self.request(self.wanted(ids)))

    def wanted(self, ids: dict[str, list[Tensor]]) -> WantedRows:
        """The distinct rows of a step's ids, on the ids' device. Not collective; in any thread.

        Args:
            ids: for roles (``source``: the encoder's input, ``target``: the decoder's, ``output``:
                words to be scored) any number of id tensors, int64, of any shape, also empty.
        """
        index: dict[str, list[Tensor]] = {}
        rows: dict[str, Tensor] = {}
        given = [piece for pieces in ids.values() for piece in pieces]
        device = given[0].device if given else self.group.device
        for table, order in self._orders.items():
            roles = [role for role in ids if self.table_of_role[role] == table]
            pieces = [piece for role in roles for piece in ids[role]]
            flat = [torch.empty(0, dtype=torch.int64, device=device)]
            flat += [piece.reshape(-1) for piece in pieces]
            # Distinct ones: a frequent word then crosses the network once.
            rows[table], inverse = order.rows_of(torch.cat(flat)).unique(return_inverse=True)
            parts = iter(inverse.split([piece.numel() for piece in pieces]))
            for role in roles:
                index[role] = [next(parts).view(piece.shape) for piece in ids[role]]
        return WantedRows(rows, index)

    def request(self, wanted: WantedRows) -> RowRequest:
        """Begin to send what a step wants to the workers that hold the rows. Collective.

        The rows are not looked at before `fetch`, so a step's request may go out while the one
        before is still computing. ``wanted`` is on the group's device.
        """
        features = {feature_of(table): rows for table, rows in wanted.rows.items()}
        context = self._module.create_context()
        bags = in_bags(features, self._num_bags, self.group.device)
        return RowRequest(wanted, context, self._module.input_dist(context, bags))

    def fetch(self, request: RowRequest) -> StepRows:
        """The rows as they are now. Collective. A request is fetched once.

        With ``own_output`` only the rows that were last fetched for training can be trained.
        """
        training, own = torch.is_grad_enabled(), None
        if self._own is not None and training:
            own = self._own.begin_step(trained=self.table_of_role["output"] not in self._frozen)
        looked_up = self._module.compute_and_output_dist(request.context, request.arrived())
        fetched: dict[str, TableRows] = {}
        for table in self.specs:
            values = looked_up[feature_of(table)].values()
            leaf = values.detach().requires_grad_(training and table not in self._frozen)
            fetched[table] = TableRows(request.wanted.rows[table], leaf, values)
        return StepRows(fetched, own, self.table_of_role, request.wanted.index, self._note_update)

    def weight(self, table: str) -> Tensor:
        """Live view of this worker's logical rows of ``table``: [R, D], up to date on return.

        Whoever keeps it over a step calls `before_reading` before it is read again, and whoever
        writes to it `after_writing`. Not collective.
        """
        self.before_reading()
        return self._weights[table][: self.shards[table].num_rows]

    def output_weight(self) -> Tensor:
        """Live view of this worker's rows of the output layer: [R, D]. Not collective."""
        return self.weight(self.table_of_role["output"])

    def before_reading(self) -> None:
        """Bring the tables up to date: a cache on the GPU may hold newer rows. Not collective."""
        if self._cache_is_newer:
            for kernel in self._kernels:
                kernel.flush()
            self._cache_is_newer = False

    def after_writing(self) -> None:
        """Drop what a cache on the GPU holds: the tables are newer.

        Not between a `fetch` and the `StepRows.backward` of its rows. Not collective.
        """
        for kernel in self._kernels:
            kernel.reset_cache_states()
        self._cache_is_newer = False

    def _note_update(self) -> None:
        self._cache_is_newer = self.tier == "uvm_caching"

    def optimizer_state(self, table: str) -> dict[str, Tensor]:
        """Live views of the fused optimizer's state of this worker's logical rows.

        Each is [R] (row-wise) or [R, D], by the optimizer's name for it. Not collective.
        """
        saved = self._module.fused_optimizer.state_dict()["state"]
        state = saved.get(f"embeddings.{table}.weight", {})  # SGD has none
        shard = self.shards[table]
        views: dict[str, Tensor] = {}
        for name, value in state.items():
            local = value.local_shards()[0].tensor
            if local.dim() and local.shape[0] == shard.physical_rows:
                views[name.removeprefix(f"{table}.")] = local[: shard.num_rows]
        return views

    def set_learning_rate(
        self, learning_rate: float, own_rates: dict[str, float] | None = None
    ) -> None:
        """Set the fused optimizer's rate for the backward of the rows that are fetched next.

        FBGEMM's kernels take the rate when rows are fetched, not when they are updated (fbgemm-gpu
        1.8.0, embedding_split_host_pt2_autograd_template.cpp).

        Args:
            learning_rate: of all tables but
            own_rates: those that were built with rates of their own. Tables that were built with
                equal rates share a kernel, and have equal rates for ever.

        Not collective.
        """
        for _, kernel in self._module.fused_optimizer.optimizers:
            names = [name.split(".")[1] for name in kernel.params]
            rates = {(own_rates or {}).get(name, learning_rate) for name in names}
            if len(rates) > 1:
                raise ValueError(f"tables {names} share a kernel, but not their rates: {rates}")
            for param_group in kernel.param_groups:
                param_group["lr"] = next(iter(rates))
        self._module.fused_optimizer.zero_grad()  # the rates reach the kernels only here

    def freeze(self, tables: frozenset[str]) -> None:
        """Leave ``tables``, and no others, as they are from the next `fetch` on.

        Their leaves ask for no gradient, and nothing but zeros reaches their optimizer. That leaves
        rows as they are; but Adam moves those that it has moments of, unless training takes the
        whole table: that is not updated at all. Not collective.
        """
        self._frozen = tables

    def set_step(self, step: int) -> None:
        """Set the number of the step, from 1, whose rows the next `fetch` is to train.

        A fused Adam takes its bias correction from it. By itself FBGEMM counts every forward pass,
        validations too, and a checkpoint does not hold the count. Not collective.
        """
        if self._own is not None:
            self._own.step = step
        for kernel in self._counting:
            kernel.iter_cpu.fill_(step - 1)  # the forward adds 1
            kernel.iter.fill_(step - 1)

    def ids_of_own_output_rows(self) -> Tensor:
        """The ids whose output rows this worker holds, in the order of its rows: [R]."""
        table = self.table_of_role["output"]
        shard = self.shards[table]
        rows = torch.arange(shard.first_row, shard.end_row, device=self.group.device)
        return self._orders[table].ids_of(rows)

    def output_rows_of(self, ids: Tensor) -> Tensor:
        """Row numbers of ``ids`` in the output layer's table, same shape."""
        return self._orders[self.table_of_role["output"]].rows_of(ids)

    @property
    def kernels(self) -> list[SplitTableBatchedEmbeddingBagsCodegen]:
        """FBGEMM's, which hold the tables: for measurements beside them."""
        return self._kernels

    @property
    def output_shard(self) -> Shard:
        """This worker's shard of the output layer's table."""
        return self.shards[self.table_of_role["output"]]

    @property
    def num_output_rows(self) -> int:
        """V of the output layer."""
        return self.specs[self.table_of_role["output"]].num_rows
