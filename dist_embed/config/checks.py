"""Combinations of settings that cannot work together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from dist_embed.config.cuda_only import problems_on_cuda, problems_without_cuda
from dist_embed.config.schema import Config
from dist_embed.data.settings import CorpusSection, WordsSection
from dist_embed.errors import ConfigError
from dist_embed.passwords import password_in
from dist_embed.vectors.settings import WITHOUT_WORDS

# As many as there are special tokens; data.tokenizer is a layer below.
LEAST_CANDIDATES = 4
_REFERENCE = re.compile(rf"\$\{{(oc\.|({'|'.join(Config.model_fields)})[.}}])")


def check(config: Config) -> None:
    """Raise `ConfigError` with every impossible combination, one a line."""
    _raise(_problems(config))


def check_written(config: Config) -> None:
    """The same for what a user has just written, and what would do nothing."""
    _raise([*_problems(config), *_without_effect(config)])


def _raise(problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        raise ConfigError("\n".join(found))


def _without_effect(config: Config) -> Iterator[str]:
    """What runs that there are may have: they can be used all the same."""
    data, every = config.data, config.train.translate_every
    if every and not (data.validation or data.synthetic or data.inflected):
        yield (
            f"train.translate_every: {every} is not allowed without data.validation, which it "
            "translates; set it to 0"
        )
    if config.train.neighbors_of and not every:
        yield (
            f"train.neighbors_of: {config.train.neighbors_of} is not allowed without "
            "train.translate_every, at which neighbours are recorded"
        )
    cluster = config.cluster
    if cluster.min_workers < cluster.max_workers:
        replace, limit = cluster.replace_seconds, cluster.timeout_seconds
        if replace >= limit:
            yield (
                f"cluster.replace_seconds: {replace:g} is not allowed with "
                f"cluster.timeout_seconds={limit:g}, after which the run ends: less than that"
            )


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """All texts of a configuration, with their dotted keys."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _texts(f"{key}.{name}" if key else name, below)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(key, one)
    elif isinstance(value, str):
        yield key, value


def _text_problems(config: Config) -> Iterator[str]:
    """References that nothing resolves any more: a script meant what they stand for. And what no
    file can be called.
    """
    texts = list(_texts("", config.model_dump()))
    for key, text in texts:
        if _REFERENCE.search(text):
            yield (
                f"{key}: {text!r} is not allowed: references are for files and overrides; give "
                "what this one stands for"
            )
    for key, text in texts:  # the first alone: data.uri has what run.uri has
        if wrong := password_in(text):
            yield f"{key}: {wrong}"
            break
    for key, text in texts:
        if "\0" in text:
            yield f"{key}: {text!r} is not allowed: it has a NUL"
            break


def _problems(config: Config) -> Iterator[str]:
    yield from _text_problems(config)
    data, model, tokenizer = config.data, config.model, config.tokenizer
    if model.width % model.heads:
        yield (
            f"model.heads: {model.heads} is not allowed: it must divide model.width={model.width}"
        )
    if model.width % 2:
        yield f"model.width: {model.width} is not allowed: position vectors need an even width"
    if model.share_embeddings == "all" and not tokenizer.shared:
        yield (
            "model.share_embeddings: 'all' is not allowed with tokenizer.shared=false: source and "
            "target would share a table but not a vocabulary; use 'decoder' or 'none'"
        )
    if config.cluster.device == "cpu":
        embedding = config.embedding
        yield from problems_without_cuda(
            optimizer=embedding.optimizer,
            memory=embedding.memory,
            weights=embedding.weights,
            exchange=embedding.exchange,
        )
    if config.cluster.device == "cuda":
        yield from problems_on_cuda(width=config.embedding.width)
    if model.batch_negatives and model.output == "exact":
        yield (
            "model.batch_negatives: true is not allowed with model.output=exact, to which every "
            "word is a negative; use model.output=sampled"
        )
    yield from _word_problems(config)
    yield from _table_problems(config)
    kinds = ("synthetic", "inflected", "words")
    generated = [name for name in kinds if getattr(data, name) is not None]
    if len(generated) > 1:
        yield (
            f"data.{generated[1]}: not allowed beside data.{generated[0]}, which generates the "
            "corpora too"
        )
    elif not generated and data.train is None:
        yield (
            "data.train: missing; give data.train, or data.synthetic or data.inflected to generate "
            "a corpus"
        )
    for name in ("train", "validation", "test"):
        if generated and getattr(data, name) is not None:
            yield f"data.{name}: not allowed beside data.{generated[0]}, which generates it"
    if data.words:
        yield from _generated_word_problems(config, data.words)
    for name in ("train", "validation", "test"):
        corpus = getattr(data, name)
        if corpus is not None:
            yield from _corpus_problems(f"data.{name}", corpus)


def _generated_word_problems(config: Config, words: WordsSection) -> Iterator[str]:
    """Of sentences without a text."""
    kind, longest = config.tokenizer.kind, config.data.max_tokens
    if kind != "word":
        yield f"tokenizer.kind: {kind!r} is not allowed with data.words, which are whole words"
    if words.length >= longest:
        yield (
            f"data.words.length: {words.length} is not allowed with data.max_tokens={longest}: "
            "a sentence has an end too"
        )
    if config.data.lexicon_translations:
        yield (
            f"data.lexicon_translations: {config.data.lexicon_translations} is not allowed with "
            "data.words: no word is another's translation"
        )


