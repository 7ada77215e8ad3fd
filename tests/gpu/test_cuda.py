"""The same steps on a CUDA device as on the CPU."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Any

import pytest
import torch

from dist_embed.bench.host_waits import told_waits
from dist_embed.data.batch import IDS
from dist_embed.data.read_ahead import ReadAhead
from dist_embed.embedding.settings import Memory
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.table import Table
from dist_embed.model.logit_blocks import add_product, multiply
from dist_embed.parallel.group import Group
from dist_embed.training.step import PreparedStep
from tests.distributed.reference import Reference
from tests.distributed.tiny import Sharded, Tiny, joined, random_pairs, work_for
from tests.gpu.device import DEVICE, TIERS, on_cuda_alone, synchronise


@pytest.mark.parametrize("num_rows", [64, 31, 0])
def test_narrow_products_give_float32_sums(num_rows: int) -> None:
    """As the output layers make them. The first test: most others fail where this one does."""
    draw = torch.Generator().manual_seed(1)
    hidden, weight, grad = (
        torch.randn(size, generator=draw).to(DEVICE).bfloat16()
        for size in ((33, 16), (num_rows, 16), (33, num_rows))
    )
    atol = 1e-4 if DEVICE == "cuda" else 0.1  # there sums, below 32, are rounded to bfloat16
    logits = multiply(hidden, weight.t(), torch.full((33, num_rows), 7.0, device=DEVICE))
    torch.testing.assert_close(logits, hidden.float() @ weight.float().t(), rtol=0, atol=atol)
    back = multiply(grad, weight, torch.full((33, 16), 7.0, device=DEVICE))
    torch.testing.assert_close(back, grad.float() @ weight.float(), rtol=0, atol=atol)
    to = torch.ones((num_rows, 16), device=DEVICE)
    add_product(grad.t(), hidden, to, 0.5)
    expected = 1 + 0.5 * (grad.float().t() @ hidden.float())
    torch.testing.assert_close(to, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("share", ["none", "decoder", "all"])
@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
@pytest.mark.parametrize("memory", TIERS)
def test_three_steps_equal_the_cpu_reference(
    group: Group, share: Any, clip_norm: float, memory: Memory
) -> None:
    rows = 31 if share == "all" else 23
    tiny = Tiny(
        share=share, source_rows=rows, clip_norm=clip_norm, accumulate=2, memory=memory,
        warmup_steps=5,
    )  # fmt: skip
    reference, sharded = Reference(tiny), Sharded(tiny, group)
    steps = [random_pairs(9, number, rows, 31) for number in range(1, 4)]
    for number, (pairs, following) in enumerate(zip_longest(steps, steps[1:]), start=1):
        expected = reference.step(pairs)
        result = sharded.step(number, pairs, following)
        with torch.no_grad():  # as a validation between the two steps does
            sharded.lookup.lookup({"source": [torch.arange(9, device=group.device)]})
        assert result.loss == pytest.approx(expected, abs=1e-4)
    for table, embedding in reference.tables.items():
        weight, state = joined([sharded.tables()], table)
        torch.testing.assert_close(weight, embedding.weight.data, rtol=0, atol=1e-4)
        torch.testing.assert_close(state, reference.sums[table], rtol=0, atol=1e-4)


def check_waits(found: Counter[str], steps: int) -> None:
    """One a step of ours, as CUDA tells; a CPU tells of none."""
    ours = {place: count for place, count in found.items() if place.startswith("dist_embed/")}
    assert ours == ({"dist_embed/training/step.py:run": steps} if DEVICE == "cuda" else {}), found


@pytest.mark.parametrize(("num_samples", "block_bytes"), [(9, 620), (0, 620), (0, 2**20)])
@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
def test_a_step_waits_for_the_device_once(
    group: Group, num_samples: int, block_bytes: int, clip_norm: float
) -> None:
    """Beside what TorchRec asks; see tests/distributed/test_host_waits.py for the CPU's count."""
    tiny = Tiny(accumulate=2, num_samples=num_samples, block_bytes=block_bytes, clip_norm=clip_norm)
    sharded = Sharded(tiny, group)
    step = sharded.train_step
    step._optimizer = torch.optim.AdamW(sharded.transformer.parameters(), fused=True)
    works = [
        step.prepare(number, sharded.work(random_pairs(40, number, 23, 31))).to(group.device)
        for number in (1, 2, 3)
    ]
    step.run(1, works[0], works[1])
    synchronise()
    with told_waits() as found:
        step.run(2, works[1], works[2])
    check_waits(found, 1)


