"""The exact output layer on one worker against PyTorch's cross-entropy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from dist_embed.embedding.own_rows import OwnGradient
from dist_embed.model import logit_blocks, output
from dist_embed.model.output import OutputShard, sharded_cross_entropy
from dist_embed.model.top_words import top_log_probabilities
from tests.unit.output_problem import (
    ALONE,
    ROWS,
    TOKENS,
    WIDTH,
    check_equals_pytorch,
    problem,
    shard_with_blocks_of,
)


@pytest.mark.parametrize("by_blocks", [True, False])
@pytest.mark.parametrize("block_tokens", [1, 5, 37, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_equal_pytorch(
    monkeypatch: pytest.MonkeyPatch, block_tokens: int, smoothing: float, by_blocks: bool
) -> None:
    monkeypatch.setattr(output, "LEAST_BLOCK_TOKENS", {"cpu": 1 if by_blocks else 10**6})
    check_equals_pytorch(shard_with_blocks_of(block_tokens), smoothing)


def test_huge_logits_stay_finite() -> None:
    hidden, weight, target = problem()
    loss, _ = sharded_cross_entropy(
        hidden * 1e4, target, weight, shard_with_blocks_of(4), [TOKENS], 0.1
    )
    expected = functional.cross_entropy(
        hidden * 1e4 @ weight.t(), target, reduction="sum", label_smoothing=0.1
    )
    torch.testing.assert_close(loss, expected)


def test_bfloat16_products_come_close() -> None:
    hidden, weight, target = problem()
    exact, _ = sharded_cross_entropy(hidden, target, weight, shard_with_blocks_of(8), [TOKENS])
    shard = shard_with_blocks_of(8, torch.bfloat16)
    loss, _ = sharded_cross_entropy(hidden, target, weight, shard, [TOKENS])
    assert loss.item() != exact.item()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)


@pytest.mark.parametrize("least_block_tokens", [1, 10**6])  # by blocks, by tiles
def test_gradients_of_bfloat16_products_come_close(
    monkeypatch: pytest.MonkeyPatch, least_block_tokens: int
) -> None:
    monkeypatch.setattr(output, "LEAST_BLOCK_TOKENS", {"cpu": least_block_tokens})
    monkeypatch.setattr(logit_blocks, "PRODUCT_ROWS", 3)  # several parts, and a rest
    hidden, weight, target = problem()
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        gradient = OwnGradient(torch.empty_like(weight))
        sharded_cross_entropy(
            hidden, target, weight, shard_with_blocks_of(8, dtype), [TOKENS], 0.1, gradient, 0.3
        )
        found.append(gradient.summed())
    assert not torch.equal(*found)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0.02 * float(found[0].abs().max()))


def test_rows_in_host_memory_are_copied_once_for_all_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden, weight, target = problem()
    shard = replace(shard_with_blocks_of(40), block_bytes=40 * ROWS * 4)
    used: list[int] = []
    real = logit_blocks.LogitBlocks

    def noted(rows: torch.Tensor, *how: Any) -> Any:
        used.append(rows.data_ptr())
        return real(rows, *how)

    monkeypatch.setattr(output, "LogitBlocks", noted)
    for in_host in (False, True):
        monkeypatch.setattr(output, "lies_in_host_memory", lambda rows, told=in_host: told)
        sharded_cross_entropy(hidden, target, weight, shard, [TOKENS])
    assert used[0] == weight.data_ptr()
    assert used[1] != weight.data_ptr()


def test_no_tokens_give_no_loss() -> None:
    _, weight, _ = problem()
    none = torch.empty(0, WIDTH, requires_grad=True)
    loss, nll = sharded_cross_entropy(
        none, torch.empty(0, dtype=torch.int64), weight, shard_with_blocks_of(4), [0], 0.1
    )
    loss.backward()
    assert (loss.item(), nll.item()) == (0.0, 0.0)
    assert none.grad is not None
    assert none.grad.shape == (0, WIDTH)


@pytest.mark.parametrize("k", [1, 4, ROWS])
def test_top_words_equal_pytorch(k: int) -> None:
    hidden, weight, _ = problem()
    ids = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    values, found = top_log_probabilities(
        hidden.detach(), weight.detach(), ids, shard_with_blocks_of(6), [TOKENS], k
    )
    expected, rows = functional.log_softmax(hidden @ weight.t(), dim=1).topk(k, dim=1)
    torch.testing.assert_close(values, expected)
    assert torch.equal(found, ids[rows])


def test_equal_probabilities_are_ordered_by_id() -> None:
    weight = torch.ones(4, WIDTH)
    shard = OutputShard(ALONE, 0, 4, 1000)
    _, ids = top_log_probabilities(
        torch.ones(1, WIDTH), weight, torch.tensor([3, 1, 2, 0]), shard, [1], 4
    )
    assert ids.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("block_tokens", [31, 32])
@pytest.mark.parametrize("trains", [True, False])
def test_small_blocks_and_what_needs_no_gradient_go_by_tiles(
    monkeypatch: pytest.MonkeyPatch, block_tokens: int, trains: bool
) -> None:
    ways: list[str] = []
    for name in ("LogitBlocks", "LogitTiles"):
        way = getattr(output, name)

        def noted(*args: Any, _name: str = name, _way: Any = way) -> Any:
            ways.append(_name)
            return _way(*args)

        monkeypatch.setattr(output, name, noted)
    hidden, weight, target = problem()
    if not trains:
        hidden, weight = hidden.detach(), weight.detach()
    sharded_cross_entropy(hidden, target, weight, shard_with_blocks_of(block_tokens), [TOKENS])
    assert set(ways) == {"LogitBlocks" if trains and block_tokens == 32 else "LogitTiles"}
