"""A run as its configuration says it, on one process in plain PyTorch: what a run must equal.

Everything that the configuration decides is written out here from the values themselves, none of it
by what assembles a run. Without dropout, whose draws belong to a worker.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dist_embed.config.schema import Config
from dist_embed.data.loader import Loader, Position
from dist_embed.data.token_shards import PreparedData
from dist_embed.data.tokenizer import END, START
from dist_embed.embedding.initial_values import fill_initial_rows
from dist_embed.embedding.row_order import RowOrder
from dist_embed.model.sampler import LogUniformSampler, Sampler, UnigramSampler
from dist_embed.model.transformer import Transformer
from tests.distributed.words_elsewhere import Elsewhere, stood_for, words_elsewhere
from tests.unit.step_content import step_content

Values = dict[str, dict[str, Any]]  # a configuration, or a part of one
TABLES = {
    "none": {"source": "source", "target": "target", "output": "output"},
    "decoder": {"source": "source", "target": "decoder", "output": "decoder"},
}
DATA: Values = {
    "data": {"synthetic": {"sentences": 90, "held_out": 7, "nouns": 9, "verbs": 4, "adjectives": 3,
                           "seed": 5},
             "num_processes": 1, "shard_sentences": 40, "lexicon_translations": 4},
    "tokenizer": {"shared": False, "vocab_size": 40, "oov_buckets": 5, "lowercase": True},
}  # fmt: skip
Pairs = list[tuple[tuple[int, ...], tuple[int, ...]]]


def merged(*parts: Values) -> Values:
    values: Values = {}
    for part in parts:
        for section, settings in part.items():
            values[section] = values.get(section, {}) | settings
    return values


def rate(peak: float, shape: str, warmup: int, last: int, step: int) -> float:
    """Linear warm-up, then the shape's formula."""
    if step < warmup:
        return peak * step / warmup
    start = max(1, warmup)
    done = (step - start) / (last - start)
    return (
        peak
        * {
            "constant": 1.0,
            "inverse_sqrt": math.sqrt(start / step),
            "linear": 1 - done,
            "cosine": (1 + math.cos(math.pi * done)) / 2,
        }[shape]
    )


def batches(config: Config, data: PreparedData, split: str) -> Loader:
    """Whole batches of a split."""
    rows = dict(data.vocabulary_size)
    rows["source"] += config.tokenizer.oov_buckets
    return Loader(
        config.data.uri, data.splits[split].shards, batch_tokens=config.train.batch_tokens,
        seed=config.run.seed, rank=0, num_workers=1, accumulate=1, num_ids=rows,
    )  # fmt: skip


@dataclass
class Step:
    """What a step found, and the tables after it."""

    loss: float
    nll: float
    norm: float
    tables: dict[str, Tensor] = field(default_factory=dict)


