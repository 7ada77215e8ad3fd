"""Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762), with a cache for search.

A training batch is several rectangles of sentences, whose tokens lie one after the other: [N, D].
All products but those of queries with keys and of weights with values are of all tokens at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

# Sentences and length of each rectangle. None: there is one, and its tensors are [B, T, D].
Shapes = Sequence[tuple[int, int]] | None


def in_rectangles(x: Tensor, shapes: Shapes) -> list[Tensor]:
    """[N, D] as one [b, T, D] a rectangle."""
    if shapes is None:
        return [x]
    parts = x.split([count * length for count, length in shapes])
    return [
        part.view(count, length, x.shape[-1])
        for part, (count, length) in zip(parts, shapes, strict=True)
    ]


def one_behind_the_other(parts: list[Tensor]) -> Tensor:
    """The inverse of `in_rectangles`: [N, D]."""
    flat = [part.flatten(0, 1) for part in parts]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    """Scaled dot-product attention of [B, heads, T, d] queries over [B, heads, S, d] keys.

    On a CPU the products are done in float32 whatever the inputs: PyTorch's bfloat16 CPU kernel
    for attention is several times slower than its float32 one
    (docs/decisions/0006-attention-in-float32-on-cpu.md).
    """
    dtype = query.dtype
    if query.device.type == "cpu":
        query, key, value = query.float(), key.float(), value.float()
    with torch.autocast(query.device.type, enabled=False):
        out = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, dropout_p=dropout
        )
    return out.to(dtype)


class _Heads(nn.Module):
    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"model.width={width} is not divisible by model.heads={num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.out = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, heads, T, D / heads]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def heads(self, x: Tensor, shapes: Shapes) -> list[Tensor]:
        """`split` of each rectangle."""
        return [self.split(part) for part in in_rectangles(x, shapes)]

    def finish(
        self,
        queries: list[Tensor],
        memory: Sequence[tuple[Tensor, Tensor]],
        masks: Sequence[Tensor] | None,
        causal: bool,
        shapes: Shapes,
    ) -> Tensor:
        """Attend within each rectangle to its keys and values."""
        dropout = self.dropout if self.training else 0.0
        seen: Sequence[Tensor | None] = [None] * len(queries) if masks is None else masks
        attended = [
            attend(query, key, value, mask, causal, dropout).transpose(1, 2).flatten(-2)
            for query, (key, value), mask in zip(queries, memory, seen, strict=True)
        ]
        result: Tensor = self.out(attended[0] if shapes is None else one_behind_the_other(attended))
        return result


class SelfAttention(_Heads):
    """Attention of a sequence over itself."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__(width, num_heads, dropout)
        self.query_key_value = nn.Linear(width, 3 * width)

    def forward(
        self,
        x: Tensor,
        masks: Sequence[Tensor] | None = None,
        causal: bool = False,
        shapes: Shapes = None,
    ) -> Tensor:
        """[N, D] to [N, D]; ``masks``: by rectangle [b, 1, 1, T], True where one may look."""
        query, key, value = (self.heads(x, shapes) for x in self.query_key_value(x).chunk(3, -1))
        return self.finish(query, list(zip(key, value, strict=True)), masks, causal, shapes)

    def step(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """One more token: [B, 1, D] and the past keys and values [2, B, heads, t, d] or None.

        Returns the result [B, 1, D] and the longer past.
        """
        query, key, value = (self.split(part) for part in self.query_key_value(x).chunk(3, -1))
        now = torch.stack([key, value])
        past = now if past is None else torch.cat([past, now], dim=3)
        return self.finish([query], [(past[0], past[1])], None, False, None), past


class CrossAttention(_Heads):
    """Attention of the decoder over the encoder's output."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__(width, num_heads, dropout)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)

    def memory_heads(self, memory: Tensor, shapes: Shapes = None) -> list[tuple[Tensor, Tensor]]:
        """By rectangle keys and values [b, heads, S, d] of the encoder's output [M, D]."""
        key, value = (self.heads(part, shapes) for part in self.key_value(memory).chunk(2, -1))
        return list(zip(key, value, strict=True))

    def forward(
        self,
        x: Tensor,
        memory: Sequence[tuple[Tensor, Tensor]],
        masks: Sequence[Tensor],
        shapes: Shapes = None,
    ) -> Tensor:
        """[N, D] over ``memory_heads``; ``masks``: by rectangle [b, 1, 1, S], True on real."""
        return self.finish(self.heads(self.query(x), shapes), memory, masks, False, shapes)

    def weights(self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """How much of its attention each place pays to each of the source, heads averaged:
        [B, T, S].
        """
        query = self.split(self.query(x))
        scores = query @ memory[0].transpose(2, 3) / math.sqrt(query.shape[-1])
        return scores.masked_fill(~mask, float("-inf")).softmax(-1).mean(1)
