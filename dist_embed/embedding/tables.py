"""Which tables a model has, which rows each worker holds, and the sharded module that holds them.

A table is split by rows into contiguous, equally long shards, one per worker. Row-wise shards of
TorchRec have ``ceil(rows / workers)`` rows, which can leave the last worker with none; FBGEMM's CPU
kernel crashes on an empty shard. The physical table is therefore padded to a multiple of the number
of workers. Padding rows are never looked up, trained, saved or counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor
from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from dist_embed.embedding.row_order import RowOrder
from dist_embed.parallel.group import Group

ShareEmbeddings = Literal["none", "decoder", "all"]
ROLES = ("source", "target", "output")
# Which table plays which role. Tying is naming the same table twice.
TABLE_OF_ROLE: dict[ShareEmbeddings, dict[str, str]] = {
    "none": {"source": "source", "target": "target", "output": "output"},
    "decoder": {"source": "source", "target": "decoder", "output": "decoder"},
    "all": {"source": "shared", "target": "shared", "output": "shared"},
}

OPTIMIZERS: dict[str, EmbOptimType] = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
    "adam": EmbOptimType.ADAM,
}
CUDA_ONLY_OPTIMIZERS = ("adam",)  # FBGEMM asserts on CPU


@dataclass(frozen=True)
class TableSpec:
    """One logical table: V = ``num_rows`` rows of D = ``width`` float32 values."""

    name: str
    num_rows: int
    width: int

    @property
    def order(self) -> RowOrder:
        """The bijection between ids and rows."""
        return RowOrder(self.num_rows)


@dataclass(frozen=True)
class Shard:
    """The rows of one table that one worker holds: ``[first_row, first_row + num_rows)``."""

    first_row: int
    num_rows: int
    physical_rows: int  # with padding; the same on every worker, at least 1

    @property
    def end_row(self) -> int:
        """One past the last row."""
        return self.first_row + self.num_rows


def shard_of(num_rows: int, rank: int, num_workers: int) -> Shard:
    """The shard of worker ``rank`` of a table with ``num_rows`` logical rows; may hold no row."""
    physical = -(-num_rows // num_workers)
    first = min(rank * physical, num_rows)
    return Shard(first, min(physical, num_rows - first), physical)


def build_sharded_tables(
    specs: list[TableSpec],
    features: dict[str, list[str]],
    group: Group,
    *,
    optimizer: str,
    learning_rate: float,
    eps: float,
) -> ShardedEmbeddingCollection:
    """Build the tables from the meta device, so that no process ever holds more than its shard.

    Args:
        specs: the logical tables.
        features: for each table the names under which ids are looked up in it.
        group: this worker and its peers.
        optimizer: key of `OPTIMIZERS`, fused into the tables' backward.
        learning_rate: rate of the fused optimizer; see `RowLookup.set_learning_rate`.
        eps: the optimizer's term against division by zero.

    Raises:
        ValueError: an optimizer that needs CUDA on another device.

    Collective: every worker calls it with equal arguments.
    """
    if optimizer in CUDA_ONLY_OPTIMIZERS and group.device.type != "cuda":
        allowed = sorted(set(OPTIMIZERS) - set(CUDA_ONLY_OPTIMIZERS))
        raise ValueError(
            f"embedding.optimizer={optimizer!r} needs CUDA (FBGEMM has no CPU kernel for it); "
            f"on this device choose one of {allowed}"
        )
    module = EmbeddingCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingConfig(
                name=spec.name,
                num_embeddings=shard_of(spec.num_rows, 0, group.num_workers).physical_rows
                * group.num_workers,
                embedding_dim=spec.width,
                feature_names=features[spec.name],
                init_fn=_leave_as_is,  # filled by `fill_initial_rows` or a checkpoint
            )
            for spec in specs
        ],
    )
    sharder = EmbeddingCollectionSharder(
        fused_params={
            "optimizer": OPTIMIZERS[optimizer],
            "learning_rate": learning_rate,
            "eps": eps,
        }
    )
    plan = construct_module_sharding_plan(
        module,
        {spec.name: row_wise(compute_kernel="fused") for spec in specs},
        sharder=sharder,
        local_size=group.num_local_workers,
        world_size=group.num_workers,
        device_type=group.device.type,
    )
    return sharder.shard(
        module, plan, ShardingEnv.from_process_group(group.process_group), device=group.device
    )


def _leave_as_is(tensor: Tensor) -> None:
    del tensor