class ConfiguredRun:
    """The run of a configuration."""

    def __init__(self, config: Config, data: PreparedData) -> None:
        self.config, self.data = config, data
        embedding, model, train = config.embedding, config.model, config.train
        self.tables_of = TABLES[model.share_embeddings]
        target = data.vocabulary_size["target"]
        rows = {
            "source": data.vocabulary_size["source"] + config.tokenizer.oov_buckets,
            "target": target, "output": target,
        }  # fmt: skip
        self.tables: dict[str, nn.Embedding] = {}
        for role, table in self.tables_of.items():
            if table not in self.tables:
                start = torch.empty(rows[role], embedding.width)
                fill_initial_rows(
                    start, seed=config.run.seed, table=table, first_row=0,
                    scale=1 / math.sqrt(embedding.width),
                )  # fmt: skip
                self.tables[table] = nn.Embedding.from_pretrained(start, freeze=False)
        self.states = {name: torch.zeros(()) for name in self.tables}
        torch.manual_seed(config.run.seed)
        self.transformer = Transformer(
            embedding_width=embedding.width, width=model.width, feed_forward=model.feed_forward,
            heads=model.heads, encoder_layers=model.encoder_layers,
            decoder_layers=model.decoder_layers, dropout=0.0, attention_dropout=0.0,
        )  # fmt: skip
        dense = list(self.transformer.parameters())
        self.optimizer = torch.optim.AdamW(
            [{"params": [p for p in dense if p.dim() == 2], "weight_decay": train.weight_decay},
             {"params": [p for p in dense if p.dim() == 1], "weight_decay": 0.0}],
            betas=(train.beta1, train.beta2), eps=1e-9,
        )  # fmt: skip

    def settings_of(self, table: str) -> Any:
        """The section of a table that has one."""
        sections = self.config.embedding.tables
        roles = [role for role, name in self.tables_of.items() if name == table]
        return next((s for role in roles if (s := getattr(sections, role))), None)

    def is_frozen(self, table: str, step: int) -> bool:
        own = self.settings_of(table)
        return bool(own and (own.freeze or step <= own.freeze_until_step))

    def sampler(self) -> Sampler:
        model, num_words = self.config.model, self.data.vocabulary_size["target"]
        assert model.num_samples != "auto"
        if model.sampler == "log_uniform":
            return LogUniformSampler(num_words, model.num_samples)
        return UnigramSampler(self.target_counts(), model.sampler_power, model.num_samples)

    def target_counts(self) -> NDArray[np.int64]:
        """[V] occurrences of each word in the target side's training text."""
        counts: Counter[int] = Counter()
        loader = batches(self.config, self.data, "train")
        for step in loader.steps(Position()):
            counts.update(word for _, target in step_content(step) for word in target)
            if step.after.epoch:
                break
        return np.array([counts[i] for i in range(self.data.vocabulary_size["target"])])

    def logits(self, pair: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """[n, V] in the order of ids, and the right answers [n]."""
        source, target = (torch.tensor([list(side)], dtype=torch.int64) for side in pair)
        end, begin = torch.tensor([[END]]), torch.tensor([[START]])
        source, read = torch.cat([source, end], 1), torch.cat([begin, target], 1)
        answers = torch.cat([target, end], 1)[0]

        def vectors(role: str, ids: Tensor) -> Tensor:
            table = self.tables[self.tables_of[role]]
            return table(RowOrder(table.num_embeddings).rows_of(ids))

        hidden = self.transformer(
            vectors("source", source), torch.tensor([source.shape[1]]), vectors("target", read),
            torch.arange(len(answers)),
        )  # fmt: skip
        words = torch.arange(self.data.vocabulary_size["target"])
        return hidden @ vectors("output", words).t(), answers

    def losses(self, pairs: Pairs, step: int) -> tuple[Tensor, Tensor, int]:
        """Sums of the smoothed loss and of -log p, and the tokens."""
        smoothing = self.config.train.label_smoothing
        loss, nll, tokens = torch.zeros(()), torch.zeros(()), 0
        sampled = self.config.model.output == "sampled"
        sampler = self.sampler() if sampled else None
        negatives = sampler.draw(self.config.run.seed, step) if sampler else None
        in_batch: list[Elsewhere | None] = [None] * len(pairs)
        if self.config.model.batch_negatives and sampled:
            workers = self.config.cluster.num_workers
            in_batch = [*words_elsewhere(pairs, workers, self.config.train.accumulate)]
            predicted = self.target_counts()
            predicted[END] = self.data.splits["train"].sentences
        for pair, elsewhere in zip(pairs, in_batch, strict=True):
            logits, answers = self.logits(pair)
            times = torch.ones_like(logits)  # how many words a word stands for
            if negatives is not None:
                times.zero_()
                times[:, negatives.ids] = (-negatives.log_probability).exp()
                times[torch.arange(len(answers)), answers] = 1.0
            times_of_z = times
            if sampler and negatives and elsewhere:
                weight = stood_for(negatives, sampler, elsewhere, predicted)
                times_of_z = weight.expand_as(logits).clone()
                times_of_z[torch.arange(len(answers)), answers] = 1.0
            log_z = (times_of_z * logits.exp()).sum(1).log()
            own = logits.gather(1, answers.unsqueeze(1)).squeeze(1)
            mean = (times * logits).sum(1) / logits.shape[1]
            loss = loss + (log_z - (1 - smoothing) * own - smoothing * mean).sum()
            nll = nll + (log_z - own).sum()
            tokens += len(answers)
        return loss, nll, tokens

    def step(self, pairs: Pairs, number: int) -> Step:
        train, embedding = self.config.train, self.config.embedding
        for parameter in [*self.transformer.parameters(), *self._weights()]:
            parameter.grad = None
        loss, nll, tokens = self.losses(pairs, number)
        (loss / tokens).backward()
        trained = {
            name: table for name, table in self.tables.items() if not self.is_frozen(name, number)
        }
        clipped = [*self.transformer.parameters(), *(t.weight for t in trained.values())]
        norm = nn.utils.clip_grad_norm_(clipped, train.clip_norm or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(
                train.learning_rate, train.schedule, train.warmup_steps, train.max_steps, number
            )
        self.optimizer.step()
        for name, table in trained.items():
            own = self.settings_of(name)
            peak = (own and own.learning_rate) or embedding.learning_rate
            now = rate(peak, embedding.schedule, embedding.warmup_steps, train.max_steps, number)
            self._update(name, table.weight.data, table.weight.grad, now)
        tables = {name: table.weight.detach().clone() for name, table in self.tables.items()}
        return Step(loss.item() / tokens, nll.item() / tokens, float(norm), tables)

    def _update(self, name: str, weight: Tensor, gradient: Tensor | None, now: float) -> None:
        assert gradient is not None
        optimizer, eps = self.config.embedding.optimizer, self.config.embedding.eps
        if optimizer == "sgd":
            weight -= now * gradient
            return
        square = gradient.square()
        if optimizer == "rowwise_adagrad":
            square = square.mean(1, keepdim=True)
        self.states[name] = self.states[name] + square
        weight -= now * gradient / (self.states[name].sqrt() + eps)

    def _weights(self) -> list[nn.Parameter]:
        return [table.weight for table in self.tables.values()]

    def train_on(self, steps: int) -> Iterator[Step]:
        """So many steps from the start, each when it is asked for."""
        loader = batches(self.config, self.data, "train")
        for number, work in enumerate(islice(loader.steps(Position()), steps), start=1):
            yield self.step(step_content(work), number)

    def train(self, steps: int) -> list[Step]:
        return list(self.train_on(steps))

    def validation_loss(self) -> float:
        """Mean -log p per token over the validation split, over the whole vocabulary."""
        exact = self.config.model_copy(
            update={"model": self.config.model.model_copy(update={"output": "exact"})}
        )
        whole = ConfiguredRun(exact, self.data)
        whole.transformer, whole.tables = self.transformer, self.tables
        total, tokens = 0.0, 0
        with torch.no_grad():
            for work in batches(self.config, self.data, "validation").steps(Position()):
                _, nll, count = whole.losses(step_content(work), 0)
                total, tokens = total + float(nll), tokens + count
                if work.after.epoch:
                    return total / tokens
        raise AssertionError("a loader never ends")
