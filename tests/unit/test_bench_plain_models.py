"""The models that the benchmarks compare with: they are trained as one would in plain PyTorch."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dist_embed.bench import plain_model, plain_sparse, vocabulary_cases
from dist_embed.bench.device_tables import build_filled_translator
from dist_embed.bench.plain_model import PlainTranslator, plain_training_step
from dist_embed.bench.plain_sparse import SparseSampled
from dist_embed.bench.vocabulary_cases import (
    FULL,
    SAMPLED,
    SPARSE,
    Case,
    batches,
    build_trainer,
    case_config,
)
from dist_embed.config.load import config_from_dict
from dist_embed.data.batch import build_batch
from dist_embed.data.loader import Position, StepBatches
from dist_embed.data.token_shards import TokenPairs
from dist_embed.embedding import sharded_tables
from dist_embed.embedding.row_order import RowOrder
from dist_embed.model.sampler import LogUniformSampler
from dist_embed.parallel.group import Group
from dist_embed.training.step import PreparedStep

SIZES: dict[str, Any] = {
    "source_rows": 23, "target_rows": 31, "width": 8, "feed_forward": 12, "heads": 2,
    "encoder_layers": 2, "decoder_layers": 3, "dropout": 0.0, "sharing": "none",
    "label_smoothing": 0.2,
}  # fmt: skip


def work_of(pairs: list[tuple[list[int], list[int]]], *ends: int) -> StepBatches:
    """In several rectangles, which end before these pairs."""
    flat: list[Any] = []
    for side in (0, 1):
        flat.append(np.array([i for pair in pairs for i in pair[side]], dtype=np.int32))
        flat.append(np.cumsum([0, *(len(pair[side]) for pair in pairs)]))
    tokens = sum(len(pair[1]) + 1 for pair in pairs)
    batch = build_batch(TokenPairs(*flat), np.split(np.arange(len(pairs)), ends))
    return StepBatches([batch], [[tokens]], Position())


PAIRS = [([5, 6, 7, 8], [9, 10]), ([11], [12, 13, 14, 15, 16])]


def position_vectors(length: int, width: int) -> Tensor:
    """Sines, then cosines, of rates from 1 to 1 / 10000."""
    rates = torch.tensor([10000.0 ** -(i / (width // 2 - 1)) for i in range(width // 2)])
    angles = torch.arange(length).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def test_the_plain_models_loss_is_that_of_each_sentence_by_itself() -> None:
    torch.manual_seed(1)
    model = PlainTranslator(**SIZES)
    expected = 0.0
    for pair in PAIRS:
        batch = work_of([pair]).batches[0]

        def embedded(table: nn.Embedding, ids: Tensor) -> Tensor:
            return math.sqrt(8) * table.weight[ids] + position_vectors(ids.shape[1], 8)

        length = len(batch.target_input)
        later = torch.ones(length, length).triu(1).bool()
        hidden = model.decoder(
            embedded(model.target, batch.target_input.view(1, -1)),
            model.encoder(embedded(model.source, batch.source.view(1, -1))), tgt_mask=later,
        )  # fmt: skip
        logs = (hidden[0] @ model.output.weight.T).log_softmax(1)
        right = logs[torch.arange(length), batch.target_output].sum()
        expected -= (0.8 * right + 0.2 * logs.mean(1).sum()).item()
    for ends in ((), (1,)):
        assert float(model(work_of(PAIRS, *ends).batches[0])) == pytest.approx(expected, rel=1e-5)


def test_the_plain_model_has_the_sizes_and_the_dropout_that_are_asked_for() -> None:
    model = PlainTranslator(**SIZES | {"dropout": 0.25})
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (2, 3)
    for layer in (*model.encoder.layers, *model.decoder.layers):
        assert layer.norm_first
        assert (layer.self_attn.num_heads, layer.linear1.out_features) == (2, 12)
    dropouts = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    assert set(dropouts) == {0.25}
    assert model.dropout.p == 0.25
    assert (model.source.num_embeddings, model.target.num_embeddings) == (23, 31)
    assert (model.output.out_features, model.output.bias) == (31, None)
    large = PlainTranslator(**SIZES | {"source_rows": 2000, "target_rows": 2000, "width": 16})
    for table in (large.source, large.target, large.output):
        assert float(table.weight.std()) == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize(
    ("sharing", "tables"), [("none", 3), ("decoder", 2), ("all", 1)]
)  # fmt: skip
def test_the_plain_model_shares_its_tables(sharing: Any, tables: int) -> None:
    rows = 31 if sharing == "all" else 23
    model = PlainTranslator(**SIZES | {"sharing": sharing, "source_rows": rows})
    assert len({id(t.weight) for t in (model.source, model.target, model.output)}) == tables
    assert (model.output.weight is model.target.weight) is (sharing != "none")
    assert (model.source is model.target) is (sharing == "all")


@pytest.mark.parametrize("bf16", [False, True])
def test_the_plain_step_is_adam_on_the_mean_of_the_tokens(
    bf16: bool, alone: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[PlainTranslator] = []
    types: list[torch.dtype] = []

    class Kept(PlainTranslator):
        def __init__(self, **sizes: Any) -> None:
            super().__init__(**sizes)
            made.append(self)
            self.output.register_forward_hook(lambda module, args, out: types.append(out.dtype))

    monkeypatch.setattr(plain_model, "PlainTranslator", Kept)
    config = config_from_dict({
        "run": {"uri": "/nowhere", "seed": 3}, "data": {"synthetic": {}},
        "embedding": {"width": 8},
        "model": {"width": 8, "feed_forward": 12, "heads": 2, "encoder_layers": 1,
                  "decoder_layers": 2, "dropout": 0.0, "share_embeddings": "decoder"},
        "train": {"max_steps": 1, "label_smoothing": 0.2},
    })  # fmt: skip
    step = plain_training_step(config, 23, 31, alone, bf16=bf16)
    (model,) = made
    assert (model.source.num_embeddings, model.target.num_embeddings) == (23, 31)
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (1, 2)
    assert (model.label_smoothing, model.output.weight is model.target.weight) == (0.2, True)
    mine = deepcopy(model)
    optimizer = torch.optim.Adam(mine.parameters(), lr=1e-4, betas=(0.9, 0.98))
    for number, pairs in enumerate((PAIRS, PAIRS[:1], PAIRS[1:]), 1):
        work = work_of(pairs)
        step(number, work, None)
        if not bf16:
            optimizer.zero_grad()
            (mine(work.batches[0]) / work.global_tokens).backward()
            optimizer.step()
            for found, expected in zip(model.parameters(), mine.parameters(), strict=True):
                torch.testing.assert_close(found.grad, expected.grad)
                torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert types[0] == (torch.bfloat16 if bf16 else torch.float32)
    plain_training_step(config, 23, 31, alone, bf16=bf16)
    torch.manual_seed(3)
    again = PlainTranslator(
        source_rows=23, target_rows=31, width=8, feed_forward=12, heads=2, encoder_layers=1,
        decoder_layers=2, dropout=0.0, sharing="decoder", label_smoothing=0.2,
    )  # fmt: skip
    assert torch.equal(made[1].source.weight, again.source.weight)  # by the run's seed


COMPILED = config_from_dict({
    "run": {"uri": "/nowhere", "seed": 3}, "data": {"synthetic": {}},
    "embedding": {"width": 8},
    "model": {"width": 8, "feed_forward": 12, "heads": 2, "encoder_layers": 1,
              "decoder_layers": 2, "dropout": 0.0, "share_embeddings": "decoder"},
    "train": {"max_steps": 1, "label_smoothing": 0.2},
})  # fmt: skip
LONG = ([5, 6, 7, 8], [9, 10])
OF_SIZES = [
    work_of([PAIRS[1]]),  # one sentence alone
    work_of([LONG, ([11], [12]), ([5, 6], [13, 14])]),  # as many sentences as target tokens
    work_of([LONG, ([6, 7], [12, 13, 14])]),  # all sizes differ
    work_of([*PAIRS, ([5], [6])] * 2, 4),  # six of six tokens, in two rectangles
]


def test_a_model_is_compiled_for_each_batch_before_its_first_step(
    alone: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    seen: list[tuple[list[int], bool]] = []
    forward = PlainTranslator.forward

    def noting(self: PlainTranslator, batch: Any) -> Tensor:
        """Each batch that comes, and whether the gradient of the one before is there."""
        seen.append((batch.target_output.tolist(), self.source.weight.grad is not None))
        return forward(self, batch)

    def compiling(function: Any, **how: Any) -> Any:
        asked.append((function.__name__, how))
        return function

    monkeypatch.setattr(PlainTranslator, "forward", noting)
    monkeypatch.setattr(torch, "compile", compiling)
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **how: asked.append((type(self).__name__, how))
    )
    batches = [work.batches[0] for work in OF_SIZES]
    step = plain_training_step(COMPILED, 23, 31, alone, bf16=False, compiled_for=batches)
    how = {"fullgraph": True, "dynamic": True}
    parts = ["_EncoderLayer", *["_DecoderLayer"] * 2, "_embed", "_loss"]
    assert asked == [(part, how) for part in parts]
    # First the one whose sizes the compiler cannot confuse; each with its backward.
    order = [(batches[n].target_output.tolist(), n != 2) for n in (2, 1, 0, 3)]
    assert sorted(seen[1:]) == sorted(order[1:])
    assert seen[0] == order[0]
    step(1, OF_SIZES[0], None)
    assert seen[4:] == [(batches[0].target_output.tolist(), False)]


@pytest.mark.heavy
def test_steps_of_a_compiled_model_are_those_of_the_plain_one(
    alone: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's compiler reads the model; it writes no code."""
    graphs: list[Any] = []
    made: list[PlainTranslator] = []
    build, compile_with = PlainTranslator, torch.compile

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def keeping(**sizes: Any) -> PlainTranslator:
        made.append(build(**sizes))
        return made[-1]

    def compiling(function: Any, **how: Any) -> Any:
        return compile_with(function, backend=backend, **how)

    monkeypatch.setattr(torch, "compile", compiling)
    monkeypatch.setattr(plain_model, "PlainTranslator", keeping)
    plain = plain_training_step(COMPILED, 23, 31, alone, bf16=False)
    works = OF_SIZES[1:]
    batches = [work.batches[0] for work in works]
    compiled = plain_training_step(COMPILED, 23, 31, alone, bf16=False, compiled_for=batches)
    # An encoder layer, a decoder layer, of which there are two, the source, the target, the loss.
    assert len(graphs) == 5
    for number, work in enumerate(works, 1):
        plain(number, work, None)
        compiled(number, work, None)
    assert len(graphs) == 5
    model, twin = made
    for found, expected in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    torch.compiler.reset()


