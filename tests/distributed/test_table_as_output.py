"""A table as the output layer of a model of one's own: the next word from one vector, against a
full softmax on one process.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dist_embed.embedding.initial_values import fill_initial_rows
from dist_embed.embedding.row_order import RowOrder
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.table import Table
from dist_embed.errors import UserError
from dist_embed.model.output_layer import ExactSoftmax, OutputLayer, SampledSoftmax
from dist_embed.model.sampler import LogUniformSampler
from dist_embed.parallel.group import Group
from tests.distributed.pool import RemoteError, WorkerPool

WORDS, OTHERS, WIDTH = 23, 11, 8
RATE, EPS, SEED, STEPS = 0.3, 1e-8, 2, 3
LAYERS = ["exact", "all words sampled", "some sampled"]
SAMPLES = {"all words sampled": WORDS, "some sampled": 6}


def tables_of(layer: str, tied: bool) -> dict[str, Table]:
    """Tied: a word is read from the table that predicts the next."""
    whole = layer == "exact"
    if tied:
        return {"word": Table(WORDS, WIDTH, features=("read", "next"), trained_whole=whole)}
    # Of other widths than the output's: they take no part in it.
    return {
        "read": Table(WORDS, WIDTH),
        "next": Table(WORDS, WIDTH, trained_whole=whole),
        "place": Table(OTHERS, 4),
    }


def examples(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of all workers: words, where they stand, and the next ones; few in the second step."""
    draw = torch.Generator().manual_seed(step)
    count = 2 if step == 2 else 13
    return (
        torch.randint(WORDS, (count,), generator=draw),
        torch.randint(OTHERS, (count,), generator=draw),
        torch.randint(WORDS, (count,), generator=draw) ** 2 // WORDS,  # some of them often
    )


def hidden_of(words: Tensor, places: Tensor | None) -> Tensor:
    hidden = words * 3
    return hidden if places is None else hidden + torch.cat([places, places], dim=-1)


