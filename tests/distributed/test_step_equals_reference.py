"""Sharded training against a plain single-process reference."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import pytest
import torch

from dist_embed.embedding import kernels
from dist_embed.embedding import sharded_tables as lookup_module
from dist_embed.embedding.cpu_rows import CpuRows
from dist_embed.embedding.memory import LEAST_BLOCK_TOKENS
from dist_embed.embedding.own_rows import OwnRowsKernel
from dist_embed.parallel.group import Group
from tests.distributed.pool import WorkerPool
from tests.distributed.reference import Reference
from tests.distributed.tiny import Pairs, Sharded, Tiny, joined, random_pairs

TOLERANCE = 1e-6


def train(group: Group, tiny: Tiny, steps: list[Pairs]) -> tuple[list[float], dict[str, Any], Any]:
    sharded = Sharded(tiny, group)
    losses = [
        sharded.step(number, pairs, following).loss
        for number, (pairs, following) in enumerate(zip_longest(steps, steps[1:]), start=1)
    ]
    forwards = [type(kernel.forward) for kernel in sharded.lookup.kernels]
    exact, tables = not tiny.num_samples, len(sharded.lookup.specs)
    # With the exact layer the output's table has a kernel for itself.
    assert forwards.count(OwnRowsKernel) == exact
    assert forwards.count(CpuRows) == (not exact or tables > 1)
    assert len(forwards) == 1 + (exact and tables > 1)
    return losses, sharded.tables(), sharded.dense()


def train_after_detours(
    group: Group, tiny: Tiny, steps: list[Pairs]
) -> tuple[list[float], dict[str, Any], Any]:
    """Announces other work than comes, and looks rows up between announcement and step."""
    sharded = Sharded(tiny, group)
    losses, training = [], []
    sharded.transformer.register_forward_hook(lambda module, *_: training.append(module.training))
    for number, pairs in enumerate(steps, start=1):
        announced = steps[number % len(steps)][::-1]
        losses.append(sharded.step(number, pairs, announced).loss)
        with torch.no_grad():
            sharded.lookup.lookup({"source": [torch.arange(group.rank, 9)], "output": []})
        sharded.transformer.eval()
    assert len(training) == len(steps) * tiny.accumulate
    assert all(training)
    return losses, sharded.tables(), sharded.dense()


def train_with_fbgemm(
    group: Group, tiny: Tiny, steps: list[Pairs]
) -> tuple[list[float], dict[str, Any], Any]:
    """Updates by FBGEMM's own autograd function, as on CUDA; here it runs on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "CpuRows", lambda kernel, _: kernel.forward)
        sharded = Sharded(tiny, group)
    for kernel in sharded.lookup.kernels:
        assert getattr(kernel.forward, "__func__", None) is type(kernel).forward
    losses = [
        sharded.step(number, pairs, following).loss
        for number, (pairs, following) in enumerate(zip_longest(steps, steps[1:]), start=1)
    ]
    return losses, sharded.tables(), sharded.dense()


