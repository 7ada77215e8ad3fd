"""The Transformer against PyTorch's own layers, and where it drops values out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dist_embed.model.dropout import Dropout
from dist_embed.model.transformer import Transformer

LENGTHS = torch.tensor([5, 2, 4])
TARGET_LENGTHS = [6, 3, 1]
P, ATTENTION_P = 0.25, 0.375  # multiples of 1/256


def built(embedding_width: int, encoder_layers: int = 2, decoder_layers: int = 3) -> Transformer:
    torch.manual_seed(3)
    model = Transformer(
        embedding_width=embedding_width, width=12, feed_forward=20, heads=3,
        encoder_layers=encoder_layers, decoder_layers=decoder_layers, dropout=P,
        attention_dropout=ATTENTION_P,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too are to matter
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def batch(embedding_width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Source, target, and where the real target tokens lie."""
    torch.manual_seed(4)
    real = torch.arange(6) < torch.tensor(TARGET_LENGTHS).unsqueeze(1)
    places = real.flatten().nonzero().squeeze(1)
    return torch.randn(3, 5, embedding_width), torch.randn(3, 6, embedding_width), places


class Shrink(nn.Module):
    """What dropout is on average, were the rest not scaled: a factor that tells its places."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor if self.training else x


def copy_attention(theirs: nn.MultiheadAttention, out: nn.Linear, *parts: nn.Linear) -> None:
    theirs.in_proj_weight.data = torch.cat([part.weight.data for part in parts])
    theirs.in_proj_bias.data = torch.cat([part.bias.data for part in parts])
    theirs.out_proj.load_state_dict(out.state_dict())


class PyTorchs(nn.Module):
    """The same model of PyTorch's layers."""

    def __init__(self, ours: Transformer, embedding_width: int) -> None:
        super().__init__()
        self.ours, self.embedding_width = ours, embedding_width
        sizes = {"d_model": 12, "nhead": 3, "dim_feedforward": 20, "dropout": 0.0,
                 "batch_first": True, "norm_first": True}  # fmt: skip
        self.enter = Shrink(1 - P)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for layer in ours.encoder:
            theirs: Any = nn.TransformerEncoderLayer(**sizes)  # type: ignore[arg-type]
            copy_attention(
                theirs.self_attn, layer.attention.out, layer.attention.query_key_value  # type: ignore[arg-type, union-attr]
            )  # fmt: skip
            self._finish(theirs, layer, ["attention_norm", "feed_forward_norm"])
            self.encoder.append(theirs)
        for layer in ours.decoder:
            theirs = nn.TransformerDecoderLayer(**sizes)  # type: ignore[arg-type]
            attention, cross = layer.attention, layer.cross
            copy_attention(theirs.self_attn, attention.out, attention.query_key_value)  # type: ignore[arg-type, union-attr]
            copy_attention(theirs.multihead_attn, cross.out, cross.query, cross.key_value)  # type: ignore[arg-type, union-attr]
            theirs.multihead_attn.dropout = ATTENTION_P
            self._finish(theirs, layer, ["attention_norm", "cross_norm", "feed_forward_norm"])
            self.decoder.append(theirs)

    @staticmethod
    def _finish(theirs: Any, layer: Any, norms: list[str]) -> None:
        theirs.self_attn.dropout = ATTENTION_P
        for number, name in enumerate(norms, start=1):
            getattr(theirs, f"norm{number}").load_state_dict(getattr(layer, name).state_dict())
            setattr(theirs, f"dropout{number}", Shrink(1 - P))
        theirs.dropout = Shrink(1 - P)
        theirs.linear1.load_state_dict(layer.feed_forward[0].state_dict())
        theirs.linear2.load_state_dict(layer.feed_forward[3].state_dict())

    def vectors(self, x: Tensor, projection: nn.Module) -> Tensor:
        places = torch.tensor(
            [[wave(place / 10000 ** (k / 5)) for wave in (math.sin, math.cos) for k in range(6)]
             for place in range(x.shape[1])]
        )  # fmt: skip
        return self.enter(projection(x * math.sqrt(self.embedding_width)) + places)

    def encoded(self, source: Tensor) -> tuple[Tensor, Tensor]:
        padding = torch.arange(source.shape[1]) >= LENGTHS.unsqueeze(1)
        x = self.vectors(source, self.ours.source_projection)
        for layer in self.encoder:
            x = layer(x, src_key_padding_mask=padding)
        return self.ours.encoder_norm(x), padding

    def decoded(self, target: Tensor, memory: Tensor, padding: Tensor, layers: int) -> Tensor:
        x = self.vectors(target, self.ours.target_projection)
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        for layer in self.decoder[:layers]:  # type: ignore[union-attr]
            x = layer(
                x, memory, tgt_mask=causal, tgt_is_causal=True, memory_key_padding_mask=padding
            )
        return x

    def forward(self, source: Tensor, target: Tensor, places: Tensor) -> Tensor:
        memory, padding = self.encoded(source)
        x = self.ours.decoder_norm(self.decoded(target, memory, padding, len(self.decoder)))
        return self.ours.output_projection(x).flatten(0, 1)[places]

    def looks(self, source: Tensor, target: Tensor) -> Tensor:
        """Weights over the source of the last layer but one, if there are two."""
        memory, padding = self.encoded(source)
        number = max(0, len(self.decoder) - 2)
        x = self.decoded(target, memory, padding, number)
        layer: Any = self.decoder[number]
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        seen = layer.norm1(x)
        x = x + layer.self_attn(seen, seen, seen, attn_mask=causal)[0]
        return layer.multihead_attn(
            layer.norm2(x), memory, memory, key_padding_mask=padding, need_weights=True
        )[1]


