"""A run from its start to its translations, as workers do it: trained, resumed, evaluated."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from dist_embed.config.load import config_from_dict
from dist_embed.data.token_shards import PreparedData, read_texts
from dist_embed.observe.events import Reporter
from dist_embed.parallel.group import Group
from dist_embed.run.metrics import read_metrics
from dist_embed.training.results import Evaluation, TrainResult
from dist_embed.training.tasks import Evaluate, Task, Train, Translate
from dist_embed.training.worker import Context
from tests.distributed.configured import DATA, Values, merged
from tests.distributed.pool import WorkerPool

SMALL: Values = {
    "run": {"seed": 11},
    "embedding": {"width": 8},
    "model": {"width": 8, "feed_forward": 12, "heads": 2, "encoder_layers": 1, "decoder_layers": 1,
              "dropout": 0.3, "attention_dropout": 0.2, "share_embeddings": "none"},
    "train": {"max_steps": 4, "batch_tokens": 60, "log_every": 1, "evaluate_every": 2,
              "translate_every": 4, "precision": "fp32", "schedule": "cosine"},
    "search": {"beam": 2, "max_length_ratio": 0.1, "replace_unknown": "copy"},
    "checkpoint": {"every_steps": 2},
    "cluster": {"device": "cpu", "num_workers": 2, "launcher": "local"},
}  # fmt: skip
Asked = tuple[Task[Any], Values]
Told = tuple[Any, list[str]]


def done(group: Group, values: Values, *tasks: Asked) -> list[Told]:
    """The results of tasks one after the other, and what each said."""
    told: list[Told] = []
    for task, changes in tasks:
        lines: list[str] = []
        reporter = Reporter(lambda event, lines=lines: lines.append(event.get("text", "")))  # type: ignore[misc]
        config = config_from_dict(merged(values, changes))
        told.append((task.function()(Context(config, group, reporter)), lines))
    return told


def lines_of(run: Path) -> dict[int, dict[str, Any]]:
    """By step all that its metrics say of what was computed, but for each worker's part of it."""
    found: dict[int, dict[str, Any]] = {}
    for line in read_metrics(str(run)):
        of_course = ("time", "tokens_per_second", "step_seconds", "resumed_at")
        found.setdefault(line["step"], {}).update(
            {
                key: value
                for key, value in line.items()
                if key not in of_course and not key.startswith(("phase/", "workers/"))
            }
        )
    return found


def test_a_resumed_run_equals_one_that_went_through_and_is_evaluated_as_it_was_validated(
    workers: WorkerPool, tmp_path: Path, data_uri: str
) -> None:
    values = merged(DATA, SMALL, {"data": {"uri": data_uri}})
    whole: Values = {"run": {"uri": str(tmp_path / "whole")}}
    parts: Values = {"run": {"uri": str(tmp_path / "parts")}}
    data = PreparedData.read(data_uri)
    sources, references = read_texts(data_uri, data.splits["test"])
    train: Asked = (Train(), whole)
    results = workers.run(
        2, done, values, train, train, (Evaluate("validation", training_tokens=40), whole),
        (Evaluate("test", 2), whole), (Translate(sources, 2), whole),
    )  # fmt: skip
    for (first, said), (again, _), (validation, _), (test, _), (translations, _) in results:
        for trained, resumed_at in ((first, 0), (again, 4)):
            assert trained.peak_memory_bytes > 0
            assert trained == TrainResult(
                run_uri=str(tmp_path / "whole"), data_folder=data.folder_uri, steps=4,
                resumed_at=resumed_at, stopped=False, skipped_steps=0,
                peak_memory_bytes=trained.peak_memory_bytes,
            )  # fmt: skip
        assert isinstance(validation, Evaluation)
        assert "starting from scratch" in said
        found = lines_of(tmp_path / "whole")
        assert sorted(found) == [1, 2, 3, 4]
        assert {line["skipped_steps"] for line in found.values()} == {0}
        best = min((2, 4), key=lambda step: found[step]["validation_loss"])
        assert (validation.split, validation.step) == ("validation", best)
        assert validation.loss == pytest.approx(found[best]["validation_loss"], rel=1e-6)
        assert validation.perplexity == pytest.approx(math.exp(validation.loss))
        assert validation.training_loss != pytest.approx(validation.loss, rel=1e-3)
        assert 1 < validation.training_loss < 5
        assert validation.sentences == 7
        assert validation.sentences_per_second > 0
        if best == 4:
            assert validation.bleu == pytest.approx(found[4]["validation_bleu"])
            assert validation.chrf == pytest.approx(found[4]["validation_chrf"])
        assert (test.split, test.step, test.training_loss) == ("test", 2, None)
        assert test.translations == translations.lines
        assert translations.step == 2
        assert len(translations) == len(references) == test.sentences

    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    manifests = tmp_path / "parts" / "checkpoints" / "manifests"
    (manifests / "step-000000004-0.manifest").unlink()
    for ((second, said),) in workers.run(2, done, values, (Train(), parts)):
        assert (second.steps, second.resumed_at) == (4, 2)
        assert "resuming from the checkpoint of step 2" in said
    assert lines_of(tmp_path / "parts") == lines_of(tmp_path / "whole")


def test_what_a_run_says_of_itself_before_it_starts(
    workers: WorkerPool, tmp_path: Path, data_uri: str
) -> None:
    values = merged(DATA, SMALL, {"data": {"uri": data_uri}, "run": {"uri": str(tmp_path)}})
    sampled: Values = {
        "model": {"output": "sampled", "num_samples": 12, "sampler": "unigram"},
        "train": {"max_steps": 1, "translate_every": 0}, "embedding": {"optimizer": "adagrad"},
    }  # fmt: skip
    (((_, said),),) = workers.run(1, done, values, (Train(), sampled))
    assert said[0].startswith("1 workers on cpu (")
    assert said[0].endswith("1 threads each), precision fp32")
    # The source has 35 words and 5 hashed rows.
    assert said[1:4] == [
        "table source: 40 rows × 8, adagrad, 0.0 MiB per worker",
        "table target: 40 rows × 8, adagrad, 0.0 MiB per worker",
        "table output: 40 rows × 8, adagrad, 0.0 MiB per worker",
    ]
    assert said[4] == "tables: in host memory, rows in fp32, exchanged in fp32"
    assert said[5].endswith(
        " replicated parameters, output: sampled softmax, 12 unigram negatives a step of 40 words"
    )
    assert said[6] == "data: 90 training pairs"