class Reference:
    """All on one process: `nn.Embedding`, logits of all words, row-wise Adagrad written out."""

    def __init__(self, layer: str, tied: bool) -> None:
        self.layer = layer
        tables = tables_of(layer, tied)
        self.tables: dict[str, nn.Embedding] = {}
        for name, table in tables.items():
            self.tables[name] = nn.Embedding(table.rows, table.width)
            fill_initial_rows(
                self.tables[name].weight.data, seed=SEED, table=name, first_row=0, scale=table.scale
            )
        self.sums = {name: torch.zeros(table.rows) for name, table in tables.items()}
        self.table_of = {f: name for name, t in tables.items() for f in t.features or (name,)}

    def vectors(self, feature: str, ids: Tensor) -> Tensor:
        table = self.tables[self.table_of[feature]]
        found: Tensor = table(RowOrder(table.num_embeddings).rows_of(ids))
        return found

    def step(self, step: int) -> float:
        words, places, targets = examples(step)
        for table in self.tables.values():
            table.weight.grad = None
        in_place = self.vectors("place", places) if "place" in self.table_of else None
        hidden = hidden_of(self.vectors("read", words), in_place)
        logits = hidden @ self.vectors("next", torch.arange(WORDS)).t()
        if self.layer == "exact":
            loss = functional.cross_entropy(logits, targets)
        else:
            loss = self.sampled(logits, targets, step)
        loss.backward()
        with torch.no_grad():
            for name, table in self.tables.items():
                gradient = table.weight.grad
                assert gradient is not None
                self.sums[name] += gradient.square().mean(1)
                table.weight -= RATE * gradient / (self.sums[name].sqrt() + EPS).unsqueeze(1)
        return float(loss.detach())

    def sampled(self, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        """Z of the target and of the drawn words, each divided by the chance that it is drawn."""
        drawn = LogUniformSampler(WORDS, SAMPLES[self.layer]).draw(SEED, step)
        times = torch.zeros_like(logits)
        times[:, drawn.ids] = (-drawn.log_probability).exp()
        times[torch.arange(len(targets)), targets] = 1.0
        own = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
        return ((times * logits.exp()).sum(1).log() - own).mean()


def train(group: Group, layer: str, tied: bool) -> tuple[list[float], dict[str, Tensor]]:
    """The steps of this worker, each on two micro-batches; of few examples some get none."""
    tables = ShardedTables(tables_of(layer, tied), group, learning_rate=RATE, eps=EPS, seed=SEED)
    output: OutputLayer = ExactSoftmax(tables, "next")
    if layer != "exact":
        sampler = LogUniformSampler(WORDS, SAMPLES[layer])
        output = SampledSoftmax(tables, "next", sampler, seed=SEED)
    losses = []
    for step in range(1, STEPS + 1):
        parts = [piece.tensor_split(2 * group.num_workers) for piece in examples(step)]
        counts = [len(part) for part in parts[0]]
        words, places, targets = (part[group.rank :: group.num_workers] for part in parts)
        scale = 1 / sum(counts)
        drawn = output.draw(step, list(targets))
        ids = {"read": list(words), "next": output.words(list(targets), drawn)}
        if not tied:
            ids["place"] = list(places)
        rows = tables.lookup(ids)
        step_loss = output.start(rows, drawn, 2, scale)
        total = 0.0
        for micro in range(2):
            in_place = None if tied else rows.vectors("place", micro)
            hidden = hidden_of(rows.vectors("read", micro), in_place)
            n_of_worker = counts[micro * group.num_workers : (micro + 1) * group.num_workers]
            loss, _ = step_loss.of(hidden, micro, targets[micro], n_of_worker)
            (loss * group.num_workers * scale).backward()
            total += float(loss.detach()) * scale
        step_loss.finish()
        rows.backward()
        losses.append(total if output.counts_own_tokens else total / group.num_workers)
    return losses, {name: tables.weight(name).clone() for name in tables.specs}


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_training_is_that_of_a_softmax_on_one_process(
    workers: WorkerPool, num_workers: int, layer: str, tied: bool
) -> None:
    reference = Reference(layer, tied)
    expected = [reference.step(step) for step in range(1, STEPS + 1)]
    results = workers.run(num_workers, train, layer, tied)
    losses = [sum(parts) for parts in zip(*(losses for losses, _ in results), strict=True)]
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, table in reference.tables.items():
        whole = torch.cat([weights[name] for _, weights in results])
        torch.testing.assert_close(whole, table.weight.detach(), rtol=1e-5, atol=2e-6)


def test_with_every_word_drawn_the_estimate_is_the_softmax() -> None:
    exact, sampled = Reference("exact", False), Reference("all words sampled", False)
    assert [exact.step(1), exact.step(2)] == pytest.approx([sampled.step(1), sampled.step(2)])


def exact_of_no_ids(group: Group) -> list[str]:
    tables = ShardedTables({"next": Table(WORDS, WIDTH, trained_whole=True)}, group)
    said = []
    for wrong in (-100, WORDS):  # the first is what PyTorch's losses pass over
        with pytest.raises(UserError) as caught:
            ExactSoftmax(tables, "next").words([torch.tensor([1, wrong])], None)
        said.append(str(caught.value))
    return said


def test_an_exact_softmax_takes_ids_alone(workers: WorkerPool) -> None:
    ((negative, large),) = workers.run(1, exact_of_no_ids)
    assert negative == f"table 'next': -100 is no id; allowed are 0 to {WORDS - 1}"
    assert large == f"table 'next': {WORDS} is no id; allowed are 0 to {WORDS - 1}"


def exact_without_its_table(group: Group) -> Any:
    tables = ShardedTables({"next": Table(WORDS, WIDTH)}, group)
    ExactSoftmax(tables, "next").start(tables.lookup({}), None, 1, 1.0)


def test_an_exact_softmax_says_what_its_table_lacks(workers: WorkerPool) -> None:
    with pytest.raises(RemoteError, match=r"UserError: table 'next' is not trained whole"):
        workers.run(1, exact_without_its_table)
