"""A small exact output layer on one worker, and what PyTorch finds for it."""

from __future__ import annotations

import torch
from torch.nn import functional

from dist_embed.embedding.own_rows import OwnGradient
from dist_embed.model.output import OutputShard, sharded_cross_entropy
from dist_embed.parallel.group import Group

ALONE = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
TOKENS, ROWS, WIDTH = 37, 19, 8


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator)
    weight = torch.randn(ROWS, WIDTH, generator=generator)
    target = torch.randint(0, ROWS, (TOKENS,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), target


def shard_with_blocks_of(tokens: int, dtype: torch.dtype = torch.float32) -> OutputShard:
    return OutputShard(ALONE, 0, ROWS, tokens * ROWS * 4, dtype)


def check_equals_pytorch(shard: OutputShard, smoothing: float) -> None:
    hidden, weight, target = problem()
    # What a buffer holds before the first part, and where no gradient is wanted, is of no account.
    gradient = OwnGradient(torch.full_like(weight, float("nan")))
    found = [
        sharded_cross_entropy(
            hidden, target, weight, shard, [TOKENS], smoothing, gradient, weight_scale
        )
        for weight_scale in (0.1, 0.2)
    ]
    loss, nll = found[1]
    (loss * 0.3).backward()
    assert weight.grad is None
    ours = hidden.grad, gradient.summed()
    hidden.grad = None
    again, _ = sharded_cross_entropy(hidden, target, weight, shard, [TOKENS], smoothing)
    (again * 0.3).backward()
    torch.testing.assert_close(hidden.grad, ours[0])
    hidden.grad = None
    logits = hidden @ weight.t()
    expected = functional.cross_entropy(logits, target, reduction="sum", label_smoothing=smoothing)
    (expected * 0.3).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, functional.cross_entropy(logits, target, reduction="sum"))
    torch.testing.assert_close(ours, (hidden.grad, weight.grad))
