"""Keys that had other names: what is written with them is read, and said to be called otherwise."""

from __future__ import annotations

from functools import cache
from typing import Any

from dist_embed.errors import ConfigError
from dist_embed.streams import say

# How text was read before there were settings for it.
_READING_BEFORE = {"quoting": "auto", "wrong_rows": "refuse", "max_line_bytes": 2**20}
_SAVING = ("asynchronous", "low_memory")
# A sentence of a search batch is read as so many: what was the default is today's.
_TOKENS_OF_SENTENCE = 32
_MOST_TOKENS = 10_000_000  # that `search.batch_tokens` may be


@cache
def say_once(line: str) -> None:
    """To standard error, where a process has not said it yet."""
    say(line)


def with_new_names(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Sections with today's keys, and a line for each that has another name now.

    Raises:
        ConfigError: a key is given by both names, or with a value that it could not have.
    """
    values, of_saving = _with_saving(values)
    values, of_batches = _with_batch_tokens(values)
    return values, of_saving + of_batches


def _with_saving(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    section = values.get("checkpoint")
    if not isinstance(section, dict) or not section.keys() & set(_SAVING):
        return values, []
    before = {key: section[key] for key in _SAVING if key in section}
    for key, value in before.items():
        if not isinstance(value, bool):
            raise ConfigError(f"checkpoint.{key}: {value!r} is not allowed: {_now()}")
    if "saving" in section:
        raise ConfigError(
            f"checkpoint.saving: not allowed beside checkpoint.{next(iter(before))}: {_now()}"
        )
    if before == {"asynchronous": True, "low_memory": True}:
        raise ConfigError(f"checkpoint.low_memory: true copies no table: {_now()}")
    saving = "behind" if before.get("asynchronous", True) else "waiting"
    if before.get("low_memory"):
        saving = "in_place"
    kept = {key: value for key, value in section.items() if key not in _SAVING}
    given = " and ".join(f"checkpoint.{key}={str(value).lower()}" for key, value in before.items())
    line = f"{given}: this is called checkpoint.saving={saving} now"
    return values | {"checkpoint": kept | {"saving": saving}}, [line]


def _with_batch_tokens(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    section = values.get("search")
    if not isinstance(section, dict) or "batch_sentences" not in section:
        return values, []
    now = "search.batch_tokens, the source tokens of a batch, has taken its place"
    kept = dict(section)
    sentences = kept.pop("batch_sentences")
    if type(sentences) is not int or sentences < 1:
        raise ConfigError(f"search.batch_sentences: {sentences!r} is not allowed: {now}")
    if "batch_tokens" in kept:
        raise ConfigError(f"search.batch_sentences: not allowed beside search.batch_tokens: {now}")
    tokens = min(_TOKENS_OF_SENTENCE * sentences, _MOST_TOKENS)
    line = (
        f"search.batch_sentences={sentences}: batches have a budget of tokens now, and this is "
        f"read as search.batch_tokens={tokens}"
    )
    return values | {"search": kept | {"batch_tokens": tokens}}, [line]


def _now() -> str:
    return (
        "checkpoint.asynchronous and checkpoint.low_memory are one key now, checkpoint.saving: "
        "behind, waiting or in_place"
    )


def with_old_names(values: dict[str, Any]) -> dict[str, Any]:
    """A whole configuration as it was written before keys were renamed or added and a default was
    changed: by digests of that, results of studies are known.
    """
    checkpoint, cluster = dict(values["checkpoint"]), dict(values["cluster"])
    saving = checkpoint.pop("saving")
    checkpoint |= {"asynchronous": saving == "behind", "low_memory": saving == "in_place"}
    if cluster["launcher"] == "auto":
        cluster["launcher"] = "ray"
    search = dict(values["search"])
    if search["batch_tokens"] % _TOKENS_OF_SENTENCE == 0:
        search["batch_sentences"] = search.pop("batch_tokens") // _TOKENS_OF_SENTENCE
    if search["max_source_tokens"] == 1024 and search["too_long"] == "cut":
        del search["max_source_tokens"], search["too_long"]
    data = dict(values["data"])
    if data["words"] is None:
        del data["words"]
    data |= {split: _without_reading(data[split]) for split in ("train", "validation", "test")}
    tables = values["embedding"]["tables"]
    embedding = values["embedding"] | {
        "tables": {side: _without_prefix(table) for side, table in tables.items()}
    }
    return values | {
        "checkpoint": checkpoint, "cluster": cluster, "data": data, "embedding": embedding,
        "search": search,
    }  # fmt: skip


def _without_reading(text: dict[str, Any] | None) -> dict[str, Any] | None:
    return text and {k: v for k, v in text.items() if (k, v) not in _READING_BEFORE.items()}


def _without_prefix(table: dict[str, Any] | None) -> dict[str, Any] | None:
    start = table and table["pretrained"]
    if not table or not start or start["prefix"]:
        return table
    return table | {"pretrained": {key: start[key] for key in start if key != "prefix"}}