def check_equal(
    workers: WorkerPool, num_workers: int, tiny: Tiny, steps: list[Pairs], train: Any = train
) -> None:
    reference = Reference(tiny, num_workers)
    expected = [reference.step(pairs) for pairs in steps]
    results = workers.run(num_workers, train, tiny, steps)
    for losses, _, dense in results:
        assert losses == pytest.approx(expected, abs=TOLERANCE * 5)
        for name, parameter in reference.transformer.named_parameters():
            torch.testing.assert_close(
                dense[f"model.{name}"], parameter.data, rtol=0, atol=TOLERANCE * 20
            )
    for table, embedding in reference.tables.items():
        weight, state = joined([tables for _, tables, _ in results], table)
        torch.testing.assert_close(weight, embedding.weight.data, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(state, reference.sums[table], rtol=0, atol=TOLERANCE)
        assert not torch.equal(weight, Reference(tiny).tables[table].weight.data)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("share", ["none", "decoder", "all"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_three_steps(workers: WorkerPool, num_workers: int, share: Any, accumulate: int) -> None:
    rows = 31 if share == "all" else 23
    tiny = Tiny(share=share, source_rows=rows, accumulate=accumulate)
    steps = [random_pairs(9, seed, rows, 31) for seed in range(3)]
    check_equal(workers, num_workers, tiny, steps)


@pytest.mark.parametrize("num_workers", [2, 3])
def test_clipped_steps(workers: WorkerPool, num_workers: int) -> None:
    tiny = Tiny(share="all", source_rows=31, clip_norm=0.3)
    check_equal(workers, num_workers, tiny, [random_pairs(9, seed, 31, 31) for seed in range(3)])


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("share", ["none", "decoder", "all"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_sampled_steps(workers: WorkerPool, num_workers: int, share: Any, accumulate: int) -> None:
    tiny = Tiny(share=share, source_rows=31, accumulate=accumulate, num_samples=9, clip_norm=0.9)
    steps = [random_pairs(9, seed, 31, 31) for seed in range(3)]
    check_equal(workers, num_workers, tiny, steps)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize(("share", "accumulate"), [("none", 1), ("all", 2)])
def test_steps_with_right_answers_as_negatives(
    workers: WorkerPool, num_workers: int, share: Any, accumulate: int
) -> None:
    tiny = Tiny(share=share, source_rows=31, accumulate=accumulate, num_samples=9, clip_norm=0.9,
                batch_negatives=True)  # fmt: skip
    # Of the last step a worker has a micro-batch without sentences, or with one that is alone.
    steps = [random_pairs(9, 1, 31, 31), random_pairs(2 * num_workers - 1, 2, 31, 31)]
    check_equal(workers, num_workers, tiny, steps)


@pytest.mark.parametrize("num_samples", [0, 9])
def test_what_was_announced_need_not_come(workers: WorkerPool, num_samples: int) -> None:
    tiny = Tiny(accumulate=2, num_samples=num_samples)
    steps = [random_pairs(9, seed, 23, 31) for seed in range(3)]
    check_equal(workers, 2, tiny, steps, train_after_detours)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_of_the_exact_layer_by_blocks(
    workers: WorkerPool, num_workers: int, accumulate: int
) -> None:
    """The other steps here go by tiles of tokens and rows; where a block of whole logits holds
    enough tokens, the layer goes by those, and here by several of them.
    """
    rows = -(-31 // num_workers)
    tokens = LEAST_BLOCK_TOKENS["cpu"]
    tiny = Tiny(block_bytes=4 * rows * tokens, accumulate=accumulate, clip_norm=0.5)
    steps = [random_pairs(50, seed, 23, 31) for seed in range(3)]
    assert sum(len(target) + 1 for _, target in steps[0]) > 5 * tokens
    check_equal(workers, num_workers, tiny, steps)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("train", [train, train_with_fbgemm])
def test_a_rising_rate_is_that_of_the_step(
    workers: WorkerPool, num_workers: int, train: Any
) -> None:
    """FBGEMM's function takes the rate when rows are fetched, ours when they are updated."""
    tiny = Tiny(num_samples=9, warmup_steps=5, clip_norm=0.9)
    check_equal(
        workers, num_workers, tiny, [random_pairs(9, seed, 23, 31) for seed in range(4)], train
    )


def train_with_bags(
    group: Group, tiny: Tiny, steps: list[Pairs]
) -> list[tuple[list[float], dict[str, Any], Any]]:
    """The same by ours and by FBGEMM's function, with what is wanted cut into 1, 7, 64 bags."""
    results = []
    for train_one in (train, train_with_fbgemm) if tiny.num_samples else (train,):
        for num_bags in (1, 7, 64):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(lookup_module, "bags_of_a_table", lambda *_, n=num_bags: n)
                results.append(train_one(group, tiny, steps))
    return results


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize(("share", "num_samples"), [("none", 9), ("all", 0)])
def test_any_number_of_bags_gives_the_same_bits(
    workers: WorkerPool, num_workers: int, share: Any, num_samples: int
) -> None:
    tiny = Tiny(share=share, source_rows=31, num_samples=num_samples, clip_norm=0.3)
    # Of the second step one worker has no sentence.
    steps = [random_pairs(9, 1, 31, 31), random_pairs(num_workers - 1, 2, 31, 31)][:num_workers]
    for results in workers.run(num_workers, train_with_bags, tiny, steps):
        for start in range(0, len(results), 3):
            losses, tables, dense = results[start]
            for more_losses, more_tables, more_dense in results[start + 1 : start + 3]:
                assert more_losses == losses
                for name, value in dense.items():
                    assert torch.equal(more_dense[name], value), name
                for table, (_, weight, state) in tables.items():
                    assert torch.equal(more_tables[table][1], weight), table
                    for name, value in state.items():
                        assert torch.equal(more_tables[table][2][name], value), name


def test_fewer_rows_than_workers(workers: WorkerPool) -> None:
    tiny = Tiny(share="all", source_rows=5, target_rows=5)
    check_equal(workers, 4, tiny, [random_pairs(9, seed, 5, 5) for seed in range(3)])


def test_fewer_sentences_than_workers_leaves_empty_batches(workers: WorkerPool) -> None:
    tiny = Tiny(accumulate=2)
    check_equal(workers, 3, tiny, [random_pairs(2, seed, 23, 31) for seed in range(3)])


def test_repeated_ids(workers: WorkerPool) -> None:
    pairs = [([4, 4, 4], [5, 5]), ([4, 6], [5, 5, 5, 5]), ([4], [5])]
    check_equal(workers, 2, Tiny(), [pairs, pairs, pairs])
