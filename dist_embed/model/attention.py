"""Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762), with a cache for search."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


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

    def finish(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool
    ) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        heads = attend(query, key, value, mask, causal, dropout)
        result: Tensor = self.out(heads.transpose(1, 2).flatten(-2))
        return result


class SelfAttention(_Heads):
    """Attention of a sequence over itself."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__(width, num_heads, dropout)
        self.query_key_value = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """[B, T, D] to [B, T, D]; ``mask`` [B, 1, 1, T] is True where a token may be seen."""
        query, key, value = (self.split(part) for part in self.query_key_value(x).chunk(3, -1))
        return self.finish(query, key, value, mask, causal)

    def step(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """One more token: [B, 1, D] and the past keys and values [2, B, heads, t, d] or None.

        Returns the result [B, 1, D] and the longer past.
        """
        query, key, value = (self.split(part) for part in self.query_key_value(x).chunk(3, -1))
        now = torch.stack([key, value])
        past = now if past is None else torch.cat([past, now], dim=3)
        return self.finish(query, past[0], past[1], None, False), past


class CrossAttention(_Heads):
    """Attention of the decoder over the encoder's output."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__(width, num_heads, dropout)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)

    def memory_heads(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, S, d] of the encoder's output [B, S, D]."""
        key, value = self.key_value(memory).chunk(2, -1)
        return self.split(key), self.split(value)

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """[B, T, D] over ``memory_heads``; ``mask`` [B, 1, 1, S] is True on real tokens."""
        return self.finish(self.split(self.query(x)), memory[0], memory[1], mask, False)

    def weights(self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """How much of its attention each place pays to each of the source, heads averaged:
        [B, T, S].
        """
        query = self.split(self.query(x))
        scores = query @ memory[0].transpose(2, 3) / math.sqrt(query.shape[-1])
        return scores.masked_fill(~mask, float("-inf")).softmax(-1).mean(1)