# The same steps by this project and by nn.Embedding with sparse gradients.


OURS = Case(SAMPLED, 400, 8, 64, 60)


def test_both_sampled_ways_find_the_same_loss(
    alone: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    build = vocabulary_cases.build_filled_translator

    def building(*given: Any) -> Any:
        kept.append(build(*given))
        return kept[-1]

    monkeypatch.setattr(vocabulary_cases, "build_filled_translator", building)
    trainer = build_trainer(OURS, alone)
    (translation_model,) = kept
    config = case_config(OURS)
    sparse = SparseSampled(config, OURS.num_words, alone)
    model: Any = sparse._model
    model.transformer.load_state_dict(translation_model.transformer.state_dict())
    for role, table in model.tables.items():
        assert float(table.weight.std()) == pytest.approx(8**-0.5, rel=0.05)
        rows = RowOrder(OURS.num_words).rows_of(torch.arange(OURS.num_words))
        with torch.no_grad():
            table.weight.copy_(translation_model.lookup.weight(role)[rows])
    (work,) = batches(OURS, alone, 1)
    negatives = LogUniformSampler(OURS.num_words, 60).draw(config.run.seed, 1)
    loss = float(model(work.batches[0], negatives)) / work.global_tokens
    assert trainer.step(1, work, None).nll == pytest.approx(loss, rel=1e-5)  # type: ignore[attr-defined]


def test_the_sparse_step_moves_the_rows_of_the_step_alone(alone: Group) -> None:
    config = case_config(OURS)
    sparse = SparseSampled(config, OURS.num_words, alone)
    model: Any = sparse._model
    works = batches(OURS, alone, 2)
    for number, work in enumerate(works, 1):
        batch = work.batches[0]
        negatives = LogUniformSampler(OURS.num_words, 60).draw(config.run.seed, number)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        parameters = dict(model.named_parameters())
        loss = model(batch, negatives) / work.global_tokens
        wanted = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())),
                          strict=True))  # fmt: skip
        sparse.run(number, work, None)
        touched = {
            "source": set(batch.source.flatten().tolist()),
            "target": set(batch.target_input.flatten().tolist()),
            "output": set(batch.target_output.tolist()) | set(negatives.ids.tolist()),
        }
        for name, parameter in parameters.items():
            moved = parameter.detach() - before[name]
            assert parameter.grad is not None
            if name.startswith("tables."):
                assert parameter.grad.is_sparse
                found = parameter.grad.to_dense()
                torch.testing.assert_close(found, wanted[name].to_dense())
                rows = set(moved.abs().sum(1).nonzero().flatten().tolist())
                assert rows <= touched[name.split(".")[1]]
                assert len(rows) > 0.9 * len(touched[name.split(".")[1]])
                if number == 1:  # Adagrad's first step is the rate, whatever the gradient
                    moving = found.abs() > 1e-5
                    assert torch.allclose(moved[moving].abs(), torch.tensor(0.05), rtol=1e-2)
            else:
                torch.testing.assert_close(parameter.grad, wanted[name])
                if number == 1:  # AdamW's is too, beside the decay
                    moving = parameter.grad.abs() > 1e-5
                    decayed = moved + 1e-3 * 0.01 * before[name]
                    assert torch.allclose(decayed[moving].abs(), torch.tensor(1e-3), rtol=1e-2)


