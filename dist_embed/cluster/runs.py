"""What happens around a task on the launching side: preparing data and opening run folders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from dist_embed.checkpoint.manager import list_checkpoints
from dist_embed.config.errors import UserError
from dist_embed.config.load import config_from_dict, config_to_yaml, differences
from dist_embed.config.schema import Config, CorpusSection
from dist_embed.data.corpus import ParallelText
from dist_embed.data.encoding import LengthRule
from dist_embed.data.prepare import TokenizerRecipe, prepare_data, tokenizer_name
from dist_embed.data.synthetic import SyntheticLanguage
from dist_embed.data.token_shards import INDEX_NAME, SIDES, PreparedData
from dist_embed.storage import uri as storage

CONFIG_NAME = "config.yaml"
Say = Callable[[str], None]

# A run may go on with other values of these: they do not change what a step does. (max_steps is
# where a cosine or linear schedule ends: a longer run goes on at that schedule's rate.)
CHANGEABLE = (
    "run.uri", "data.uri", "data.num_processes", "model.logits_block_mib", "train.max_steps",
    "train.log_every", "train.evaluate_every", "train.translate_every", "train.max_skipped_steps",
    "search.", "checkpoint.", "cluster.",
)  # fmt: skip
# Do not decide what prepared data holds.
_NOT_CONTENT = ("uri", "num_processes")


def ensure_data(config: Config, say: Say, *, force: bool = False) -> PreparedData:
    """The prepared data of ``config``; prepared now where it is not there yet.

    Raises:
        UserError: the folder holds data prepared with other settings (unless ``force``).
    """
    settings = _data_settings(config)
    index = storage.join(config.data.uri, INDEX_NAME)
    if not force and storage.exists(index):
        data = PreparedData.read(config.data.uri)
        different = [
            f"{key}: {data.settings.get(key)!r} there, {settings.get(key)!r} here"
            for key in sorted({*data.settings, *settings})
            if data.settings.get(key) != settings.get(key)
        ]
        if different:
            raise UserError(
                f"{config.data.uri} holds data prepared with other settings:\n  "
                + "\n  ".join(different)
                + "\nGive data.uri another folder, or prepare it again: "
                "dist-embed prepare CONFIG --force"
            )
        return data
    data = prepare_data(
        config.data.uri,
        _corpora(config, say),
        TokenizerRecipe(
            config.tokenizer.kind,
            config.tokenizer.vocab_size,
            config.tokenizer.min_count,
            config.tokenizer.shared,
            config.tokenizer.lowercase,
            config.tokenizer.split_punctuation,
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


def open_run(config: Config, *, force: bool) -> None:
    """Write the configuration and the tokenizers into the run's folder.

    Raises:
        UserError: the folder holds a run with another configuration (unless ``force``, which goes
            on from its newest checkpoint with the new one).
    """
    uri = storage.join(config.run.uri, CONFIG_NAME)
    if storage.exists(uri) and not force:
        different = [
            line
            for line in differences(read_run_config(config.run.uri), config)
            if not line.startswith(CHANGEABLE)
        ]
        if different and list_checkpoints(config.run.uri):
            raise UserError(
                f"{config.run.uri} holds a run with another configuration:\n  "
                + "\n  ".join(different)
                + "\nGive run.uri another folder, or go on from its newest checkpoint with the "
                "new values: --force"
            )
    storage.write_text(uri, config_to_yaml(config))
    for side in SIDES:
        text = storage.read_text(storage.join(config.data.uri, tokenizer_name(side)))
        storage.write_text(storage.join(config.run.uri, tokenizer_name(side)), text)


def read_run_config(run_uri: str) -> Config:
    """The configuration of the run in a folder; ``run.uri`` is where it was found.

    Raises:
        UserError: no run lies there.
    """
    uri = storage.join(run_uri, CONFIG_NAME)
    try:
        values: Any = yaml.safe_load(storage.read_text(uri))
        # The folder may have been moved or copied, with the data in it.
        below = values["data"]["uri"].removeprefix(values["run"]["uri"])
        if below != values["data"]["uri"] and below.startswith("/"):
            values["data"]["uri"] = run_uri.rstrip("/") + below
        values["run"]["uri"] = run_uri
    except FileNotFoundError:
        raise UserError(f"no run in {run_uri!r}: {uri} does not exist") from None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as exc:
        raise UserError(f"{uri} is not a run's configuration: {exc!r}") from exc
    return config_from_dict(values, uri)


def _data_settings(config: Config) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    data = config.data.model_dump()
    for name in ("train", "validation", "test", "synthetic"):
        for key, value in (data.pop(name) or {}).items():
            settings[f"data.{name}.{key}"] = value
    settings |= {f"data.{key}": v for key, v in data.items() if key not in _NOT_CONTENT}
    return settings | {f"tokenizer.{k}": v for k, v in config.tokenizer.model_dump().items()}


def _corpora(config: Config, say: Say) -> dict[str, ParallelText]:
    if config.data.synthetic is not None:
        return _generate(config, say)
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


def _generate(config: Config, say: Say) -> dict[str, ParallelText]:
    """Write the synthetic corpora as text files, where a user can look at them."""
    wanted = config.data.synthetic
    assert wanted is not None
    say(f"generating {wanted.sentences:,} synthetic sentence pairs")
    language = SyntheticLanguage(wanted.nouns, wanted.verbs, wanted.adjectives, wanted.seed)
    sizes = {"train": wanted.sentences, "validation": wanted.held_out, "test": wanted.held_out}
    corpora = {}
    for name, count in sizes.items():
        uris = [storage.join(config.data.uri, "text", f"{name}.{side}.txt") for side in SIDES]
        with storage.open_file(uris[0], "wb") as left, storage.open_file(uris[1], "wb") as right:
            for source, target in language.pairs(count, name, wanted.seed):
                left.write(f"{source}\n".encode())
                right.write(f"{target}\n".encode())
        corpora[name] = ParallelText((uris[0],), (uris[1],))
    return corpora
