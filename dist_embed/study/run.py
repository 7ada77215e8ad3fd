"""Trains and scores the runs of a study; what is done already is not done again."""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dist_embed.api.inference import evaluate
from dist_embed.api.training import train
from dist_embed.bench.report import machine
from dist_embed.checkpoint.catalogue import name_of_step, open_checkpoints, read_manifest
from dist_embed.cluster.launch import cluster_address
from dist_embed.config.load import load_config
from dist_embed.config.paths import with_absolute_paths
from dist_embed.config.renamed import with_old_names
from dist_embed.config.schema import Config
from dist_embed.data.preparation import data_digest
from dist_embed.data.token_shards import PreparedData
from dist_embed.errors import ConfigError, RunStopped
from dist_embed.observe.events import Event
from dist_embed.parallel.device import device_name, resolve_device
from dist_embed.parallel.stop import taken_signal
from dist_embed.run.metrics import read_metrics
from dist_embed.section import NO_RESULT, keys_marked
from dist_embed.storage import uri as storage
from dist_embed.study import unchanged
from dist_embed.study.plan import Combination, combinations, overrides_of
from dist_embed.study.schema import TrainingStudy
from dist_embed.study.word_vectors import ensure_word_vectors
from dist_embed.training.results import Evaluation, TrainingStopped

Say = Callable[[str], None]
# Stands for the study's folder in values of keys.
FOLDER_MARK = "{study}"
# Of the training data, whose loss the gap is measured from; always the same ones.
TRAINING_TOKENS = 20_000
# How runs are scored: to be raised where the same run gets other figures, so that those of before
# and after do not share a mean. 0.2.0 did not say; since 2 blank lines have a blank translation,
# since 3 an unknown word is one token that matches nothing, and both sides have the run's form and
# lower case; since 4 the training pairs whose loss is told are of mixed lengths.
SCORING = 4
# How runs are trained: to be changed where the same settings train another run. Since "units" steps
# are of mixed lengths.
TRAINING = "units"
# Since then the best validation is followed by a checkpoint, which is then scored: another one than
# before where those of validations were not saved anyway.
_BEST_IS_SAVED = "units, the best saved"
# A run's result does not depend on these where the best checkpoint, which is scored, is kept.
_KEPT = ("checkpoint.keep_last", "checkpoint.keep_best", "checkpoint.keep_every")


@dataclass(frozen=True)
class Outcome:
    """One run of a study.

    Attributes:
        levels: factor to level.
        seed: of the run.
        measures: see `dist_embed.study.schema.MEASURES`; without ``steps_to_reference``.
        validations: steps and validation losses.
        machine: where it ran, see `dist_embed.bench.report.machine`.
    """

    levels: dict[str, str]
    seed: int
    measures: dict[str, float]
    validations: list[tuple[int, float]]
    machine: dict[str, Any]


@dataclass(frozen=True)
class PlannedRun:
    """A run to be trained.

    Attributes:
        name: of its folder and its result; with a digest of all that decides what it does.
        combination: factor to level.
        seed: of the run.
        config: of the run.
    """

    name: str
    combination: Combination
    seed: int
    config: Config


def run_study(study: TrainingStudy, on_event: Callable[[Event], None]) -> list[Outcome]:
    """Train and score every run that has no result yet; returns all results. A run that was scored
    in another way is scored again, without being trained where its checkpoints are there.

    Seed after seed: what the machine does meanwhile then falls on all combinations.

    Raises:
        UserError: a configuration that cannot be, or files that have changed since figures were
            made from them; said before anything is trained.
        RunFailed, RunStopped: a run failed, or was asked to stop; the same call goes on there.
    """

    def say(text: str) -> None:
        on_event({"kind": "line", "text": text})

    runs = planned_runs(study)
    for vectors in study.word_vectors:
        ensure_word_vectors(vectors, study.folder, say)
    unchanged.check_corpora([run.config for run in runs], say)
    kept = {run.name: storage.join(study.folder, "results", f"{run.name}.json") for run in runs}
    results = {name: _read(uri) for name, uri in kept.items()}
    started_from = {run.name: _vector_files(study, run.config) for run in runs}
    # Written before a run begins, which may be interrupted.
    notes = {run.name: storage.join(study.folder, "results", f"{run.name}.from") for run in runs}
    begun_from = {name: _read(uri) for name, uri in notes.items()}
    for name, recorded in begun_from.items():
        unchanged.check(recorded, started_from[name], f"the run {name}", say)
    outcomes = []
    for number, run in enumerate(runs, start=1):
        values = results[run.name]
        if values is None or values.get("scoring") != SCORING:
            say(f"run {number} of {len(runs)}: {run.name}")
            if started_from[run.name] and begun_from[run.name] is None:
                recorded = unchanged.record(started_from[run.name], say)
                storage.write_text(notes[run.name], json.dumps(recorded, indent=1) + "\n")
            values = _train_and_score(run.config, on_event) | {"scoring": SCORING}
            storage.write_text(kept[run.name], json.dumps(values, indent=1) + "\n")
        validations = [(step, loss) for step, loss in values["validations"]]
        outcomes.append(
            Outcome(
                dict(run.combination), run.seed, values["measures"], validations, values["machine"]
            )
        )
    return outcomes


def planned_runs(study: TrainingStudy) -> list[PlannedRun]:
    """All runs, the first seed's first. Raises ConfigError."""
    return [
        _planned(study, combination, seed)
        for seed in study.seeds
        for combination in combinations(study)
    ]


