"""float16 rows against float32 hidden states: evaluation and search, without a float32 copy of the
shard; compared with float64.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from dist_embed.model import output
from dist_embed.model.logit_tiles import LogitTiles
from dist_embed.model.output import OutputShard, sharded_cross_entropy
from dist_embed.model.top_words import top_log_probabilities
from tests.unit.output_problem import ALONE, ROWS, TOKENS, WIDTH, problem

TILES = [1, 4 * 8 * 4, 10**6]


def narrow_problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden, weight, target = problem()
    return hidden.detach(), weight.detach().half(), target


class LargestConversion(TorchDispatchMode):
    """Notes the most values that one operation has made float32 of float16."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        narrow = any(isinstance(a, torch.Tensor) and a.dtype == torch.float16 for a in args)
        if narrow and isinstance(out, torch.Tensor) and out.dtype == torch.float32:
            self.values = max(self.values, out.numel())
        return out


@pytest.mark.parametrize("tile_bytes", TILES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_equals_float64(
    monkeypatch: pytest.MonkeyPatch, tile_bytes: int, smoothing: float
) -> None:
    monkeypatch.setattr(output, "SUMMED_ROWS", 7)
    hidden, weight, target = narrow_problem()
    shard = OutputShard(ALONE, 0, ROWS, tile_bytes)
    loss, nll = sharded_cross_entropy(hidden, target, weight, shard, [TOKENS], smoothing)
    logits = hidden.double() @ weight.double().t()
    expected = functional.cross_entropy(logits, target, reduction="sum", label_smoothing=smoothing)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    plain = functional.cross_entropy(logits, target, reduction="sum")
    assert nll.item() == pytest.approx(plain.item(), rel=1e-6)


@pytest.mark.parametrize("tile_bytes", TILES)
def test_the_best_words_equal_float64(tile_bytes: int) -> None:
    hidden, weight, _ = narrow_problem()
    shard = OutputShard(ALONE, 0, ROWS, tile_bytes)
    values, ids = top_log_probabilities(hidden, weight, torch.arange(ROWS), shard, [TOKENS], 6)
    expected = (hidden.double() @ weight.double().t()).log_softmax(1).topk(6)
    torch.testing.assert_close(values.double(), expected.values, rtol=0, atol=1e-5)
    assert torch.equal(ids, expected.indices)


@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_no_conversion_is_larger_than_a_tile(tokens: int) -> None:
    """Also where so few tokens are scored that a tile of logits would have all rows."""
    hidden, weight, target = narrow_problem()
    tile_bytes = 5 * WIDTH * 4
    shard = OutputShard(ALONE, 0, ROWS, tile_bytes)
    with LargestConversion() as largest:
        sharded_cross_entropy(hidden[:tokens], target[:tokens], weight, shard, [tokens])
        top_log_probabilities(hidden[:tokens], weight, torch.arange(ROWS), shard, [tokens], 3)
    assert 0 < largest.values <= 5 * WIDTH < ROWS * WIDTH


def test_the_sum_of_rows_is_taken_by_parts_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "SUMMED_ROWS", 3)
    hidden, weight, target = narrow_problem()
    hidden, weight = hidden * 1e-5, weight.fill_(30_000)  # three of them are beyond float16
    shard = OutputShard(ALONE, 0, ROWS, 5 * WIDTH * 4)
    seen: list[int] = []
    real = torch.Tensor.sum

    def noted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if tensor.dtype == torch.float16:
            seen.append(tensor.shape[0])
        return real(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "sum", noted)
    loss, _ = sharded_cross_entropy(hidden, target, weight, shard, [TOKENS], 0.1)
    assert loss.item() == pytest.approx(TOKENS * math.log(ROWS), rel=1e-5)
    assert seen == [3, 3, 3, 3, 3, 3, 1]


def test_rows_of_the_products_type_are_not_copied() -> None:
    hidden, weight, _ = problem()
    tiles = LogitTiles(hidden.detach(), weight.detach(), 10**6)
    ((_, blocks),) = list(tiles._row_blocks())
    assert blocks._operand.data_ptr() == weight.data_ptr()
