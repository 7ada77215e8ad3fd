"""The output layers on one device: the exact one as training calls it, plain PyTorch's cross
entropy, and the sampled one; each measured and checked.

The learning rate is 0: an update does all of its work, and every pass finds the same rows.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor
from torch.nn import functional

from dist_embed.bench.output_check import (
    Computed,
    check,
    plain_cross_entropy,
    plain_sampled_cross_entropy,
)
from dist_embed.bench.passes import WARM_UP, Marks, Passes, measured
from dist_embed.data.zipf import zipf
from dist_embed.embedding.memory import GIB, logits_block_bytes, table_bytes
from dist_embed.embedding.own_rows import OwnRows, OwnRowsKernel
from dist_embed.embedding.plan import TableSpec
from dist_embed.embedding.row_order import RowOrder
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.step_rows import StepRows
from dist_embed.embedding.table import Table
from dist_embed.embedding.tables import OPTIMIZERS
from dist_embed.embedding.tiers import free_bytes
from dist_embed.model.output import OutputShard
from dist_embed.model.output_layer import ExactSoftmax, SampledSoftmax
from dist_embed.model.sampler import LogUniformSampler
from dist_embed.parallel.device import memory_bytes, resolve_dtype
from dist_embed.parallel.group import Group
from dist_embed.parallel.machine import available_bytes

OPTIMIZER = "rowwise_adagrad"
EPS = 1e-8
SEED = 1


@dataclass(frozen=True)
class OutputSizes:
    """What is measured.

    Attributes:
        device: on which.
        dtype: type of the products' operands.
        tokens: N.
        width: D.
        rows: V of the exact layer and of plain cross entropy.
        blocks: values of ``model.logits_block_mib``, each measured with the exact layer.
        compiled: whether plain cross entropy is measured under `torch.compile` too.
        sampled_rows: values of V, each measured with the sampled layer.
        samples: S.
        repeats: passes that are timed.
    """

    device: Literal["cpu", "cuda"]
    dtype: Literal["bf16", "fp32"]
    tokens: int
    width: int
    rows: int
    blocks: list[float | Literal["auto"]]
    compiled: bool
    sampled_rows: list[int]
    samples: int
    repeats: int


@dataclass(frozen=True)
class Side:
    """One way to compute an output layer, measured, or why it is not.

    Attributes:
        name: of the way.
        words: V.
        flop: floating-point operations of the three matrix products that it cannot do without.
        seconds: by phase, ``lookup``, ``layer`` and ``update``, those of every pass.
        beyond_bytes: see `Passes`.
        differences: see `check`.
        left_out: why nothing was measured.
    """

    name: str
    words: int
    flop: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    beyond_bytes: int = 0
    differences: dict[str, float] = field(default_factory=dict)
    left_out: str | None = None


class OwnTable:
    """A table as the exact layer has it in training, all rows own, without TorchRec: no row of it
    is looked up, so it may be wider than the tables of a run on a GPU.
    """

    def __init__(self, num_rows: int, width: int, device: torch.device) -> None:
        place = (EmbeddingLocation.HOST, ComputeDevice.CPU)
        if device.type == "cuda":
            place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA)
        kernel = SplitTableBatchedEmbeddingBagsCodegen(
            [(num_rows, width, *place)], optimizer=OPTIMIZERS[OPTIMIZER], learning_rate=0.0,
            eps=EPS, pooling_mode=PoolingMode.NONE, device=device,
        )  # fmt: skip
        self._kernel = OwnRowsKernel(kernel, num_rows)
        self._none_looked_up = (
            torch.empty(0, dtype=torch.int64, device=device),
            torch.empty(0, width, device=device),
        )
        self.weight = self._kernel.weight
        self.table_of = {"output": "output"}
        self.orders = {"output": RowOrder(num_rows)}
        _fill(self.weight)

    def begin_step(self) -> tuple[StepRows, OwnRows]:
        """As a training step fetches it."""
        own = self._kernel.begin_step(trained=True)
        return StepRows({}, {"output": own}, self.table_of, {}, lambda rows, proven: None), own

    def update(self, own: OwnRows) -> None:
        """As a training step ends."""
        self._kernel.update(own.gradient, *self._none_looked_up)


def exact_sides(sizes: OutputSizes, group: Group) -> Iterator[Side]:
    """The exact layer with each size of block, then plain cross entropy; none without sizes."""
    if not sizes.blocks:
        return
    device, dtype = group.device, _dtype(sizes, group)
    table = OwnTable(sizes.rows, sizes.width, device)
    hidden = _hidden(sizes, device)
    targets = _targets(sizes.rows, sizes.tokens, 0).to(device)
    answers = table.orders["output"].rows_of(targets)
    expected = plain_cross_entropy(hidden, table.weight, answers)
    flop = 6 * sizes.tokens * sizes.rows * sizes.width

    def side(name: str, passes: Passes[Computed]) -> Side:
        differences = check(name, passes.result, expected, answers, dtype)
        return Side(name, sizes.rows, flop, passes.seconds, passes.beyond_bytes, differences)

    for size in sizes.blocks:
        shard = _shard(sizes.rows, size, group, dtype, exact=True)
        one_pass = _exact_pass(table, shard, hidden, targets)
        yield side(
            _exact_name(size, shard, sizes.tokens), measured(one_pass, device, sizes.repeats)
        )
    for compiled in (False, True) if sizes.compiled else (False,):
        name = "F.cross_entropy" + (", torch.compile" if compiled else "")
        needed = plain_bytes(sizes)
        if (free := _free(device)) < needed:
            yield Side(name, sizes.rows, left_out=_too_little(needed, free))
            continue
        one_pass = _plain_pass(table.weight, hidden, answers, dtype, compiled)
        try:
            passes = measured(one_pass, device, sizes.repeats)
        except Exception as exc:  # for lack of memory after all, or of a compiler
            yield Side(name, sizes.rows, left_out=" ".join(str(exc).split())[:200])
        else:
            yield side(name, passes)


def _exact_name(size: float | Literal["auto"], shard: OutputShard, num_tokens: int) -> str:
    mib = f"{shard.block_bytes / 2**20:,.0f} MiB" if size == "auto" else f"{size:g} MiB"
    way = "tiles"
    if shard.trains_by_blocks:
        way = f"blocks of {min(shard.block_tokens, num_tokens):,} tokens"
    return f"exact, {'auto: ' if size == 'auto' else ''}{way}, {mib}"


def _exact_pass(
    table: OwnTable, shard: OutputShard, hidden: Tensor, targets: Tensor
) -> Callable[[Marks], Computed]:
    num_tokens = len(hidden)
    output = ExactSoftmax(cast(Any, table), "output", shard)

    def one_pass(mark: Marks) -> Computed:
        hidden.grad = None
        rows, own = table.begin_step()
        step_loss = output.start(rows, None, 1, 1 / num_tokens)
        loss, _ = step_loss.of(hidden, 0, targets, [num_tokens], 0.0)
        (loss * (1 / num_tokens)).backward()
        step_loss.finish()
        mark("layer")
        table.update(own)
        mark("update")
        assert hidden.grad is not None
        assert own.gradient is not None
        return Computed(loss.detach(), hidden.grad, own.gradient.values)

    return one_pass


def plain_bytes(sizes: OutputSizes) -> int:
    """What plain cross entropy takes at once: three blocks of float32 logits, those of the product
    where it is narrow, and the rows' gradient, with rows and gradient once more in that type.
    """
    logits, rows = sizes.tokens * sizes.rows, sizes.rows * sizes.width
    narrow = 2 * (logits + 2 * rows) if sizes.dtype == "bf16" else 0
    return 12 * logits + 4 * rows + narrow


def _plain_pass(
    weight: Tensor, hidden: Tensor, answers: Tensor, dtype: torch.dtype, compiled: bool
) -> Callable[[Marks], Computed]:
    weight = weight.detach().requires_grad_()

    def loss_of(hidden: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, dtype, enabled=dtype != torch.float32):
            logits = functional.linear(hidden, weight)
        return functional.cross_entropy(logits.float(), answers, reduction="sum")

    if compiled:
        loss_of = torch.compile(loss_of)

    def one_pass(mark: Marks) -> Computed:
        hidden.grad = weight.grad = None
        loss = loss_of(hidden, weight)
        (loss * (1 / len(hidden))).backward()
        mark("layer")
        assert hidden.grad is not None
        assert weight.grad is not None
        return Computed(loss.detach(), hidden.grad, weight.grad)

    return one_pass


def sampled_sides(sizes: OutputSizes, group: Group) -> Iterator[Side]:
    """The sampled layer over each number of words."""
    for words in sizes.sampled_rows:
        name = f"sampled, {sizes.samples:,} negatives"
        # The table, and beside it logits, wide and narrow, and some copies of what is looked up.
        needed = table_bytes(TableSpec("output", words, sizes.width), OPTIMIZER, 1)
        needed += 8 * sizes.tokens * sizes.samples
        needed += 32 * sizes.width * (sizes.tokens + sizes.samples)
        if (free := _free(group.device)) < needed:
            yield Side(name, words, left_out=_too_little(needed, free))
        else:
            yield _sampled_side(name, words, sizes, group)


def _sampled_side(name: str, words: int, sizes: OutputSizes, group: Group) -> Side:
    device, dtype = group.device, _dtype(sizes, group)
    tables = ShardedTables(
        {"output": Table(words, sizes.width, initial_scale=0.0)}, group,
        optimizer=OPTIMIZER, learning_rate=0.0, eps=EPS, seed=SEED, memory="device",
    )  # fmt: skip
    _fill(tables.weight("output"))
    tables.after_writing()
    shard = _shard(words, "auto", group, dtype, exact=False)
    output = SampledSoftmax(
        tables, "output", LogUniformSampler(words, sizes.samples), seed=SEED, shard=shard
    )
    hidden = _hidden(sizes, device)
    # Other words in every pass, whose rows no cache has; found out before, as a run's loader does.
    steps = []
    for number in range(WARM_UP + sizes.repeats):
        targets = _targets(words, sizes.tokens, number)
        negatives = output.draw(number, [targets])
        wanted = tables.wanted({"output": output.words([targets], negatives)})
        steps.append(
            (targets.to(device), negatives.to(device), wanted.changed(lambda t: t.to(device)))
        )
    coming = iter(steps)

    def one_pass(mark: Marks) -> Computed:
        targets, negatives, wanted = next(coming)
        hidden.grad = None
        rows = tables.fetch(tables.request(wanted))
        mark("lookup")
        step_loss = output.start(rows, negatives, 1, 1 / sizes.tokens)
        loss, _ = step_loss.of(hidden, 0, targets, [sizes.tokens], 0.0)
        (loss * (1 / sizes.tokens)).backward()
        step_loss.finish()
        mark("layer")
        rows.backward(proven=True)
        mark("update")
        grad = rows.tables["output"].vectors.grad
        assert hidden.grad is not None
        assert grad is not None
        return Computed(loss.detach(), hidden.grad, grad)

    passes = measured(one_pass, device, sizes.repeats)
    targets, negatives, wanted = steps[-1]
    again = tables.fetch(tables.request(wanted))
    expected = plain_sampled_cross_entropy(hidden, again, targets, negatives)
    answers = wanted.index["output"][0]
    differences = check(name, passes.result, expected, answers, dtype)
    flop = 6 * sizes.tokens * sizes.samples * sizes.width
    return Side(name, words, flop, passes.seconds, passes.beyond_bytes, differences)


def _dtype(sizes: OutputSizes, group: Group) -> torch.dtype:
    return resolve_dtype(sizes.dtype, group.device)


def _shard(
    rows: int, size: float | Literal["auto"], group: Group, dtype: torch.dtype, *, exact: bool
) -> OutputShard:
    """All rows here, and blocks of ``model.logits_block_mib`` ``size``."""
    device_bytes = memory_bytes(group.device) if group.device.type == "cuda" else None
    block_bytes = logits_block_bytes(size, rows, 1, exact=exact, device_bytes=device_bytes)
    return OutputShard(group, 0, rows, block_bytes, dtype)


def _fill(weight: Tensor) -> None:
    """Normal values of the size that fresh rows have, on the device. Their mean is as large: it
    changes no probability, but shows in the hidden states' gradient where these do not sum to 1.
    """
    draw = torch.Generator(weight.device).manual_seed(SEED)
    scale = weight.shape[1] ** -0.5
    weight.normal_(scale, scale, generator=draw)


def _hidden(sizes: OutputSizes, device: torch.device) -> Tensor:
    """[N, D] float32, as the last layer norm gives them."""
    draw = torch.Generator(device).manual_seed(SEED)
    return torch.randn(
        sizes.tokens, sizes.width, device=device, generator=draw, requires_grad=True
    )  # fmt: skip


def _targets(num_words: int, num_tokens: int, number: int) -> Tensor:
    """[N] ids, on the host, by Zipf's law."""
    draw = np.random.default_rng([SEED, number])
    return torch.from_numpy(zipf(draw, num_words, num_tokens)).long()


def _free(device: torch.device) -> int:
    if device.type != "cuda":
        return available_bytes()
    gc.collect()  # tables of before, whose kernels refer to themselves
    torch.cuda.empty_cache()
    return free_bytes(device)


def _too_little(needed: int, free: int) -> str:
    return f"needs {needed / GIB:.1f} GiB, {free / GIB:.1f} GiB are free"