def _planned(study: TrainingStudy, combination: Combination, seed: int) -> PlannedRun:
    keys = overrides_of(study, combination) | {"run.uri": study.folder, "run.seed": seed}
    written = {key: json.dumps(value, ensure_ascii=False) for key, value in keys.items()}
    folder = study.folder.rstrip("/")  # an object store would look for two slashes
    overrides = [f"{key}={value.replace(FOLDER_MARK, folder)}" for key, value in written.items()]
    config = load_config(study.base, overrides)
    missing = [split for split in ("validation", "test") if not _has(config, split)]
    if missing:
        raise ConfigError(
            f"{study.base}: data.{missing[0]}: missing; a study scores its runs with it"
        )
    name = f"{combination.key}_seed{seed}_{_digest(study, config)}"
    # Runs that need the same data share it.
    uris = {
        "run": storage.join(study.folder, "runs", name),
        "data": storage.join(study.folder, "data", data_digest(config)),
    }
    config = config.model_copy(
        update={part: getattr(config, part).model_copy(update={"uri": uris[part]}) for part in uris}
    )
    config = with_absolute_paths(config, on_cluster=bool(cluster_address(config)))
    return PlannedRun(name, combination, seed, config)


def _has(config: Config, split: str) -> bool:
    data = config.data
    return bool(data.synthetic or data.inflected or getattr(data, split))


def _digest(study: TrainingStudy, config: Config) -> str:
    """Of what decides a run's result: its settings, and how the word vectors are made that it
    starts from. What files hold is `unchanged`'s to say; where the study's folder lies
    does not matter.
    """
    values = with_old_names(config.model_dump(mode="json"))
    for key in (*keys_marked(Config, NO_RESULT), *(_KEPT if config.checkpoint.keep_best else ())):
        *above, name = key.split(".")
        section: Any = values
        for part in above:
            section = section.get(part, {})  # or gone with one above it
        section.pop(name, None)
    starts = [table["pretrained"] for table in values["embedding"]["tables"].values() if table]
    files = {posixpath.basename(start[key] or "")
             for start in starts if start for key in ("uri", "words")}  # fmt: skip
    made = [
        vectors.model_dump(mode="json")
        for vectors in study.word_vectors
        if posixpath.basename(vectors.output) in files
    ]
    every = config.checkpoint.every_steps
    saved_anyway = every and config.train.evaluate_every % every == 0
    training = TRAINING if saved_anyway or not config.checkpoint.keep_best else _BEST_IS_SAVED
    text = json.dumps([training, values, made], sort_keys=True)
    folder = json.dumps(study.folder.rstrip("/"))[1:-1]
    text = text.replace(f"{folder}/", f"{FOLDER_MARK}/")
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _vector_files(study: TrainingStudy, config: Config) -> list[str]:
    """The files of vectors that a run starts from, but for those that the study makes."""
    made = {
        storage.absolute(storage.join(study.folder, vectors.output))
        for vectors in study.word_vectors
    }
    tables = [config.embedding.tables.source, config.embedding.tables.target,
              config.embedding.tables.output]  # fmt: skip
    starts = [table.pretrained for table in tables if table and table.pretrained]
    files = [file for start in starts for file in (start.uri, start.words) if file]
    return sorted({file for file in files if file not in made})


def _train_and_score(config: Config, on_event: Callable[[Event], None]) -> dict[str, Any]:
    try:
        # The run's name has a digest of what decides on it: other differences are none.
        trained = train(config, force=True, on_event=on_event)
        stopped = taken_signal()  # in the last step
    except TrainingStopped as exc:
        trained, stopped = exc.result, 1
    if stopped:
        raise RunStopped(f"stopped as asked after step {trained.steps} of {config.run.uri}")
    found = evaluate(
        config, training_tokens=TRAINING_TOKENS, data_folder=trained.data_folder, on_event=on_event
    )
    data = PreparedData.read(trained.data_folder)
    lines = read_metrics(config.run.uri)
    validations = [
        (line["step"], line["validation_loss"])
        for line in lines
        if line.get("validation_loss") is not None
    ]
    device = torch.device(resolve_device(config.cluster.device))
    return {
        "measures": _measures(config, data, found, lines, dict(validations)),
        "validations": validations,
        "machine": machine(device_name(device)),
    }


def _measures(
    config: Config,
    data: PreparedData,
    found: Evaluation,
    lines: list[dict[str, Any]],
    validations: dict[int, float],
) -> dict[str, float]:
    step = found.step
    assert found.training_loss is not None
    loss = validations.get(step, math.nan)
    run_uri = config.run.uri
    manifest = read_manifest(open_checkpoints(run_uri), name_of_step(run_uri, step))
    values = sum(
        math.prod(info.shape)
        for name, info in manifest.tensors.items()
        if name.startswith("model.") or name.endswith(".weight")
    )
    speed, step_tokens = speed_of(lines)
    train = data.splits["train"]
    return {
        "validation_perplexity": math.exp(min(loss, 700.0)),  # beyond that a float overflows
        "bleu": found.bleu,
        "chrf": found.chrf,
        "gap": loss - found.training_loss,
        "parameters": values,
        "tokens_per_second": speed,
        "sentences_per_second": speed * train.sentences / train.target_tokens,
        "epochs": config.train.max_steps * step_tokens / train.target_tokens,
        "best_step": step,
    }


def speed_of(lines: list[dict[str, Any]]) -> tuple[float, float]:
    """Target tokens per second (median) and per step (mean) of a run's metrics.

    NaN where the run has logged none, as when ``train.log_every`` is more than its steps: a trained
    run is not to be lost for it.
    """
    steps = [line for line in lines if "tokens_per_second" in line]
    if not steps:
        return math.nan, math.nan
    return (
        statistics.median(line["tokens_per_second"] for line in steps),
        statistics.mean(line["tokens_per_second"] * line["step_seconds"] for line in steps),
    )


def _read(uri: str) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(storage.read_text(uri))
    except FileNotFoundError:
        return None
    return values
