"""Two workers and what they exchange: each on a GPU, or both on the one that is there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import pytest
import torch

from dist_embed.embedding.settings import Exchange, Tier
from dist_embed.parallel.collectives import sum_over_workers
from dist_embed.parallel.group import Group
from tests.distributed.pool import RemoteError, WorkerPool
from tests.distributed.reference import Reference
from tests.distributed.tiny import Sharded, Tiny, joined, random_pairs
from tests.gpu.device import DEVICE, IN_HOST_MEMORY, on_cuda_alone

# Of several processes that run tests one: it starts workers of its own.
pytestmark = pytest.mark.xdist_group("exchange")
Trained = tuple[list[float], dict[str, Any]]
STEPS = [random_pairs(9, number, 23, 31) for number in range(1, 5)]


@pytest.fixture(scope="module")
def workers() -> Iterator[WorkerPool]:
    pool = WorkerPool(DEVICE)
    yield pool
    pool.close()


def summed(group: Group) -> list[float]:
    tensor = torch.full((3,), group.rank + 1.0, device=group.device)
    result: list[float] = sum_over_workers(tensor, group).tolist()
    return result


@pytest.fixture(scope="module", params=["gloo", "nccl"])
def backend(request: pytest.FixtureRequest, workers: WorkerPool) -> str:
    """By which the workers exchange. gloo sends a GPU's tensors through the host's memory."""
    name: str = request.param
    if name == "nccl" and DEVICE == "cpu":
        pytest.skip("NCCL is for GPUs alone")
    try:
        assert workers.run(2, summed, backend=name) == [[3.0, 3.0, 3.0]] * 2
    except RemoteError as error:
        if name == "gloo" or torch.cuda.device_count() > 1:
            raise
        workers.close()
        said = str(error).strip().splitlines()[-1]
        pytest.skip(f"NCCL takes no two workers on one GPU, told that these are two hosts: {said}")
    return name


def train_here(group: Group, tiny: Tiny) -> Trained:
    sharded = Sharded(tiny, group)
    losses = [
        sharded.step(number, pairs, following).loss
        for number, (pairs, following) in enumerate(zip_longest(STEPS, STEPS[1:]), start=1)
    ]
    return losses, sharded.tables()


def train(workers: WorkerPool, backend: str, tiny: Tiny) -> tuple[list[float], Any]:
    """Losses, and every worker's tables."""
    results: list[Trained] = workers.run(2, train_here, tiny, backend=backend)
    assert results[0][0] == results[1][0]
    return results[0][0], [tables for _, tables in results]


@pytest.mark.parametrize("num_samples", [0, 9])
def test_steps_equal_the_cpu_reference(workers: WorkerPool, backend: str, num_samples: int) -> None:
    tiny = Tiny(num_samples=num_samples, accumulate=2, clip_norm=0.3, warmup_steps=5)
    reference = Reference(tiny)
    expected = [reference.step(pairs) for pairs in STEPS]
    losses, tables = train(workers, backend, tiny)
    assert losses == pytest.approx(expected, abs=1e-4)
    for table, embedding in reference.tables.items():
        weight, state = joined(tables, table)
        torch.testing.assert_close(weight, embedding.weight.data, rtol=0, atol=1e-4)
        torch.testing.assert_close(state, reference.sums[table], rtol=0, atol=1e-4)


@on_cuda_alone
@pytest.mark.parametrize("exchange", ["fp16", "bf16"])
def test_a_narrow_exchange_stays_within_rounding(
    workers: WorkerPool, backend: str, exchange: Exchange
) -> None:
    wide_losses, wide = train(workers, backend, Tiny())
    losses, narrow = train(workers, backend, Tiny(exchange=exchange))
    assert losses == pytest.approx(wide_losses, rel=1e-2)
    rows, wide_rows = joined(narrow, "decoder")[0], joined(wide, "decoder")[0]
    assert not torch.equal(rows, wide_rows)
    torch.testing.assert_close(rows, wide_rows, rtol=0, atol=2e-2)


@pytest.mark.parametrize("memory", IN_HOST_MEMORY)
def test_rows_in_host_memory_train_as_on_the_devices(
    workers: WorkerPool, backend: str, memory: Tier
) -> None:
    wide_losses, wide = train(workers, backend, Tiny())
    losses, found = train(workers, backend, Tiny(memory=memory))
    assert losses == pytest.approx(wide_losses, rel=1e-5)
    for table in ("source", "decoder"):
        torch.testing.assert_close(
            joined(found, table)[0], joined(wide, table)[0], rtol=0, atol=1e-5
        )
