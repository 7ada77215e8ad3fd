"""The prepared data of a configuration: used where they are sound, made where they are not there.

On the launching side, before there are workers. Nothing here is collective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

from dist_embed.config.schema import Config
from dist_embed.data.executor import Executor, ExecutorAt
from dist_embed.data.finished_shards import without_overtaken
from dist_embed.data.fitting import NORMALIZE, data_settings, fitting
from dist_embed.data.lexicon import fitting_lexicon
from dist_embed.data.lexicon_learning import ensure_lexicon
from dist_embed.data.prepare import prepare_data
from dist_embed.data.prepared_folder import (
    left_behind,
    new_folder,
    prepared_folder,
    publish,
    remove_others,
)
from dist_embed.data.processes import ThisMachine
from dist_embed.data.settings import WordsSection
from dist_embed.data.sources import generated_corpora, given_corpora
from dist_embed.data.text_form import Lowercase, TextForm
from dist_embed.data.token_shards import INDEX_NAME, SIDES, PreparedData
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.data.words_folder import write_words_folder
from dist_embed.errors import UserError
from dist_embed.observe.events import Watch, unwatched
from dist_embed.storage import uri as storage
from dist_embed.storage.trials import check_writable
from dist_embed.storage.turns import LONGEST_WAIT_SECONDS, NoTurn, StillOurs, taking_turns

Say = Callable[[str], None]


def ensure_data(
    config: Config,
    say: Say,
    *,
    force: bool = False,
    renew: bool = False,
    executor_at: ExecutorAt | None = None,
    watch: Watch = unwatched,
) -> PreparedData:
    """The prepared data of ``config``, and where they lie; prepared now where they are not there
    yet, and their lexicon learned.

    Args:
        config: its corpora need not be there where their prepared data are.
        say: takes lines of progress, and what is not known of the corpora.
        force: prepare again what is there.
        renew: prepare again what was prepared from other files; otherwise they are refused.
        executor_at: begins what is to prepare data into the folder that it is given; None:
            processes of this machine. Lexicons are learned by those in any case.
        watch: shows how far a text has been read or generated.

    Raises:
        UserError: the folder holds data prepared with other settings, or from files that have
            changed since.
    """
    settings = data_settings(config)
    data_uri = config.data.uri
    said: set[str] = set()

    def say_once(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    ready = None if force else _sound(config, settings, say_once, watch, renew=renew)
    while ready is None or not _has_lexicon(config, ready):
        with _preparing_alone(data_uri, say_once) as still_ours:
            # Another process may have prepared it meanwhile.
            ready = None if force else _sound(config, settings, say_once, watch, renew=renew)
            if ready is None:
                ready = _prepare_anew(config, settings, say, still_ours, executor_at, watch)
                force = False  # or else another process prepares it now
            else:
                _learn_lexicon(config, ready, say, watch)
                break
    if renew:
        _write_down(data_uri, ready, say)
    return ready


def find_data(config: Config, say: Say) -> PreparedData | None:
    """The prepared data of ``config``, as `ensure_data` would use them; None: they are to be
    prepared. Raises UserError where that would.
    """
    return _sound(config, data_settings(config), say, unwatched, renew=False)


@contextmanager
def _preparing_alone(data_uri: str, say: Say) -> Iterator[StillOurs]:
    """For the length of a block only this process prepares anything there; others are waited for.

    Raises:
        UserError: nothing can be written there, or another process did not end within
            `LONGEST_WAIT_SECONDS`.
    """
    check_writable(data_uri, "data.uri")

    def waiting() -> None:
        say(
            f"another process prepares data in {data_uri}: waiting for it, "
            f"up to {LONGEST_WAIT_SECONDS / 3600:.0f} h"
        )

    try:
        with taking_turns(data_uri, "preparing", waiting) as still_ours:
            yield still_ours
    except NoTurn as exc:
        raise UserError(f"cannot prepare data in {data_uri}: {exc}") from exc


def _has_lexicon(config: Config, data: PreparedData) -> bool:
    """Whether the lexicon lies with the data, where one is asked for."""
    wanted = config.data.lexicon_translations
    return not wanted or fitting_lexicon(data.folder_uri, data, wanted) is not None


def _learn_lexicon(config: Config, data: PreparedData, say: Say, watch: Watch) -> None:
    if config.data.lexicon_translations:
        ensure_lexicon(
            data.folder_uri,
            data,
            translations=config.data.lexicon_translations,
            num_processes=config.data.num_processes,
            say=say,
            watch=watch,
        )


def _sound(
    config: Config, settings: dict[str, Any], say: Say, watch: Watch, *, renew: bool
) -> PreparedData | None:
    """The prepared data of the configuration; None: they are to be prepared."""
    if not storage.exists(storage.join(config.data.uri, INDEX_NAME)):
        return None
    folder = prepared_folder(config.data.uri)
    try:
        there = PreparedData.read(folder)
    except FileNotFoundError:
        if prepared_folder(config.data.uri) != folder:  # another has been prepared just now
            return _sound(config, settings, say, watch, renew=renew)
        raise UserError(
            f"{config.data.uri} names {folder}, where no prepared data are; prepare it again: "
            "dist-embed prepare CONFIG --force"
        ) from None
    return fitting(config, there, given_corpora(config), settings, say, watch, renew=renew)


def _prepare_anew(
    config: Config,
    settings: dict[str, Any],
    say: Say,
    still_ours: StillOurs,
    executor_at: ExecutorAt | None,
    watch: Watch,
) -> PreparedData | None:
    """New prepared data, with their lexicon; None: another process has taken over."""
    data_uri = config.data.uri
    before = prepared_folder(data_uri)
    folder = ""

    def alone() -> bool:
        # Locks may count on one machine only (mounts with `local_lock` or `localflock`).
        return still_ours() and prepared_folder(data_uri) in (before, folder)

    try:
        with new_folder(data_uri) as folder:
            this_machine = nullcontext(ThisMachine(config.data.num_processes))
            with executor_at(folder) if executor_at else this_machine as executor:
                data = _prepare(config, folder, settings, say, executor, watch)
            _learn_lexicon(config, data, say, watch)
            if not alone():
                raise UserError(f"another process prepares data in {data_uri}")
            publish(data_uri, folder)
    except Exception:
        # Whoever has taken over may have removed what was being prepared.
        if alone():
            raise
        say(f"another process has begun to prepare data in {data_uri}: using what it prepares")
        return None
    remove_others(data_uri, folder)
    return data


def _write_down(data_uri: str, data: PreparedData, say: Say) -> None:
    """What the data's files are called by now, if it is something else."""
    try:
        if PreparedData.read(data.folder_uri) == data:
            return
        # Not for whom the writing would wait: others that prepare these data replace them.
        with taking_turns(data_uri, "preparing", lambda: None, longest=0):
            if prepared_folder(data_uri) == data.folder_uri:
                storage.write_text(storage.join(data.folder_uri, INDEX_NAME), data.to_json())
    except (OSError, UserError, NoTurn) as exc:  # data are as sound without it
        say(f"it could not be written down: {exc}")


