"""The sharded modules that hold the tables' rows, made by TorchRec."""

from __future__ import annotations

from collections.abc import Collection

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor
from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection
from torchrec.distributed.embedding_sharding import USE_ONE_TBE_PER_TABLE
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.types import QuantizedCommCodecs, ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.types import DataType

from dist_embed.config.cuda_only import problems_on_cuda, problems_without_cuda
from dist_embed.embedding.plan import TableSpec, shard_of
from dist_embed.embedding.settings import Exchange, Tier, Weights
from dist_embed.errors import UserError
from dist_embed.observe.quiet import quiet_tables
from dist_embed.parallel.group import Group

OPTIMIZERS: dict[str, EmbOptimType] = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
    "adam": EmbOptimType.ADAM,
}
STATELESS = "sgd"  # of tables that are only read: rows without an optimizer's state

KERNELS: dict[Tier, EmbeddingComputeKernel] = {
    "device": EmbeddingComputeKernel.FUSED,
    "uvm": EmbeddingComputeKernel.FUSED_UVM,
    "uvm_caching": EmbeddingComputeKernel.FUSED_UVM_CACHING,
}
WEIGHT_TYPES: dict[Weights, DataType] = {"fp32": DataType.FP32, "fp16": DataType.FP16}
# Types of vectors and of gradients on the network. A gradient is divided by the number of tokens:
# it lies below fp16's range, and TorchRec's loss scale does not help, as it is undone in fp16.
EXCHANGES: dict[Exchange, tuple[CommType, CommType]] = {
    "fp32": (CommType.FP32, CommType.FP32),
    "fp16": (CommType.FP16, CommType.BF16),
    "bf16": (CommType.BF16, CommType.BF16),
}


def build_sharded_tables(
    specs: list[TableSpec],
    group: Group,
    *,
    optimizer: str,
    learning_rates: dict[str, float],
    eps: float,
    tier: Tier = "device",
    weights: Weights = "fp32",
    exchange: Exchange = "fp32",
    cache_share: float = 0.0,
    trained_whole: Collection[str] = (),
    configured: bool = False,
) -> list[ShardedEmbeddingCollection]:
    """Build the tables from the meta device, so that no process ever holds more than its shard.

    TorchRec wants one width of a collection: there is one for each of `by_width`.

    Args:
        specs: the logical tables; ids are looked up in each under `key_of` its name.
        group: this worker and its peers.
        optimizer: key of `OPTIMIZERS`, fused into the tables' backward.
        learning_rates: first rate of the fused optimizer for each table. Tables with equal rates
            get one kernel; see `ShardedTables.set_learning_rate`.
        eps: the optimizer's term against division by zero.
        tier: where the rows lie.
        weights: type of the rows; those of fp16 are rounded stochastically when updated.
        exchange: type in which vectors cross the network; key of `EXCHANGES`.
        cache_share: of the rows of a table, how many the caches of the tier ``uvm_caching`` hold.
        trained_whole: tables of which every step reads and trains all rows of the own shard. Each
            gets a kernel for itself, and no cache.
        configured: how messages name settings, see `dist_embed.config.cuda_only`.

    Raises:
        UserError: something that needs CUDA on another device, or that CUDA cannot serve. Nothing
            has been allocated.

    Collective: every worker calls it with equal arguments.
    """
    quiet_tables()
    if group.device.type == "cuda":
        problems = problems_on_cuda(width=max(spec.width for spec in specs), configured=configured)
    else:
        problems = problems_without_cuda(
            optimizer=optimizer, memory=tier, weights=weights, exchange=exchange,
            configured=configured,
        )  # fmt: skip
    if problems:
        raise UserError("\n".join(problems))
    fused_params = {
        "optimizer": OPTIMIZERS[optimizer],
        "eps": eps,
        "stochastic_rounding": True,  # of rows that are not float32
    }
    if tier == "uvm_caching":
        fused_params["cache_load_factor"] = cache_share
    sharder = EmbeddingCollectionSharder(
        fused_params=fused_params, qcomm_codecs_registry=exchange_codecs(exchange, group.device)
    )
    modules = []
    for of_width in by_width(specs):
        module = _collection(of_width, group.num_workers, weights, learning_rates, trained_whole)
        kernels = {
            spec.name: KERNELS[tier_of_table(spec.name, tier, trained_whole)] for spec in of_width
        }
        modules.append(_sharded(module, sharder, kernels, group))
    return modules


def by_width(specs: list[TableSpec]) -> list[list[TableSpec]]:
    """The tables of each distinct width, in the order in which they come."""
    widths = dict.fromkeys(spec.width for spec in specs)
    return [[spec for spec in specs if spec.width == width] for width in widths]


def _collection(
    specs: list[TableSpec],
    num_workers: int,
    weights: Weights,
    learning_rates: dict[str, float],
    trained_whole: Collection[str],
) -> EmbeddingCollection:
    """Tables of one width, without memory."""
    module = EmbeddingCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingConfig(
                name=spec.name,
                num_embeddings=shard_of(spec.num_rows, 0, num_workers).physical_rows * num_workers,
                embedding_dim=spec.physical_width,
                feature_names=[key_of(spec.name)],
                init_fn=_leave_as_is,  # filled by `fill_initial_rows` or a checkpoint
                data_type=WEIGHT_TYPES[weights],
            )
            for spec in specs
        ],
    )
    for name, table in module.embeddings.items():
        # Where TorchRec looks for what one table's optimizer does otherwise.
        table.weight._optimizer_classes = [None]
        table.weight._optimizer_kwargs = [{"learning_rate": learning_rates[name]}]
        if name in trained_whole:
            table.weight._optimizer_kwargs[0][USE_ONE_TBE_PER_TABLE] = True
    return module


def _sharded(
    module: EmbeddingCollection,
    sharder: EmbeddingCollectionSharder,
    kernels: dict[str, EmbeddingComputeKernel],
    group: Group,
) -> ShardedEmbeddingCollection:
    """The tables split by rows. Collective."""
    plan = construct_module_sharding_plan(
        module,
        {name: row_wise(compute_kernel=kernel.value) for name, kernel in kernels.items()},
        sharder=sharder,
        local_size=group.num_local_workers,
        world_size=group.num_workers,
        device_type=group.device.type,
    )
    return sharder.shard(
        module, plan, ShardingEnv.from_process_group(group.process_group), device=group.device
    )


def tier_of_table(table: str, tier: Tier, trained_whole: Collection[str]) -> Tier:
    """Where the rows of one table lie: no cache could hold what every step needs of one that is
    trained whole.
    """
    return "uvm" if table in trained_whole and tier == "uvm_caching" else tier


def key_of(table: str) -> str:
    """The name under which TorchRec looks rows up in a table."""
    return f"{table}/tokens"


def exchange_codecs(
    exchange: Exchange, device: torch.device
) -> dict[str, QuantizedCommCodecs] | None:
    """What turns vectors and gradients into their type on the network, by kind of exchange."""
    forward, backward = EXCHANGES[exchange]
    codecs: dict[str, QuantizedCommCodecs] | None = get_qcomm_codecs_registry(
        QCommsConfig(forward_precision=forward, backward_precision=backward), device=device
    )
    return codecs


def lies_in_host_memory(tensor: Tensor) -> bool:
    """Whether a GPU's tensor is in memory of the host: a view of a table of the tiers ``uvm…``."""
    return tensor.is_cuda and bool(torch.ops.fbgemm.is_uvm_tensor(tensor))


def _leave_as_is(tensor: Tensor) -> None:
    del tensor
