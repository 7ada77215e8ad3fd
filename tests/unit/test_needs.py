"""From a configuration to what is asked of `dist_embed.embedding.memory`, and who asks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dist_embed.bench.tasks import Baseline
from dist_embed.cluster import launch as launching
from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.embedding.memory import (
    OutputNeeds,
    Replicated,
    beside_tables_bytes,
    host_memory,
    inference_bytes,
    table_bytes,
)
from dist_embed.embedding.plan import TableSpec
from dist_embed.errors import UserError
from dist_embed.model.output import OutputShard
from dist_embed.model.settings import ModelSection
from dist_embed.model.transformer import Transformer
from dist_embed.observe.events import silent_reporter
from dist_embed.parallel.group import Group
from dist_embed.training import assemble, inference, worker
from dist_embed.training.needs import (
    baseline_bytes,
    dense_parameters,
    host_bytes,
    output_needs,
    step_needs,
)
from dist_embed.training.tasks import Evaluate, Task, Train, Translate


def held_bytes(*given: Any, **how: Any) -> int:
    return sum(host_memory(*given, **how).values())


VOCABULARY = {"source": 70_000, "target": 3_000}
# What the tables are with 11 rows for hashed words of the source side.
SPECS = [
    TableSpec("source", 70_011, 12),
    TableSpec("target", 3_000, 12),
    TableSpec("output", 3_000, 12),
]
BLOCK = 3 * 2**20
TOKENS = 3 * 1366  # of 4,096 that three workers share
WIDER: dict[str, Any] = {
    "embedding": {"width": 20},
    "model": {"encoder_layers": 3, "decoder_layers": 2, "feed_forward": 28},
}


def configured(**sections: dict[str, Any]) -> Config:
    values: dict[str, Any] = {
        "run": {"uri": "/shared/run"}, "data": {"synthetic": {}}, "train": {"max_steps": 1},
        "cluster": {"num_workers": 3, "launcher": "local", "device": "cpu"},
        "embedding": {"width": 12, "optimizer": "adagrad"},
        "model": {"width": 12, "heads": 2, "logits_block_mib": 3, "share_embeddings": "none"},
        "tokenizer": {"oov_buckets": 11},
    }  # fmt: skip
    for section, settings in sections.items():
        values[section] = values.get(section, {}) | settings
    return config_from_dict(values)


UNIGRAM: dict[str, Any] = {
    "model": {"output": "sampled", "num_samples": 2_000, "sampler": "unigram"}
}


@pytest.mark.parametrize(
    ("sections", "narrow", "expected"),
    [
        ({}, False, OutputNeeds(SPECS[2], True, BLOCK, tokens=TOKENS)),
        ({}, True, OutputNeeds(SPECS[2], True, BLOCK, narrow_products=True, tokens=TOKENS)),
        ({"model": {"share_embeddings": "decoder"}}, False,
         OutputNeeds(TableSpec("decoder", 3_000, 12), True, BLOCK, tokens=TOKENS)),
        ({"model": {"output": "sampled", "num_samples": 500}}, False,
         OutputNeeds(SPECS[2], False, BLOCK, negatives=500)),
        ({"model": {"output": "sampled", "num_samples": 500, "batch_negatives": True},
          "train": {"max_steps": 1, "batch_tokens": 1000}}, False,
         OutputNeeds(SPECS[2], False, BLOCK, share_words=3_000, negatives=500 + 334)),
        ({"model": {"output": "sampled", "num_samples": "auto", "batch_negatives": True}}, False,
         OutputNeeds(SPECS[2], False, BLOCK, share_words=3_000, negatives=3_000)),
        (UNIGRAM, False,
         OutputNeeds(SPECS[2], False, BLOCK, sampler_words=3_000, negatives=2_000)),
        # The exact layer has no sampler, whatever is configured.
        ({"model": {"sampler": "unigram"}}, False,
         OutputNeeds(SPECS[2], True, BLOCK, tokens=TOKENS)),
        # A table that is never trained has no gradient, one that is trained later has.
        ({"embedding": {"tables": {"output": {"freeze": True}}}}, False,
         OutputNeeds(SPECS[2], True, BLOCK, tokens=TOKENS, trained=False)),
        ({"embedding": {"tables": {"output": {"freeze_until_step": 5}}}}, False,
         OutputNeeds(SPECS[2], True, BLOCK, tokens=TOKENS)),
        # A table that the target side shares is frozen by its settings too.
        ({"model": {"share_embeddings": "decoder"},
          "embedding": {"tables": {"target": {"freeze": True}}}}, False,
         OutputNeeds(TableSpec("decoder", 3_000, 12), True, BLOCK, tokens=TOKENS, trained=False)),
        ({"embedding": {"tables": {"target": {"freeze": True}}}}, False,
         OutputNeeds(SPECS[2], True, BLOCK, tokens=TOKENS)),
    ],
)  # fmt: skip
def test_what_the_output_layer_is(
    sections: dict[str, Any], narrow: bool, expected: OutputNeeds
) -> None:
    assert output_needs(configured(**sections), VOCABULARY, narrow_products=narrow) == expected


def test_tokens_of_all_workers_are_those_of_a_micro_batch() -> None:
    def tokens(workers: Any, num_workers: int | None = None, **how: Any) -> int:
        config = configured(
            train={"batch_tokens": 1000, "accumulate": 4}, cluster={"num_workers": workers}
        )
        return output_needs(
            config, VOCABULARY, narrow_products=False, num_workers=num_workers, **how
        ).tokens

    assert tokens(5) == 5 * 50
    assert tokens(3, 5) == 5 * 50  # under a launcher of the user's
    assert tokens({"min": 2, "max": 8}) == 2 * 32  # the fewest make more micro-batches
    assert tokens(5, training=False) == 0


@pytest.mark.parametrize(
    ("workers", "clip_norm", "counts"), [(3, 1.0, 3 * 3 * 3), (3, 0.0, 0), (1, 1.0, 0)]
)
def test_clipping_counts_rows_of_each_table_from_each_worker_to_each(
    workers: int, clip_norm: float, counts: int
) -> None:
    config = configured(train={"clip_norm": clip_norm}, cluster={"num_workers": workers})
    needs = step_needs(config, VOCABULARY, word_tables=True, narrow=False)
    assert needs.clipping_bytes == 48 * counts


@pytest.mark.parametrize(
    ("size", "memory", "expected"),
    [(3, None, 3 * 2**20), (3, 2**36, 3 * 2**20), (8.0, None, 8 * 2**20),
     ("auto", None, 8 * 2**20), ("auto", 2**36, 2**28)],
)  # fmt: skip
def test_how_large_blocks_are(size: Any, memory: int | None, expected: int) -> None:
    """``auto`` on the CPU is what the default was before it."""
    config = configured(model={"logits_block_mib": size})
    needs = output_needs(config, VOCABULARY, narrow_products=False, device_bytes=memory)
    assert (needs.block_bytes, needs.device) == (expected, "cuda" if memory else "cpu")


def test_evaluation_and_search_have_tiles_also_while_a_run_trains() -> None:
    alone = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
    shard = OutputShard(alone, 0, 9, 2**31, torch.bfloat16, 2**28).in_float32()
    assert (shard.block_bytes, shard.dtype) == (2**28, torch.float32)
    assert OutputShard(alone, 0, 9, 2**31).in_float32().block_bytes == 2**31


@pytest.mark.parametrize(
    ("sections", "how"),
    [
        ({}, {"saving": "behind", "store": "local"}),
        ({"checkpoint": {"saving": "waiting"}}, {"saving": "waiting", "store": "local"}),
        ({"checkpoint": {"saving": "in_place"}, "run": {"uri": "s3://b/run"}},
         {"saving": "in_place", "store": "remote"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("narrow", [False, True])
def test_what_a_worker_that_trains_is_charged(
    sections: dict[str, Any], how: dict[str, Any], narrow: bool
) -> None:
    config = configured(**sections)
    output = output_needs(config, VOCABULARY, narrow_products=narrow)
    assert host_bytes(
        config, VOCABULARY, training=True, narrow_products=narrow, tier=None
    ) == held_bytes(SPECS, "adagrad", 3, output, training(config, narrow), **how)
    with_gpu = host_bytes(config, VOCABULARY, training=True, narrow_products=False, tier="uvm")
    expected = output_needs(config, VOCABULARY, narrow_products=False)
    assert with_gpu == held_bytes(
        SPECS, "adagrad", 3, expected, training(config, False), tier="uvm", **how
    )


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize(("uri", "store"), [("/shared/run", "local"), ("s3://b/run", "remote")])
def test_what_a_worker_that_reads_is_charged(low_memory: bool, uri: str, store: Any) -> None:
    config = configured(
        checkpoint={"saving": "in_place" if low_memory else "waiting"}, run={"uri": uri}
    )
    assert host_bytes(
        config, VOCABULARY, training=False, narrow_products=False, tier=None
    ) == inference_bytes(SPECS, 3, BLOCK, replicated(config), in_place=low_memory, store=store)


def training(config: Config, narrow: bool) -> Replicated:
    return step_needs(config, VOCABULARY, word_tables=False, narrow=narrow)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("embedding_width", [64, 512])
def test_a_step_keeps_what_autograd_saves(
    narrow: bool, dropout: float, embedding_width: int
) -> None:
    """Of layers of any number; beside it there are gradients, and of each token a few numbers."""
    tokens = sum(count * length for count, length, _ in RECTANGLES)
    sections = {
        "train": {"batch_tokens": 3 * 2 * tokens, "accumulate": 2},
        "embedding": {"width": embedding_width},
    }
    for encoder_layers, decoder_layers in ((1, 1), (3, 1), (1, 3)):
        model = {"width": 64, "heads": 4, "feed_forward": 256, "dropout": dropout,
                 "encoder_layers": encoder_layers, "decoder_layers": decoder_layers}  # fmt: skip
        config = configured(model=model, **sections)
        gradients = (3 if narrow else 4) * tokens * (6 * 64 + 2 * 256)
        saved = _saved_bytes(config.model, embedding_width, narrow)
        expected = training(config, narrow).activation_bytes - gradients
        assert expected == pytest.approx(saved, rel=0.02)


RECTANGLES = ((8, 32, 32), (6, 24, 24), (4, 28, 28))


def _saved_bytes(model: ModelSection, embedding_width: int, narrow: bool) -> int:
    """What a forward over `RECTANGLES` keeps beside the model itself."""
    transformer = Transformer(
        embedding_width=embedding_width, width=model.width, feed_forward=model.feed_forward,
        heads=model.heads, encoder_layers=model.encoder_layers,
        decoder_layers=model.decoder_layers, dropout=model.dropout,
        attention_dropout=model.attention_dropout,
    )  # fmt: skip
    own = {parameter.untyped_storage().data_ptr() for parameter in transformer.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    tokens = sum(count * length for count, length, _ in RECTANGLES)
    vectors = [torch.randn(tokens, embedding_width, requires_grad=True) for _ in range(2)]
    lengths = torch.cat([torch.full((count,), length) for count, length, _ in RECTANGLES])
    places = torch.cat([torch.arange(length).repeat(count) for count, length, _ in RECTANGLES])
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=narrow),
    ):
        transformer(vectors[0], lengths, vectors[1], places, RECTANGLES)
    return sum(storage.nbytes() for storage in saved.values())


def test_the_rows_of_a_step_and_their_gradients_are_counted() -> None:
    config = configured(model={"width": 4, "heads": 2}, train={"batch_tokens": 60, "accumulate": 2})
    assert training(config, False).exchange_bytes == 12 * 4 * 12 * 20
    assert replicated(config).of_a_step == {"activations": 0, "vectors": 0}


def replicated(config: Config) -> Replicated:
    return Replicated(words=VOCABULARY["source"], parameters=dense_parameters(config.model, 12))


@pytest.mark.parametrize("sections", [{}, WIDER])
def test_parameters_of_the_dense_model_are_counted_without_making_it(
    sections: dict[str, Any],
) -> None:
    model = configured(**sections).model
    width = sections.get("embedding", {}).get("width", 12)
    with torch.device("meta"):
        made = Transformer(
            embedding_width=width, width=model.width, feed_forward=model.feed_forward,
            heads=model.heads, encoder_layers=model.encoder_layers,
            decoder_layers=model.decoder_layers, dropout=0.1, attention_dropout=0.0,
        )  # fmt: skip
    assert dense_parameters(model, width) == sum(p.numel() for p in made.parameters())


@pytest.mark.parametrize(("kind", "each"), [("word", 340), ("bpe", 1140), ("unigram", 1140)])
def test_a_shared_tokenizer_is_held_once(kind: str, each: int) -> None:
    def held(shared: bool) -> int:
        hashed = 11 if kind == "word" else 0
        tokenizer = {"kind": kind, "shared": shared, "oov_buckets": hashed}
        return host_bytes(
            configured(tokenizer=tokenizer), VOCABULARY,
            training=True, narrow_products=False, tier=None,
        )  # fmt: skip

    assert held(False) - held(True) == each * VOCABULARY["target"]


def test_of_workers_that_come_and_go_each_has_room_for_the_share_of_the_fewest() -> None:
    def held(num_workers: Any, accumulate: int = 1) -> int:
        config = configured(cluster={"num_workers": num_workers}, train={"accumulate": accumulate})
        return host_bytes(config, VOCABULARY, training=True, narrow_products=False, tier=None)

    # The fewest make as many more micro-batches.
    assert held({"min": 2, "max": 8}) == held(2, accumulate=4) > held(8)


@pytest.mark.parametrize("training", [True, False])
def test_words_in_tables_on_disk_are_held_by_no_worker(training: bool) -> None:
    def held(word_tables: bool) -> int:
        return host_bytes(
            configured(), VOCABULARY, training=training, narrow_products=False, tier=None,
            word_tables=word_tables,
        )  # fmt: skip

    assert held(False) - held(True) == 340 * VOCABULARY["source"]


@pytest.mark.parametrize(
    ("task", "training"),
    [(Train(sentences=7), True), (Evaluate("test"), False), (Translate([]), False)],
)
@pytest.mark.parametrize(("precision", "narrow"), [("fp32", False), ("bf16", True)])
def test_a_launch_asks_for_what_its_task_takes(
    monkeypatch: pytest.MonkeyPatch, task: Task[Any], training: bool, precision: str, narrow: bool
) -> None:
    asked: list[dict[str, Any]] = []

    def noted(config: Config, vocabulary_size: dict[str, int], **how: Any) -> int:
        asked.append(how)
        return 0

    monkeypatch.setattr("dist_embed.training.tasks.host_bytes", noted)
    monkeypatch.setattr("dist_embed.cluster.local.launch_local", lambda *given, **how: None)
    launching.launch(
        task, configured(train={"precision": precision}), vocabulary_size=VOCABULARY,
        word_tables=narrow, on_event=lambda event: None,
    )  # fmt: skip
    assert asked == [
        {
            "training": training,
            "narrow_products": narrow,
            "tier": None,
            "word_tables": narrow,
            "sentences": task.sentences,
        }
    ]


@pytest.mark.parametrize("precisions", [["fp32"], ["fp32", "bf16"], ["bf16"]])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_baseline_is_foretold_with_the_model_that_it_is_compared_with(
    monkeypatch: pytest.MonkeyPatch, precisions: list[str], compiled: bool, workers: int
) -> None:
    """The process once, nothing for saving or tokenizers, and the plain softmax's logits."""
    batch = {"batch_tokens": 1_000}
    config = configured(cluster={"num_workers": workers}, train=batch | {"precision": "fp32"})
    dense = dense_parameters(config.model, 12)
    output = output_needs(config, VOCABULARY, narrow_products="bf16" in precisions)
    ours = held_bytes(SPECS, "adagrad", workers, output, Replicated(parameters=dense), saving=None)
    tables = sum(table_bytes(spec, "adagrad", workers) for spec in SPECS)
    # All parameters with gradient, two moments, and what DDP sends of the gradient.
    plain = (16 if workers == 1 else 20) * ((70_011 + 3_000 + 3_000) * 12 + dense)
    logits = 3 * 4 * 3_000 * (1_000 if workers == 1 else 334)
    each = ours + logits + (len(precisions) - 1) * (tables + 12 * dense)
    each += (2 if compiled else 1) * len(precisions) * plain
    how: dict[str, Any] = {"precisions": precisions, "compiled": compiled}
    assert baseline_bytes(config, VOCABULARY, tier=None, **how) == each
    gpu = [
        baseline_bytes(config, VOCABULARY, precisions=some, compiled=compiled, tier="uvm")
        for some in (["bf16"], ["fp32", "bf16"])
    ]
    assert gpu[1] - gpu[0] == tables  # the rest is not in the host's memory
    needed = workers * each
    monkeypatch.setattr("dist_embed.cluster.local.launch_local", lambda *given, **how: None)

    def launch(available: int) -> None:
        monkeypatch.setattr(launching, "available_bytes", lambda: available)
        launching.launch(
            Baseline(1, 1, precisions, compiled), config, vocabulary_size=VOCABULARY,
            on_event=lambda event: None,
        )  # fmt: skip

    launch(needed)
    with pytest.raises(UserError, match="GiB of memory"):
        launch(needed - 1)


