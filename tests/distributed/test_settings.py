"""Every setting takes effect: what runs are built from it, and that they are as it says.

`train_task` is called as a launcher calls it, with a loop that runs a few steps and looks at what
it was given. What a setting does to the numbers is compared with `tests.distributed.configured`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, get_args
from unittest import mock

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from dist_embed.checkpoint.load import Loaded
from dist_embed.checkpoint.manifest import ManifestName
from dist_embed.checkpoint.state import TrainingState
from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.data.lexicon import Lexicon
from dist_embed.data.loader import Position
from dist_embed.data.token_shards import PreparedData
from dist_embed.data.tokenizer import SPACE, UNKNOWN, Tokenizer
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.model.attention import CrossAttention, SelfAttention
from dist_embed.model.dropout import Dropout
from dist_embed.observe.events import Reporter
from dist_embed.parallel.group import Group
from dist_embed.run.folder import fingerprint, read_run_config
from dist_embed.section import Section
from dist_embed.training import assemble, resume
from dist_embed.training import train as training
from dist_embed.training.tasks import Train
from dist_embed.training.train import train_task
from dist_embed.training.worker import Context
from tests.distributed.configured import DATA, ConfiguredRun, Step, Values, merged
from tests.distributed.pool import WorkerPool

STEPS = 4
ATOL = 2e-5

# No value is a default, and no two of one kind are equal.
EXACT: Values = {
    "run": {"seed": 2**40 + 12345},
    "embedding": {
        "width": 8, "optimizer": "rowwise_adagrad", "learning_rate": 0.3, "schedule": "linear",
        "warmup_steps": 3, "eps": 0.02, "memory": "device",
        "tables": {"source": {"learning_rate": 0.11}, "target": {"freeze_until_step": 2}},
    },
    "model": {
        "width": 12, "feed_forward": 20, "heads": 3, "encoder_layers": 2, "decoder_layers": 3,
        "dropout": 0.3, "attention_dropout": 0.2, "share_embeddings": "none",
        "logits_block_mib": 0.001, "output": "exact",
    },
    "train": {
        "max_steps": 7, "batch_tokens": 50, "accumulate": 2, "learning_rate": 0.004,
        "schedule": "inverse_sqrt", "warmup_steps": 2, "beta1": 0.7, "beta2": 0.93,
        "weight_decay": 0.6, "label_smoothing": 0.15, "clip_norm": 1.1, "max_skipped_steps": 17,
        "precision": "fp32", "log_every": 11, "evaluate_every": 13, "translate_every": 19,
        "neighbors_of": ["the"],
    },
    "search": {
        "beam": 2, "length_penalty": 0.7, "max_length_ratio": 0.4, "batch_tokens": 60,
        "max_source_tokens": 81, "candidates": 9, "candidate_translations": 3,
        "replace_unknown": "lexicon", "bleu_tokenize": "char",
    },
    "checkpoint": {
        "every_steps": 23, "every_minutes": 37.0, "keep_last": 5, "keep_best": 4,
        "keep_every": 29, "max_failures": 6, "saving": "in_place",
        "retry_seconds": 61.0, "timeout_seconds": 67.0, "drain_seconds": 71.0,
        "leftover_hours": 73.0,
    },
    "cluster": {"device": "cpu", "num_workers": 2, "launcher": "local"},
}  # fmt: skip
# What of it differs in other runs.
SAMPLED: Values = {
    "embedding": {"optimizer": "adagrad", "schedule": "cosine", "eps": 0.05,
                  "tables": {"source": {"freeze": True}}},
    "model": {"share_embeddings": "decoder", "output": "sampled", "num_samples": 15,
              "sampler": "unigram", "sampler_power": 0.4, "logits_block_mib": 0.5},
    "train": {"schedule": "linear", "clip_norm": 0.0, "accumulate": 1},
    "search": {"candidates": 0, "replace_unknown": "no", "bleu_tokenize": "intl"},
    "checkpoint": {"saving": "behind"},
}  # fmt: skip
PLAIN: Values = {
    "embedding": {"optimizer": "sgd", "schedule": "inverse_sqrt", "warmup_steps": 3,
                  "tables": {}},
    "model": {"output": "sampled", "num_samples": 11, "sampler": "log_uniform",
              "batch_negatives": True},
    "train": {"schedule": "cosine"},
    "search": {"replace_unknown": "copy"}, "cluster": {"num_workers": 1},
}  # fmt: skip
NARROW: Values = {"train": {"precision": "bf16"}}

# Keys whose value is an argument of what `train_task` builds.
ARRIVE = {
    "run.uri": "MetricsLog.run_uri", "run.seed": "Loader.seed", "data.uri": "Loader.data_uri",
    "embedding.memory": "ShardedTables.memory", "embedding.weights": "ShardedTables.weights",
    "embedding.exchange": "ShardedTables.exchange",
    "model.dropout": "Transformer.dropout",
    "model.attention_dropout": "Transformer.attention_dropout",
    "model.logits_block_mib": "OutputShard.block_bytes", "train.precision": "OutputShard.dtype",
    "train.max_steps": "train_loop.settings", "train.log_every": "train_loop.settings",
    "train.evaluate_every": "train_loop.settings", "train.translate_every": "train_loop.settings",
    "train.max_skipped_steps": "train_loop.settings", "train.neighbors_of": "WatchedWords.words",
    "train.accumulate": "Loader.accumulate", "train.batch_tokens": "Loader.batch_tokens",
    "search.beam": "Searcher.settings", "search.length_penalty": "Searcher.settings",
    "search.max_length_ratio": "Searcher.settings",
    "search.batch_tokens": "Searcher.settings",
    "search.max_source_tokens": "Translator.settings",
    "search.candidates": "CandidateWords.num_frequent",
    "search.candidate_translations": "CandidateWords.num_translations",
    "search.bleu_tokenize": "evaluate_translations.bleu_tokenize",
    "tokenizer.lowercase": "evaluate_translations.lowercase",
    "checkpoint.every_steps": "train_loop.checkpoint",
    "checkpoint.every_minutes": "train_loop.checkpoint",
    "checkpoint.keep_last": "Pruner.settings", "checkpoint.keep_best": "Pruner.settings",
    "checkpoint.keep_every": "Pruner.settings", "checkpoint.leftover_hours": "Pruner.settings",
    "checkpoint.max_failures": "Saver.settings", "checkpoint.timeout_seconds": "Saver.settings",
    "checkpoint.drain_seconds": "Saver.settings", "checkpoint.saving": "Saver.settings",
    "checkpoint.retry_seconds": "open_checkpoints.retry_seconds",
}  # fmt: skip
# More of them, where a value goes two ways.
ARRIVE_TOO = {
    "run.uri": "open_checkpoints.run_uri", "train.precision": "TrainStep.compute_dtype",
    "checkpoint.drain_seconds": "train_loop.checkpoint",
    "checkpoint.saving": "load_newest.in_place",
    "train.clip_norm": "TrainStep.settings",
    "search.batch_tokens": "UnknownWords.batch_tokens", "run.seed": "TrainStep.seed",
}  # fmt: skip
CONVERTED: dict[str, Callable[[Any], Any]] = {
    "model.logits_block_mib": lambda mib: int(mib * 2**20),
    "checkpoint.saving": lambda saving: saving == "in_place",
    "train.precision": lambda name: {"fp32": torch.float32, "bf16": torch.bfloat16}[name],
}
# Keys that decide a run's numbers, with another value, which must give others: of the run `EXACT`,
EXACT_NUMBERS: dict[str, Any] = {
    "run.seed": 2**41 + 12345,
    "embedding.width": 12, "embedding.optimizer": "adagrad", "embedding.learning_rate": 0.31,
    "embedding.schedule": "cosine", "embedding.warmup_steps": 2, "embedding.eps": 0.03,
    "embedding.tables.source.learning_rate": 0.12, "embedding.tables.target.freeze_until_step": 1,
    "model.width": 18, "model.feed_forward": 16, "model.heads": 2, "model.encoder_layers": 1,
    "model.decoder_layers": 2, "model.share_embeddings": "decoder",
    "train.max_steps": 8, "train.batch_tokens": 60, "train.learning_rate": 0.005,
    "train.schedule": "linear", "train.warmup_steps": 1, "train.beta1": 0.8, "train.beta2": 0.9,
    "train.weight_decay": 0.4, "train.label_smoothing": 0.1, "train.clip_norm": 1.2,
}  # fmt: skip
# and of the run `SAMPLED`.
SAMPLED_NUMBERS: dict[str, Any] = {
    "embedding.tables.source.freeze": False, "model.output": "exact", "model.num_samples": 14,
    "model.sampler": "log_uniform", "model.sampler_power": 0.5, "model.batch_negatives": True,
}  # fmt: skip
# What other tests look at: sections and their keys.
_CORPUS = ["source", "target", "pairs", "source_column", "target_column", "quoting", "wrong_rows",
           "max_line_bytes"]  # fmt: skip
_STEMS = ["sentences", "held_out", "nouns", "verbs", "adjectives", "seed"]
_ROLES = ["source", "target", "output"]
ELSEWHERE: dict[str, list[tuple[str, list[str]]]] = {
    "tests/unit/test_settings.py": [
        ("data", ["uri", "max_sentences", "max_tokens", "too_long", "max_length_ratio",
                  "num_processes", "shard_sentences", "lexicon_translations"]),
        *((f"data.{split}", _CORPUS) for split in ("train", "validation", "test")),
        ("data.synthetic", _STEMS), ("data.inflected", [*_STEMS, "exponent"]),
        ("data.words", ["sentences", "length", "seed"]),
        ("tokenizer", ["kind", "vocab_size", "min_count", "shared", "oov_buckets", "pieces",
                       "normalize", "lowercase", "split_punctuation"]),
        ("cluster", ["address", "device", "threads_per_worker", "timeout_seconds",
                     "replace_seconds", "max_failures"]),
        ("cluster.num_workers", ["min", "max"]),
        *((f"embedding.tables.{role}", ["freeze", "freeze_until_step", "learning_rate"])
          for role in _ROLES),
    ],
    "tests/distributed/test_single_tables.py": [
        (f"embedding.tables.{role}.pretrained",
         ["uri", "format", "words", "tensor", "prefix", "match", "missing", "project", "rescale",
          "min_coverage"])
        for role in _ROLES
    ],
    "tests/distributed/test_settings.py": [("search", ["replace_unknown", "too_long"])],
    "tests/integration/test_ray.py": [("cluster", ["launcher"])],
    "tests/unit/test_worker.py": [("cluster", ["hang_seconds"])],
    "tests/unit/test_kubernetes.py": [
        ("cluster.submit.kubernetes",
         ["image", "namespace", "secret", "workers_per_pod", "cpus_per_worker", "memory_gib",
          "hours", "start_hours", "retries", "keep_minutes", "head_cpus", "head_memory_gib",
          "service_account", "image_pull_secret", "volume_claim", "volume_path"]),
    ],
    "tests/unit/test_ray_jobs.py": [("cluster.submit.ray", ["address"])],
    "tests/unit/test_slurm.py": [
        ("cluster.submit", ["to"]),
        ("cluster.submit.slurm", ["nodes", "partition", "hours", "cpus_per_worker", "gpus", "setup",
                                  "options"]),
    ],
}  # fmt: skip


def value_of(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def config_of(folder: Path, data_uri: str, *parts: Values) -> Config:
    place: Values = {"run": {"uri": str(folder / "run")}, "data": {"uri": data_uri}}
    return config_from_dict(merged(DATA, EXACT, *parts, place))


def recorded(
    stack: ExitStack, calls: dict[str, Any], module: ModuleType, *names: str
) -> dict[str, Any]:
    """Keep with which arguments these of a module are called last."""
    for name in names:
        function = getattr(module, name)
        signature = inspect.signature(function)

        def call(
            *args: Any, _name: str = name, _function: Any = function,
            _signature: inspect.Signature = signature, **kwargs: Any,
        ) -> Any:  # fmt: skip
            bound = _signature.bind(*args, **kwargs)
            bound.apply_defaults()
            for argument, value in bound.arguments.items():
                calls[f"{_name}.{argument}"] = value
            return _function(*args, **kwargs)

        stack.enter_context(mock.patch.object(module, name, call))
    return calls


def trained(group: Group, values: dict[str, Any], *, validate: bool = True) -> dict[str, Any]:
    """What `train_task` gives its loop, and what some steps then do."""
    calls: dict[str, Any] = {}
    found: dict[str, Any] = {}
    lines: list[str] = []
    built: list[assemble.TranslationModel] = []

    def build(*args: Any) -> assemble.TranslationModel:
        built.append(assemble.build_translation_model(*args))
        return built[-1]

    def loop(
        state: Any, step: Any, loader: Any, settings: Any, checkpoint: Any, hooks: Any,
        *_: Any, **__: Any,
    ) -> bool:  # fmt: skip
        calls["train_loop.settings"], calls["train_loop.checkpoint"] = settings, checkpoint
        modules = list(built[0].transformer.modules())
        attentions = [m for m in modules if isinstance(m, SelfAttention | CrossAttention)]
        dropouts = [m for m in modules if isinstance(m, Dropout)]
        found["dropouts"] = {m.threshold / 256 for m in dropouts}, {m.dropout for m in attentions}
        for module in dropouts:
            module.threshold = 0
        for attention in attentions:
            attention.dropout = 0.0
        works = list(islice(loader.steps(Position.from_dict(state.scalars["position"])), STEPS + 1))
        found["micro_batches"] = {len(work.batches) for work in works}
        found["steps"], found["tokens"] = [], []
        for number in range(1, STEPS + 1):
            result = step.run(number, works[number - 1], works[number])
            own = sum(len(batch.target_output) for batch in works[number - 1].batches)
            found["tokens"].append((result.tokens, own))
            tables = {
                name.split(".")[1]: tensor.data.clone()
                for name, tensor in state.tensors.items()
                if name.startswith("table.") and name.endswith(".weight")
            }
            found["steps"].append(
                Step(result.loss, result.nll, result.gradient_norm or 0.0, tables)
            )
        found["dense"] = {
            name: tensor.data.clone() for name, tensor in state.tensors.items()
            if name.startswith("model.")
        }  # fmt: skip
        if validate:
            found["validation"] = hooks.validate()
            found["quality"] = hooks.translate()
        return False

    with ExitStack() as stack:
        recorded(
            stack, calls, training, "Loader", "MetricsLog", "open_checkpoints", "TrainStep",
            "evaluate_translations", "WatchedWords",
        )  # fmt: skip
        recorded(stack, calls, resume, "Pruner", "Saver", "load_newest", "TrainingState")
        recorded(
            stack, calls, assemble, "ShardedTables", "Transformer", "OutputShard", "Searcher",
            "CandidateWords", "UnknownWords", "Translator",
        )  # fmt: skip
        stack.enter_context(mock.patch.object(training, "build_translation_model", build))
        stack.enter_context(mock.patch.object(training, "train_loop", loop))
        train_task(
            Context(config_from_dict(values), group, Reporter(lambda e: lines.append(e["text"]))),
            Train(),
        )
    wanted = {*ARRIVE.values(), *ARRIVE_TOO.values()}
    found["calls"] = {name: value for name, value in calls.items() if name in wanted}
    found["fingerprint"] = calls["TrainingState.fingerprint"]
    rows = {spec.num_rows for spec in built[0].lookup.specs.values()}
    found["checks_ids"] = set(calls["Loader.num_ids"].values()) <= rows
    found["called"] = {name.split(".")[0] for name in calls}
    found["lines"] = lines
    return found


def check_arrived(config: Config, calls: dict[str, Any], *, first: bool) -> None:
    for key, argument in [*ARRIVE.items(), *ARRIVE_TOO.items()]:
        rare = ("CandidateWords", "UnknownWords", "evaluate_translations")
        absent = argument.startswith(rare) or (argument.startswith("MetricsLog") and not first)
        if argument not in calls and absent:
            continue
        wanted, arrived = value_of(config, key), calls[argument]
        if isinstance(arrived, Section):
            arrived = getattr(arrived, key.rpartition(".")[2])
        else:
            wanted = CONVERTED.get(key, lambda value: value)(wanted)
        assert arrived == wanted, key


def check_numbers(found: list[dict[str, Any]], expected: ConfiguredRun) -> None:
    steps = expected.train(STEPS)
    clips = bool(expected.config.train.clip_norm)
    for one in found:
        for step, reference in zip(one["steps"], steps, strict=True):
            assert step.loss == pytest.approx(reference.loss, abs=ATOL)
            assert step.nll == pytest.approx(reference.nll, abs=ATOL)
            assert step.norm == (pytest.approx(reference.norm, rel=1e-4) if clips else 0)
        for name, parameter in expected.transformer.named_parameters():
            # A bias of keys has no gradient but rounding, which Adam blows up; nothing follows.
            mine, other = one["dense"][f"model.{name}"], parameter.detach()
            if name.endswith("query_key_value.bias"):
                mine, other = (part.view(3, -1)[[0, 2]] for part in (mine, other))
            elif name.endswith("key_value.bias"):
                mine, other = (part.chunk(2)[1] for part in (mine, other))
            torch.testing.assert_close(mine, other, rtol=0, atol=ATOL, msg=lambda m: f"{name}: {m}")  # noqa: B023
    for number, reference in enumerate(steps):
        of_workers = [one["tokens"][number] for one in found]
        assert {total for total, _ in of_workers} == {sum(own for _, own in of_workers)}
        for table, whole in reference.tables.items():
            mine = torch.cat([one["steps"][number].tables[table] for one in found])
            torch.testing.assert_close(mine, whole, rtol=0, atol=ATOL)


def dump(config: Config) -> dict[str, Any]:
    return config.model_dump()


def test_an_exact_run_is_as_it_is_configured(
    workers: WorkerPool, tmp_path: Path, data_uri: str
) -> None:
    config = config_of(tmp_path, data_uri)
    found = workers.run(2, trained, dump(config))
    reference = ConfiguredRun(config, PreparedData.read(data_uri))
    check_numbers(found, reference)
    for rank, one in enumerate(found):
        check_arrived(config, one["calls"], first=rank == 0)
        assert one["called"] >= {"CandidateWords", "UnknownWords", "evaluate_translations"}
        assert one["dropouts"] == ({round(0.3 * 256) / 256}, {0.2})
        assert one["micro_batches"] == {2}
        assert one["fingerprint"] == fingerprint(config)
        assert one["checks_ids"]
        assert one["validation"] == pytest.approx(reference.validation_loss(), abs=ATOL)
        quality = one["quality"]
        assert quality.sentences == len(quality.translations) == 7
        assert "tok:char" in quality.signature
        assert "case:lc" in quality.signature
        assert len(quality.samples) == 5
        assert len(quality.neighbors["the"]) == 8


def test_a_sampled_run_is_as_it_is_configured(
    workers: WorkerPool, tmp_path: Path, data_uri: str
) -> None:
    config = config_of(tmp_path, data_uri, SAMPLED)
    found = workers.run(2, trained, dump(config))
    reference = ConfiguredRun(config, PreparedData.read(data_uri))
    check_numbers(found, reference)
    for rank, one in enumerate(found):
        check_arrived(config, one["calls"], first=rank == 0)
        assert not one["called"] & {"CandidateWords", "UnknownWords"}
        assert one["micro_batches"] == {1}
        assert one["validation"] == pytest.approx(reference.validation_loss(), abs=ATOL)
        assert "tok:intl" in one["quality"].signature


def test_a_plain_run_is_as_it_is_configured(
    workers: WorkerPool, tmp_path: Path, data_uri: str
) -> None:
    config = config_of(tmp_path, data_uri, SAMPLED, PLAIN)
    (one,) = workers.run(1, trained, dump(config))
    check_numbers([one], ConfiguredRun(config, PreparedData.read(data_uri)))
    check_arrived(config, one["calls"], first=True)
    assert "UnknownWords" in one["called"]
    narrow = config_of(tmp_path / "narrow", data_uri, SAMPLED, PLAIN, NARROW)
    (other,) = workers.run(1, partial_without_validation, dump(narrow))
    check_arrived(narrow, other["calls"], first=True)
    for step, wide in zip(other["steps"], one["steps"], strict=True):
        assert step.loss == pytest.approx(wide.loss, rel=0.03)
        assert step.loss != wide.loss


def partial_without_validation(group: Group, values: dict[str, Any]) -> dict[str, Any]:
    return trained(group, values, validate=False)


def resumed(group: Group, values: dict[str, Any], lost: int) -> dict[str, Any]:
    """The result of `train_task` where a checkpoint of step 5 is there and 4 steps are trained."""
    started: list[int] = []
    ended: list[int] = []  # with which checkpoint the run is said to end, on worker 0
    calls: dict[str, Any] = {}

    def load(store: Any, state: TrainingState, *_: Any, **__: Any) -> Loaded:
        state.step = 5
        state.scalars["skipped_steps"] = 3
        return Loaded(5, frozenset({ManifestName(6, 0)}), 0)

    def loop(
        state: Any, step: Any, loader: Any, settings: Any, checkpoint: Any, hooks: Any,
        *_: Any, **__: Any,
    ) -> bool:  # fmt: skip
        calls["train_loop.settings"], calls["train_loop.checkpoint"] = settings, checkpoint
        state.step += 4
        state.scalars["skipped_steps"] += lost
        calls["hooks"] = hooks.validate is not None, hooks.translate is not None
        return bool(lost)

    data = PreparedData.read(values["data"]["uri"])
    if lost:
        del data.splits["validation"]

    with ExitStack() as stack:
        recorded(stack, calls, training, "MetricsLog")
        recorded(stack, calls, resume, "Saver")
        stack.enter_context(mock.patch.object(resume, "load_newest", load))
        stack.enter_context(mock.patch.object(training, "train_loop", loop))
        stack.enter_context(mock.patch.object(training, "start_tables", started.append))
        stack.enter_context(mock.patch.object(training.RunFolder, "check_end", ended.append))
        stack.enter_context(mock.patch.object(PreparedData, "read", return_value=data))
        lines: list[str] = []
        reporter = Reporter(lambda event: lines.append(event["text"]))
        result = train_task(Context(config_from_dict(values), group, reporter), Train())
    return asdict(result) | {
        "started": started, "after_step": calls.get("MetricsLog.after_step"),
        "damaged": calls["Saver.damaged"], "flushes": calls["Saver.beforehand"] is not None,
        "lines": lines, "hooks": calls["hooks"], "ended": ended,
    }  # fmt: skip


@pytest.mark.parametrize("lost", [0, 2])
def test_a_run_that_goes_on_tells_what_it_has_done(
    workers: WorkerPool, tmp_path: Path, data_uri: str, lost: int
) -> None:
    config = config_of(tmp_path, data_uri)
    for rank, found in enumerate(workers.run(2, resumed, dump(config), lost)):
        assert found.pop("peak_memory_bytes") > 10**7
        assert found.pop("run_uri") == config.run.uri
        assert found.pop("data_folder")
        assert found.pop("tokens_per_second") is None  # the launching process knows
        lines = found.pop("lines")
        assert found == {
            "steps": 9, "resumed_at": 5, "stopped": lost > 0, "skipped_steps": lost, "started": [],
            "after_step": 5 if rank == 0 else None, "damaged": {ManifestName(6, 0)},
            "flushes": rank == 0, "ended": [9] if rank == 0 else [],
            "hooks": (not lost, not lost),  # without a validation split there is nothing to look at
        }  # fmt: skip
        assert "resuming from the checkpoint of step 5" in lines
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "config.yaml", "tokenizer.source.json", "tokenizer.target.json", "metrics.jsonl"
    }  # fmt: skip
    assert read_run_config(str(tmp_path / "run")) == config


def translated(
    group: Group, values: dict[str, Any], texts: list[str]
) -> tuple[list[str], list[list[int]]]:
    """Translations by a model that says nothing but ``<unk>``, and the sources' ids."""
    config = config_from_dict(values)
    calls: dict[str, Any] = {}
    tokenizers = load_tokenizers(config.data.uri)
    sizes = {side: tokenizer.size for side, tokenizer in tokenizers.items()}
    translation_model = assemble.build_translation_model(config, sizes, group)
    with torch.no_grad():
        translation_model.transformer.decoder_norm.weight.zero_()
        translation_model.transformer.decoder_norm.bias.fill_(1.0)
        lookup = translation_model.lookup
        table = lookup.table_of["output"]
        best = lookup.ids_of_own_rows(table) == UNKNOWN
        lookup.weight(table).copy_(torch.where(best, 1.0, -1.0).unsqueeze(1))
    with ExitStack() as stack:
        recorded(stack, calls, assemble, "Translator")
        translation = assemble.build_translator(config, translation_model, tokenizers)
    assert calls["Translator.settings"].too_long == "refuse"
    shown = [one.shown for one in translation.written(texts)]
    return shown, calls["Translator.encode"](texts)


