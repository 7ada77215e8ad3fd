"""Trains and scores the runs of a study; what is done already is not done again."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from dist_embed.checkpoint.catalogue import name_of_step, open_checkpoints, read_manifest
from dist_embed.cluster.launch import cluster_address, launch, stop_seconds
from dist_embed.cluster.preparation import data_digest, ensure_data, with_absolute_paths
from dist_embed.cluster.work import EVALUATE, TRAIN
from dist_embed.config.errors import RunStopped
from dist_embed.config.load import load_config
from dist_embed.config.schema import Config
from dist_embed.observe.events import Event
from dist_embed.observe.metrics import read_metrics
from dist_embed.storage import uri as storage
from dist_embed.study.plan import Combination, TrainingStudy, combinations, overrides_of
from dist_embed.study.word_vectors import ensure_word_vectors
from dist_embed.train.run_folder import check_run_folder, fingerprint

Say = Callable[[str], None]
# Stands for the study's folder in values of keys.
FOLDER_MARK = "{study}"


@dataclass(frozen=True)
class Outcome:
    """One run of a study.

    Attributes:
        levels: factor to level.
        seed: of the run.
        fingerprint: of what decides its steps, to tell whether it is still the same run.
        measures: see `dist_embed.study.plan.MEASURES`; without ``steps_to_reference``.
        validations: steps and validation losses.
    """

    levels: dict[str, str]
    seed: int
    fingerprint: str
    measures: dict[str, float]
    validations: list[tuple[int, float]]


def run_study(study: TrainingStudy, on_event: Callable[[Event], None]) -> list[Outcome]:
    """Train and score every run that has no result yet; returns all results.

    Raises:
        UserError: a configuration that cannot be.
        RunFailed, RunStopped: a run failed, or was asked to stop; the same call goes on there.
    """

    def say(text: str) -> None:
        on_event({"kind": "line", "text": text})

    for vectors in study.word_vectors:
        ensure_word_vectors(vectors, study.folder, say)
    outcomes = []
    chosen = [(c, seed) for c in combinations(study) for seed in study.seeds]
    for number, (combination, seed) in enumerate(chosen, start=1):
        name = f"{combination.key}_seed{seed}"
        config = config_of(study, combination, seed)
        kept = storage.join(study.folder, "results", f"{name}.json")
        outcome = _read(kept)
        if outcome is None or outcome.fingerprint != fingerprint(config):
            say(f"run {number} of {len(chosen)}: {name}")
            outcome = _train_and_score(config, dict(combination), seed, on_event)
            storage.write_text(kept, json.dumps(asdict(outcome), indent=1) + "\n")
        outcomes.append(outcome)
    return outcomes


def config_of(study: TrainingStudy, combination: Combination, seed: int) -> Config:
    """The configuration of one run. Raises ConfigError."""
    name = f"{combination.key}_seed{seed}"
    keys = overrides_of(study, combination) | {
        "run.uri": storage.join(study.folder, "runs", name), "run.seed": seed,
    }  # fmt: skip
    written = {key: json.dumps(value, ensure_ascii=False) for key, value in keys.items()}
    overrides = [
        f"{key}={value.replace(FOLDER_MARK, study.folder)}" for key, value in written.items()
    ]
    config = load_config(study.base, overrides)
    # Runs that need the same data share it.
    data = storage.join(study.folder, "data", data_digest(config))
    config = config.model_copy(update={"data": config.data.model_copy(update={"uri": data})})
    return with_absolute_paths(config, on_cluster=bool(cluster_address(config)))


def _train_and_score(
    config: Config, levels: dict[str, str], seed: int, on_event: Callable[[Event], None]
) -> Outcome:
    data = ensure_data(config, lambda text: on_event({"kind": "line", "text": text}))
    check_run_folder(config, force=False)
    result = launch(
        TRAIN, config, {}, vocabulary_size=data.vocabulary_size, on_event=on_event,
        stop_seconds=stop_seconds(config),
    )  # fmt: skip
    if result["stopped"]:
        raise RunStopped(f"stopped as asked after step {result['steps']} of {config.run.uri}")
    found = launch(
        EVALUATE, config, {"split": "test", "step": None},
        vocabulary_size=data.vocabulary_size, on_event=on_event,
    )  # fmt: skip
    lines = read_metrics(config.run.uri)
    validations = [
        (line["step"], line["validation_loss"])
        for line in lines
        if line.get("validation_loss") is not None
    ]
    measures = _measures(config.run.uri, found, lines, dict(validations))
    return Outcome(levels, seed, fingerprint(config), measures, validations)


def _measures(
    run_uri: str,
    found: dict[str, Any],
    lines: list[dict[str, Any]],
    validations: dict[int, float],
) -> dict[str, float]:
    step = int(found["step"])
    loss = validations[step]
    before = max((s for s in validations if s < step), default=0)
    trained = [line["nll"] for line in lines if "nll" in line and before < line["step"] <= step]
    manifest = read_manifest(open_checkpoints(run_uri), name_of_step(run_uri, step))
    values = sum(
        math.prod(info.shape)
        for name, info in manifest.tensors.items()
        if name.startswith("model.") or name.endswith(".weight")
    )
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    return {
        "validation_perplexity": math.exp(loss),
        "bleu": found["bleu"],
        "chrf": found["chrf"],
        "gap": loss - statistics.mean(trained),
        "parameters": values,
        "tokens_per_second": statistics.median(speeds),
        "best_step": step,
    }


def _read(uri: str) -> Outcome | None:
    try:
        values = json.loads(storage.read_text(uri))
    except FileNotFoundError:
        return None
    values["validations"] = [tuple(pair) for pair in values["validations"]]
    return Outcome(**values)
