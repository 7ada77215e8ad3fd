"""The exact layer by tiles, on one worker, against PyTorch's cross-entropy and against one pass."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dist_embed.embedding import memory
from dist_embed.model import output
from dist_embed.model.logit_tiles import LogitTiles
from dist_embed.model.output import sharded_cross_entropy
from dist_embed.model.top_words import top_log_probabilities
from tests.unit.output_problem import (
    ALONE,
    ROWS,
    TOKENS,
    check_equals_pytorch,
    problem,
    shard_with_blocks_of,
)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "TILE_TOKENS", 8)
    monkeypatch.setattr(output, "LEAST_BLOCK_TOKENS", {"cpu": 10**6})


# Tiles of 1, 4 and 19 rows × 8 tokens.
@pytest.mark.parametrize("tile_bytes", [1, 4 * 8 * 4, 10**6])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_equal_pytorch(tile_bytes: int, smoothing: float) -> None:
    check_equals_pytorch(output.OutputShard(ALONE, 0, ROWS, tile_bytes), smoothing)


def test_huge_logits_stay_finite() -> None:
    hidden, weight, target = problem()
    loss, _ = sharded_cross_entropy(hidden * 1e4, target, weight, shard_with_blocks_of(1), [TOKENS])
    expected = functional.cross_entropy(hidden * 1e4 @ weight.t(), target, reduction="sum")
    torch.testing.assert_close(loss, expected)


def test_no_tile_is_larger_than_allowed() -> None:
    hidden, weight, _ = problem()
    sizes = [tuple(t.shape) for *_, t in LogitTiles(hidden.detach(), weight.detach(), 160).tiles()]
    assert set(sizes) == {(8, 5), (8, 4), (5, 5), (5, 4)}
    assert sum(a * b for a, b in sizes) == TOKENS * ROWS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_tiles_lie_in_one_buffer(dtype: torch.dtype) -> None:
    """The next tile's would come beside that of the last."""
    hidden, weight, _ = problem()
    tiles = LogitTiles(hidden.detach().to(dtype), weight.detach().to(dtype), 160).tiles()
    assert len({tile.data_ptr() for *_, tile in tiles}) == 1


def test_no_copy_of_rows_of_another_type_is_larger_than_allowed() -> None:
    hidden, weight = torch.ones(TOKENS, 64, dtype=torch.bfloat16), torch.ones(ROWS, 64)
    # A row's copy has 128 bytes, its 8 logits 32.
    sizes = {tuple(t.shape) for *_, t in LogitTiles(hidden, weight, 5 * 128).tiles()}
    assert sizes == {(8, 5), (8, 4), (5, 5), (5, 4)}
    narrow = {tuple(t.shape)[1] for *_, t in LogitTiles(hidden, weight.bfloat16(), 5 * 32).tiles()}
    assert narrow == {5, 4}  # nothing is copied


def test_no_tokens_and_no_rows() -> None:
    hidden, weight, target = problem()
    assert list(LogitTiles(hidden[:0], weight, 100).tiles()) == []
    hidden = hidden.detach()
    maximum, total, _ = LogitTiles(hidden, weight[:0], 100).statistics(target)
    assert (maximum == float("-inf")).all()
    assert (total == 0).all()


@pytest.mark.parametrize("tile_bytes", [1, 4 * 8 * 4, 10**6])
def test_the_best_words_are_found_across_tiles(tile_bytes: int) -> None:
    hidden, weight, _ = problem()
    shard = output.OutputShard(ALONE, 0, ROWS, tile_bytes)
    values, ids = top_log_probabilities(
        hidden.detach(), weight.detach(), torch.arange(ROWS), shard, [TOKENS], 6
    )
    expected = (hidden @ weight.t()).log_softmax(1).topk(6)
    torch.testing.assert_close(values, expected.values.detach())
    assert torch.equal(ids, expected.indices)