@pytest.mark.parametrize("replace_unknown", ["no", "copy", "lexicon"])
def test_unknown_words_become_what_is_configured(
    workers: WorkerPool, tmp_path: Path, data_uri: str, replace_unknown: str
) -> None:
    search = {
        "replace_unknown": replace_unknown, "candidates": 9, "max_length_ratio": 1.75,
        "too_long": "refuse",
    }  # fmt: skip
    config = config_of(tmp_path, data_uri, {"model": {"width": 8, "heads": 2}, "search": search})
    Lexicon(data_uri).copy_to(config.run.uri)
    tokenizers = load_tokenizers(data_uri)
    known = [word for n, word in enumerate(words_of(tokenizers["source"])) if n % 5 == 0]
    texts = [" ".join(known), f"{known[0]} Nowhere {known[1]}", known[2]]
    lexicon = Lexicon(data_uri).translations(np.arange(tokenizers["source"].size), 4)
    for found, ids in workers.run(2, translated, dump(config), texts):
        # Hashed ids lie behind the vocabulary.
        assert [i >= tokenizers["source"].size for i in ids[1]] == [False, True, False]
        for text, source, translation in zip(texts, ids, found, strict=True):
            words = translation.split()
            assert len(words) == int(1.75 * len(source)) + 10
            if replace_unknown == "no":
                assert set(words) == {"<unk>"}
                continue
            there = set(text.lower().split())
            if replace_unknown == "copy":
                assert {word.lower() for word in words} <= there
                continue
            means = {
                tokenizers["target"].token(int(t)).removeprefix(SPACE)
                for i in source for t in lexicon.get(i, [])[:1]
            }  # fmt: skip
            assert means
            assert {word.lower() for word in words} <= means | {"nowhere"}


