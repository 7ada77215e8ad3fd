"""What comes before the workers, on the launching side: absolute paths and prepared data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dist_embed.config.errors import UserError
from dist_embed.config.schema import (
    Config,
    CorpusSection,
    DataSection,
    InflectedSection,
    SyntheticSection,
    TokenizerSection,
)
from dist_embed.data.corpus import ParallelText
from dist_embed.data.encoding import LengthRule
from dist_embed.data.inflected import InflectedLanguage
from dist_embed.data.lexicon import ensure_lexicon
from dist_embed.data.prepare import prepare_data
from dist_embed.data.synthetic import SyntheticLanguage
from dist_embed.data.token_shards import INDEX_NAME, SIDES, PreparedData
from dist_embed.data.vocabulary import TokenizerRecipe
from dist_embed.storage import uri as storage

Say = Callable[[str], None]

# Do not decide what prepared data holds.
_NOT_CONTENT = ("uri", "num_processes", "lexicon_translations")


def with_absolute_paths(config: Config, *, on_cluster: bool) -> Config:
    """The configuration with local paths made absolute: workers run in folders of their own.

    Raises:
        UserError: a relative path is to be used on a cluster, where every node has another one.
    """
    files = {"run.uri": config.run.uri, "data.uri": config.data.uri}
    values = config.model_dump()
    starts = [
        (f"embedding.tables.{side}.pretrained", settings["pretrained"])
        for side, settings in values["embedding"]["tables"].items()
        if settings and settings["pretrained"]
    ]
    files |= {f"{key}.{k}": file[k] for key, file in starts for k in ("uri", "words") if file[k]}
    for key, uri in files.items():
        if on_cluster and storage.absolute(uri) != uri:
            raise UserError(
                f"{key}: {uri!r} is not allowed on a Ray cluster: its nodes have no such folder in "
                "common; give a URL (s3://…) or the absolute path of a shared folder"
            )
    values["run"]["uri"] = storage.absolute(config.run.uri)
    values["data"]["uri"] = storage.absolute(config.data.uri)
    for _, file in starts:
        for key in ("uri", "words"):
            file[key] = file[key] and storage.absolute(file[key])
    return Config.model_validate(values)


def ensure_data(config: Config, say: Say, *, force: bool = False) -> PreparedData:
    """The prepared data of ``config``; prepared now where it is not there yet.

    Raises:
        UserError: the folder holds data prepared with other settings (unless ``force``).
    """
    settings = _data_settings(config)
    if not force and storage.exists(storage.join(config.data.uri, INDEX_NAME)):
        data = PreparedData.read(config.data.uri)
        _check_settings(config, data, settings)
        if told := data.not_proven(config.data.uri):
            say(told)
    else:
        data = _prepare(config, settings, say)
    if config.data.lexicon_translations:
        ensure_lexicon(
            config.data.uri,
            data,
            translations=config.data.lexicon_translations,
            num_processes=config.data.num_processes,
            say=say,
        )
    return data


def _check_settings(config: Config, data: PreparedData, settings: dict[str, Any]) -> None:
    # Keys that came later: prepared then as their defaults prepare now.
    there = {f"tokenizer.{k}": v for k, v in TokenizerSection().model_dump().items()}
    there |= {"data.max_sentences": DataSection().max_sentences}
    there |= data.settings
    different = [
        f"{key}: {there.get(key)!r} there, {settings.get(key)!r} here"
        for key in sorted({*there, *settings})
        if there.get(key) != settings.get(key)
    ]
    if different:
        raise UserError(
            f"{config.data.uri} holds data prepared with other settings:\n  "
            + "\n  ".join(different)
            + "\nGive data.uri another folder, or prepare it again: "
            "dist-embed prepare CONFIG --force"
        )


def _prepare(config: Config, settings: dict[str, Any], say: Say) -> PreparedData:
    corpora = _corpora(config, say)
    if config.data.max_sentences:
        corpora["train"] = replace(corpora["train"], limit=config.data.max_sentences)
    data = prepare_data(
        config.data.uri,
        corpora,
        TokenizerRecipe(
            config.tokenizer.kind,
            config.tokenizer.vocab_size,
            config.tokenizer.min_count,
            config.tokenizer.shared,
            config.tokenizer.lowercase,
            config.tokenizer.split_punctuation,
            config.tokenizer.oov_buckets,
        ),
        LengthRule(config.data.max_tokens, config.data.too_long),
        settings=settings,
        num_processes=config.data.num_processes,
        shard_sentences=config.data.shard_sentences,
        say=say,
    )
    for name, split in data.splits.items():
        tokens = sum(shard.target_tokens for shard in split.shards)
        left_out = [
            f"{count:,} {what}"
            for count, what in (
                (split.dropped_empty, "dropped with an empty side"),
                (split.dropped_long, f"dropped as longer than {config.data.max_tokens} tokens"),
                (split.cut, f"cut at {config.data.max_tokens} tokens"),
            )
            if count
        ]
        say(
            f"{name}: {split.sentences:,} pairs, {tokens:,} target tokens"
            + (f" ({', '.join(left_out)})" if left_out else "")
        )
    return data


def data_digest(config: Config) -> str:
    """What tells prepared data from others: equal for configurations that can share them."""
    settings = _data_settings(config)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _data_settings(config: Config) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    data = config.data.model_dump()
    for name in ("train", "validation", "test", "synthetic", "inflected"):
        for key, value in (data.pop(name) or {}).items():
            settings[f"data.{name}.{key}"] = value
    settings |= {f"data.{key}": v for key, v in data.items() if key not in _NOT_CONTENT}
    return settings | {f"tokenizer.{k}": v for k, v in config.tokenizer.model_dump().items()}


def _corpora(config: Config, say: Say) -> dict[str, ParallelText]:
    generated = config.data.synthetic or config.data.inflected
    if generated is not None:
        return _generate(generated, config.data.uri, say)
    found = {
        "train": config.data.train,
        "validation": config.data.validation,
        "test": config.data.test,
    }
    return {name: _parallel_text(c) for name, c in found.items() if c is not None}


def _parallel_text(corpus: CorpusSection) -> ParallelText:
    def files(value: str | list[str] | None) -> tuple[str, ...]:
        return () if value is None else (value,) if isinstance(value, str) else tuple(value)

    return ParallelText(
        files(corpus.source),
        files(corpus.target),
        files(corpus.pairs),
        (corpus.source_column, corpus.target_column),
    )


def _generate(
    wanted: SyntheticSection | InflectedSection, data_uri: str, say: Say
) -> dict[str, ParallelText]:
    """Write the generated corpora as text files, where a user can look at them."""
    say(f"generating {wanted.sentences:,} synthetic sentence pairs")
    stems = (wanted.nouns, wanted.verbs, wanted.adjectives)
    language: SyntheticLanguage | InflectedLanguage = (
        InflectedLanguage(*stems, exponent=wanted.exponent, seed=wanted.seed)
        if isinstance(wanted, InflectedSection)
        else SyntheticLanguage(*stems, wanted.seed)
    )
    sizes = {"train": wanted.sentences, "validation": wanted.held_out, "test": wanted.held_out}
    corpora = {}
    for name, count in sizes.items():
        uris = [storage.join(data_uri, "text", f"{name}.{side}.txt") for side in SIDES]
        with storage.open_file(uris[0], "wb") as left, storage.open_file(uris[1], "wb") as right:
            for source, target in language.pairs(count, name, wanted.seed):
                left.write(f"{source}\n".encode())
                right.write(f"{target}\n".encode())
        corpora[name] = ParallelText((uris[0],), (uris[1],))
    return corpora
