"""The replicated part of the model: a pre-norm Transformer encoder–decoder.

It sees vectors, never ids: the tables and the output layer are sharded and live outside. Pre-norm
as in Xiong et al. 2020 (arXiv 2002.04745). Shapes: B sentences, S source length, T target length,
D model width, E embedding width; M, N source and target tokens, padding included, of all rectangles
of a batch one behind the other (`dist_embed.data.batch.Batch`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dist_embed.model.attention import (
    CrossAttention,
    SelfAttention,
    Shapes,
    in_rectangles,
    one_behind_the_other,
)
from dist_embed.model.dropout import Dropout
from dist_embed.observe.phases import phase


def positions(first: int, length: int, width: int, device: torch.device) -> Tensor:
    """Sinusoidal position vectors (Vaswani et al. 2017, section 3.5): [length, width]."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=device) * (-math.log(10000.0) / max(1, half - 1)))
    angles = torch.arange(first, first + length, device=device).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class FeedForward(nn.Sequential):
    """Two linear maps with a ReLU between them: [..., D] to [..., D]."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(width, inner), nn.ReLU(), Dropout(dropout), nn.Linear(inner, width)
        )


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each behind a norm and inside a residual."""

    def __init__(
        self, width: int, inner: int, heads: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, attention_dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, inner, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, masks: Sequence[Tensor], shapes: Shapes = None) -> Tensor:
        """[M, D] to [M, D]; ``masks``: by rectangle [b, 1, 1, S], True on real tokens."""
        x = x + self.dropout(self.attention(self.attention_norm(x), masks, shapes=shapes))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class DecoderLayer(nn.Module):
    """Causal self-attention, attention over the source, and feed-forward."""

    def __init__(
        self, width: int, inner: int, heads: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, attention_dropout)
        self.cross_norm = nn.LayerNorm(width)
        self.cross = CrossAttention(width, heads, attention_dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, inner, dropout)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        memory: Sequence[tuple[Tensor, Tensor]],
        masks: Sequence[Tensor],
        shapes: Shapes = None,
    ) -> Tensor:
        """[N, D] to [N, D]; padding lies behind all real tokens, so causality hides it."""
        x = x + self.dropout(self.attention(self.attention_norm(x), None, True, shapes))
        return self._over_source(x, memory, masks, shapes)

    def attention_over_source(
        self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor
    ) -> Tensor:
        """The weights that `forward` attends to the source with: [B, T, S]."""
        x = x + self.attention(self.attention_norm(x), causal=True)
        return self.cross.weights(self.cross_norm(x), memory, mask)

    def step(
        self, x: Tensor, past: Tensor | None, memory: tuple[Tensor, Tensor], mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One more token [B, 1, D]; returns the result and the longer past."""
        attended, past = self.attention.step(self.attention_norm(x), past)
        return self._over_source(x + self.dropout(attended), [memory], [mask], None), past

    def _over_source(
        self,
        x: Tensor,
        memory: Sequence[tuple[Tensor, Tensor]],
        masks: Sequence[Tensor],
        shapes: Shapes,
    ) -> Tensor:
        x = x + self.dropout(self.cross(self.cross_norm(x), memory, masks, shapes))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


@dataclass
class DecoderState:
    """What the decoder remembers between two tokens of a search.

    Attributes:
        past: per layer the past keys and values [2, B, heads, t, d], None before the first token.
        memory: per layer the keys and values of the source, each [B, heads, S, d].
        mask: [B, 1, 1, S], True on real source tokens.
        length: t, tokens so far.
    """

    past: list[Tensor | None]
    memory: list[tuple[Tensor, Tensor]]
    mask: Tensor
    length: int = 0

    def select(self, index: Tensor) -> DecoderState:
        """The state of the rows ``index`` [B'] of the batch: when hypotheses are re-ordered."""
        return DecoderState(
            [None if past is None else past.index_select(1, index) for past in self.past],
            [(k.index_select(0, index), v.index_select(0, index)) for k, v in self.memory],
            self.mask.index_select(0, index),
            self.length,
        )

    def select_past(self, index: Tensor) -> DecoderState:
        """Like `select`, where each row of ``index`` names a row with the same source."""
        past = [None if past is None else past.index_select(1, index) for past in self.past]
        return DecoderState(past, self.memory, self.mask, self.length)


class Transformer(nn.Module):
    """Encoder and decoder between the table lookups and the output layer.

    Args:
        embedding_width: E, width of the tables' rows; projected where it differs from ``width``.
        width: D.
        feed_forward: inner width of the feed-forward layers.
        heads: attention heads; must divide ``width``.
        encoder_layers: number of encoder layers.
        decoder_layers: number of decoder layers.
        dropout: on embeddings, residual branches and inside the feed-forward layers.
        attention_dropout: on attention weights.
    """

    def __init__(
        self,
        *,
        embedding_width: int,
        width: int,
        feed_forward: int,
        heads: int,
        encoder_layers: int,
        decoder_layers: int,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        sizes = (width, feed_forward, heads, dropout, attention_dropout)
        self.embedding_scale = math.sqrt(embedding_width)
        self.width = width
        same = embedding_width == width
        self.source_projection = nn.Identity() if same else nn.Linear(embedding_width, width)
        self.target_projection = nn.Identity() if same else nn.Linear(embedding_width, width)
        self.output_projection = nn.Identity() if same else nn.Linear(width, embedding_width)
        self.dropout = Dropout(dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(encoder_layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        source_vectors: Tensor,
        source_lengths: Tensor,
        target_vectors: Tensor,
        token_positions: Tensor,
        rectangles: Sequence[tuple[int, int, int]] | None = None,
    ) -> Tensor:
        """Hidden states of the real target tokens.

        Args:
            source_vectors: [M, E].
            source_lengths: [B] real tokens of each source sentence.
            target_vectors: [N, E] of the decoder's input.
            token_positions: [n] where the real target tokens lie among the N.
            rectangles: (b, S, T) of each. None: one of [B, S, E] and [B, T, E].

        Returns:
            [n, E]. B and n may be 0.
        """
        sources = targets = None
        if rectangles is not None:
            sources = [(count, length) for count, length, _ in rectangles]
            targets = [(count, length) for count, _, length in rectangles]
        with phase("encoder"):
            memory, masks = self._encoded(source_vectors, source_lengths, sources)
        with phase("decoder"):
            x = self._enter(target_vectors, self.target_projection, 0, targets)
            for layer in self.decoder:
                assert isinstance(layer, DecoderLayer)
                x = layer(x, layer.cross.memory_heads(memory, sources), masks, targets)
            return self._leave(x.view(-1, self.width).index_select(0, token_positions))

    def attention_over_source(
        self, source_vectors: Tensor, source_lengths: Tensor, target_vectors: Tensor
    ) -> Tensor:
        """Where the decoder looks in the source when it predicts each target word: [B, T, S].

        Mean over the heads of the last layer but one, which aligns words best without having been
        trained to (Garg et al. 2019, arXiv 1909.02074, section 3). In evaluation mode only.

        Args:
            source_vectors: [B, S, E].
            source_lengths: [B] real tokens of each source sentence.
            target_vectors: [B, T, E] of the decoder's input.
        """
        memory, mask = self.encode(source_vectors, source_lengths)
        x = self._enter(target_vectors, self.target_projection, 0, None)
        layers = [layer for layer in self.decoder if isinstance(layer, DecoderLayer)]
        looking = max(0, len(layers) - 2)
        for layer in layers[:looking]:
            x = layer(x, layer.cross.memory_heads(memory), [mask])
        layer = layers[looking]
        (heads,) = layer.cross.memory_heads(memory)
        return layer.attention_over_source(x, heads, mask)

    def encode(self, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S, E] to the encoder's output [B, S, D] and its mask [B, 1, 1, S]."""
        memory, (mask,) = self._encoded(vectors, lengths, None)
        return memory, mask

    def _encoded(
        self, vectors: Tensor, lengths: Tensor, shapes: Shapes
    ) -> tuple[Tensor, list[Tensor]]:
        """[M, E] to the encoder's output [M, D] and the mask of each rectangle."""
        shapes_or_one = [(vectors.shape[0], vectors.shape[1])] if shapes is None else shapes
        place = torch.arange(max(length for _, length in shapes_or_one), device=vectors.device)
        seen = (place < lengths.unsqueeze(1))[:, None, None, :]
        parts = seen.split([count for count, _ in shapes_or_one])
        masks = [part[..., :length] for part, (_, length) in zip(parts, shapes_or_one, strict=True)]
        x = self._enter(vectors, self.source_projection, 0, shapes)
        for layer in self.encoder:
            x = layer(x, masks, shapes)
        return self.encoder_norm(x), masks

    def start(self, vectors: Tensor, lengths: Tensor) -> DecoderState:
        """Encode and prepare the decoder for `step`: [B, S, E]."""
        memory, mask = self.encode(vectors, lengths)
        layers = [layer for layer in self.decoder if isinstance(layer, DecoderLayer)]
        return DecoderState(
            [None] * len(layers), [layer.cross.memory_heads(memory)[0] for layer in layers], mask
        )

    def step(self, vectors: Tensor, state: DecoderState) -> Tensor:
        """Feed one token [B, E], extend ``state``, return the hidden state [B, E]."""
        x = self._enter(vectors.unsqueeze(1), self.target_projection, state.length, None)
        for number, layer in enumerate(self.decoder):
            assert isinstance(layer, DecoderLayer)
            x, state.past[number] = layer.step(
                x, state.past[number], state.memory[number], state.mask
            )
        state.length += 1
        return self._leave(x.squeeze(1))

    def _enter(
        self, vectors: Tensor, projection: nn.Module, first_position: int, shapes: Shapes
    ) -> Tensor:
        parts = in_rectangles(projection(vectors * self.embedding_scale), shapes)
        longest = max(part.shape[1] for part in parts)
        place = positions(first_position, longest, self.width, vectors.device)
        placed = [part + place[: part.shape[1]] for part in parts]
        x = placed[0] if shapes is None else one_behind_the_other(placed)
        entered: Tensor = self.dropout(x)
        return entered

    def _leave(self, x: Tensor) -> Tensor:
        left: Tensor = self.output_projection(self.decoder_norm(x))
        return left
