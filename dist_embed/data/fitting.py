"""Whether data that have been prepared are those that a configuration asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dist_embed.config.schema import Config
from dist_embed.data.block_index import has_blocks
from dist_embed.data.corpus import ParallelText
from dist_embed.data.inputs import Comparison, compare_inputs
from dist_embed.data.settings import DataSection, TokenizerSection
from dist_embed.data.token_shards import PreparedData
from dist_embed.errors import UserError
from dist_embed.observe.events import Watch
from dist_embed.section import CORPUS_FILES, NOT_PREPARED, keys_marked, known_keys

Say = Callable[[str], None]

# What tells whether text has a form; data prepared before there were any have none.
NORMALIZE = "tokenizer.normalize"


def data_digest(config: Config) -> str:
    """What tells prepared data from others: equal for configurations that can share them."""
    settings = data_settings(config)
    known = known_keys(Config)
    settings = {key: value for key, value in settings.items() if not known[key].as_before(value)}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def data_settings(config: Config) -> dict[str, Any]:
    """What of a configuration decides its prepared data, by full names of keys."""
    data = config.data.model_dump()
    settings = {
        f"data.{name}.{key}": value
        for name in ("train", "validation", "test", "synthetic", "inflected", "words")
        for key, value in (data.pop(name) or {}).items()
    }
    settings |= {f"data.{key}": value for key, value in data.items()}
    settings |= {f"tokenizer.{key}": v for key, v in config.tokenizer.model_dump().items()}
    for key in settings.keys() & keys_marked(Config, NOT_PREPARED):
        del settings[key]
    if settings[NORMALIZE] == "auto":  # fits whatever is there, and is no setting of its own
        del settings[NORMALIZE]
    return settings


def fitting(
    config: Config,
    data: PreparedData,
    corpora: dict[str, ParallelText],
    settings: dict[str, Any],
    say: Say,
    watch: Watch,
    *,
    renew: bool,
) -> PreparedData | None:
    """``data``, if they are those of the configuration; None: they are to be prepared anew.

    Args:
        config: the configuration,
        settings: its `data_settings`, and
        corpora: the files that it names; they need not be there.
        data: what has been prepared.
        say: takes what is not known of them, and what they lack.
        watch: shows how far a file has been read.
        renew: prepare again what was prepared from other files; otherwise they are refused.

    Raises UserError: they were prepared with other settings, or from other files.
    """
    _check_settings(config, data, settings)
    found = Comparison()
    if data.inputs is not None:
        found = compare_inputs(data.inputs, corpora, say, watch)
    _say_what_they_lack(config, data, say)
    if found.changed:
        changed = "the corpora have changed since:\n  " + "\n  ".join(found.changed)
        _require_renewal(config, data, settings, changed, renew=renew)
        say(f"preparing anew: {changed}")
        return None
    if corpora and data.inputs is None:
        say(
            f"{config.data.uri} does not say what it was prepared from: whether the corpora have "
            "changed since is not known; prepared into another data.uri they would say (runs that "
            "were trained on these data keep to them)"
        )
    if found.absent:
        say(
            f"whether the corpora have changed since {config.data.uri} was prepared from them is "
            f"not known: {'; '.join(found.absent)}"
        )
    if found.copied:
        said = (
            f"{len(found.copied):,} files of the corpora have another name or time than when they "
            "were prepared, and the same content"
        )
        say(said if renew else f"{said}; `dist-embed prepare CONFIG` writes it down")
        if renew:
            data = replace(data, inputs=found.now)
    return data


def _say_what_they_lack(config: Config, data: PreparedData, say: Say) -> None:
    """What an earlier version did not write."""
    if told := data.not_proven(config.data.uri):
        say(told)
    elif config.cluster.max_workers > 1 and not has_blocks(data, "train"):
        say(
            f"{config.data.uri} was prepared before parts of its shards could be read: every "
            "worker reads all of them. Prepared again, each reads its own part"
        )


def _require_renewal(
    config: Config, data: PreparedData, settings: dict[str, Any], changed: str, *, renew: bool
) -> None:
    """Raise UserError where data of which the corpora have ``changed`` are not to be replaced."""
    # Of other names they may be meant for another folder.
    names = keys_marked(Config, CORPUS_FILES)
    named = all(data.settings.get(key) == settings.get(key) for key in names)
    if renew and named:
        return
    raise UserError(
        f"{config.data.uri} holds prepared data, and {changed}\nA run that was trained on "
        "these data goes on with them alone, where the files are as they were or are moved "
        "away. For a new run give data.uri another folder, or prepare anew, which removes "
        f"these data: dist-embed prepare CONFIG{'' if named else ' --force'}"
    )


def _check_settings(config: Config, data: PreparedData, settings: dict[str, Any]) -> None:
    """Raises UserError where settings differ.

    Where it is recorded what the data were prepared from, names of corpora may: what is in them
    decides, and whether there is one of that kind.
    """

    def same(key: str) -> bool:
        if key == NORMALIZE and key not in settings:
            return True  # as the data have it
        if data.inputs is not None and key in names:
            return (there.get(key) is None) == (settings.get(key) is None)
        return bool(there.get(key) == settings.get(key))

    names = keys_marked(Config, CORPUS_FILES)
    # What a record lacks came later: prepared then as its default prepares now, or as is marked.
    sections = {"data": DataSection(), "tokenizer": TokenizerSection()}
    there = data_settings(config.model_copy(update=sections)) | {NORMALIZE: "none"}
    marked = {key: one.later for key, one in known_keys(Config).items() if one.later}
    marked = {key: later for key, later in marked.items() if key in {*there, *settings}}
    there |= {key: later.before for key, later in marked.items()} | data.settings
    different = [
        f"{key}: {there.get(key)!r} there, {settings.get(key)!r} here"
        for key in sorted({*there, *settings})
        if not same(key)
    ]
    if different:
        raise UserError(
            f"{config.data.uri} holds data prepared with other settings:\n  "
            + "\n  ".join(different)
            + "\nGive data.uri another folder, or prepare it again: "
            "dist-embed prepare CONFIG --force"
        )
