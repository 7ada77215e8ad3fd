"""The baseline: the same translation model as one writes it in plain PyTorch.

`nn.Embedding`, `nn.TransformerEncoderLayer` and `nn.TransformerDecoderLayer` (pre-norm), a softmax
over the whole vocabulary by `functional.cross_entropy`, Adam on everything, DDP.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dist_embed.data.loader import Batch
from dist_embed.data.tokenizer import PAD
from dist_embed.model.transformer import positions


class PlainTranslator(nn.Module):
    """Sizes as in `dist_embed.model.transformer.Transformer`; embedding and model width are one."""

    def __init__(
        self,
        *,
        source_rows: int,
        target_rows: int,
        width: int,
        feed_forward: int,
        heads: int,
        encoder_layers: int,
        decoder_layers: int,
        dropout: float,
        share: Literal["none", "decoder", "all"],
        label_smoothing: float,
    ) -> None:
        super().__init__()
        self.width = width
        self.label_smoothing = label_smoothing
        self.source = nn.Embedding(source_rows, width)
        self.target = self.source if share == "all" else nn.Embedding(target_rows, width)
        self.output = nn.Linear(width, target_rows, bias=False)
        if share != "none":
            self.output.weight = self.target.weight
        encoder_layer = nn.TransformerEncoderLayer(
            width, heads, feed_forward, dropout, batch_first=True, norm_first=True
        )
        decoder_layer = nn.TransformerDecoderLayer(
            width, heads, feed_forward, dropout, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            encoder_layer, encoder_layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(decoder_layer, decoder_layers, nn.LayerNorm(width))
        self.dropout = nn.Dropout(dropout)
        for parameter in (self.source.weight, self.target.weight, self.output.weight):
            nn.init.normal_(parameter, std=width**-0.5)

    def forward(self, batch: Batch) -> Tensor:
        """Sum of the smoothed loss over the batch's target tokens."""
        source_padding = batch.source == PAD
        memory = self.encoder(
            self._embed(self.source, batch.source), src_key_padding_mask=source_padding
        )
        length = batch.target_input.shape[1]
        causal = nn.Transformer.generate_square_subsequent_mask(
            length, device=batch.target_input.device
        )
        hidden = self.decoder(
            self._embed(self.target, batch.target_input),
            memory,
            tgt_mask=causal,
            tgt_is_causal=True,
            memory_key_padding_mask=source_padding,
        )
        tokens = hidden.flatten(0, 1).index_select(0, batch.token_positions)
        return functional.cross_entropy(
            self.output(tokens),
            batch.target_output,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def _embed(self, table: nn.Embedding, ids: Tensor) -> Tensor:
        vectors = table(ids) * math.sqrt(self.width)
        embedded: Tensor = self.dropout(
            vectors + positions(0, ids.shape[1], self.width, vectors.device)
        )
        return embedded


def plain_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, scale: float, bf16: bool
) -> None:
    """One training step of the baseline."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(batch.source.device.type, torch.bfloat16, enabled=bf16):
        loss = model(batch)
    (loss * scale).backward()
    optimizer.step()