class Asked(Exception):
    """Raised by what is asked, with what it is asked for."""


def raising(*given: Any, **how: Any) -> Any:
    raise Asked(given, how)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("output", ["exact", "sampled"])
def test_tables_are_built_for_what_is_done_with_them(
    monkeypatch: pytest.MonkeyPatch, training: bool, output: str
) -> None:
    monkeypatch.setattr(assemble, "ShardedTables", raising)
    alone = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
    config = configured(
        model={"output": output}, train={"precision": "bf16"}, cluster={"device": "auto"},
        embedding={
            "width": 12, "optimizer": "adagrad", "memory": "uvm", "weights": "fp16",
            "exchange": "bf16", "tables": {"source": {"learning_rate": 0.7}},
        },
    )  # fmt: skip
    with pytest.raises(Asked) as caught:
        assemble.build_translation_model(config, VOCABULARY, alone, training=training)
    ((named, _), how) = caught.value.args
    assert (how["memory"], how["weights"], how["exchange"]) == ("uvm", "fp16", "bf16")
    own_rates = {name: t.learning_rate for name, t in named.items() if t.learning_rate}
    assert own_rates == ({"source": 0.7} if training else {})
    assert how["optimizer"] == ("adagrad" if training else "sgd")
    whole = [name for name, table in named.items() if table.trained_whole]
    assert whole == (["output"] if training and output == "exact" else [])
    needs = output_needs(config, VOCABULARY, narrow_products=True, num_workers=1)
    assert how["step_bytes"] == beside_tables_bytes(needs, 1, training=training, copied=True)


