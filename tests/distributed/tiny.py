"""A tiny model and its sharded assembly, for comparisons with `Reference`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.parallel import DistributedDataParallel

from dist_embed.data.bands import deal
from dist_embed.data.batch import build_batch
from dist_embed.data.loader import Position, StepBatches
from dist_embed.data.token_shards import TokenPairs
from dist_embed.embedding.settings import Exchange, Memory, Weights
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.model.batch_negatives import WordShares
from dist_embed.model.output import OutputShard
from dist_embed.model.output_layer import ExactSoftmax, OutputLayer, SampledSoftmax
from dist_embed.model.sampler import LogUniformSampler
from dist_embed.model.settings import ShareEmbeddings
from dist_embed.model.transformer import Transformer
from dist_embed.model.translation_tables import translation_tables
from dist_embed.optim.schedule import Rates, Schedule
from dist_embed.parallel.group import Group
from dist_embed.training.assemble import dense_tensors
from dist_embed.training.settings import TrainSection
from dist_embed.training.step import StepResult, TrainStep

TABLE_RATE, EPS = 0.1, 1e-8
# Key biases have a gradient of exactly zero; with a tiny eps Adam would blow its rounding up to a
# full step, and no two summation orders would agree.
ADAM_EPS = 1e-4
Pairs = list[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Tiny:
    """Sizes of the tiny model."""

    share: ShareEmbeddings = "decoder"
    source_rows: int = 23
    target_rows: int = 31
    width: int = 8
    accumulate: int = 1
    label_smoothing: float = 0.1
    clip_norm: float = 0.0
    block_bytes: int = 4 * 31 * 5
    seed: int = 7
    step_seed: int = 1  # of dropout
    dense_rate: float = 1e-3
    warmup_steps: int = 0  # of the tables' rate
    num_samples: int = 0  # of the sampled output layer; 0: the exact one
    batch_negatives: bool = False  # beside the samples
    memory: Memory = "device"
    weights: Weights = "fp32"
    exchange: Exchange = "fp32"
    optimizer: str = "rowwise_adagrad"  # of the tables
    own_rates: tuple[tuple[str, float], ...] = ()  # table and rate
    frozen_until: tuple[tuple[str, float], ...] = ()  # table and last step


def build_transformer(tiny: Tiny) -> Transformer:
    torch.manual_seed(tiny.seed)
    return Transformer(
        embedding_width=tiny.width, width=16, feed_forward=24, heads=2, encoder_layers=1,
        decoder_layers=2, dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip


def word_counts(tiny: Tiny) -> NDArray[np.int64]:
    """How often each target word is said to occur."""
    return 1 + 300 // np.arange(1, tiny.target_rows + 1)


def token_pairs(pairs: Pairs) -> TokenPairs:
    flat: list[Any] = []
    for side in (0, 1):
        lists = [pair[side] for pair in pairs]
        flat.append(np.array([i for ids in lists for i in ids], dtype=np.int32))
        flat.append(np.cumsum([0, *map(len, lists)]))
    return TokenPairs(*flat)


def random_pairs(count: int, seed: int, source_rows: int, target_rows: int) -> Pairs:
    rng = np.random.default_rng(seed)
    return [
        (
            rng.integers(0, source_rows, rng.integers(1, 6)).tolist(),
            rng.integers(0, target_rows, rng.integers(1, 7)).tolist(),
        )
        for _ in range(count)
    ]


def work_for(pairs: Pairs, group: Group, accumulate: int) -> StepBatches:
    """This worker's part of a step on ``pairs``."""
    tokens = token_pairs(pairs)
    parts = deal(
        np.arange(len(pairs)), tokens.source_lengths + 1, tokens.target_lengths + 1,
        group.num_workers * accumulate,
    )  # fmt: skip
    width = group.num_workers
    # In rectangles: two neighbours each.
    own = [
        [part[i : i + 2] for i in range(0, len(part), 2)]
        for part in parts[group.rank :: group.num_workers]
    ]
    micros = [parts[m * width : (m + 1) * width] for m in range(accumulate)]
    lengths = tokens.target_lengths + 1
    return StepBatches(
        [build_batch(tokens, rectangles).to(group.device) for rectangles in own],
        [[int(lengths[part].sum()) for part in micro] for micro in micros],
        Position(),
    )


