"""What is refused where a model is put together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.model.batch_negatives import BatchNegatives
from dist_embed.model.output import OutputShard
from dist_embed.model.output_layer import ExactSoftmax, SampledSoftmax
from dist_embed.model.sampler import LogUniformSampler
from dist_embed.model.transformer import Transformer
from dist_embed.parallel.group import Group
from dist_embed.training import assemble
from dist_embed.training.assemble import (
    build_dense_optimizer,
    build_output,
    build_translation_model,
    build_translator,
)

ALONE = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]


def config_of(**sections: dict[str, Any]) -> Config:
    return config_from_dict(
        {"run": {"uri": "memory://no-lexicon"}, "train": {"max_steps": 1},
         "data": {"synthetic": {}, "lexicon_translations": 10}} | sections
    )  # fmt: skip


def translation_model(num_rows: int) -> Any:
    shard = OutputShard(ALONE, 0, num_rows, 1000)
    return SimpleNamespace(shard=shard, lookup=None, group=ALONE)


def test_who_has_configured_a_run_reads_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_embed.embedding.tiers.available_bytes", lambda: 0)
    with pytest.raises(UserError, match=r"^tables: .* a smaller embedding\.width$"):
        build_translation_model(config_of(), {"source": 9, "target": 9}, ALONE)


def test_fewer_samples_than_words_are_needed() -> None:
    def counts() -> Any:
        asked.append(True)
        return np.ones(10, np.int64)

    asked: list[bool] = []
    for sampler in ("unigram", "log_uniform"):
        model = {"output": "sampled", "num_samples": 9, "sampler": sampler}
        assert isinstance(
            build_output(config_of(model=model), translation_model(10), counts, not_asked),
            SampledSoftmax,
        )
        with pytest.raises(UserError) as caught:
            build_output(config_of(model=model), translation_model(9), counts, not_asked)
        assert str(caught.value) == (
            "model.num_samples: 9 is not allowed: the vocabulary has 9 words. Take fewer samples, "
            "or model.output=exact"
        )
    # Counts are read where they are needed alone: by the exact layer not either.
    assert isinstance(
        build_output(config_of(), translation_model(9), counts, not_asked), ExactSoftmax
    )
    assert asked == [True]


def not_asked() -> Any:
    raise AssertionError("nobody needs to know how often words are predicted")


def test_right_answers_are_negatives_where_they_are_to_be() -> None:
    """Corrected by how often each word is predicted, however the others are drawn."""
    model = {"output": "sampled", "num_samples": 4, "batch_negatives": True}
    predicted = np.array([0, 0, 0, 30, 20, 10, 9, 8, 7, 6, 5, 4])
    output = build_output(
        config_of(model=model), translation_model(12), not_asked, lambda: predicted
    )
    targets, sentences = torch.tensor([11, 9, 3, 10, 3]), torch.tensor([0, 0, 0, 1, 1])
    found = output.draw(1, [targets], lambda: [sentences])
    assert isinstance(found, BatchNegatives)
    pi = LogUniformSampler(12, 4).probability_of(found.batch_ids.numpy())
    q = 1 - (1 - predicted[found.batch_ids] / 99) ** 2.5
    assert found.batch_ids.numel() > 0
    np.testing.assert_allclose(found.log_either[4:].exp(), 1 - (1 - pi) * (1 - q), rtol=1e-3)


def test_all_words_can_be_negatives_of_their_own_accord() -> None:
    model = {"output": "sampled", "num_samples": "auto"}
    output = build_output(config_of(model=model), translation_model(10), not_asked, not_asked)
    drawn = output.draw(1, [], not_asked)
    assert drawn is not None
    assert drawn.ids.tolist() == list(range(10))


@pytest.mark.parametrize(
    "search", [{"candidates": 8}, {"candidates": 8, "replace_unknown": "copy"},
               {"replace_unknown": "lexicon"}],
)  # fmt: skip
def test_a_search_that_needs_a_lexicon_says_so(search: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="memory://no-lexicon has no lexicon, which search"):
        build_translator(config_of(search=search), translation_model(9), {})


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("listed", [np.array([0, 1, 2, 3, 7, 5]), None])
def test_candidates_are_frequent_words_of_the_target_side(
    monkeypatch: pytest.MonkeyPatch, shared: bool, listed: Any
) -> None:
    lexicon = SimpleNamespace(frequent_targets=lambda: listed, translations=None)
    monkeypatch.setattr(assemble, "_open_lexicon", lambda *_: lexicon)
    made: list[Any] = []
    monkeypatch.setattr(assemble, "ExactWords", lambda *_: None)
    monkeypatch.setattr(assemble, "CandidateWords", lambda *given: made.append(given))
    parts = translation_model(9)
    parts.shard = SimpleNamespace(num_rows=9, in_float32=lambda: SimpleNamespace(block_bytes=1))
    parts.lookup, parts.transformer = SimpleNamespace(group=ALONE), None
    tokenizers: Any = {"source": SimpleNamespace(encode=None), "target": None}
    config = config_of(search={"candidates": 8}, tokenizer={"shared": shared})
    said: list[str] = []
    build_translator(config, parts, tokenizers, said.append)
    assert made == [(parts.lookup, 8, 10, None, 1, listed)]
    # Where each side has its own vocabulary, ids are ordered by what the target side has.
    which, *warned = said
    assert which.startswith("search: among the 8 most frequent words and up to 10 translations")
    assert len(warned) == (listed is None and shared)
    assert all("takes the most frequent words of both sides" in line for line in warned)


def test_the_dense_optimizer_is_as_configured() -> None:
    train = {
        "max_steps": 1, "learning_rate": 0.25, "beta1": 0.5, "beta2": 0.75, "weight_decay": 0.125
    }  # fmt: skip
    transformer = Transformer(
        embedding_width=4, width=8, feed_forward=8, heads=2, encoder_layers=1, decoder_layers=1,
        dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    optimizer = build_dense_optimizer(config_of(train=train), transformer)
    matrices, vectors = optimizer.param_groups
    assert {p.dim() for p in matrices["params"]} == {2}
    assert {p.dim() for p in vectors["params"]} == {1}
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(transformer.parameters()))
    for group, decay in ((matrices, 0.125), (vectors, 0.0)):
        assert (group["lr"], group["betas"], group["eps"]) == (0.25, (0.5, 0.75), 1e-9)
        assert group["weight_decay"] == decay
        assert group["fused"]
