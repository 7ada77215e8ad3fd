"""The baseline: the same translation model as one writes it in plain PyTorch.

`nn.Embedding`, `nn.TransformerEncoderLayer` and `nn.TransformerDecoderLayer` (pre-norm), a softmax
over the whole vocabulary by `functional.cross_entropy`, Adam on everything, DDP; under
`torch.compile` if wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from dist_embed.config.schema import Config
from dist_embed.data.batch import Batch
from dist_embed.data.loader import StepBatches
from dist_embed.data.tokenizer import PAD
from dist_embed.model.settings import ShareEmbeddings
from dist_embed.model.transformer import positions
from dist_embed.parallel.errors import all_or_none
from dist_embed.parallel.group import Group

# Runs one training step: its number, its work, and the next one's where that is known.
Step = Callable[[int, StepBatches, StepBatches | None], object]


class _EncoderLayer(nn.TransformerEncoderLayer):
    """PyTorch's; its compiler passes over a module of PyTorch's own that is asked for by itself."""

    def forward(self, *given: Any, **options: Any) -> Tensor:
        return super().forward(*given, **options)


class _DecoderLayer(nn.TransformerDecoderLayer):
    """As `_EncoderLayer`."""

    def forward(self, *given: Any, **options: Any) -> Tensor:
        return super().forward(*given, **options)


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
        sharing: ShareEmbeddings,
        label_smoothing: float,
    ) -> None:
        super().__init__()
        self.width = width
        self.label_smoothing = label_smoothing
        self.source = nn.Embedding(source_rows, width)
        self.target = self.source if sharing == "all" else nn.Embedding(target_rows, width)
        self.output = nn.Linear(width, target_rows, bias=False)
        if sharing != "none":
            self.output.weight = self.target.weight
        encoder_layer = _EncoderLayer(
            width, heads, feed_forward, dropout, batch_first=True, norm_first=True
        )
        decoder_layer = _DecoderLayer(
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
        shapes = batch.rectangles
        sources = batch.source.split([count * length for count, length, _ in shapes])
        targets = batch.target_input.split([count * length for count, _, length in shapes])
        hidden = [
            self._hidden(source.view(count, longest), target.view(count, length)).flatten(0, 1)
            for source, target, (count, longest, length) in zip(
                sources, targets, shapes, strict=True
            )
        ]
        tokens = torch.cat(hidden).index_select(0, batch.token_positions)
        return self._loss(tokens, batch.target_output)

    def _hidden(self, source: Tensor, target: Tensor) -> Tensor:
        """Of one rectangle, [b, S] and [b, T] ids: [b, T, width]."""
        source_padding = source == PAD
        memory = self.encoder(self._embed(self.source, source), src_key_padding_mask=source_padding)
        causal = nn.Transformer.generate_square_subsequent_mask(
            target.shape[1], device=target.device
        )
        decoded: Tensor = self.decoder(
            self._embed(self.target, target),
            memory,
            tgt_mask=causal,
            tgt_is_causal=True,
            memory_key_padding_mask=source_padding,
        )
        return decoded

    def compile_parts(self) -> None:
        """Compile, for sizes that may change: each layer, which all layers of a kind share, what
        comes before them, and the loss.

        Not the model as a whole: to follow changing sizes through all its layers takes the compiler
        minutes (torch 2.13).
        """
        how: dict[str, Any] = {"fullgraph": True, "dynamic": True}
        for layer in (*self.encoder.layers, *self.decoder.layers):
            layer.compile(**how)
        self._embed = torch.compile(self._embed, **how)  # type: ignore[method-assign]
        self._loss = torch.compile(self._loss, **how)  # type: ignore[method-assign]

    def _loss(self, tokens: Tensor, right: Tensor) -> Tensor:
        return functional.cross_entropy(
            self.output(tokens), right, reduction="sum", label_smoothing=self.label_smoothing
        )

    def _embed(self, table: nn.Embedding, ids: Tensor) -> Tensor:
        vectors = table(ids) * math.sqrt(self.width)
        embedded: Tensor = self.dropout(
            vectors + positions(0, ids.shape[1], self.width, vectors.device)
        )
        return embedded


def plain_training_step(
    config: Config,
    source_rows: int,
    target_rows: int,
    group: Group,
    *,
    bf16: bool,
    compiled_for: Sequence[Batch] = (),
) -> Step:
    """What runs one training step of the baseline, in the sizes of ``config``. Collective.

    ``compiled_for``: batches of this worker; if there are any, the model is compiled, see
    `PlainTranslator.compile_parts`, until there is code for each of them, forward and backward: no
    step on them has to wait for the compiler. Raises what PyTorch's compiler raises; where one
    worker's fails, on all.
    """
    torch.manual_seed(config.run.seed)
    translation_model = PlainTranslator(
        source_rows=source_rows,
        target_rows=target_rows,
        width=config.model.width,
        feed_forward=config.model.feed_forward,
        heads=config.model.heads,
        encoder_layers=config.model.encoder_layers,
        decoder_layers=config.model.decoder_layers,
        dropout=config.model.dropout,
        sharing=config.model.share_embeddings,
        label_smoothing=config.train.label_smoothing,
    ).to(group.device)
    model: nn.Module = translation_model

    def loss_of(batch: Batch) -> Tensor:
        with torch.autocast(batch.source.device.type, torch.bfloat16, enabled=bf16):
            loss: Tensor = model(batch)
        return loss

    if compiled_for:
        translation_model.compile_parts()
        with all_or_none(group):
            for batch in sorted(compiled_for, key=_equal_sizes):
                loss_of(batch.to(group.device)).backward()
        model.zero_grad(set_to_none=True)
    if group.num_workers > 1:
        model = DistributedDataParallel(model, process_group=group.process_group)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.98), fused=True)

    def run(number: int, work: StepBatches, following: StepBatches | None) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(work.batches[0])
        (loss * group.num_workers / work.global_tokens).backward()
        optimizer.step()

    return run


def _equal_sizes(batch: Batch) -> int:
    """How many sizes of a batch's first rectangle are 0, 1, or equal to another.

    The compiler takes sizes that are equal in the first batch for equal in all, and a 0 or 1 for
    itself: with one that has neither first it compiles once for nearly all others (torch 2.11 and
    2.13).
    """
    sizes = [*batch.rectangles[0], len(batch.token_positions)]
    return len(sizes) - len({*sizes} - {0, 1})
