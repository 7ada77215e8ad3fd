"""FBGEMM's kernels in the sharded modules, which read and update the tables' rows.

The private parts of both are read and set here alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbedding
from torchrec.distributed.embedding import ShardedEmbeddingCollection

from dist_embed.embedding.cpu_rows import CpuRows
from dist_embed.embedding.own_rows import OwnRowsKernel
from dist_embed.embedding.plan import Shard, TableSpec
from dist_embed.errors import UserError
from dist_embed.parallel.group import Group


class Kernels:
    """Those of one worker, made to go forward as the device and the tables ask for.

    Args:
        modules: see `dist_embed.embedding.tables.build_sharded_tables`;
        trained_whole: likewise.
        specs: the tables of the modules.
        shards: which of their rows this worker holds.
        group: this worker and its peers.
        optimizer: of the modules.

    Attributes:
        each: FBGEMM's.
        own: of each table that is trained whole what reads and trains its rows where they lie.
        rows: by table a live view of this worker's logical rows: [R, D]. Padding is zero.
    """

    def __init__(
        self,
        modules: list[ShardedEmbeddingCollection],
        specs: Mapping[str, TableSpec],
        shards: Mapping[str, Shard],
        group: Group,
        *,
        optimizer: str,
        trained_whole: Collection[str],
    ) -> None:
        self._modules, self._specs, self._shards = modules, specs, shards
        self.each: list[SplitTableBatchedEmbeddingBagsCodegen] = []
        self.own: dict[str, OwnRowsKernel] = {}
        for kernel, tables in _with_tables(modules):
            self.each.append(kernel)
            if not set(tables).isdisjoint(trained_whole):
                (table,) = tables
                own = OwnRowsKernel(kernel, shards[table].num_rows, specs[table].width)
                kernel.forward = self.own[table] = own
            elif group.device.type == "cpu":
                kernel.forward = CpuRows(kernel, specs[tables[0]].width)
        # They count steps for themselves, for Adam's bias correction.
        self._counting = self.each if optimizer == "adam" else []
        # Of live views, so it need not be asked for again.
        state = {k: v for module in modules for k, v in module.state_dict().items()}
        self.rows: dict[str, Tensor] = {}
        for table, shard in shards.items():
            physical = state[f"embeddings.{table}.weight"].local_shards()[0].tensor
            physical[shard.num_rows :].zero_()
            physical[:, specs[table].width :].zero_()
            self.rows[table] = physical[: shard.num_rows, : specs[table].width]

    def flush(self) -> None:
        """Write what a cache on the GPU holds into the tables."""
        for kernel in self.each:
            kernel.flush()

    def drop_caches(self) -> None:
        """Forget what a cache on the GPU holds."""
        for kernel in self.each:
            kernel.reset_cache_states()

    def optimizer_state(self, table: str) -> dict[str, Tensor]:
        """See `ShardedTables.optimizer_state`."""
        saved: dict[str, Any] = {}
        for module in self._modules:
            saved |= module.fused_optimizer.state_dict()["state"]
        state = saved.get(f"embeddings.{table}.weight", {})  # SGD has none
        shard, width = self._shards[table], self._specs[table].width
        views: dict[str, Tensor] = {}
        for name, value in state.items():
            local = value.local_shards()[0].tensor
            if local.dim() and local.shape[0] == shard.physical_rows:
                rows = local[: shard.num_rows]
                views[name.removeprefix(f"{table}.")] = rows if rows.dim() == 1 else rows[:, :width]
        return views

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Set each table's rate. Raises UserError where tables of one kernel have several."""
        for module in self._modules:
            for _, kernel in module.fused_optimizer.optimizers:
                tables = [name.split(".")[1] for name in kernel.params]
                of_kernel = {rates[table] for table in tables}
                if len(of_kernel) > 1:
                    raise UserError(
                        f"own_rates: tables {tables} share a kernel, but not their rates: "
                        f"{of_kernel}"
                    )
                for param_group in kernel.param_groups:
                    param_group["lr"] = next(iter(of_kernel))
            module.fused_optimizer.zero_grad()  # the rates reach the kernels only here

    def set_step(self, step: int) -> None:
        """See `ShardedTables.set_step`."""
        for own in self.own.values():
            own.step = step
        for kernel in self._counting:
            kernel.iter_cpu.fill_(step - 1)  # the forward adds 1
            kernel.iter.fill_(step - 1)


def _with_tables(
    modules: list[ShardedEmbeddingCollection],
) -> list[tuple[SplitTableBatchedEmbeddingBagsCodegen, list[str]]]:
    """The kernels with the names of the tables that each holds."""
    return [
        (module.emb_module, [table.name for table in module.config.embedding_tables])
        for sharded in modules
        for lookup in sharded._lookups  # a plain list: modules() does not descend into it
        for module in lookup.modules()
        if isinstance(module, BatchedFusedEmbedding)
    ]
