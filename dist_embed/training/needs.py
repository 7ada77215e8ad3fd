"""From a configuration to the memory of a worker. Free of torch: the launching process asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from dist_embed.config.schema import Config
from dist_embed.data.pool_sizes import pools_bytes
from dist_embed.embedding.memory import (
    CLIPPING_COUNT_BYTES,
    OutputNeeds,
    Replicated,
    host_memory,
    host_table_bytes,
    inference_bytes,
    logits_block_bytes,
    table_bytes,
)
from dist_embed.embedding.plan import TableSpec
from dist_embed.embedding.settings import Tier
from dist_embed.model.settings import ModelSection
from dist_embed.model.translation_tables import TABLE_OF_ROLE, rows_of_role, translation_tables
from dist_embed.storage.uri import is_local
from dist_embed.training.samples import samples_of_a_step
from dist_embed.training.table_settings import table_settings

# Of each of a worker's tokens: a row on either side and of the right answer, each where it was
# fetched and laid out, with its gradient, and both where they travel.
_VECTORS_OF_A_TOKEN = 3 * 4


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
    table, settings = specs_of(config, vocabulary_size)[name], table_settings(config).get(name)
    exact, workers = model.output == "exact", num_workers or config.cluster.min_workers
    words, negatives, tokens = vocabulary_size["target"], 0, 0
    if exact and training:
        tokens = workers * _micro_tokens(config, num_workers)
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
        tokens=tokens,
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
    sentences: int | None = 0,
) -> int:
    """Estimate of the host memory of one of the configured workers, see `embedding.memory`.

    ``training``: else it evaluates or translates. ``tier``: None on the CPU. ``word_tables``:
    whether the words are tables on disk, which the workers of a machine map and none holds.
    ``sentences``: pairs of the training text; None: more than are planned together.
    """
    if training:
        parts = training_memory(
            config, vocabulary_size, narrow_products=narrow_products, tier=tier,
            word_tables=word_tables, sentences=sentences,
        )  # fmt: skip
        return sum(parts.values())
    output = output_needs(config, vocabulary_size, narrow_products=narrow_products)
    return inference_bytes(
        list(specs_of(config, vocabulary_size).values()), config.cluster.min_workers,
        output.block_bytes, _replicated(config, vocabulary_size, word_tables=word_tables),
        in_place=config.checkpoint.saving == "in_place", store=_store(config),
        weights=config.embedding.weights, tier=tier,
    )  # fmt: skip


def training_memory(
    config: Config,
    vocabulary_size: dict[str, int],
    *,
    narrow_products: bool,
    tier: Tier | None,
    word_tables: bool = False,
    sentences: int | None = 0,
    process_bytes: int | None = None,
) -> dict[str, int]:
    """`host_bytes` of a worker that trains, by part; see `embedding.memory.host_memory`."""
    return host_memory(
        list(specs_of(config, vocabulary_size).values()), config.embedding.optimizer,
        config.cluster.min_workers,
        output_needs(config, vocabulary_size, narrow_products=narrow_products),
        step_needs(
            config, vocabulary_size, word_tables=word_tables, narrow=narrow_products,
            sentences=sentences,
        ),
        saving=config.checkpoint.saving, store=_store(config), weights=config.embedding.weights,
        tier=tier, process_bytes=process_bytes,
    )  # fmt: skip


def step_needs(
    config: Config, vocabulary_size: dict[str, int], *, word_tables: bool, narrow: bool,
    sentences: int | None = 0,
) -> Replicated:  # fmt: skip
    """What a worker that trains holds beside tables and output layer."""
    held = _replicated(config, vocabulary_size, word_tables=word_tables)
    workers = config.cluster.min_workers
    vectors = 4 * config.embedding.width * -(-config.train.batch_tokens // workers)
    counts = 0
    if config.train.clip_norm and workers > 1:
        counts = len(specs_of(config, vocabulary_size)) * workers**2
    kept = activation_bytes(
        config.model, config.embedding.width, _micro_tokens(config), narrow=narrow
    )
    return replace(
        held,
        activation_bytes=kept + (2 * held.parameters if narrow else 0),  # and narrow weights
        exchange_bytes=_VECTORS_OF_A_TOKEN * vectors,
        clipping_bytes=CLIPPING_COUNT_BYTES * counts,
        sentence_bytes=pools_bytes(config.train.batch_tokens, sentences, workers),
    )


def _micro_tokens(config: Config, num_workers: int | None = None) -> int:
    """The most tokens that a worker has on either side of a micro-batch; ``num_workers`` as in
    `output_needs`.
    """
    cluster = config.cluster
    # Of workers that come and go each makes as many more micro-batches as there are fewer.
    fixed = cluster.min_workers == cluster.max_workers
    workers = num_workers if num_workers and fixed else cluster.max_workers
    tokens = -(-config.train.batch_tokens // workers)
    return -(-tokens // config.train.accumulate)


def _replicated(
    config: Config, vocabulary_size: dict[str, int], *, word_tables: bool
) -> Replicated:
    shared = config.tokenizer.shared
    tokens = vocabulary_size["source"] if shared else sum(vocabulary_size.values())
    held, of_words = 0 if word_tables else tokens, config.tokenizer.kind == "word"
    return Replicated(
        words=held if of_words else 0,
        pieces=0 if of_words else held,
        parameters=dense_parameters(config.model, config.embedding.width),
    )


def _store(config: Config) -> Literal["local", "remote"]:
    return "local" if is_local(config.run.uri) else "remote"


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
    specs = list(specs_of(config, vocabulary_size).values())
    narrow = "bf16" in precisions and tier is None
    output = output_needs(config, vocabulary_size, narrow_products=narrow)
    workers, weights = config.cluster.min_workers, config.embedding.weights
    optimizer, more = config.embedding.optimizer, len(precisions) - 1
    dense = Replicated(parameters=dense_parameters(config.model, config.embedding.width))
    parts = host_memory(
        specs, optimizer, workers, output, dense, saving=None, weights=weights, tier=tier
    )
    needed = sum(parts.values())
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
    workers, width = config.cluster.min_workers, config.model.width
    rows = sum(spec.num_rows for spec in specs_of(config, vocabulary_size).values())
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


def activation_bytes(
    model: ModelSection, embedding_width: int, tokens: int, *, narrow: bool
) -> int:
    """What the forward of the dense model keeps for its backward, and the largest gradients there.

    That is what PyTorch's autograd saves of each token of a batch of several rectangles: what
    norms, products, ReLU and dropout have been given, and of attention queries, keys, values and
    result. With dropout of attention's weights, which is not counted, it keeps a few numbers for
    each pair of tokens besides.

    Args:
        model: its sizes.
        embedding_width: of the tables.
        tokens: of a micro-batch, on either side.
        narrow: whether products are bfloat16: what they are given is narrow then; norms and,
            on CPUs, attention keep float32.
    """
    width, dropped = model.width, 1 if model.dropout else 0
    inner = (1 + 2 * dropped) * model.feed_forward
    if narrow:
        encoder = 4 * 6 * width + 2 * ((3 + 2 * dropped) * width + inner)
        decoder = 4 * 11 * width + 2 * ((6 + 3 * dropped) * width + inner)
        ends = 4 * (2 + 2 * dropped) * width
    else:
        encoder = 4 * ((9 + 2 * dropped) * width + inner)
        decoder = 4 * ((16 + 3 * dropped) * width + inner)
        ends = 4 * (3 + 2 * dropped) * width
    if embedding_width != width:
        ends += (2 if narrow else 4) * (2 * embedding_width + width)
    gradients = (3 if narrow else 4) * (6 * width + 2 * model.feed_forward)
    kept = model.encoder_layers * encoder + model.decoder_layers * decoder + ends
    return tokens * (kept + gradients)


def specs_of(config: Config, vocabulary_size: dict[str, int]) -> dict[str, TableSpec]:
    """The tables of a run, by name."""
    tables = translation_tables(
        rows_of_role(vocabulary_size, config.tokenizer.oov_buckets),
        config.embedding.width,
        config.model.share_embeddings,
    )
    return {name: table.spec(name) for name, table in tables.items()}
