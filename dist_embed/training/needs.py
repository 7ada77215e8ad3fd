"""From a configuration to the memory of a worker. Free of torch: the launching process asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dist_embed.config.schema import Config
from dist_embed.embedding.memory import (
    OutputNeeds,
    Replicated,
    host_table_bytes,
    inference_bytes,
    logits_block_bytes,
    table_bytes,
    worker_bytes,
)
from dist_embed.embedding.plan import TableSpec
from dist_embed.embedding.settings import Tier
from dist_embed.model.settings import ModelSection
from dist_embed.model.translation_tables import TABLE_OF_ROLE, rows_of_role, translation_tables
from dist_embed.storage.uri import is_local
from dist_embed.training.samples import samples_of_a_step
from dist_embed.training.table_settings import table_settings


def output_needs(
    config: Config,
    vocabulary_size: dict[str, int],
    *,
    narrow_products: bool,
    training: bool = True,
    device_bytes: int | None = None,
    num_workers: int | None = None,
) -> OutputNeeds:
    """What decides how much memory the output layer takes.

    ``narrow_products``: whether matrix products are bfloat16 (`train.precision`).
    ``training``: else blocks of their own accord are those of evaluation and search, which go by
    tiles.
    ``device_bytes``: memory of the smallest GPU, the same on every worker; None on the CPU.
    ``num_workers``: of the group, where there is one; else those that are configured. They differ
    under a launcher of the user's, as torchrun.
    """
    model = config.model
    name = TABLE_OF_ROLE[model.share_embeddings]["output"]
    table, settings = _specs(config, vocabulary_size)[name], table_settings(config).get(name)
    exact, workers = model.output == "exact", num_workers or config.cluster.num_workers
    words, negatives = vocabulary_size["target"], 0
    if not exact:
        negatives = samples_of_a_step(config, words)
        if model.batch_negatives:
            negatives = min(words, negatives + -(-config.train.batch_tokens // workers))
    return OutputNeeds(
        table,
        exact=exact,
        block_bytes=logits_block_bytes(
            model.logits_block_mib,
            table.num_rows,
            workers,
            exact=exact and training,
            device_bytes=device_bytes,
        ),
        narrow_products=narrow_products,
        sampler_words=words if not exact and model.sampler == "unigram" else 0,
        share_words=words if model.batch_negatives else 0,
        negatives=negatives,
        trained=not (settings and settings.freeze),
        device="cpu" if device_bytes is None else "cuda",
    )


def host_bytes(
    config: Config,
    vocabulary_size: dict[str, int],
    *,
    training: bool,
    narrow_products: bool,
    tier: Tier | None,
    word_tables: bool = False,
) -> int:
    """Estimate of the host memory of one of the configured workers, see `embedding.memory`.

    ``training``: else it evaluates or translates. ``tier``: None on the CPU. ``word_tables``:
    whether the words are tables on disk, which the workers of a machine map and none holds.
    """
    specs = list(_specs(config, vocabulary_size).values())
    output = output_needs(config, vocabulary_size, narrow_products=narrow_products)
    workers, weights = config.cluster.num_workers, config.embedding.weights
    one_tokenizer = config.tokenizer.shared
    words = vocabulary_size["source"] if one_tokenizer else sum(vocabulary_size.values())
    replicated = Replicated(
        0 if word_tables else words,
        dense_parameters(config.model, config.embedding.width),
    )
    store: Literal["local", "remote"] = "local" if is_local(config.run.uri) else "remote"
    if not training:
        return inference_bytes(
            specs, workers, output.block_bytes, replicated,
            in_place=config.checkpoint.saving == "in_place", store=store, weights=weights,
            tier=tier,
        )  # fmt: skip
    return worker_bytes(
        specs, config.embedding.optimizer, workers, output, replicated,
        saving=config.checkpoint.saving, store=store, weights=weights, tier=tier,
    )  # fmt: skip


def baseline_bytes(
    config: Config,
    vocabulary_size: dict[str, int],
    *,
    precisions: Sequence[str],
    compiled: bool,
    tier: Tier | None,
) -> int:
    """Like `host_bytes`, of `bench baseline`, which saves nothing and has no tokenizers: in each of
    ``precisions`` our tables and model beside the plain one, and that again where it is also
    ``compiled``; one of them makes a step at a time.
    """
    specs = list(_specs(config, vocabulary_size).values())
    narrow = "bf16" in precisions and tier is None
    output = output_needs(config, vocabulary_size, narrow_products=narrow)
    workers, weights = config.cluster.num_workers, config.embedding.weights
    optimizer, more = config.embedding.optimizer, len(precisions) - 1
    dense = Replicated(parameters=dense_parameters(config.model, config.embedding.width))
    needed = worker_bytes(
        specs, optimizer, workers, output, dense, saving=None, weights=weights, tier=tier
    )
    if tier is not None:  # the rest is in the GPU's memory
        return needed + more * sum(
            host_table_bytes(spec, optimizer, workers, weights, tier) for spec in specs
        )
    # With Adam's two moments.
    again = sum(table_bytes(spec, optimizer, workers, weights) for spec in specs)
    again += 3 * dense.dense_bytes
    plain = len(precisions) * (1 + compiled)
    return needed + more * again + _plain_models_bytes(config, vocabulary_size, plain)


def _plain_models_bytes(config: Config, vocabulary_size: dict[str, int], number: int) -> int:
    """What a worker holds for plain models of `bench baseline`, of which one makes a step.

    Each has all rows and the dense part whole, with gradients and Adam's two moments, and DDP's
    copy of the gradients where there are peers. A step has three whole float32 blocks of logits:
    with torch 2.13 on CPUs the most that the softmax holds at once, in bfloat16 too.
    """
    workers, width = config.cluster.num_workers, config.model.width
    rows = sum(spec.num_rows for spec in _specs(config, vocabulary_size).values())
    values = (5 if workers > 1 else 4) * (rows * width + dense_parameters(config.model, width))
    tokens = -(-config.train.batch_tokens // workers)
    return 4 * (number * values + 3 * tokens * vocabulary_size["target"])


def dense_parameters(model: ModelSection, embedding_width: int) -> int:
    """Parameters of `model.transformer.Transformer`, without making one."""

    def linear(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs

    width, norm = model.width, 2 * model.width
    attention = linear(width, 3 * width) + linear(width, width)
    feed_forward = linear(width, model.feed_forward) + linear(model.feed_forward, width)
    encoder = model.encoder_layers * (attention + feed_forward + 2 * norm)
    decoder = model.decoder_layers * (2 * attention + feed_forward + 3 * norm)
    between = 0
    if embedding_width != width:
        between = 2 * linear(embedding_width, width) + linear(width, embedding_width)
    return encoder + decoder + 2 * norm + between


def _specs(config: Config, vocabulary_size: dict[str, int]) -> dict[str, TableSpec]:
    tables = translation_tables(
        rows_of_role(vocabulary_size, config.tokenizer.oov_buckets),
        config.embedding.width,
        config.model.share_embeddings,
    )
    return {name: table.spec(name) for name, table in tables.items()}