def test_each_kind_is_built_with_its_sizes(alone: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build_trainer(OURS, alone)
    tables = {name: tensor for name, tensor in trainer.live.items() if name.startswith("table.")}
    assert {name for name in tables if name.endswith(".weight")} == {
        f"table.{role}.weight" for role in ("source", "target", "output")
    }
    assert sum(tensor.data.nbytes for tensor in tables.values()) == OURS.table_bytes
    assert any(name.startswith("model.") for name in trainer.live)
    (work,) = batches(OURS, alone, 1)
    prepared = trainer.prepare(4, work)
    assert isinstance(prepared, PreparedStep)
    assert (prepared.step, prepared.batches) == (4, work.batches)
    asked: list[Any] = []

    def plain(config: Any, source: int, target: int, group: Group, *, bf16: bool) -> Any:
        asked.append((config.model.width, source, target, group, bf16))
        return print

    class Sparse:
        def __init__(self, config: Any, num_words: int, group: Group) -> None:
            asked.append((config.model.width, num_words, group))

        run = prepare = None

    monkeypatch.setattr(vocabulary_cases, "plain_training_step", plain)
    monkeypatch.setattr(vocabulary_cases, "SparseSampled", Sparse)
    assert build_trainer(Case(FULL, 300, 16, 64, 60), alone).step is print
    assert build_trainer(Case(SPARSE, 200, 32, 64, 60), alone).live == {}
    assert asked == [(16, 300, 300, alone, False), (32, 200, alone)]


def test_tables_are_drawn_by_their_device(alone: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    fill = sharded_tables.fill_initial_rows

    def filling(out: Tensor, *, scale: float, **how: Any) -> None:
        asked.append(scale)
        fill(out, scale=scale, **how)

    monkeypatch.setattr(sharded_tables, "fill_initial_rows", filling)
    size = {"source": 500, "target": 500}
    tables = build_filled_translator(case_config(OURS), size, alone).lookup
    assert asked == [0.0] * 3  # nothing is drawn there
    rows = [tables.weight(table) for table in tables.specs]
    for weight in rows:
        assert float(weight.std()) == pytest.approx(8**-0.5, rel=0.05)
        assert abs(float(weight.mean())) < 0.03
    assert not torch.equal(rows[0], rows[1])


def test_what_a_loaders_thread_does_may_be_done_before(alone: Group) -> None:
    found = []
    for ahead in (True, False):
        sparse = SparseSampled(case_config(OURS), OURS.num_words, alone)
        (work,) = batches(OURS, alone, 1)
        sparse.run(2, sparse.prepare(2, work).to(alone.device) if ahead else work, None)
        model: Any = sparse._model
        found.append(model.tables["output"].weight)
    assert torch.equal(*found)


def test_blocks_of_logits_are_those_of_our_own_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    config = case_config(OURS)
    cpu = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
    assert plain_sparse._block_bytes(config, 10**6, cpu) == 8 * 2**20
    gpu = Group(0, 1, 1, torch.device("cuda"), None)  # type: ignore[arg-type]
    monkeypatch.setattr(plain_sparse, "memory_bytes", lambda device: 80 * 2**30)
    assert plain_sparse._block_bytes(config, 10**6, gpu) == 256 * 2**20
    model = config.model.model_copy(update={"logits_block_mib": 3})
    config = config.model_copy(update={"model": model})
    assert plain_sparse._block_bytes(config, 10**6, gpu) == 3 * 2**20


def test_what_is_not_the_tables_is_small() -> None:
    config = case_config(Case(SAMPLED, 300, 16, 64, 60))
    model = config.model
    assert (model.width, config.embedding.width, model.feed_forward) == (16, 16, 64)
    assert (model.encoder_layers, model.decoder_layers, model.dropout) == (2, 2, 0.0)
    assert (model.share_embeddings, model.output, model.num_samples) == ("none", "sampled", 60)
    assert (config.tokenizer.shared, config.train.precision) == (False, "fp32")
    assert config.embedding.memory == "device"
    assert config.train.max_steps == 1000
