"""Trains and scores the runs of a study; what is done already is not done again, what does not fit
is skipped, and a run that fails ends no other.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import posixpath
import statistics
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from dist_embed.api.data import prepare
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
from dist_embed.errors import ConfigError, DistEmbedError, RunStopped, UserError
from dist_embed.observe.events import Event
from dist_embed.parallel.device import device_name, resolve_device
from dist_embed.parallel.stop import taken_signal
from dist_embed.run.metrics import read_metrics
from dist_embed.section import NO_RESULT, keys_marked
from dist_embed.storage import uri as storage
from dist_embed.storage.parquet import ParquetError
from dist_embed.study import unchanged
from dist_embed.study.estimate import Estimate, Planner
from dist_embed.study.measured import figures_of
from dist_embed.study.plan import Combination, combinations, growth, overrides_of
from dist_embed.study.results import described, read_results, write_results
from dist_embed.study.scaling import grown, set_efficiencies, simulated_rows
from dist_embed.study.schema import SCALING, ScalingStudy, Study, TrainingStudy, WordVectors
from dist_embed.study.word_vectors import ensure_word_vectors
from dist_embed.training.results import Evaluation, TrainingStopped, TrainResult
from dist_embed.training.step_seconds import threads_per_worker

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
        measures: see `dist_embed.study.schema.MEASURES`; without ``steps_to_reference``. None of a
            run that was not made, and in a study of scaling.
        validations: steps and validation losses.
        machine: where it ran, see `dist_embed.bench.report.machine`; empty: it was not made.
        row: its columns in the file of results, see `dist_embed.study.results`.
    """

    levels: dict[str, str]
    seed: int
    measures: dict[str, float]
    validations: list[tuple[int, float]]
    machine: dict[str, Any]
    row: dict[str, Any] = field(default_factory=dict)

    @property
    def lacks(self) -> str | None:
        """Why there are no figures of it, in a line; None where there are."""
        if self.row.get("state") not in ("failed", "skipped"):
            return None
        # A failure of a worker ends with its error, behind a traceback.
        reason = [line for line in self.row["reason"].splitlines() if line.strip()] or ["no reason"]
        told = reason[-1] if self.row["state"] == "failed" else reason[0]
        named = ", ".join([*self.levels.values(), f"seed {self.seed}"])
        return f"{named}: {self.row['state']}: {told.strip()}"


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


def run_study(study: Study, on_event: Callable[[Event], None]) -> list[Outcome]:
    """Train and score every run that has no result yet; returns all results. A run that was scored
    in another way is scored again, without being trained where its checkpoints are there. One that
    failed before is tried again.

    Seed after seed: what the machine does meanwhile then falls on all combinations. Before the
    first and after each the file of results is written, see `dist_embed.study.results`.

    Raises:
        UserError: a configuration that cannot be, a folder of another study, or files that have
            changed since figures were made from them; said before anything is trained.
        RunStopped: it was asked to stop; the same call goes on there.
    """

    def say(text: str) -> None:
        on_event({"kind": "line", "text": text})

    runs, planner = planned_runs(study), Planner(study.machine)
    _check_folder(study)
    simulated = simulated_rows(study) if isinstance(study, ScalingStudy) else []
    rows = [_row_of(run, planner.estimate(run.config)) for run in runs]
    for vectors in _word_vectors(study):
        ensure_word_vectors(vectors, study.folder, say)
    unchanged.check_corpora([run.config for run in runs], say)
    kept = {run.name: storage.join(study.folder, "results", f"{run.name}.json") for run in runs}
    started_from = {run.name: _vector_files(study, run.config) for run in runs}
    # Written before a run begins, which may be interrupted.
    notes = {run.name: storage.join(study.folder, "results", f"{run.name}.from") for run in runs}
    begun_from = {name: _read(uri) for name, uri in notes.items()}
    for name, recorded in begun_from.items():
        unchanged.check(recorded, started_from[name], f"the run {name}", say)
    # By name of the run: its result, or its state and the reason where there is none.
    made = _not_made_before(study.folder) | {
        name: values for name, uri in kept.items() if _is_settled(values := _read(uri) or {})
    }

    def note() -> None:
        for run, row in zip(runs, rows, strict=True):
            _fill(row, made.get(run.name, {}))
        if isinstance(study, ScalingStudy):
            set_efficiencies([*rows, *simulated])
        write_results(study.folder, [*rows, *simulated])

    note()
    # The same run may stand for two combinations: of strong and weak scaling.
    waiting = {run.name for run in runs if not _is_settled(made.get(run.name, {}))}
    for number, run in enumerate(runs, start=1):
        if run.name not in waiting:
            continue
        waiting.remove(run.name)
        say(f"run {number} of {len(runs)}: {run.name}")
        if started_from[run.name] and begun_from[run.name] is None:
            recorded = unchanged.record(started_from[run.name], say)
            storage.write_text(notes[run.name], json.dumps(recorded, indent=1) + "\n")
        found = made[run.name] = _made(study, run, planner, on_event)
        if _is_settled(found):
            storage.write_text(kept[run.name], json.dumps(found, indent=1) + "\n")
        note()
        if said := _outcome(run, rows[number - 1], found).lacks:
            say(said)
    return [_outcome(run, row, made[run.name]) for run, row in zip(runs, rows, strict=True)]


