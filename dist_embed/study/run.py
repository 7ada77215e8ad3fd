"""Makes the runs of a study; what is done already is not done again, what does not fit is skipped,
and a run that fails ends no other.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from dist_embed.api.data import prepare
from dist_embed.cluster.launch import cluster_address
from dist_embed.config.schema import Config
from dist_embed.errors import DistEmbedError, RunStopped, UserError
from dist_embed.observe.events import Event
from dist_embed.parallel.device import device_name
from dist_embed.storage import uri as storage
from dist_embed.storage.parquet import ParquetError
from dist_embed.storage.trials import check_writable
from dist_embed.study import unchanged
from dist_embed.study.estimate import Estimate, Planner
from dist_embed.study.kept import read_files, read_kept, read_result
from dist_embed.study.outcome import Outcome
from dist_embed.study.planned import PlannedRun, planned_runs, vector_files, word_vectors_of
from dist_embed.study.results import SCHEMA, described, read_results, write_results
from dist_embed.study.scaling import set_efficiencies, simulated_rows
from dist_embed.study.schema import ScalingStudy, Study, TrainingStudy
from dist_embed.study.scored import train_and_measure, train_and_score
from dist_embed.study.word_vectors import ensure_word_vectors
from dist_embed.training.step_seconds import threads_per_worker

# How runs are scored: to be raised where the same run gets other figures, so that those of before
# and after do not share a mean. 0.2.0 did not say; since 2 blank lines have a blank translation,
# since 3 an unknown word is one token that matches nothing, and both sides have the run's form and
# lower case; since 4 the training pairs whose loss is told are of mixed lengths.
SCORING = 4
_WITHOUT_NOTE = "the files that the run began from are believed to be what they were"


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
    kept = {run.name: storage.join(study.folder, "results", f"{run.name}.json") for run in runs}
    # By name of the run: its result, or its state and the reason where there is none.
    made = _not_made_before(study.folder) | {
        name: values for name, uri in kept.items() if (values := read_result(uri, SCORING))
    }
    waiting = {run.name for run in runs if not _is_settled(made.get(run.name, {}))}
    rows = [_row_of(run, planner if run.name in waiting else None) for run in runs]
    for vectors in word_vectors_of(study):
        ensure_word_vectors(vectors, study.folder, say)
    unchanged.check_corpora([run.config for run in runs], say)
    started_from = {run.name: vector_files(study, run.config) for run in runs}
    # Written before a run begins, which may be interrupted.
    notes = {run.name: storage.join(study.folder, "results", f"{run.name}.from") for run in runs}
    begun_from = {
        name: read_files(uri, there, _WITHOUT_NOTE)
        for name, uri in notes.items()
        if (there := read_kept(uri, _WITHOUT_NOTE)) is not None
    }
    for name, recorded in begun_from.items():
        unchanged.check(recorded, started_from[name], f"the run {name}", say)

    def note() -> None:
        for run, row in zip(runs, rows, strict=True):
            _fill(row, run.config, made.get(run.name, {}))
        if isinstance(study, ScalingStudy):
            set_efficiencies([*rows, *simulated])
        write_results(study.folder, [*rows, *simulated])

    note()
    for number, run in enumerate(runs, start=1):
        if run.name not in waiting:  # or no more: weak scaling begins with a run of strong scaling
            continue
        waiting.remove(run.name)
        say(f"run {number} of {len(runs)}: {run.name}")
        if started_from[run.name] and run.name not in begun_from:
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


def _row_of(run: PlannedRun, planner: Planner | None) -> dict[str, Any]:
    """All columns of a run before what it came to; with a plan where it is yet to be made."""
    row = dict.fromkeys(SCHEMA.names) | described(run.config, run.combination)
    row |= {"name": run.name, "state": "waiting"}
    return row | (planner.estimate(run.config).columns() if planner else {})


def _threads(config: Config, machine: dict[str, Any]) -> dict[str, Any]:
    """The columns that say how many threads there were on the machine of a result; none where it
    was a GPU or a cluster, of which nothing is known.
    """
    on_cpu = config.cluster.device == "cpu" or machine["device"] == device_name(torch.device("cpu"))
    if cluster_address(config) or not on_cpu:
        return {}
    cores = machine["cores"]
    threads = threads_per_worker(config, cores)
    all_threads = config.cluster.max_workers * threads
    return {"threads_per_worker": threads, "oversubscribed": all_threads > cores}


def _fill(row: dict[str, Any], config: Config, made: dict[str, Any]) -> None:
    """Put what a run came to into its row; nothing of one that has not been looked at."""
    if not _is_settled(made):
        row |= made
        return
    there = made["machine"]
    # Those of the machine that it was made on, which may be another. Earlier versions did not say.
    row |= _threads(config, there)
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
        make = train_and_score if isinstance(study, TrainingStudy) else train_and_measure
        found = make(run.config, on_event) | {"scoring": SCORING, "planned": planned}
        found["figures"] |= _threads(run.config, found["machine"])
        return found
    except RunStopped:
        raise
    except DistEmbedError as exc:
        reason = str(exc) or type(exc).__name__
    except Exception:  # whatever it is, it ends no other run; its last line names the type
        reason = traceback.format_exc()
    return {"state": "failed", "reason": reason, **planned}


def _estimate(config: Config, planner: Planner, on_event: Callable[[Event], None]) -> Estimate:
    """The plan by which a run is tried or skipped, of prepared data, which its training needs
    anyway: the first run on some data is then planned as those after it are, and a text may have
    fewer words than it may have. Words without a text are as many as they are said to be, and are
    not made where they do not fit.
    """
    found = planner.estimate(config)
    if not found.plan.prepared and not (found.fits is False and config.data.words):
        prepare(config, on_event=on_event)
        found = planner.estimate(config)
    return found


def _check_folder(study: Study) -> None:
    """Refuse a folder that cannot be written, or has the results of another study; what earlier
    versions left is believed.
    """
    check_writable(study.folder, "folder")
    uri = storage.join(study.folder, "study.json")
    own = {"kind": study.kind, "title": study.title}
    there = read_kept(uri, "the folder is believed to be this study's")
    if there is None:
        storage.write_text(uri, json.dumps(own, ensure_ascii=False) + "\n")
    elif there != own:
        raise UserError(
            f"folder: {study.folder!r} has the results of another study, {there.get('title')!r} "
            f"(kind: {there.get('kind')}): give this one a folder of its own, or, where it is the "
            f"same one with another title, remove {uri}"
        )