class Sharded:
    """The tiny model on this worker."""

    def __init__(
        self, tiny: Tiny, group: Group, compute_dtype: torch.dtype = torch.float32
    ) -> None:
        self.tiny, self.group = tiny, group
        self.announced: tuple[Pairs, StepBatches] | None = None
        rows = {"source": tiny.source_rows, "target": tiny.target_rows, "output": tiny.target_rows}
        self.lookup = ShardedTables(
            translation_tables(
                rows, tiny.width, tiny.share, trained_whole=not tiny.num_samples,
                initial_scale=0.1, own_rates=dict(tiny.own_rates),
            ),
            group, optimizer=tiny.optimizer, learning_rate=TABLE_RATE, eps=EPS, seed=tiny.seed,
            memory=tiny.memory, weights=tiny.weights, exchange=tiny.exchange,
        )  # fmt: skip
        self.transformer = build_transformer(tiny).to(group.device)
        self.optimizer = torch.optim.AdamW(
            self.transformer.parameters(), lr=tiny.dense_rate, betas=(0.9, 0.98), eps=ADAM_EPS,
            weight_decay=0.0,
        )  # fmt: skip
        self.output_table = self.lookup.table_of["output"]
        self.shard = OutputShard(
            group, self.lookup.shards[self.output_table].first_row, tiny.target_rows,
            tiny.block_bytes, compute_dtype,
        )  # fmt: skip
        output: OutputLayer = ExactSoftmax(self.lookup, "output", self.shard)
        if tiny.num_samples:
            sampler = LogUniformSampler(tiny.target_rows, tiny.num_samples)
            shares = WordShares(word_counts(tiny)) if tiny.batch_negatives else None
            output = SampledSoftmax(
                self.lookup, "output", sampler, seed=tiny.seed, shard=self.shard, shares=shares
            )
        model: torch.nn.Module = self.transformer
        if group.num_workers > 1:
            model = DistributedDataParallel(model, process_group=group.process_group)

        def of_table(rate: float) -> Schedule:
            return Schedule(rate, "constant", tiny.warmup_steps, 100)

        rates = Rates(
            Schedule(tiny.dense_rate, "constant", 0, 100), of_table(TABLE_RATE),
            {table: of_table(rate) for table, rate in tiny.own_rates}, dict(tiny.frozen_until),
        )  # fmt: skip
        settings = TrainSection(
            max_steps=100, label_smoothing=tiny.label_smoothing, clip_norm=tiny.clip_norm
        )
        self.train_step = TrainStep(
            model, self.lookup, output, self.optimizer, settings, rates,
            compute_dtype=compute_dtype, seed=tiny.step_seed,
        )  # fmt: skip

    def work(self, pairs: Pairs) -> StepBatches:
        return work_for(pairs, self.group, self.tiny.accumulate)

    def step(self, number: int, pairs: Pairs, following: Pairs | None = None) -> StepResult:
        """A step on what the step before has announced, where that is ``pairs``."""
        announced = self.announced
        work = announced[1] if announced and announced[0] is pairs else self.work(pairs)
        self.announced = (following, self.work(following)) if following else None
        return self.train_step.run(number, work, self.announced and self.announced[1])

    def tables(self) -> dict[str, tuple[int, torch.Tensor, dict[str, torch.Tensor]]]:
        """First row, weights and optimizer state of this worker's shard of each table."""
        return {
            name: (
                self.lookup.shards[name].first_row,
                self.lookup.weight(name).detach().cpu().clone(),
                {k: v.cpu().clone() for k, v in self.lookup.optimizer_state(name).items()},
            )
            for name in self.lookup.specs
        }

    def dense(self) -> dict[str, torch.Tensor]:
        return {
            k: v.detach().clone()
            for k, v in dense_tensors(self.transformer, self.optimizer).items()
        }


def joined(results: list[dict[str, Any]], table: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole weight and whole row-wise state of a table from every worker's `Sharded.tables`."""
    weight = torch.cat([result[table][1] for result in results])
    state = torch.cat([next(iter(result[table][2].values())) for result in results])
    return weight, state