def _not_made_before(folder: str) -> dict[str, dict[str, Any]]:
    """By name the runs that an earlier call has skipped, or that failed, and why: so they stay in
    the file of results until their turn.
    """
    with suppress(FileNotFoundError, ParquetError):
        return {
            row["name"]: {"state": row["state"], "reason": row["reason"]}
            for row in read_results(folder)
            if row["state"] in ("failed", "skipped")
        }
    return {}


def _row_of(run: PlannedRun, estimate: Estimate) -> dict[str, Any]:
    """The columns of a run whose turn has not come yet."""
    row = {"name": run.name, "state": "waiting", **described(run.config, run.combination)}
    cluster = run.config.cluster
    if not cluster_address(run.config) and resolve_device(cluster.device) == "cpu":
        threads = cluster.max_workers * threads_per_worker(run.config)
        row["oversubscribed"] = threads > len(os.sched_getaffinity(0))
    else:
        row["threads_per_worker"] = None
    return row | estimate.columns()


def _fill(row: dict[str, Any], made: dict[str, Any]) -> None:
    """Put what a run came to into its row; nothing of one that has not been looked at."""
    if not _is_settled(made):
        row |= made
        return
    there = made["machine"]
    # The plan is the one before the run: after it more would be known. Earlier versions kept none.
    row |= made.get("planned", {}) | made.get("figures", {})
    row |= {key: there.get(key) for key in ("device", "cores", "memory_gib", "platform", "python",
                                            "versions")}  # fmt: skip
    row |= {"state": "done", "reason": None, "measures": made["measures"]}


def _outcome(run: PlannedRun, row: dict[str, Any], made: dict[str, Any]) -> Outcome:
    """Of a run that has been looked at, with its row."""
    levels = dict(run.combination)
    if not _is_settled(made):
        return Outcome(levels, run.seed, {}, [], {}, row)
    validations = [(step, loss) for step, loss in made["validations"]]
    return Outcome(levels, run.seed, made["measures"], validations, made["machine"], row)


def _is_settled(made: dict[str, Any]) -> bool:
    return made.get("scoring") == SCORING


def _made(
    study: Study, run: PlannedRun, planner: Planner, on_event: Callable[[Event], None]
) -> dict[str, Any]:
    """A run's result; or its state and the reason where there is none. Either with its plan."""
    planned: dict[str, Any] = {}
    try:
        estimate = _estimate(run.config, planner, on_event)
        planned = estimate.columns()
        if estimate.fits is False:
            return {"state": "skipped", "reason": estimate.why_not(), **planned}
        make = _train_and_score if isinstance(study, TrainingStudy) else _train_and_measure
        return make(run.config, on_event) | {"scoring": SCORING, "planned": planned}
    except RunStopped:
        raise
    except DistEmbedError as exc:
        reason = str(exc) or type(exc).__name__
    except Exception:  # whatever it is, it ends no other run; its last line names the type
        reason = traceback.format_exc()
    return {"state": "failed", "reason": reason, **planned}


def _estimate(config: Config, planner: Planner, on_event: Callable[[Event], None]) -> Estimate:
    """The plan by which a run is tried or skipped."""
    found = planner.estimate(config)
    if found.fits is False and not found.plan.prepared and not config.data.words:
        prepare(config, on_event=on_event)  # the text may have fewer words than it may have
        found = planner.estimate(config)
    return found


def _check_folder(study: Study) -> None:
    """Refuse a folder with the results of another study; what earlier versions left is believed."""
    uri = storage.join(study.folder, "study.json")
    own, there = {"kind": study.kind, "title": study.title}, _read(uri)
    if there is None:
        storage.write_text(uri, json.dumps(own, ensure_ascii=False) + "\n")
    elif there != own:
        raise UserError(
            f"folder: {study.folder!r} has the results of another study, {there.get('title')!r} "
            f"(kind: {there.get('kind')}): give this one a folder of its own, or, where it is the "
            f"same one with another title, remove {uri}"
        )


