"""The runs that a study asks for: the configuration of each, and the name that it is known by."""

from __future__ import annotations

import hashlib
import json
import posixpath
from dataclasses import dataclass
from typing import Any

from dist_embed.cluster.launch import cluster_address
from dist_embed.config.load import load_config
from dist_embed.config.paths import with_absolute_paths
from dist_embed.config.renamed import with_old_names
from dist_embed.config.schema import Config
from dist_embed.data.fitting import data_digest
from dist_embed.errors import ConfigError
from dist_embed.section import NO_RESULT, keys_marked
from dist_embed.storage import uri as storage
from dist_embed.study.plan import Combination, combinations, growth, overrides_of
from dist_embed.study.scaling import grown
from dist_embed.study.schema import SCALING, ScalingStudy, Study, TrainingStudy, WordVectors

# Stands for the study's folder in values of keys.
FOLDER_MARK = "{study}"
# How runs are trained: to be changed where the same settings train another run. Since "units" steps
# are of mixed lengths.
TRAINING = "units"
# Since then the best validation is followed by a checkpoint, which is then scored: another one than
# before where those of validations were not saved anyway.
_BEST_IS_SAVED = "units, the best saved"
# A run's result does not depend on these where the best checkpoint, which is scored, is kept.
_KEPT = ("checkpoint.keep_last", "checkpoint.keep_best", "checkpoint.keep_every")


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
        for vectors in word_vectors_of(study)
        if posixpath.basename(vectors.output) in files
    ]
    every = config.checkpoint.every_steps
    saved_anyway = every and config.train.evaluate_every % every == 0
    training = TRAINING if saved_anyway or not config.checkpoint.keep_best else _BEST_IS_SAVED
    text = json.dumps([training, values, made], sort_keys=True)
    folder = json.dumps(study.folder.rstrip("/"))[1:-1]
    text = text.replace(f"{folder}/", f"{FOLDER_MARK}/")
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def word_vectors_of(study: Study) -> list[WordVectors]:
    """Those that it makes before its runs."""
    return [] if isinstance(study, ScalingStudy) else study.word_vectors


def vector_files(study: Study, config: Config) -> list[str]:
    """The files of vectors that a run starts from, but for those that the study makes."""
    made = {
        storage.absolute(storage.join(study.folder, vectors.output))
        for vectors in word_vectors_of(study)
    }
    tables = [config.embedding.tables.source, config.embedding.tables.target,
              config.embedding.tables.output]  # fmt: skip
    starts = [table.pretrained for table in tables if table and table.pretrained]
    files = [file for start in starts for file in (start.uri, start.words) if file]
    return sorted({file for file in files if file not in made})
