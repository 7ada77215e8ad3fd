"""Where the decoder looks, and what unknown words become."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dist_embed.data.tokenizer import UNKNOWN, Tokenizer
from dist_embed.model.transformer import DecoderLayer, Transformer
from dist_embed.model.unknown_words import UnknownWords
from dist_embed.parallel.group import Group
from tests.unit.small_corpus import train_tokenizer


def transformer(heads: int, layers: int) -> Transformer:
    torch.manual_seed(3)
    return Transformer(
        embedding_width=8, width=8, feed_forward=16, heads=heads, encoder_layers=1,
        decoder_layers=layers, dropout=0.3, attention_dropout=0.3,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_weights_are_those_the_decoder_attends_with(layers: int) -> None:
    model = transformer(heads=1, layers=layers)
    source, target = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    lengths = torch.tensor([5, 3])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    layer = model.decoder[max(0, layers - 2)]
    assert isinstance(layer, DecoderLayer)
    layer.cross.register_forward_hook(lambda _, inputs, out: seen.append((inputs[1], out)))
    with torch.no_grad():
        model(source, lengths, target, torch.arange(8))
        weights = model.attention_over_source(source, lengths, target)
        ((_, values),), attended = seen[0]
        torch.testing.assert_close(layer.cross.out(weights @ values[:, 0]), attended)
    assert (weights[1, :, 3:] == 0).all()
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 4))


def test_heads_are_averaged() -> None:
    model = transformer(heads=4, layers=2)
    layer = model.decoder[0]
    assert isinstance(layer, DecoderLayer)
    x, memory = torch.randn(1, 3, 8), torch.randn(1, 6, 8)
    ((keys, values),) = layer.cross.memory_heads(memory)
    mask = torch.ones(1, 1, 1, 6, dtype=torch.bool)
    with torch.no_grad():
        query = layer.cross.split(layer.cross.query(x))
        each = [(query[:, h] @ keys[:, h].transpose(1, 2) / 2**0.5).softmax(-1) for h in range(4)]
        found = layer.cross.weights(x, (keys, values), mask)
    torch.testing.assert_close(found, torch.stack(each).mean(0))


class LooksAt(Transformer):
    """Looks at the source places it is told, by sentence, target word by target word."""

    def __init__(self, places: dict[int, list[int]]) -> None:
        super().__init__(
            embedding_width=4, width=4, feed_forward=4, heads=1, encoder_layers=1,
            decoder_layers=1, dropout=0.0, attention_dropout=0.0,
        )  # fmt: skip
        self.places = places  # by the length of the source sentence

    def attention_over_source(
        self,
        source_vectors: torch.Tensor,
        source_lengths: torch.Tensor,
        target_vectors: torch.Tensor,
    ) -> torch.Tensor:
        weights = torch.zeros(*target_vectors.shape[:2], source_vectors.shape[1])
        for sentence, length in enumerate(source_lengths.tolist()):
            for word, place in enumerate(self.places[length - 1]):
                weights[sentence, word, place] = 0.4
            weights[sentence, :, length - 1] = 0.6  # the end mark, which is no word
        return weights


def words(*texts: str) -> Tokenizer:
    return train_tokenizer("word", texts)


class NoRows:
    """Stands for the tables: nobody looks at the vectors."""

    group = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]

    def __init__(self) -> None:
        self.looked_up: list[tuple[int, ...]] = []  # shapes of target words

    def lookup(self, ids: dict[str, list[torch.Tensor]]) -> NoRows:
        self.looked_up.append(tuple(ids["target"][0].shape))
        self.shapes = {role: tensors[0].shape for role, tensors in ids.items()}
        return self

    def vectors(self, role: str, number: int) -> torch.Tensor:
        return torch.zeros(*self.shapes[role], 4)


@pytest.mark.parametrize("batch_tokens", [1, 100])
@pytest.mark.parametrize("lexicon", [True, False])
def test_unknown_words_become_what_they_look_at(batch_tokens: int, lexicon: bool) -> None:
    source = words("the cat saw Bob , and")
    target = words("die Katze sah , und")
    cat, katze = (t.encode([w])[0][0] for t, w in ((source, "cat"), (target, "Katze")))
    texts = ["the cat saw Xu, Yo", "cat", "the cat", ""]
    sources = source.encode(texts)
    assert sources[0][3] == UNKNOWN
    die, sah, comma = (target.encode([w])[0] for w in ("die", "sah", "x,"))
    answers = [
        [die[0], UNKNOWN, sah[0], UNKNOWN, comma[1], UNKNOWN], [UNKNOWN], die, [UNKNOWN],
    ]  # fmt: skip
    asked: list[list[int]] = []

    def translations(ids: NDArray[np.int64], most: int) -> dict[int, NDArray[np.int32]]:
        asked.append(ids.tolist())
        return {cat: np.array([katze], np.int32)} if cat in ids and most == 1 else {}

    replaced = UnknownWords(
        LooksAt({6: [0, 1, 2, 3, 4, 5], 1: [0]}), NoRows(),
        {"source": source, "target": target}, translations if lexicon else None, batch_tokens,
    ).texts(texts, sources, answers)  # fmt: skip
    # The lexicon's files are read once, for the sentences with an unknown word.
    assert asked == ([[*sources[0], *sources[1]]] if lexicon else [])
    animal = "Katze" if lexicon else "cat"
    # The third has no unknown word, the fourth no source word to look at.
    assert replaced == {0: f"die {animal} sah Xu, Yo", 1: animal}


@pytest.mark.parametrize(
    ("batch_tokens", "together"), [(13, [(1, 6), (1, 6)]), (14, [(2, 6)]), (1, [(1, 6), (1, 6)])]
)
def test_the_longer_side_counts_for_a_batch(
    batch_tokens: int, together: list[tuple[int, int]]
) -> None:
    source, target, tables = words("cat"), words("die Katze"), NoRows()
    answers = [[UNKNOWN] * 6, [UNKNOWN] * 6]
    UnknownWords(
        LooksAt({1: [0] * 6}), tables, {"source": source, "target": target}, None, batch_tokens
    ).texts(["cat", "cat"], source.encode(["cat", "cat"]), answers)  # fmt: skip
    assert tables.looked_up == together