def _word_problems(config: Config) -> Iterator[str]:
    """What asks for a word vocabulary, or for a lexicon."""
    tokenizer, search, kept = config.tokenizer, config.search, config.data.lexicon_translations
    if tokenizer.oov_buckets and tokenizer.kind != "word":
        yield (
            f"tokenizer.oov_buckets: {tokenizer.oov_buckets} is not allowed with tokenizer.kind="
            f"{tokenizer.kind}, whose pieces spell any word; set it to 0, or kind to word"
        )
    if tokenizer.oov_buckets and config.model.share_embeddings == "all":
        yield (
            f"tokenizer.oov_buckets: {tokenizer.oov_buckets} is not allowed with "
            "model.share_embeddings=all: hashed rows are the source's alone; use decoder or none"
        )
    if tokenizer.pieces != "none" and (tokenizer.kind != "word" or tokenizer.split_punctuation):
        yield (
            f"tokenizer.pieces: {tokenizer.pieces!r} is not allowed with "
            f"tokenizer.kind={tokenizer.kind} and tokenizer.split_punctuation="
            f"{str(tokenizer.split_punctuation).lower()}: text that has been cut is taken as it "
            "is cut; set them to word and false, or give text that has not been cut"
        )
    if tokenizer.pieces != "none" and tokenizer.lowercase:
        yield (
            "tokenizer.lowercase: true is not allowed with tokenizer.pieces="
            f"{tokenizer.pieces}: lower case looks at whole words; make it before text is cut"
        )
    if search.replace_unknown != "no" and (tokenizer.kind != "word" or tokenizer.pieces != "none"):
        yield (
            f"search.replace_unknown: {search.replace_unknown!r} is not allowed with "
            f"tokenizer.kind={tokenizer.kind} and tokenizer.pieces={tokenizer.pieces}: only whole "
            "words can be replaced; set it to no"
        )
    if search.replace_unknown == "lexicon" and not kept:
        yield (
            "search.replace_unknown: 'lexicon' is not allowed with data.lexicon_translations=0, "
            "which learns no lexicon; set that to 1 or more"
        )
    candidates = 0 if search.candidates == "auto" else search.candidates
    if 0 < candidates < LEAST_CANDIDATES:
        yield (
            f"search.candidates: {candidates} is not allowed: 0 for all words, or at least "
            f"{LEAST_CANDIDATES}: the special tokens count, and with them the end of a sentence"
        )
    if candidates and search.candidate_translations > kept:
        yield (
            f"search.candidate_translations: {search.candidate_translations} is not allowed with "
            f"data.lexicon_translations={kept}: the lexicon has no more; set that to "
            f"{search.candidate_translations} or more"
        )


def _table_problems(config: Config) -> Iterator[str]:
    """Settings of single tables."""
    tables, share = config.embedding.tables, config.model.share_embeddings
    given = {
        role: settings
        for role in ("source", "target", "output")
        if (settings := getattr(tables, role)) is not None
    }
    together = {"none": (), "decoder": ("target", "output"), "all": ("source", "target", "output")}
    sharing = [role for role in together[share] if role in given]
    for role in sharing[1:]:
        if given[role] != given[sharing[0]]:
            yield (
                f"embedding.tables.{role}: not allowed beside embedding.tables.{sharing[0]}, which "
                f"says otherwise: with model.share_embeddings={share} they are one table"
            )
    for role, settings in given.items():
        key = f"embedding.tables.{role}"
        if settings.freeze and settings.freeze_until_step:
            yield (
                f"{key}.freeze_until_step: {settings.freeze_until_step} is not allowed beside "
                f"{key}.freeze=true, which freezes the table for good"
            )
        file = settings.pretrained
        if file is None:
            continue
        is_matrix = file.format in WITHOUT_WORDS
        if is_matrix and file.words is None:
            yield f"{key}.pretrained.words: missing; {file.format} holds no words"
        if file.words is not None and not is_matrix and file.format != "auto":
            yield (
                f"{key}.pretrained.words: {file.words!r} is not allowed with format={file.format}, "
                "which holds the words"
            )
        if file.tensor is not None and file.format not in ("safetensors", "auto"):
            yield (
                f"{key}.pretrained.tensor: {file.tensor!r} is not allowed with "
                f"format={file.format}: it names a tensor of a safetensors file"
            )
        if file.missing == "subword" and file.format not in ("fasttext-bin", "auto"):
            yield (
                f"{key}.pretrained.missing: 'subword' is not allowed with format={file.format}, "
                "which knows no parts of words; use random or mean, or a fasttext-bin model"
            )
        if len(set(file.match)) < len(file.match):
            yield f"{key}.pretrained.match: {file.match} is not allowed: each at most once"


def _corpus_problems(key: str, corpus: CorpusSection) -> Iterator[str]:
    for name in ("source", "target", "pairs"):
        files = getattr(corpus, name)
        if files in ([], "") or (isinstance(files, list) and "" in files):
            yield f"{key}.{name}: {files!r} is not allowed: at least one file, and each has a name"
    if corpus.pairs is not None:
        if corpus.source is not None or corpus.target is not None:
            yield f"{key}: give either `pairs`, or `source` and `target`, not both"
    elif corpus.source is None or corpus.target is None:
        missing = "source" if corpus.source is None else "target"
        yield f"{key}.{missing}: missing; give `source` and `target`, or `pairs`"
    if corpus.pairs is None and corpus.quoting != "auto":
        yield f"{key}.quoting: {corpus.quoting!r} is of `pairs`; there are none"
    columns = corpus.source_column, corpus.target_column
    if isinstance(columns[0], int) != isinstance(columns[1], int):
        yield (
            f"{key}.target_column: {columns[1]!r} is not allowed with "
            f"source_column={columns[0]!r}: both by name, or both by number"
        )
