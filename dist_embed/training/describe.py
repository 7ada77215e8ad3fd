"""What a run is made of, in lines for the user."""

from __future__ import annotations

import torch

from dist_embed.config.schema import Config
from dist_embed.data.token_shards import PreparedData
from dist_embed.embedding.memory import table_bytes
from dist_embed.embedding.tiers import tier_line
from dist_embed.parallel.device import device_name
from dist_embed.training.assemble import (
    TranslationModel,
)
from dist_embed.training.samples import samples_of_a_step
from dist_embed.training.worker import Context


def describe(context: Context, translation_model: TranslationModel, data: PreparedData) -> None:
    """Say it. Not collective."""
    config, group, say = context.config, context.group, context.reporter.line
    precision = "bf16" if translation_model.compute_dtype == torch.bfloat16 else "fp32"
    wanted = config.train.precision
    say(
        f"{group.num_workers} workers on {group.device.type} ({device_name(group.device)}, "
        f"{torch.get_num_threads()} threads each), precision {precision}"
        + (" (chosen by train.precision=auto)" if wanted == "auto" else "")
    )
    embedding = config.embedding
    for spec in translation_model.lookup.specs.values():
        size = table_bytes(spec, embedding.optimizer, group.num_workers, embedding.weights)
        say(
            f"table {spec.name}: {spec.num_rows:,} rows × {spec.width}, "
            f"{embedding.optimizer}, {size / 2**20:.1f} MiB per worker"
        )
    say(
        tier_line(
            embedding.memory, translation_model.lookup.tier, embedding.weights, embedding.exchange,
            group.device.type,
        )
    )  # fmt: skip
    dense = sum(p.numel() for p in translation_model.transformer.parameters())
    say(
        f"model: {dense:,} replicated parameters, output: "
        f"{_describe_output(config, translation_model.shard.num_rows)} "
        f"{translation_model.shard.num_rows:,} words"
    )
    split = data.splits["train"]
    left_out = split.dropped_long + split.dropped_empty + split.dropped_ratio + split.dropped_wrong
    say(
        f"data: {split.sentences:,} training pairs"
        + (f", {left_out:,} left out" if left_out else "")
        + (f", {split.cut:,} cut" if split.cut else "")
    )


def _describe_output(config: Config, num_words: int) -> str:
    model = config.model
    if model.output == "exact":
        return "exact softmax over"
    samples = samples_of_a_step(config, num_words)
    chosen = " (chosen by model.num_samples=auto)" if model.num_samples == "auto" else ""
    own = " and the right words of a worker's other sentences," if model.batch_negatives else ""
    return f"sampled softmax, {samples:,} {model.sampler} negatives a step{chosen}{own} of"