def words_of(tokenizer: Tokenizer) -> list[str]:
    tokens = tokenizer.tokens()[4:]
    return [t.removeprefix(SPACE) for t in tokens if t.startswith(SPACE) and t != SPACE]


def changed(config: Config, key: str, value: Any) -> Config:
    """The configuration with another value; unchecked."""
    name, _, rest = key.partition(".")
    part = getattr(config, name)
    return config.model_copy(update={name: changed(part, rest, value) if rest else value})


@pytest.mark.parametrize(
    ("parts", "numbers"),
    [((), EXACT_NUMBERS), ((SAMPLED,), SAMPLED_NUMBERS)],
    ids=["exact", "sampled"],
)
def test_runs_that_ignored_a_setting_would_not_equal_their_reference(
    tmp_path: Path, data_uri: str, parts: tuple[Values, ...], numbers: dict[str, Any]
) -> None:
    config, data = config_of(tmp_path, data_uri, *parts), PreparedData.read(data_uri)
    usual = ConfiguredRun(config, data).train(STEPS)
    for key, value in numbers.items():
        assert value != value_of(config, key), key
        other = ConfiguredRun(changed(config, key, value), data)
        found = zip(usual, other.train_on(STEPS), strict=True)
        assert any(differ(*steps) for steps in found), key


def differ(left: Step, right: Step) -> bool:
    """By far more than the runs may differ from their references."""
    return abs(left.loss - right.loss) > 10 * ATOL or any(
        float((left.tables[name] - right.tables[name]).abs().max()) > 10 * ATOL
        for name in left.tables
    )


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All keys of a section, those of sections in it with a dot."""
    for name, setting in model.model_fields.items():
        options = [setting.annotation, *get_args(setting.annotation)]
        sections = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if sections:
            yield from keys_of(sections[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_key_of_the_configuration_is_looked_at() -> None:
    looked_at = {*ARRIVE, *EXACT_NUMBERS, *SAMPLED_NUMBERS}
    for file, sections in ELSEWHERE.items():
        text = (Path(__file__).parents[2] / file).read_text()
        for section, names in sections:
            looked_at |= {f"{section}.{name}" for name in names}
            assert not [name for name in names if name not in text], file
    assert looked_at == set(keys_of(Config))