@pytest.fixture
def shrinking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout, of values and of attention weights, becomes a factor; PyTorch's too."""
    attend = functional.scaled_dot_product_attention

    def shrunken(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, **options: Any,
    ) -> Tensor:  # fmt: skip
        out = attend(query, key, value, attn_mask, 0.0, is_causal, **options)
        return out * (1 - dropout_p)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", shrunken)

    def forward(self: Dropout, x: Tensor) -> Tensor:
        return x * (1 - self.threshold / 256) if self.training else x

    monkeypatch.setattr(Dropout, "forward", forward)


@pytest.mark.usefixtures("shrinking")
@pytest.mark.parametrize("embedding_width", [12, 8])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_that_of_pytorchs_layers(embedding_width: int, training: bool) -> None:
    """While it trains too: then each dropout, of one factor each, stands where PyTorch's does."""
    ours = built(embedding_width)
    theirs = PyTorchs(ours, embedding_width)
    source, target, places = batch(embedding_width)
    theirs.train(training)
    found = ours(source, LENGTHS, target, places)
    torch.testing.assert_close(found, theirs(source, target, places), rtol=1e-4, atol=1e-5)
    theirs.train(not training)
    assert not torch.allclose(found, ours(source, LENGTHS, target, places), atol=1e-2)


@pytest.mark.parametrize("decoder_layers", [1, 2, 3])
def test_where_the_decoder_looks_is_where_pytorchs_looks(decoder_layers: int) -> None:
    ours = built(12, decoder_layers=decoder_layers)
    theirs = PyTorchs(ours, 12).eval()
    source, target, _ = batch(12)
    found = ours.attention_over_source(source, LENGTHS, target)
    torch.testing.assert_close(found, theirs.looks(source, target), rtol=1e-4, atol=1e-5)


def test_weights_are_drawn_as_they_are_said_to_be() -> None:
    torch.manual_seed(3)
    model = Transformer(
        embedding_width=8, width=12, feed_forward=20, heads=3, encoder_layers=1, decoder_layers=1,
        dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    maps = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(maps) == 3 + 4 + 7
    for module in maps:
        # Glorot and Bengio 2010: uniform within ± √(6 / (in + out)).
        bound = math.sqrt(6 / sum(module.weight.shape))
        assert 0.8 * bound < float(module.weight.detach().abs().max()) <= bound
        assert not module.bias.any()
