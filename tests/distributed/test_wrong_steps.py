"""Mistakes in a loop of one's own end on every worker alike; what is no mistake goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dist_embed.checkpoint.of_tables import Checkpoints
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.table import Table
from dist_embed.model.output_layer import ExactSoftmax, OutputLayer, SampledSoftmax
from dist_embed.model.sampler import LogUniformSampler
from dist_embed.parallel.errors import errors_shared
from dist_embed.parallel.group import Group
from tests.distributed.pool import RemoteError, WorkerPool

ROWS, WIDTH = 9, 4
HIDDEN = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([1, 8, 1, 0, 4])
COUNTS = {1: [5], 2: [0, 5], 3: [2, 0, 3]}


def built(group: Group, *, whole: bool = False) -> ShardedTables:
    named = {"w": Table(ROWS, WIDTH, trained_whole=whole), "v": Table(ROWS, WIDTH)}
    return ShardedTables(named, group, optimizer="sgd", learning_rate=1.0, seed=1)


def said(call: Callable[[], Any]) -> str:
    """Of whatever is raised, its last line."""
    with pytest.raises(Exception, match=r".") as caught:
        call()
    return str(caught.value).strip().splitlines()[-1]


def before_the_loss(group: Group) -> tuple[list[str], Tensor, Tensor]:
    tables = built(group)
    before = tables.weight("w").clone()
    found = []
    for with_ids in (True, group.rank == 1):  # then one worker has no example
        rows = tables.lookup({"w": torch.tensor([3])} if with_ids else {})
        found.append(said(rows.backward))
    return found, before, tables.weight("w").clone()


def test_updates_without_gradients_are_refused_on_all(workers: WorkerPool) -> None:
    for found, before, after in workers.run(2, before_the_loss):
        assert all("none of these rows has a gradient on any worker" in text for text in found)
        assert torch.equal(before, after)


def used_on_one(group: Group) -> tuple[Tensor, Tensor]:
    tables = built(group)
    before = tables.weight("w").clone()
    rows = tables.lookup({"w": torch.tensor([3])})
    if group.rank == 1:
        (rows.vectors("w").sum() * group.num_workers).backward()
    rows.backward()
    return before, before - tables.weight("w")


def test_rows_that_one_worker_alone_uses_are_trained(workers: WorkerPool) -> None:
    results = workers.run(2, used_on_one)
    moved = torch.cat([change for _, change in results])
    assert sorted(moved.sum(1).tolist()) == pytest.approx([0.0] * (ROWS - 1) + [WIDTH], abs=1e-6)


def loss_with_an_empty_part(group: Group, layer: str, training: bool) -> tuple[float, Tensor]:
    """Of all workers, and of the hidden states the gradient."""
    tables = built(group, whole=layer == "exact" and training)
    output: OutputLayer = ExactSoftmax(tables, "w")
    if layer == "sampled":
        output = SampledSoftmax(tables, "w", LogUniformSampler(ROWS, ROWS))
    counts = COUNTS[group.num_workers]
    first = sum(counts[: group.rank])
    part = slice(first, first + counts[group.rank])
    hidden, targets = HIDDEN[part].clone().requires_grad_(training), TARGETS[part]
    with torch.set_grad_enabled(training):
        negatives = output.draw(1, [targets])
        rows = tables.lookup({"w": output.words([targets], negatives)})
        step_loss = output.start(rows, negatives, 1, 1 / 5)
        loss, _ = step_loss.of(hidden, 0, targets, counts)
        if training:
            (loss * group.num_workers / 5).backward()
        step_loss.finish()
    if training:
        rows.backward()
    shared = output.counts_own_tokens
    return float(loss.detach()) / (1 if shared else group.num_workers), (
        torch.zeros_like(hidden) if hidden.grad is None else hidden.grad / group.num_workers
    )


@pytest.mark.parametrize("num_workers", [2, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", ["exact", "sampled"])
def test_a_worker_may_have_no_tokens(
    workers: WorkerPool, num_workers: int, training: bool, layer: str
) -> None:
    ((expected, gradient),) = workers.run(1, loss_with_an_empty_part, layer, training)
    results = workers.run(num_workers, loss_with_an_empty_part, layer, training)
    assert sum(loss for loss, _ in results) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(torch.cat([part for _, part in results]), gradient)
    tables = workers.run(1, plain_loss)
    assert expected == pytest.approx(tables[0], rel=1e-5)


def plain_loss(group: Group) -> float:
    tables = built(group)
    words = tables.weight("w")[tables.orders["w"].rows_of(torch.arange(ROWS))]
    return float(functional.cross_entropy(HIDDEN @ words.t(), TARGETS, reduction="sum"))


def counts_that_do_not_fit(group: Group, layer: str) -> None:
    with errors_shared(group):
        tables = built(group, whole=layer == "exact")
        output: OutputLayer = ExactSoftmax(tables, "w")
        if layer == "sampled":
            output = SampledSoftmax(tables, "w", LogUniformSampler(ROWS, ROWS))
        targets = TARGETS[: 2 + group.rank]
        negatives = output.draw(1, [targets])
        rows = tables.lookup({"w": output.words([targets], negatives)})
        step_loss = output.start(rows, negatives, 1, 1.0)
        hidden = HIDDEN[: 2 + group.rank].clone().requires_grad_()
        loss, _ = step_loss.of(hidden, 0, targets, [2, 2])
        loss.backward()
        step_loss.finish()


@pytest.mark.parametrize("layer", ["exact", "sampled"])
def test_counts_that_do_not_fit_on_one_worker_reach_all(workers: WorkerPool, layer: str) -> None:
    with pytest.raises(RemoteError) as caught:
        workers.run(2, counts_that_do_not_fit, layer)
    reasons = str(caught.value).count(
        "UserError: tokens_of_worker: [2, 2] is not allowed: how many tokens each of 2 workers "
        "has, in the order of ranks; worker 1 has 3"
    )
    assert reasons >= 2, str(caught.value)


def counts_that_differ(group: Group) -> list[str]:
    tables = built(group, whole=True)
    output, tokens = ExactSoftmax(tables, "w"), 2 + group.rank
    found = []
    for counts in ([[2, 4], [2, 3]], [[2, 3], [3, 3]]):
        step_loss = output.start(tables.lookup({}), None, 1, 1.0)
        given = (HIDDEN[:tokens], 0, TARGETS[:tokens], counts[group.rank])
        found.append(said(lambda given=given, of=step_loss.of: of(*given)))  # type: ignore[misc]
    return found


def test_counts_of_tokens_that_differ_are_refused_on_all(workers: WorkerPool) -> None:
    """Each list is right for its own worker."""
    for found in workers.run(2, counts_that_differ):
        assert found == [
            "tokens_of_worker: all workers give the same; worker 0 has [2, 4], worker 1 [2, 3]",
            "tokens_of_worker: all workers give the same; worker 0 has [2, 3], worker 1 [3, 3]",
        ]


def wrong_on_one(group: Group, uri: str) -> list[str]:
    tables = built(group)
    wrong = group.rank == 1
    report: Any = "x" if wrong else print
    whole: Any = "no" if wrong else True
    sampler = LogUniformSampler(ROWS, 2)
    return [
        said(lambda: ExactSoftmax(tables, "x" if wrong else "w")),
        said(lambda: SampledSoftmax(tables, "w", sampler, seed=-1 if wrong else 1)),
        said(lambda: Checkpoints(uri, tables, keep_last=0 if wrong else 1)),
        said(lambda: Checkpoints(uri, tables, report=report)),
        said(lambda: ShardedTables({"w": Table(9, 4, trained_whole=whole)}, group)),
    ]


def test_wrong_arguments_of_one_worker_reach_all(workers: WorkerPool, tmp_path: Path) -> None:
    here, there = workers.run(2, wrong_on_one, str(tmp_path))
    expected = [
        "feature 'x': no table has it; there are w, v",
        "seed: -1 is not allowed: a whole number, at least 0",
        "keep_last: 0 is not allowed: a whole number, at least 1",
        "report: 'x' is not allowed: a function",
        "table 'w': trained_whole: 'no' is not allowed: True or False",
    ]
    assert there == expected
    for text, told in zip(here, expected, strict=True):
        assert text.endswith(f"UserError: {told}")