def test_blocks_of_their_own_accord_are_for_the_workers_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A launcher of the user's, as torchrun, may start others than are configured."""
    monkeypatch.setattr(assemble, "ShardedTables", raising)
    monkeypatch.setattr(assemble, "memory_bytes", lambda device: 80 * 2**30)
    monkeypatch.setattr(assemble, "least_over_workers", lambda value, group: value)
    config = configured(
        model={"logits_block_mib": "auto"}, train={"precision": "bf16"}, cluster={"device": "auto"}
    )
    sizes = {"source": 9, "target": 300_000}
    charged = []
    for workers in (1, 2):
        group = Group(0, workers, 1, torch.device("cuda"), None)  # type: ignore[arg-type]
        with pytest.raises(Asked) as caught:
            assemble.build_translation_model(config, sizes, group)
        charged.append(caught.value.args[1]["step_bytes"])
        # Who only reads goes by tiles.
        with pytest.raises(Asked) as caught:
            assemble.build_translation_model(config, sizes, group, training=False)
        assert caught.value.args[1]["step_bytes"] == 3 * 2**28
    # Three blocks of 2,048 tokens; the gradient, and the rows in bfloat16; 4,096 tokens' hidden
    # states, their gradient and, from two workers, that once and half again; numbers of a block.
    tokens = [4096 * 12 * (2 + 4) + 2048 * 16, 4096 * 12 * (2 + 4 + 4 + 2) + 2048 * 16 * 2]
    rows = [rows * (3 * 4 * 2048 + 12 * (4 + 2)) for rows in (300_000, 150_000)]
    assert charged == [one + other for one, other in zip(rows, tokens, strict=True)]


def test_who_evaluates_or_translates_only_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "build_translation_model", raising)
    alone = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
    context = worker.Context(configured(), alone, silent_reporter())
    with pytest.raises(Asked) as caught:
        inference._load_for_inference(context, {}, None)
    assert caught.value.args[1] == {"training": False, "initial_scale": 0.0}  # and draws nothing
