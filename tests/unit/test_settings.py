"""Settings of data, tokenizer, cluster and single tables reach what they are for; those of the run
itself are looked at in `tests.distributed.test_settings`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_embed.cluster import launch as launching
from dist_embed.cluster.settings import MAX_FAILURES
from dist_embed.cluster.stopping import STEP_SECONDS, stop_seconds
from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.data import preparation, sources
from dist_embed.data.block_index import has_blocks
from dist_embed.data.corpus import ParallelText
from dist_embed.data.prepare import read_occurrences
from dist_embed.data.prepared_folder import prepared_folder
from dist_embed.data.settings import TokenizerSection
from dist_embed.data.text_form import TextForm
from dist_embed.data.token_shards import PreparedData, read_tokens
from dist_embed.data.tokenizer import SPECIAL_TOKENS
from dist_embed.errors import ConfigError, UserError
from dist_embed.optim.schedule import Schedule
from dist_embed.training import step_seconds, worker
from dist_embed.training.rates import frozen_until, own_rates, own_schedules
from dist_embed.training.table_settings import table_settings
from dist_embed.training.tasks import Evaluate, Task, Train
from dist_embed.vectors.coverage import coverage_name

CORPUS = {
    "pairs": ["a.tsv", "b.tsv"], "source_column": "left", "target_column": "right",
    "quoting": "csv", "wrong_rows": "skip", "max_line_bytes": 99,
}  # fmt: skip
TOKENIZER = {
    "kind": "word", "vocab_size": 77, "min_count": 3, "shared": False, "oov_buckets": 5,
    "pieces": "subword-nmt", "normalize": "nfkc", "lowercase": False, "split_punctuation": False,
}  # fmt: skip


def config_of(**sections: dict[str, Any]) -> Config:
    least: dict[str, Any] = {"run": {"uri": "memory://settings"}, "train": {"max_steps": 9}}
    return config_from_dict({"data": {"synthetic": {}}} | least | sections)


def prepared_with(monkeypatch: pytest.MonkeyPatch, config: Config) -> dict[str, Any]:
    """What `prepare_data` and `ensure_lexicon` are given."""
    given: dict[str, Any] = {}

    def prepare(
        uri: str, corpora: Any, data: Any, tokenizer: Any, form: Any, **options: Any
    ) -> PreparedData:
        given.update(
            options, uri=uri, corpora=corpora, data=data, tokenizer=tokenizer, form=form
        )  # fmt: skip
        return PreparedData({}, {"source": 1, "target": 1}, False, {})

    monkeypatch.setattr(preparation, "prepare_data", prepare)
    monkeypatch.setattr(
        preparation, "ensure_lexicon", lambda uri, data, **options: given.update(lexicon=options)
    )
    monkeypatch.setattr(preparation, "fitting_lexicon", lambda *asked: given.get("lexicon"))
    preparation.ensure_data(config, lambda line: None)
    return given


def test_data_are_prepared_as_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(
        data={
            "uri": "memory://settings-data", "train": CORPUS,
            "validation": {"source": "v.en", "target": ["v.de", "w.de"]}, "test": {"pairs": "t"},
            "max_sentences": 31, "max_tokens": 17, "too_long": "cut", "max_length_ratio": 2.5,
            "num_processes": 3, "shard_sentences": 41, "lexicon_translations": 6,
        },
        tokenizer=TOKENIZER, model={"share_embeddings": "none"},
    )  # fmt: skip
    given = prepared_with(monkeypatch, config)
    usual = ("source", "target")
    assert given["corpora"] == {
        "train": ParallelText(
            (), (), ("a.tsv", "b.tsv"), ("left", "right"), "csv", True, 99, limit=31
        ),
        "validation": ParallelText(("v.en",), ("v.de", "w.de"), (), usual),
        "test": ParallelText((), (), ("t",), usual),
    }
    assert given["uri"] == prepared_folder("memory://settings-data")
    assert given["tokenizer"] == TokenizerSection(**TOKENIZER)
    assert given["form"] == TextForm("nfkc", False)
    assert given["data"] == config.data
    lexicon = given["lexicon"]
    assert (lexicon["translations"], lexicon["num_processes"]) == (6, 3)
    settings = given["settings"]
    assert settings["data.train.source_column"] == "left"
    assert settings["data.train.quoting"] == "csv"
    assert settings["data.train.wrong_rows"] == "skip"
    assert settings["data.train.max_line_bytes"] == 99
    assert settings["data.max_tokens"] == 17
    assert settings["data.max_length_ratio"] == 2.5
    assert settings["tokenizer.min_count"] == 3
    assert settings["tokenizer.normalize"] == "nfkc"
    assert not settings.keys() & {
        "data.uri", "data.num_processes", "data.lexicon_translations"
    }  # fmt: skip


def test_without_a_limit_or_a_lexicon_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"uri": "memory://settings-none", "train": {"pairs": "a"}}
    given = prepared_with(monkeypatch, config_of(data=data, tokenizer={"lowercase": True}))
    assert given["corpora"] == {"train": ParallelText((), (), ("a",), ("source", "target"))}
    assert "lexicon" not in given
    assert given["settings"]["tokenizer.normalize"] == "nfc"
    assert given["form"] == TextForm("nfc", True)


GENERATED = {
    "synthetic": {"sentences": 11, "held_out": 3, "nouns": 7, "verbs": 5, "adjectives": 2,
                  "seed": 13},
    "inflected": {"sentences": 11, "held_out": 3, "nouns": 7, "verbs": 5, "adjectives": 2,
                  "exponent": 0.6, "seed": 13},
}  # fmt: skip


@pytest.mark.parametrize("kind", GENERATED)
def test_corpora_are_generated_as_configured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    made: list[Any] = []
    wanted: list[Any] = []

    class Language:
        def __init__(self, *stems: int, **options: Any) -> None:
            made.append((stems, options))

        def pairs(self, count: int, name: str, seed: int) -> list[tuple[str, str]]:
            wanted.append((count, name, seed))
            return [("a", "b")] * count

    monkeypatch.setattr(sources, "SyntheticLanguage", Language)
    monkeypatch.setattr(sources, "InflectedLanguage", Language)
    given = prepared_with(
        monkeypatch, config_of(data={"uri": str(tmp_path), kind: GENERATED[kind]})
    )
    stems: tuple[int, ...] = (7, 5, 2)
    assert made == (
        [((*stems, 13), {})] if kind == "synthetic" else [(stems, {"exponent": 0.6, "seed": 13})]
    )
    assert wanted == [(11, "train", 13), (3, "validation", 13), (3, "test", 13)]
    folder = Path(prepared_folder(str(tmp_path)))
    assert given["corpora"]["test"].source == (str(folder / "text" / "test.source.txt"),)
    assert (folder / "text" / "train.target.txt").read_text() == "b\n" * 11


def test_words_without_a_text_are_generated_as_configured(tmp_path: Path) -> None:
    words = {"sentences": 11, "length": 6, "seed": 13}
    data = {"uri": str(tmp_path), "words": words, "synthetic": None}
    given: dict[str, Any] = {"data": data, "tokenizer": {"vocab_size": 77, "shared": False}}
    given["model"] = {"share_embeddings": "none"}
    found = preparation.ensure_data(config_of(**given), print)
    pairs = read_tokens(found.folder_uri, found.splits["train"].shards)
    assert len(pairs) == 11
    assert len(pairs.target_tokens) == 11 * 6
    assert found.vocabulary_size == {"source": 77, "target": 77}
    assert not found.shared_vocabulary
    assert pairs.target_tokens.min() >= len(SPECIAL_TOKENS)  # words alone
    assert pairs.target_tokens.max() < 77
    assert has_blocks(found, "train")
    counted = read_occurrences(found, ["target"])
    assert counted is not None
    assert counted.tolist() == np.bincount(pairs.target_tokens, minlength=77).tolist()
    assert preparation.ensure_data(config_of(**given), print) == found
    words["seed"] = 14
    with pytest.raises(UserError, match=r"data\.words\.seed: 13 there, 14 here"):
        preparation.ensure_data(config_of(**given), print)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"data": {"words": {}}}, "data.words: not allowed beside data.synthetic"),
        ({"data": {"words": {}, "synthetic": None}, "tokenizer": {"kind": "bpe"}},
         "tokenizer.kind: 'bpe' is not allowed with data.words"),
        ({"data": {"words": {"length": 20}, "synthetic": None, "max_tokens": 20}},
         "data.words.length: 20 is not allowed with data.max_tokens=20"),
        ({"data": {"words": {}, "synthetic": None, "lexicon_translations": 3}},
         "data.lexicon_translations: 3 is not allowed with data.words"),
    ],
)  # fmt: skip
def test_what_words_without_a_text_cannot_have(sections: Any, said: str) -> None:
    sections["data"].setdefault("synthetic", {})
    with pytest.raises(ConfigError, match=said):
        config_of(**sections)


CLUSTER = {
    "num_workers": 3, "address": "there:6379", "threads_per_worker": 5, "timeout_seconds": 77.0,
    "max_failures": 4, "replace_seconds": 6.0,
}  # fmt: skip


@pytest.mark.parametrize(("task", "seconds"), [(Train(), 10.0), (Evaluate("test"), 0.0)])
def test_local_workers_get_as_long_for_a_save_as_configured(
    monkeypatch: pytest.MonkeyPatch, task: Task[Any], seconds: float
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        "dist_embed.cluster.local.launch_local", lambda *arguments, **options: given.update(options)
    )
    launching.launch(
        task, config_of(checkpoint={"drain_seconds": 10.0}), launcher="local",
        vocabulary_size={"source": 9, "target": 9}, on_event=lambda event: None, stop_seconds=5.0,
    )  # fmt: skip
    assert (given["save_seconds"], given["stop_seconds"]) == (seconds, 5.0)


@pytest.mark.parametrize(
    ("cluster", "ray_address", "launcher"),
    [({}, None, "local"), ({}, "", "local"), ({}, "10.0.0.1:6379", "ray"),
     ({"address": "10.0.0.1:6379"}, None, "ray"), ({"launcher": "ray"}, None, "ray"),
     ({"max_failures": 2}, None, "ray"), ({"launcher": "local", "max_failures": 2}, None, "local"),
     ({"launcher": "local", "address": "10.0.0.1:6379"}, "10.0.0.1:6379", "local")],
)  # fmt: skip
def test_ray_starts_workers_where_a_cluster_is_named(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], ray_address: str | None, launcher: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if ray_address is not None:
        monkeypatch.setenv("RAY_ADDRESS", ray_address)
    started: list[str] = []
    for name in ("local", "ray"):
        where = "local" if name == "local" else "ray_train"
        monkeypatch.setattr(
            f"dist_embed.cluster.{where}.launch_{name}",
            lambda *_, _name=name, **__: started.append(_name),
        )
    launching.launch(
        Train(), config_of(cluster=cluster), vocabulary_size={"source": 9, "target": 9},
        on_event=lambda event: None,
    )  # fmt: skip
    assert started == [launcher]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "cluster.num_workers: 0 is not allowed: input should be greater than 0"),
        ("two", "cluster.num_workers: 'two' is not allowed: input should be a valid integer"),
        ({"min": 3, "max": 2}, "cluster.num_workers.max: 2 is not allowed: at least `min`, 3"),
        ({"min": 0, "max": 2}, "cluster.num_workers.min: 0 is not allowed: input should be"),
        ({"min": 2}, "cluster.num_workers.max: missing"),
        ({"min": 2, "max": 3, "mx": 3}, "cluster.num_workers.mx: unknown key (value 3); did you"),
    ],
)
def test_a_wrong_number_of_workers_is_refused_in_a_line(value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(cluster={"num_workers": value})
    assert len(str(caught.value).splitlines()) == 1
    assert said in str(caught.value)


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_a_range_of_workers_is_its_most_where_none_come_and_go(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given: dict[str, dict[str, Any]] = {"local": {}, "ray": {}}
    monkeypatch.setattr(
        "dist_embed.cluster.local.launch_local", lambda *_, **how: given["local"].update(how)
    )
    monkeypatch.setattr(
        "dist_embed.cluster.ray_train.launch_ray", lambda *_, **how: given["ray"].update(how)
    )
    config = config_of(cluster={"num_workers": {"min": 2, "max": 4}, "address": address})
    for launcher in ("local", "ray"):
        launching.launch(
            Train(), config, vocabulary_size={"source": 9, "target": 9}, launcher=launcher,
            on_event=lambda event: None,
        )  # fmt: skip
    assert given["local"]["num_workers"] == 4
    asked = given["ray"]["min_workers"], given["ray"]["max_workers"]
    assert asked == ((2, 4) if address else (4, 4))
    assert given["ray"]["max_failures"] == MAX_FAILURES  # nobody has said how many


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_ray_is_asked_for_workers_as_configured(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        "dist_embed.cluster.ray_train.launch_ray",
        lambda task, arguments, **options: given.update(options, arguments=arguments),
    )
    config = config_of(cluster=CLUSTER | {"device": device}, checkpoint={"drain_seconds": 10.0})
    launching.launch(
        Train("there"), config, vocabulary_size={"source": 9, "target": 9},
        on_event=lambda event: None, stop_seconds=stop_seconds(config),
    )  # fmt: skip
    for key in ("address", "timeout_seconds", "max_failures", "replace_seconds"):
        assert given[key] == CLUSTER[key], key
    assert (given["min_workers"], given["max_workers"]) == (3, 3)
    assert given["device"] == device
    assert given["stop_seconds"] == 2 * 10.0 + STEP_SECONDS
    task, resolved = given["arguments"]("cpu")
    assert task == Train("there")
    assert resolved == config.model_copy(
        update={"cluster": config.cluster.model_copy(update={"device": "cpu"})}
    )


def test_threads_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(7)))
    assert step_seconds.threads_per_worker(config_of(cluster=CLUSTER)) == 5
    of_its_own = config_of(cluster={"num_workers": 3})
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert step_seconds.threads_per_worker(of_its_own) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "7")
    assert step_seconds.threads_per_worker(of_its_own) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "9")
    assert step_seconds.threads_per_worker(of_its_own) == 1


def test_a_worker_joins_with_the_configured_time_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    joined: list[Any] = []
    threads: list[int] = []

    class Stop(Exception):
        pass

    def join(device: str, seconds: float) -> Any:
        joined.append((device, seconds))
        raise Stop

    monkeypatch.setattr(worker, "joined_group", join)
    monkeypatch.setattr(worker, "redirect_output", joined.append)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: None)
    monkeypatch.setenv("RANK", "6")
    config = config_of(run={"uri": str(tmp_path)}, cluster=CLUSTER | {"device": "cpu"})
    with pytest.raises(Stop):
        worker.run_worker(Train(), config, lambda event: None)
    assert joined == [tmp_path / "logs" / "worker-6.log", ("cpu", 77.0)]
    assert threads == [5]


TABLES = {
    "source": {"learning_rate": 0.5, "freeze_until_step": 3},
    "target": {"freeze": True},
    "output": {"learning_rate": 0.25},
}


def test_settings_of_single_tables_are_theirs() -> None:
    embedding = {"tables": TABLES, "schedule": "cosine", "warmup_steps": 4, "learning_rate": 0.125}
    config = config_of(embedding=embedding, model={"share_embeddings": "none"})
    assert list(table_settings(config)) == ["source", "target", "output"]
    assert own_rates(config) == {"source": 0.5, "output": 0.25}
    assert own_schedules(config) == {
        "source": Schedule(0.5, "cosine", 4, 9), "output": Schedule(0.25, "cosine", 4, 9)
    }  # fmt: skip
    assert frozen_until(config) == {"source": 3.0, "target": math.inf}


@pytest.mark.parametrize(("share", "role", "table"), [("decoder", "output", "decoder"),
                                                      ("decoder", "target", "decoder"),
                                                      ("decoder", "source", "source"),
                                                      ("all", "target", "shared")])  # fmt: skip
def test_sides_that_share_a_table_share_its_settings(share: str, role: str, table: str) -> None:
    embedding = {"tables": {role: {"learning_rate": 0.5, "freeze": True}}}
    config = config_of(embedding=embedding, model={"share_embeddings": share})
    assert own_rates(config) == {table: 0.5}
    assert frozen_until(config) == {table: math.inf}
    assert coverage_name(table) == f"pretrained.{table}.json"
