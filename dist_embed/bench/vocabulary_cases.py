"""Ways to train one size of vocabulary: this project's, and two of plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from dist_embed.bench.device_tables import build_filled_translator
from dist_embed.bench.plain_model import Step, plain_training_step
from dist_embed.bench.plain_sparse import SparseSampled
from dist_embed.bench.workers import Prepare, as_it_is
from dist_embed.checkpoint.of_tables import live_tensors
from dist_embed.checkpoint.state import LiveTensor
from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.data.batch import build_batch
from dist_embed.data.loader import Position, StepBatches
from dist_embed.data.token_shards import TokenPairs
from dist_embed.data.zipf import zipf
from dist_embed.parallel.group import Group
from dist_embed.training.assemble import (
    build_dense_optimizer,
    build_output,
    dense_tensors,
)
from dist_embed.training.train import build_train_step

SENTENCE_TOKENS = 32  # with the end mark
Kind = Literal["dist_embed, sampled", "nn.Embedding(sparse), sampled", "nn.Embedding, full softmax"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SAMPLED, SPARSE, FULL = KINDS


@dataclass(frozen=True)
class Case:
    """One way to train one size.

    Attributes:
        kind: who does the step.
        num_words: V of source, target and output, each a table of its own.
        width: D, of tables and model.
        tokens: target tokens of each worker.
        num_samples: S.
    """

    kind: Kind
    num_words: int
    width: int
    tokens: int
    num_samples: int

    @property
    def table_bytes(self) -> int:
        """Bytes of the three tables with row-wise optimizer state, float32, all workers."""
        return 3 * 4 * self.num_words * (self.width + 1)

    def least_bytes(self, num_workers: int) -> int:
        """Bytes of a worker's tables with all that is as large: optimizer state, gradients, whole
        logits.
        """
        values = 3 * 4 * self.num_words * self.width
        if self.kind == SAMPLED:
            return self.table_bytes // num_workers
        if self.kind == SPARSE:
            return 2 * values  # Adagrad's sum for each
        # Gradient and Adam's two moments; logits, their softmax and gradient.
        return 4 * values + 3 * 4 * self.tokens * self.num_words


@dataclass(frozen=True)
class Trainer:
    """One case on this worker.

    Attributes:
        step: runs one training step; collective.
        prepare: does of a step what a run's loader does in its thread, by its number.
        live: what a checkpoint is taken of; of this project's case only.
    """

    step: Step
    prepare: Prepare = as_it_is
    live: dict[str, LiveTensor] = field(default_factory=dict)


def build_trainer(case: Case, group: Group) -> Trainer:
    """Tables, model and optimizers of the case. Collective."""
    config = case_config(case)
    if case.kind == SAMPLED:
        size = {"source": case.num_words, "target": case.num_words}
        translation_model = build_filled_translator(config, size, group)
        output = build_output(config, translation_model, _no_counts, _no_counts)
        optimizer = build_dense_optimizer(config, translation_model.transformer)
        step = build_train_step(config, translation_model, output, optimizer)
        dense = dense_tensors(translation_model.transformer, optimizer)
        return Trainer(step.run, step.prepare, live_tensors(translation_model.lookup, dense))
    if case.kind == SPARSE:
        sparse = SparseSampled(config, case.num_words, group)
        return Trainer(sparse.run, sparse.prepare)
    with torch.device(group.device):  # on a GPU the tables are drawn there
        step_of_all = plain_training_step(config, case.num_words, case.num_words, group, bf16=False)
    return Trainer(step_of_all)


def case_config(case: Case) -> Config:
    """Two layers on either side, dropout off, no smoothing: what is not the tables is small."""
    return config_from_dict(
        {
            "run": {"uri": "/nowhere"},
            "data": {"synthetic": {}},
            "tokenizer": {"shared": False},
            # Where a GPU's memory ends is to be seen, and not what lies beyond it.
            "embedding": {"width": case.width, "memory": "device"},
            "model": {
                "width": case.width, "feed_forward": 4 * case.width, "encoder_layers": 2,
                "decoder_layers": 2, "dropout": 0.0, "share_embeddings": "none",
                "output": "sampled", "num_samples": case.num_samples,
            },
            "train": {"max_steps": 1000, "precision": "fp32"},
        }
    )  # fmt: skip


def batches(case: Case, group: Group, count: int, first: int = 0) -> list[StepBatches]:
    """Steps of sentences of equal length whose words follow Zipf's law by rank, on the host.

    Those that follow the first ``first`` ones of all.
    """
    sentences = case.tokens // SENTENCE_TOKENS
    length = SENTENCE_TOKENS - 1
    offsets = np.arange(sentences + 1, dtype=np.int64) * length
    found = []
    for number in range(first, first + count):
        draw = np.random.default_rng([number, group.rank])
        source, target = (zipf(draw, case.num_words, sentences * length) for _ in range(2))
        pairs = TokenPairs(source, offsets, target, offsets)
        counts = [[sentences * SENTENCE_TOKENS] * group.num_workers]
        found.append(StepBatches([build_batch(pairs, [np.arange(sentences)])], counts, Position()))
    return found


def prepared(
    trainer: Trainer, case: Case, group: Group, count: int, first: int = 0
) -> list[StepBatches]:
    """`batches` as steps ``first + 1`` and so on, prepared and on the group's device."""
    return [
        trainer.prepare(number, work).to(group.device)
        for number, work in enumerate(batches(case, group, count, first), first + 1)
    ]


def _no_counts() -> NDArray[np.int64]:
    raise AssertionError("the log-uniform sampler asks for none")