@pytest.mark.parametrize("num_samples", [9, 0])
def test_batches_of_the_loaders_thread_come_without_a_wait(group: Group, num_samples: int) -> None:
    """As a run has them: prepared in the thread on the host, and sent; a batch is empty."""
    sharded = Sharded(Tiny(accumulate=2, num_samples=num_samples), group)
    step = sharded.train_step
    step._optimizer = torch.optim.AdamW(sharded.transformer.parameters(), fused=True)
    host = replace(group, device=torch.device("cpu"))
    given = [work_for(random_pairs(count, 3, 23, 31), host, 2) for count in (40, 1, 40)]
    assert [len(batch.source_lengths) for batch in given[1].batches] in ([0, 1], [1, 0])
    sharded.step(1, random_pairs(40, 4, 23, 31))
    synchronise()
    with told_waits() as found:
        steps = ReadAhead(map(step.prepare, (2, 3, 4), given), ahead=3)
        try:
            prepared = [next(steps) for _ in given]
        finally:
            steps.close()
        works = [work.to(group.device) for work in prepared]
        for number, (work, following) in enumerate(zip_longest(works, works[1:]), start=2):
            step.run(number, work, following)
    for work in prepared:
        assert isinstance(work, PreparedStep)
        tensors = [
            getattr(batch, name)
            for batch in work.batches
            for name in vars(batch)
            if name not in (*IDS, "rectangles")  # they stay behind
        ]
        tensors += [*work.wanted.rows.values(), *chain(*work.wanted.index.values())]
        if work.negatives:
            tensors += [work.negatives.ids, work.negatives.log_probability]
        assert {tensor.is_pinned() for tensor in tensors if tensor.numel()} == {DEVICE == "cuda"}
    check_waits(found, 3)


def test_bfloat16_steps_come_close_to_float32(group: Group) -> None:
    pairs = [random_pairs(30, seed, 23, 31) for seed in range(5)]
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        sharded = Sharded(Tiny(), group, dtype)
        losses[dtype] = [sharded.step(n, p).loss for n, p in enumerate(pairs, start=1)]
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=2e-2)
    assert losses[torch.bfloat16] != losses[torch.float32]


@on_cuda_alone
def test_fused_adam_trains_on_cuda(group: Group) -> None:
    lookup = ShardedTables(
        {"shared": Table(11, 8, initial_scale=0.1)}, group, optimizer="adam", learning_rate=0.1,
        seed=1,
    )  # fmt: skip
    with torch.no_grad():  # FBGEMM counts these too; the step's number is what counts for us
        for _ in range(50):
            lookup.lookup({"shared": [torch.tensor([1], device=group.device)]})
    before = lookup.weight("shared").clone()
    lookup.set_step(1)
    ids = torch.tensor([4, 4, 7], device=group.device)
    rows = lookup.lookup({"shared": [ids]})
    rows.vectors("shared", 0).sum().backward()
    rows.backward()
    changed = (lookup.weight("shared") != before).any(1).nonzero().squeeze(1)
    order = lookup.specs["shared"].order
    assert sorted(order.ids_of(changed).tolist()) == [4, 7]
    # Adam's first step has the size of the rate, whatever the gradient's size (4 came twice).
    steps = (before - lookup.weight("shared"))[changed]
    torch.testing.assert_close(steps, torch.full_like(steps, 0.1), rtol=1e-3, atol=1e-4)
