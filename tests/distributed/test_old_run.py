"""Runs and prepared data of earlier versions go on, and compute what they did.

``old_runs`` holds one folder for each format of prepared data, a run with its data in it, and in
``expected.json`` what the version that wrote it printed of its test set. The second has its corpora
and the user's file too: its text has blanks and letters of many kinds, and was prepared before
text had a form.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from dist_embed.checkpoint.catalogue import name_of_step, open_checkpoints, read_manifest
from dist_embed.checkpoint.manifest import ManifestName
from dist_embed.config.load import load_config
from dist_embed.config.schema import Config
from dist_embed.data.fitting import data_digest
from dist_embed.data.lexicon import Lexicon
from dist_embed.data.preparation import ensure_data
from dist_embed.data.prepared_folder import prepared_folder
from dist_embed.data.token_shards import SIDES, PreparedData
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.errors import UserError
from dist_embed.observe.events import Reporter
from dist_embed.parallel import device
from dist_embed.parallel.group import Group
from dist_embed.run.folder import check_run_folder, fingerprint, read_run_config
from dist_embed.run.metrics import read_metrics
from dist_embed.training.inference import evaluate_task
from dist_embed.training.results import Evaluation, TrainResult
from dist_embed.training.tasks import Evaluate, Train
from dist_embed.training.train import train_task
from dist_embed.training.worker import Context
from tests.distributed.pool import WorkerPool
from tests.unit.small_corpus import one_is_this_process

STORED = Path(__file__).parent / "old_runs"
NAME = ManifestName(200, 0)
TOKENIZERS = ("tokenizer.source.json", "tokenizer.target.json")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(STORED / "format-1", tmp_path / "run")
    return tmp_path / "run"


def evaluate(group: Group, run: str) -> tuple[Evaluation, list[str]]:
    said: list[str] = []
    reporter = Reporter(lambda event: said.append(event.get("text", "")))
    context = Context(read_run_config(run), group, reporter)
    return evaluate_task(context, Evaluate("test")), said


def go_on(
    group: Group, run: str, overrides: list[str]
) -> tuple[Evaluation, TrainResult, list[str]]:
    """What `dist-embed train` does with the user's file, and `evaluate` with the run before."""
    said: list[str] = []
    found, _ = evaluate(group, run)
    config = load_config(f"{run}/run.yaml", [f"run.uri={run}", *overrides])
    data = ensure_data(config, said.append)
    check_run_folder(config, data, force=False)
    context = Context(config, group, Reporter(lambda event: None))
    # As where its loss was computed, whatever train.precision=auto would choose here.
    with mock.patch.object(device, "has_native_bf16", return_value=False):
        trained = train_task(context, Train(data.folder_uri))
    return found, trained, said


def train(group: Group, run: str, steps: int) -> TrainResult:
    config = read_run_config(run)
    longer = config.train.model_copy(update={"max_steps": steps})
    config = config.model_copy(update={"train": longer})
    return train_task(Context(config, group, Reporter(lambda event: None)), Train())


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_stored_run_computes_what_it_did_and_goes_on(workers: WorkerPool, run: Path) -> None:
    expected = json.loads((run / "expected.json").read_text())
    found, said = workers.run(1, evaluate, str(run))[0]
    assert found.translations == expected["translations"]
    assert found.loss == pytest.approx(expected["loss"], rel=1e-5)
    assert found.step == expected["step"]
    assert [line for line in said if "not proven" in line] == [
        f"{run}/data was prepared before data carried digests: it is read, but not proven. "
        "Prepared again, it is"
    ]
    step = expected["step"]
    (trained,) = workers.run(1, train, str(run), step + 1)
    assert (trained.resumed_at, trained.steps) == (step, step + 1)


