"""Narrow types between two GPUs (with one, nothing is exchanged)."""

from __future__ import annotations

import multiprocessing
import os
import queue
import socket
from typing import Any

import pytest
import torch

from dist_embed.embedding.plan import Exchange
from dist_embed.parallel.group import joined_group
from tests.distributed.tiny import Sharded, Tiny, joined, random_pairs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices here"),
]


def work(rank: int, port: int, tiny: Tiny, answers: Any) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    with joined_group("cuda", 60.0) as group:
        sharded = Sharded(tiny, group)
        losses = [sharded.step(n, random_pairs(9, n, 23, 31)).loss for n in range(1, 5)]
        tables = {
            table: (first, weight.numpy(), {name: v.numpy() for name, v in state.items()})
            for table, (first, weight, state) in sharded.tables().items()
        }
    answers.put((rank, losses, tables))


def train(tiny: Tiny) -> tuple[list[float], torch.Tensor]:
    """Losses, and the rows of the decoder's table."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=work, args=(rank, port, tiny, answers), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    try:
        found = sorted(answers.get(timeout=100) for _ in processes)
    except queue.Empty:
        raise AssertionError("a worker gave no answer") from None
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    tables = [
        {
            table: (first, torch.from_numpy(weight), {k: torch.from_numpy(v) for k, v in s.items()})
            for table, (first, weight, s) in given.items()
        }
        for _, _, given in found
    ]
    return found[0][1], joined(tables, "decoder")[0]


@pytest.mark.parametrize("exchange", ["fp16", "bf16"])
def test_a_narrow_exchange_stays_within_rounding(exchange: Exchange) -> None:
    wide_losses, wide = train(Tiny())
    losses, narrow = train(Tiny(exchange=exchange))
    assert losses == pytest.approx(wide_losses, rel=1e-2)
    assert not torch.equal(narrow, wide)
    torch.testing.assert_close(narrow, wide, rtol=0, atol=2e-2)


@pytest.mark.parametrize("memory", ["uvm", "uvm_caching"])
def test_rows_in_host_memory_train_as_on_the_devices(memory: Any) -> None:
    wide_losses, wide = train(Tiny())
    losses, rows = train(Tiny(memory=memory))
    assert losses == pytest.approx(wide_losses, rel=1e-5)
    torch.testing.assert_close(rows, wide, rtol=0, atol=1e-5)