def planned_runs(study: Study) -> list[PlannedRun]:
    """All runs, the first seed's first. Raises ConfigError."""
    return [
        _planned(study, combination, seed)
        for seed in study.seeds
        for combination in combinations(study)
    ]


def _planned(study: Study, combination: Combination, seed: int) -> PlannedRun:
    keys = overrides_of(study, combination) | {"run.uri": study.folder, "run.seed": seed}
    written = {key: json.dumps(value, ensure_ascii=False) for key, value in keys.items()}
    folder = study.folder.rstrip("/")  # an object store would look for two slashes
    overrides = [f"{key}={value.replace(FOLDER_MARK, folder)}" for key, value in written.items()]
    config = grown(load_config(study.base, overrides), growth(study, combination))
    missing = [split for split in ("validation", "test") if not _has(config, split)]
    if missing and isinstance(study, TrainingStudy):
        raise ConfigError(
            f"{study.base}: data.{missing[0]}: missing; a study scores its runs with it"
        )
    name = f"{_key(study, combination)}_seed{seed}_{_digest(study, config)}"
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


def _key(study: Study, combination: Combination) -> str:
    """Of a run's name. Strong and weak scaling begin with the same run, which has one."""
    if isinstance(study, TrainingStudy):
        return combination.key
    return Combination({n: level for n, level in combination.items() if n != SCALING}).key


def _has(config: Config, split: str) -> bool:
    data = config.data
    return bool(data.synthetic or data.inflected or getattr(data, split))


def _digest(study: Study, config: Config) -> str:
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
        for vectors in _word_vectors(study)
        if posixpath.basename(vectors.output) in files
    ]
    every = config.checkpoint.every_steps
    saved_anyway = every and config.train.evaluate_every % every == 0
    training = TRAINING if saved_anyway or not config.checkpoint.keep_best else _BEST_IS_SAVED
    text = json.dumps([training, values, made], sort_keys=True)
    folder = json.dumps(study.folder.rstrip("/"))[1:-1]
    text = text.replace(f"{folder}/", f"{FOLDER_MARK}/")
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _word_vectors(study: Study) -> list[WordVectors]:
    return [] if isinstance(study, ScalingStudy) else study.word_vectors


def _vector_files(study: Study, config: Config) -> list[str]:
    """The files of vectors that a run starts from, but for those that the study makes."""
    made = {
        storage.absolute(storage.join(study.folder, vectors.output))
        for vectors in _word_vectors(study)
    }
    tables = [config.embedding.tables.source, config.embedding.tables.target,
              config.embedding.tables.output]  # fmt: skip
    starts = [table.pretrained for table in tables if table and table.pretrained]
    files = [file for start in starts for file in (start.uri, start.words) if file]
    return sorted({file for file in files if file not in made})


def _trained(config: Config, on_event: Callable[[Event], None]) -> TrainResult:
    """Train to the end. Raises RunStopped where it was asked to stop, also in the last step."""
    try:
        # The run's name has a digest of what decides on it: other differences are none.
        trained = train(config, force=True, on_event=on_event)
        stopped = taken_signal()  # in the last step
    except TrainingStopped as exc:
        trained, stopped = exc.result, 1
    if stopped:
        raise RunStopped(f"stopped as asked after step {trained.steps} of {config.run.uri}")
    return trained


def _train_and_measure(config: Config, on_event: Callable[[Event], None]) -> dict[str, Any]:
    data = PreparedData.read(_trained(config, on_event).data_folder)
    return _result(config, data, read_metrics(config.run.uri))


def _train_and_score(config: Config, on_event: Callable[[Event], None]) -> dict[str, Any]:
    trained = _trained(config, on_event)
    found = evaluate(
        config, training_tokens=TRAINING_TOKENS, data_folder=trained.data_folder, on_event=on_event
    )
    data = PreparedData.read(trained.data_folder)
    lines = read_metrics(config.run.uri)
    result = _result(config, data, lines)
    validations = dict(result["validations"])
    result["measures"] = _measures(config, data, found, lines, validations)
    result["figures"] |= {"test_bleu": found.bleu, "validation_loss": validations.get(found.step)}
    return result


def _result(config: Config, data: PreparedData, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What is kept of a run whose checkpoint is not scored."""
    validations = [
        (line["step"], line["validation_loss"])
        for line in lines
        if line.get("validation_loss") is not None
    ]
    device = torch.device(resolve_device(config.cluster.device))
    words = {f"{side}_words": size for side, size in data.vocabulary_size.items()}
    return {
        "measures": {},
        "validations": validations,
        "machine": machine(device_name(device)),
        "figures": figures_of(lines) | words,
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