def test_stored_data_are_taken_as_they_are(run: Path) -> None:
    before = files_below(run)
    said: list[str] = []
    config = read_run_config(str(run))
    data = ensure_data(config, said.append)
    assert len(said) == 1  # neither prepared nor learned again
    assert "not proven" in said[0]
    assert files_below(run) == before
    assert PreparedData.read(config.data.uri).to_json() == before["data/data.json"].decode()
    assert data.splits["train"].identity() == "120 pairs in 2 shards (79086afa10765faf)"
    assert Lexicon(str(run)).index.format == 1


def corpora(run: Path) -> list[str]:
    return [
        f"data.{split}.{side}={run}/{split}.{side}.txt"
        for split in ("train", "validation", "test")
        for side in ("source", "target")
    ]


def test_a_run_from_before_text_had_a_form_goes_on_with_its_file(
    workers: WorkerPool, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(STORED / "format-2", run)
    before = files_below(run)
    expected = json.loads((run / "expected.json").read_text())
    overrides = ["train.max_steps=201", "train.log_every=1"]  # its corpora are not there
    found, trained, said = workers.run(1, go_on, str(run), overrides)[0]
    assert found.translations == expected["translations"]
    assert found.loss == pytest.approx(expected["loss"], abs=1e-4)
    assert (trained.resumed_at, trained.steps) == (200, 201)
    store = open_checkpoints(str(run))
    newest = read_manifest(store, name_of_step(str(run), 201))
    assert newest.scalars["position"]["plan"] == "bands"
    assert "training data" in newest.scalars
    assert "training blocks" not in newest.scalars  # prepared again, they are others
    assert read_metrics(str(run))[0]["loss"] == pytest.approx(expected["next_loss"], rel=1e-5)
    after = files_below(run)
    kept = [name for name in before if name.startswith(("data/", "tokenizer.", "checkpoints/"))]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert len(said) == 1
    assert "train.source.txt is not there" in said[0]


def test_data_of_a_run_from_before_text_had_a_form_are_prepared_as_they_were(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(STORED / "format-2", run)
    config = load_config(f"{run}/run.yaml", [f"run.uri={run}", *corpora(run)])
    # By these a checkpoint knows its settings, and a study its data.
    kept = read_run_config(str(run))
    assert fingerprint(kept) == read_manifest(open_checkpoints(str(run)), NAME).fingerprint
    assert data_digest(kept) == "3294e09afc68"
    tokenizers = [(run / name).read_bytes() for name in TOKENIZERS]
    stored = PreparedData.read(prepared_folder(config.data.uri))
    said: list[str] = []
    with one_is_this_process(1):
        again = ensure_data(config, said.append, force=True)
    assert f"tokenizer.normalize: none, as the run in {run} has it" in said
    # Files may be written otherwise; what they hold is the same.
    for name, split in again.splits.items():
        before = stored.splits[name]
        assert (split.identity(), split.content()) == (before.identity(), before.content())
        assert replace(split, shards=[]) == replace(before, shards=[])
    loaded = load_tokenizers(again.folder_uri, again)
    assert [loaded[side].to_json().encode() for side in SIDES] == tokenizers
    check_run_folder(config, again, force=False)

    shutil.rmtree(run / "data")
    other = load_config(
        f"{run}/run.yaml", [f"run.uri={run}", "tokenizer.normalize=nfkc", *corpora(run)]
    )
    with one_is_this_process(1):
        prepared = ensure_data(other, said.append)
    assert prepared.settings["tokenizer.normalize"] == "nfkc"
    with pytest.raises(
        UserError,
        match=r"another source vocabulary .*\(tokenizer.normalize: none there, nfkc in these",
    ):
        check_run_folder(other, prepared, force=True)
    with pytest.raises(UserError, match=r"tokenizer.normalize: 'nfkc' there, 'none' here"):
        ensure_data(with_form(config, "none"), said.append)
    assert ensure_data(config, said.append) == prepared


def with_form(config: Config, form: Any) -> Config:
    tokenizer = config.tokenizer.model_copy(update={"normalize": form})
    return config.model_copy(update={"tokenizer": tokenizer})