def _prepare(
    config: Config,
    folder: str,
    settings: dict[str, Any],
    say: Say,
    executor: Executor,
    watch: Watch,
) -> PreparedData:
    if config.data.words:
        return _generate_words(config, config.data.words, folder, settings, say)
    generated = config.data.synthetic or config.data.inflected
    corpora = given_corpora(config)
    if generated:
        corpora = generated_corpora(generated, folder, say, watch)
    if config.data.max_sentences:
        corpora["train"] = replace(corpora["train"], limit=config.data.max_sentences)
    form = _text_form(config, say)
    data = prepare_data(
        folder,
        corpora,
        config.data,
        config.tokenizer,
        form,
        settings=settings | {NORMALIZE: form.form},
        say=say,
        executor=executor,
        watch=watch,
        earlier=without_overtaken(left_behind(config.data.uri, folder)),
        generated=generated is not None,
    )
    _say_what_was_prepared(config, data, say)
    return data


def _say_what_was_prepared(config: Config, data: PreparedData, say: Say) -> None:
    for name, split in data.splits.items():
        tokens = sum(shard.target_tokens for shard in split.shards)
        left_out = [
            f"{count:,} {what}"
            for count, what in (
                (split.dropped_empty, "dropped with an empty side"),
                (split.dropped_wrong, "rows skipped that cannot be read"),
                (split.dropped_long, f"dropped as longer than {config.data.max_tokens} tokens"),
                (
                    split.dropped_ratio,
                    f"dropped with one side over {config.data.max_length_ratio} times the other",
                ),
                (split.cut, f"cut at {config.data.max_tokens} tokens"),
            )
            if count
        ]
        say(
            f"{name}: {split.sentences:,} pairs, {tokens:,} target tokens"
            + (f" ({', '.join(left_out)})" if left_out else "")
        )


def _text_form(config: Config, say: Say) -> TextForm:
    """What text is brought to where data are prepared now. A run that there is has it as it is, so
    that it goes on with data that are prepared again.
    """
    form = config.tokenizer.normalize
    lowercase: Lowercase = config.tokenizer.lowercase
    run_uri = config.run.uri
    with suppress(FileNotFoundError):
        # Looked at by hand: what reads checkpoints imports PyTorch, which takes seconds.
        if storage.names_in(storage.join(run_uri, "checkpoints", "manifests")):
            theirs = load_tokenizers(run_uri)["source"]
            if form == "auto":
                form = theirs.form
                say(f"tokenizer.normalize: {form}, as the run in {run_uri} has it")
            if lowercase and theirs.lowercase:
                lowercase = theirs.lowercase
    return TextForm("nfc" if form == "auto" else form, lowercase)


def _generate_words(
    config: Config, wanted: WordsSection, folder: str, settings: dict[str, Any], say: Say
) -> PreparedData:
    form = "nfc" if config.tokenizer.normalize == "auto" else config.tokenizer.normalize
    words = config.tokenizer.vocab_size
    say(f"generating {wanted.sentences:,} sentence pairs of {words:,} words")
    return write_words_folder(
        folder, dict.fromkeys(SIDES, words), shared=config.tokenizer.shared,
        sentences=wanted.sentences, length=wanted.length, seed=wanted.seed,
        settings=settings | {NORMALIZE: form},
    )  # fmt: skip
