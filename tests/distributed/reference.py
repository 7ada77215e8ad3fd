"""The whole model on one process in plain PyTorch: what the sharded one must equal."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from dist_embed.embedding.initial_values import fill_initial_rows
from dist_embed.model.sampler import LogUniformSampler
from dist_embed.model.transformer import Transformer
from dist_embed.model.translation_tables import TABLE_OF_ROLE
from tests.distributed.tiny import ADAM_EPS, EPS, TABLE_RATE, Tiny, build_transformer, word_counts
from tests.distributed.words_elsewhere import Elsewhere, stood_for, words_elsewhere

Pairs = list[tuple[list[int], list[int]]]


class Reference:
    """nn.Embedding tables, full softmax, row-wise Adagrad written out, AdamW."""

    def __init__(self, tiny: Tiny, num_workers: int = 1) -> None:
        self.tiny = tiny
        self.num_workers = num_workers  # decides nothing but whose right answers are negatives
        self.table_of_role = TABLE_OF_ROLE[tiny.share]
        rows = {"source": tiny.source_rows, "target": tiny.target_rows, "output": tiny.target_rows}
        self.tables: dict[str, nn.Embedding] = {}
        for role, table in self.table_of_role.items():
            if table not in self.tables:
                self.tables[table] = nn.Embedding(rows[role], tiny.width)
                weight = self.tables[table].weight.data
                by_row = torch.empty_like(weight)
                fill_initial_rows(by_row, seed=tiny.seed, table=table, first_row=0, scale=0.1)
                weight.copy_(by_row)
        self.sums = {name: torch.zeros(t.num_embeddings) for name, t in self.tables.items()}
        self.steps = 0
        self.transformer: Transformer = build_transformer(tiny)
        self.optimizer = torch.optim.AdamW(
            self.transformer.parameters(), lr=tiny.dense_rate, betas=(0.9, 0.98), eps=ADAM_EPS,
            weight_decay=0.0,
        )  # fmt: skip

    def rows_of(self, role: str, ids: Tensor) -> Tensor:
        from dist_embed.embedding.row_order import RowOrder

        return RowOrder(self.tables[self.table_of_role[role]].num_embeddings).rows_of(ids)

    def loss(self, pairs: Pairs, allowed: Iterable[int] | None = None) -> Tensor:
        """Smoothed loss per token; one sentence at a time, so nothing is ever padded.

        ``allowed``: the words the softmax is over, instead of all.
        """
        self.steps += 1
        total, tokens = torch.zeros(()), 0
        in_batch: list[Elsewhere | None] = [None] * len(pairs)
        if self.tiny.batch_negatives:
            in_batch = [*words_elsewhere(pairs, self.num_workers, self.tiny.accumulate)]
        output = self.tables[self.table_of_role["output"]].weight
        for (source, target), others in zip(pairs, in_batch, strict=True):
            source_ids = torch.tensor([[*source, 3]])
            input_ids, answers = torch.tensor([[2, *target]]), torch.tensor([*target, 3])
            hidden = self.transformer(
                self.tables[self.table_of_role["source"]](self.rows_of("source", source_ids)),
                torch.tensor([source_ids.shape[1]]),
                self.tables[self.table_of_role["target"]](self.rows_of("target", input_ids)),
                torch.arange(len(answers)),
            )
            rows = self.rows_of("output", torch.arange(self.tiny.target_rows))
            logits = hidden @ output[rows].t()
            if allowed is not None:
                others = torch.ones(self.tiny.target_rows, dtype=torch.bool)
                others[list(allowed)] = False
                logits = logits.masked_fill(others, float("-inf"))
            total = total + self.output_loss(logits, answers, others)
            tokens += len(answers)
        return total / tokens

    def output_loss(self, logits: Tensor, answers: Tensor, others: Elsewhere | None) -> Tensor:
        """Of logits [n, V] in the order of ids. ``others``: see `words_elsewhere`."""
        smoothing = self.tiny.label_smoothing
        if not self.tiny.num_samples:
            return functional.cross_entropy(
                logits, answers, reduction="sum", label_smoothing=smoothing
            )
        sampler = LogUniformSampler(logits.shape[1], self.tiny.num_samples)
        negatives = sampler.draw(self.tiny.seed, self.steps)
        # How many words each word stands for: none, 1 / π, or 1 for the right answer.
        times = torch.zeros_like(logits)
        times[:, negatives.ids] = (-negatives.log_probability).exp()
        times[torch.arange(len(answers)), answers] = 1.0
        times_of_z = times
        if others is not None:
            weight = stood_for(negatives, sampler, others, word_counts(self.tiny))
            times_of_z = weight.expand_as(logits).clone()
            times_of_z[torch.arange(len(answers)), answers] = 1.0
        log_z = (times_of_z * logits.exp()).sum(1).log()
        own = logits.gather(1, answers.unsqueeze(1)).squeeze(1)
        mean = (times * logits).sum(1) / logits.shape[1]
        return (log_z - (1 - smoothing) * own - smoothing * mean).sum()

    def step(self, pairs: Pairs) -> float:
        parameters = [*self.transformer.parameters(), *(t.weight for t in self.tables.values())]
        for parameter in parameters:
            parameter.grad = None
        loss = self.loss(pairs)
        loss.backward()
        if self.tiny.clip_norm:
            nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None],
                                     self.tiny.clip_norm)  # fmt: skip
        self.optimizer.step()
        rate = TABLE_RATE * min(1.0, self.steps / max(1, self.tiny.warmup_steps))
        with torch.no_grad():
            for name, table in self.tables.items():
                gradient = table.weight.grad
                if gradient is None:
                    continue
                # Row-wise Adagrad: one sum of mean squared gradients per row.
                self.sums[name] += gradient.square().mean(1)
                table.weight -= rate * gradient / (self.sums[name].sqrt() + EPS).unsqueeze(1)
        return float(loss.detach())
