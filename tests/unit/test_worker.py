"""What a worker process is given and gives, with stand-ins for what takes part in training."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dist_embed.checkpoint.load import Loaded
from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.data.token_shards import PreparedData, ShardInfo, Split
from dist_embed.embedding.plan import TableSpec
from dist_embed.errors import UserError
from dist_embed.observe.events import Reporter
from dist_embed.parallel.device import peak_memory_bytes
from dist_embed.parallel.group import Group
from dist_embed.run.data import (
    data_of_all,
    digests_of_tokenizers,
    training_blocks,
    training_data,
    vocabularies,
)
from dist_embed.training import inference, resume, worker
from dist_embed.training import train as training
from dist_embed.training.describe import describe
from dist_embed.training.results import AgainstExact, Evaluation
from dist_embed.training.tasks import Evaluate, Task
from dist_embed.training.worker import Context
from tests.unit.small_run import word_tokenizer


def config_of(**sections: dict[str, Any]) -> Config:
    least: dict[str, Any] = {"run": {"uri": "memory://worker"}, "train": {"max_steps": 9}}
    return config_from_dict({"data": {"synthetic": {}}} | least | sections)


def place(rank: int = 0, num_workers: int = 1, device: str = "cpu") -> Group:
    group: Any = "the group"
    return Group(rank, num_workers, num_workers, torch.device(device), group)


def context_of(config: Config, group: Group) -> tuple[Context, list[str]]:
    said: list[str] = []
    reporter = Reporter(lambda event: said.append(event["text"]))
    return Context(config, group, reporter), said


@pytest.mark.parametrize(("rank", "trains"), [(0, False), (1, True)])
def test_a_task_is_done_in_the_group_and_only_worker_0_speaks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: int, trains: bool
) -> None:
    @contextmanager
    def joined(device: str, seconds: float) -> Iterator[Group]:
        yield place(rank, 2)

    monkeypatch.setattr(worker, "joined_group", joined)
    monkeypatch.setattr(worker, "errors_shared", lambda group: nullcontext())
    for name in ("redirect_output", "keep_freed_memory"):
        monkeypatch.setattr(worker, name, lambda *_: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setenv("RANK", str(rank))
    logs: list[Any] = []

    @contextmanager
    def uploaded(*given: Any) -> Iterator[None]:
        yield
        logs.append(given)

    monkeypatch.setattr(worker, "uploaded", uploaded)
    cluster = {"device": "cpu", "hang_seconds": 7.0, "timeout_seconds": 11.0}
    config = config_of(run={"uri": str(tmp_path)}, cluster=cluster)
    watched: list[tuple[float, float]] = []

    @contextmanager
    def hangs(
        group: Group, seconds: float, say: Callable[[str], None], *, limit: float
    ) -> Iterator[None]:
        watched.append((seconds, limit))
        say("a worker hangs")
        yield

    monkeypatch.setattr(worker, "hangs_named", hangs)
    said: list[Any] = []

    class Hello(Task[Any]):
        def function(self) -> Any:
            return self.do

        def do(self, context: Context) -> Any:
            context.reporter.line("hello")
            return context.config, context.group.rank

    Hello.trains = trains
    assert worker.run_worker(Hello(), config, said.append) == (config, rank)
    assert watched == [(7.0, 11.0)]
    lines = ["a worker hangs", *(["hello"] if rank == 0 else [])]  # who sees one tells it
    assert said == [{"kind": "line", "text": text} for text in lines]
    # Only a training's log: who evaluates may have no right to write there.
    assert logs == ([(tmp_path / "logs/worker-1.log", str(tmp_path))] if trains else [])


@pytest.mark.parametrize("torchrun", [True, False])
def test_what_a_worker_imports_is_never_walked_again_but_in_somebody_s_process(
    monkeypatch: pytest.MonkeyPatch, torchrun: bool
) -> None:
    frozen: list[bool] = []

    @contextmanager
    def off(*, freeze: bool = False) -> Iterator[None]:
        frozen.append(freeze)
        yield

    class Ends(Task[Any]):
        def function(self) -> Any:
            return lambda context: None

    monkeypatch.setattr(worker, "collector_off", off)
    monkeypatch.setattr(worker, "under_torchrun", lambda: torchrun)
    monkeypatch.setattr(worker, "worker_log", lambda *_, **__: 1 / 0)  # far enough
    with pytest.raises(ZeroDivisionError):
        worker.run_worker(Ends(), config_of(), lambda event: None)
    assert frozen == [not torchrun]


@pytest.mark.parametrize(
    ("chosen", "group", "micro"),
    [(8, 8, 3), (8, 2, 3), ({"min": 2, "max": 8}, 8, 3), ({"min": 2, "max": 8}, 3, 8),
     ({"min": 2, "max": 8}, 2, 12), ({"min": 2, "max": 8}, 9, 3)],
)  # fmt: skip
def test_fewer_workers_than_could_be_make_more_micro_batches(
    chosen: Any, group: int, micro: int
) -> None:
    """So that none needs more memory for a step than with all."""
    config = config_of(cluster={"num_workers": chosen}, train={"accumulate": 3, "max_steps": 9})
    assert training.micro_batches(config, group) == micro


def test_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(ru_maxrss=1000)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 + device.index)
    assert peak_memory_bytes(place().device) == 1_024_000  # Linux counts KiB
    assert peak_memory_bytes(place(device="cuda:2").device) == 9


def test_the_dense_part_is_shared_where_there_are_several_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        training, "DistributedDataParallel", lambda model, **how: asked.append((model, how)) or how
    )
    model = nn.Linear(2, 3)
    assert training._distributed(model, place()) is model
    for device, ids in (("cpu", None), ("cuda:1", [torch.device("cuda:1")])):
        found = training._distributed(model, place(1, 2, device))
        given, how = asked.pop()
        assert found is how
        assert given is model
        assert (how["device_ids"], how["process_group"]) == (ids, "the group")


@pytest.mark.parametrize("first", [True, False])
def test_a_run_is_saved_as_configured_and_its_metrics_before(
    monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    for name in ("Saver", "Pruner"):
        monkeypatch.setattr(resume, name, lambda *given, _name=name, **how: (_name, given, how))
    checkpoint = {
        "saving": "waiting", "max_failures": 7, "timeout_seconds": 11.0, "drain_seconds": 13.0,
        "keep_last": 17, "keep_best": 19, "keep_every": 23, "leftover_hours": 29.0,
    }  # fmt: skip
    context, said = context_of(config_of(checkpoint=checkpoint), place(0 if first else 1, 2))
    damaged: Any = frozenset({"one"})
    metrics: Any = SimpleNamespace(flush=lambda: None) if first else None
    store: Any = "store"
    buffers: Any = "buffers"
    made: Any = resume.build_saver(context, store, Loaded(3, damaged, 0), buffers, metrics)
    name, (given_store, group, settings, pruner), how = made
    assert (name, given_store, group) == ("Saver", "store", context.group)
    assert settings == CheckpointSection(**checkpoint)
    assert pruner == ("Pruner", ("store", settings), {})
    assert how["beforehand"] == (metrics.flush if first else None)
    assert (how["damaged"], how["buffers"]) == (damaged, "buffers")
    how["report"]("saved")
    assert said == ["saved"]


@pytest.mark.parametrize("step", [0, 8])
def test_a_run_goes_on_from_its_newest_checkpoint_and_says_so(
    monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    asked: list[Any] = []

    def load(store: str, state: str, say: Any, **how: Any) -> Loaded:
        say("looking")
        asked.append((store, state, how))
        return Loaded(step, frozenset(), 0)

    monkeypatch.setattr(resume, "load_newest", load)
    config = config_of(checkpoint={"saving": "in_place"})
    context, said = context_of(config, place())
    state = SimpleNamespace(scalars={"skipped_steps": 0})
    given: Any = ("store", state, "buffers")
    assert resume.resume(context, *given).step == step
    assert asked == [("store", state, {"buffers": "buffers", "in_place": True})]
    told = f"resuming from the checkpoint of step {step}" if step else "starting from scratch"
    assert said == ["looking", told]


def described(config: Config, split: Split, **translation_model: Any) -> list[str]:
    lookup = SimpleNamespace(
        specs={"source": TableSpec("source", 2**20, 8), "output": TableSpec("output", 40, 8)},
        tier="device",
    )  # fmt: skip
    values = {
        "lookup": lookup, "transformer": nn.Linear(300, 10), "compute_dtype": torch.float32,
        "shard": SimpleNamespace(num_rows=1234),
    }  # fmt: skip
    stand_in: Any = SimpleNamespace(**(values | translation_model))
    context, said = context_of(config, place(0, 2))
    describe(context, stand_in, PreparedData({}, {}, True, {"train": split}))
    return said


def test_what_a_run_says_of_itself() -> None:
    split = Split([ShardInfo("a", 1200, 7, 9)], 1000, 200, 5678, dropped_ratio=30, dropped_wrong=4)
    config = config_of(
        train={"max_steps": 9, "precision": "fp32"}, embedding={"optimizer": "adagrad"}
    )
    first, source, output, tables, model, data = described(config, split)
    assert first.startswith("2 workers on cpu (")
    assert first.endswith(f", {torch.get_num_threads()} threads each), precision fp32")
    # Half of the rows, and as much again that Adagrad keeps of each.
    assert source == "table source: 1,048,576 rows × 8, adagrad, 32.0 MiB per worker"
    assert output == "table output: 40 rows × 8, adagrad, 0.0 MiB per worker"
    assert tables == "tables: in host memory, rows in fp32, exchanged in fp32"
    assert model == "model: 3,010 replicated parameters, output: exact softmax over 1,234 words"
    assert data == "data: 1,200 training pairs, 1,234 left out, 5,678 cut"


def test_what_a_sampled_run_in_bf16_says_of_itself() -> None:
    config = config_of(model={"output": "sampled", "num_samples": 9000, "sampler": "unigram"})
    first, *_, model, data = described(
        config, Split([ShardInfo("a", 3, 7, 9)]), compute_dtype=torch.bfloat16
    )
    assert first.endswith("threads each), precision bf16 (chosen by train.precision=auto)")
    assert model.endswith("output: sampled softmax, 9,000 unigram negatives a step of 1,234 words")
    assert data == "data: 3 training pairs"


def test_what_a_run_says_of_negatives_of_its_own_accord() -> None:
    config = config_of(
        model={"output": "sampled", "num_samples": "auto", "batch_negatives": True},
        train={"max_steps": 1, "batch_tokens": 999_999},
    )
    *_, model, _ = described(config, Split([ShardInfo("a", 3, 7, 9)]))
    assert model.endswith(
        "output: sampled softmax, 1,234 log_uniform negatives a step (chosen by "
        "model.num_samples=auto) and the right words of a worker's other sentences, of 1,234 words"
    )


def test_all_workers_read_the_folder_that_was_looked_into(alone: Group, tmp_path: Path) -> None:
    data = PreparedData({}, {"source": 1, "target": 1}, False, {})
    for name in ("given", "named", "prepared-0123456789abcdef"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.json").write_text(replace(data, settings={"a": name}).to_json())
    pointer = json.dumps({"folder": "prepared-0123456789abcdef"})
    (tmp_path / "data.json").write_text(pointer)
    config = config_of(data={"uri": str(tmp_path), "synthetic": {}})
    assert data_of_all(config, alone, str(tmp_path / "given")).settings == {"a": "given"}
    found = data_of_all(config, alone, None)
    assert found.settings == {"a": "prepared-0123456789abcdef"}
    assert found.folder_uri == str(tmp_path / "prepared-0123456789abcdef")
    with pytest.raises(UserError, match=rf"worker 0 finds no prepared data in {tmp_path}/gone"):
        data_of_all(config, alone, str(tmp_path / "gone"))


def test_a_checkpoint_knows_both_vocabularies_and_tells_others(alone: Group) -> None:
    tokenizers = {"source": word_tokenizer(["a", "b"]), "target": word_tokenizer(["c"])}
    found = vocabularies(lambda: digests_of_tokenizers(tokenizers), alone)
    assert {name: fixed.value for name, fixed in found.items()} == {
        "source tokenizer": tokenizers["source"].json_digest,
        "source vocabulary": tokenizers["source"].digest,
        "target tokenizer": tokenizers["target"].json_digest,
        "target vocabulary": tokenizers["target"].digest,
    }
    told = found["target tokenizer"].otherwise("other")
    assert told.startswith("was trained with another target tokenizer than the run has now: its")
    assert "give data.uri the data it was trained on" in told


def test_a_checkpoint_knows_its_training_data_and_tells_others() -> None:
    shards = [ShardInfo("a", 3, 7, 9, content="0123456789abcdef0123")]
    split = Split(shards)
    data = PreparedData({}, {}, True, {"train": split})
    found = training_data("there", data)
    assert {name: fixed.value for name, fixed in found.items()} == {
        "training data": split.identity(), "training sentences": split.content(),
    }  # fmt: skip
    told = found["training data"].otherwise("4 pairs")
    assert told.startswith(f"was trained on 4 pairs, and there holds {split.identity()}: its pos")
    told = found["training sentences"].otherwise("f" * 64)
    assert f"(SHA-256 {'f' * 16}…) than the {split.identity()}" in told
    assert f"there holds ({str(split.content())[:16]}…): its position" in told
    # Data prepared before do not say which sentences they are.
    before = PreparedData({}, {}, True, {"train": Split([replace(shards[0], content=None)])})
    assert list(training_data("there", before)) == ["training data"]


def test_a_checkpoint_knows_the_blocks_that_its_position_counts(alone: Group) -> None:
    """The same text in other shards, as without an index each is a block, has other steps."""
    values = []
    for sentences in ([3, 2], [5], [2, 3]):
        shards = [ShardInfo(f"{n}", n, 7, 9, content="0") for n in sentences]
        data = PreparedData({}, {}, True, {"train": Split(shards)})
        (fixed,) = training_blocks("there", data, alone).values()
        values.append(fixed.value)
        told = fixed.otherwise("9 blocks (ab)")
        assert told.startswith(
            f"was trained on sentences that lie in 9 blocks (ab), and those of there in "
            f"{fixed.value}: its position in the data would mean nothing"
        )
    assert values[0].startswith("2 blocks (")
    assert len(set(values)) == 3


@pytest.mark.parametrize("training_tokens", [None, 50])
def test_a_checkpoint_is_scored_as_configured(
    monkeypatch: pytest.MonkeyPatch, alone: Group, training_tokens: int | None
) -> None:
    data = PreparedData({}, {}, True, {"test": Split([])}, format=1, folder_uri="folder")
    asked: dict[str, list[Any]] = {}

    def stand_in(name: str, result: Any) -> None:
        monkeypatch.setattr(
            inference, name,
            lambda *given, **how: asked.setdefault(name, []).append((given, how)) or result,
        )  # fmt: skip

    quality = SimpleNamespace(
        bleu=12.5, chrf=30.0, signature="how", sentences=6, seconds=3.0, translations=["a"],
        scored=["b"],
    )  # fmt: skip
    for name, result in (
        ("data_of_all", data), ("check_vocabularies", None), ("load_tokenizers", "tokenizers"),
        ("_load_for_inference", ("translation_model", 4)), ("exact_loss", 2.0),
        ("build_translator", "translation"), ("evaluate_translations", quality),
    ):  # fmt: skip
        stand_in(name, result)
    config = config_of(
        tokenizer={"lowercase": True}, search={"bleu_tokenize": "char"},
        train={"max_steps": 1, "batch_tokens": 77},
    )  # fmt: skip
    asked_for = Evaluate("test", 4, training_tokens)
    context, said = context_of(config, alone)
    found = inference.evaluate_task(context, asked_for)
    assert asked["_load_for_inference"] == [((context, "tokenizers", 4), {})]
    assert asked["check_vocabularies"] == [(("memory://worker", data), {})]
    assert asked["load_tokenizers"] == [(("memory://worker",), {})]
    assert said == [data.not_proven("memory://worker/data")]
    losses = [(("translation_model", "folder", data, "test", 77), {})]
    if training_tokens:
        losses += [(("translation_model", "folder", data, "train", 77), {"at_least": 50})]
    assert asked["exact_loss"] == losses
    assert asked["evaluate_translations"] == [
        (
            ("translation", "folder", data, "test"),
            {"bleu_tokenize": "char", "say": context.reporter.line},
        )
    ]
    assert found == Evaluation(
        data_folder="folder", split="test", step=4, loss=2.0,
        training_loss=2.0 if training_tokens else None, perplexity=math.exp(2.0), bleu=12.5,
        chrf=30.0, bleu_signature="how", against_exact=None, sentences=6, sentences_per_second=2.0,
        translations=["a"], scored=["b"],
    )  # fmt: skip
    monkeypatch.setattr(inference, "exact_loss", lambda *_, **__: 1e4)
    assert inference.evaluate_task(context, asked_for).perplexity == math.exp(700)
    # Candidate lists are compared with all words where that is asked for, and where there are any.
    many = SimpleNamespace(shard=SimpleNamespace(num_rows=2_000_000))
    stand_in("_load_for_inference", (many, 4))
    compared_with = AgainstExact(3, 1.0, 2.0, 1)
    stand_in("against_exact", compared_with)
    for kept, wanted, there in ((10, True, True), (10, False, False), (0, True, False)):
        with_lists = config_of(data={"synthetic": {}, "lexicon_translations": kept})
        context, _ = context_of(with_lists, alone)
        found = inference.evaluate_task(context, Evaluate("test", against_exact=wanted))
        assert found.against_exact == (compared_with if there else None)
    (compared,) = asked["against_exact"]
    assert compared[0] == ("translation", quality, "folder", data, "test")
    among_all, *_ = asked["build_translator"][3][0]
    assert (among_all.search.candidates, among_all.search.beam) == (0, 5)
    context, _ = context_of(config, alone)
    with pytest.raises(UserError, match="split 'train' is not among the held-out data"):
        inference.evaluate_task(context, Evaluate("train"))


@pytest.mark.parametrize(
    ("step", "keep_best", "found"),
    [(8, 1, 0.1 + 0.2), (8, 3, 0.1 + 0.2), (8, 0, math.inf), (0, 1, math.inf)],
)
def test_a_run_that_goes_on_knows_the_best_of_its_checkpoints(
    monkeypatch: pytest.MonkeyPatch, step: int, keep_best: int, found: float
) -> None:
    damaged: Any = frozenset({"a damaged one"})
    asked = {("store", damaged): 0.1 + 0.2}
    monkeypatch.setattr(resume, "best_loss", lambda store, but: asked[store, but])
    monkeypatch.setattr(resume, "same_text_from_first", lambda text, group: text)
    config, loaded = config_of(checkpoint={"keep_best": keep_best}), Loaded(step, damaged, 0)
    store: Any = "store"
    assert resume.best_so_far(config, store, loaded, place()) == found
