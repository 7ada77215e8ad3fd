"""`dist_embed.evaluate` and `dist_embed.translate`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, get_args

from dist_embed.api.given import (
    config_given,
    on_event_given,
    run_given,
    step_given,
    texts_given,
)
from dist_embed.arguments import of_kind, one_of, whole_number
from dist_embed.cluster.feed import Feed
from dist_embed.cluster.settings import ClusterSection, LauncherChoice
from dist_embed.config.checks import check
from dist_embed.config.paths import with_absolute_paths
from dist_embed.config.schema import Config
from dist_embed.data.lines_ahead import LinesAhead
from dist_embed.errors import UserError
from dist_embed.installed import WORKERS_NEED, require
from dist_embed.model.settings import ReplaceUnknown, SearchSection, TooLong
from dist_embed.observe.events import Event, shown_by
from dist_embed.observe.quiet import quiet_environment
from dist_embed.parallel.collector import collector_off
from dist_embed.parallel.torchrun import under_torchrun
from dist_embed.section import whole_number_for
from dist_embed.storage import uri as storage
from dist_embed.streams import say
from dist_embed.training.results import Evaluation, Translations
from dist_embed.training.tasks import Evaluate, Task, Translate, TranslateStream

if TYPE_CHECKING:
    from dist_embed.api.trained_run import TrainedRun

R = TypeVar("R")
# An empty input, and one that cannot be read, are known by then: no workers are started for them.
NONE_SECONDS = 0.5
RunGiven: TypeAlias = "str | PathLike[str] | TrainedRun | Config"


def evaluate(
    run: RunGiven,
    *,
    split: str = "test",
    step: int | None = None,
    training_tokens: int | None = None,
    against_exact: bool = False,
    data_folder: str | PathLike[str] | None = None,
    launcher: LauncherChoice | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Evaluation:
    """Loss and translation quality of a run's checkpoint on a held-out split.

    Args:
        run: the run's folder or URL, or what `open_run` gave, whose workers are then processes of
            this machine; or a configuration as it is, that of the training or one of
            `config_to_use`.
        split: ``test`` or ``validation``.
        step: of the checkpoint; None: the one with the lowest validation loss.
        training_tokens: the loss of so many tokens of the training data too.
        against_exact: measure too what candidate lists lose, where there are any.
        data_folder: prepared data to use, where the configuration's folder may have others by now.
        launcher: instead of that of ``run``.
        on_event: takes what is to be shown, see `observe.events`; by default it goes to stderr.

    Raises:
        UserError: there is no such run, checkpoint or split, or they do not fit together.
        RunFailed: a worker failed.
    """
    of_kind("split", split, str, "test or validation")
    if training_tokens is not None:
        training_tokens = whole_number("training_tokens", training_tokens, 0)
    if data_folder is not None:
        data_folder = storage.absolute(storage.given(data_folder, "data_folder"))
    task = Evaluate(split, step_given(step), training_tokens, against_exact, data_folder)
    return _on_workers(task, run, launcher, on_event)


def translate(
    run: RunGiven,
    lines: Iterable[str],
    *,
    step: int | None = None,
    launcher: LauncherChoice | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Translations:
    """Translate lines of text with a run's checkpoint.

    Arguments and errors are those of `evaluate`. Each call starts workers, which takes seconds:
    give it many lines at once.
    """
    texts, step = texts_given(lines, "lines"), step_given(step)
    on_event_given(on_event)
    if not texts:
        return Translations(None, [])
    return _on_workers(Translate(texts, step), run, launcher, on_event)


def translate_stream(
    config: Config,
    lines: Iterable[str],
    write: Callable[[list[str]], None],
    *,
    step: int | None = None,
    launcher: LauncherChoice | None = None,
) -> None:
    """Translate lines as they come, for a command.

    Args:
        config: of the run, see `config_to_use`.
        lines: read by a thread, some ahead.
        write: takes translations, in order, as soon as they are there.
        step: as for `evaluate`.
        launcher: likewise.

    Raises what `lines` and ``write`` do, and what `evaluate` does, and UserError under torchrun;
    what comes before a line that cannot be read or is refused has been written then.
    """
    if under_torchrun():  # each process would read and write as this one does
        raise UserError("translate starts workers of its own: call it without torchrun")
    most = config.search.most_characters
    # One more tells that a line goes on; all of it would be sent to each worker.
    ahead = LinesAhead(line[: most + 1] for line in lines)
    feed = Feed(ahead, write)
    with closing(ahead):
        if ahead.are_none(NONE_SECONDS):
            return
        try:
            _on_workers(TranslateStream(step_given(step)), config, launcher, None, feed)
        finally:
            if feed.cut:
                say(config.search.told_of_cut(*feed.cut))


def config_to_use(
    run_uri: str | PathLike[str],
    *,
    workers: int | None = None,
    beam: int | None = None,
    candidates: int | Literal["auto"] | None = None,
    replace_unknown: ReplaceUnknown | None = None,
    max_source_tokens: int | None = None,
    too_long: TooLong | None = None,
) -> Config:
    """The configuration of a trained run, to use it on this machine and not to train it.

    Args:
        run_uri: the run's folder or URL.
        workers: instead of as many as trained it; of a range as many as there is room for.
        beam: instead of ``search.beam``.
        candidates: instead of ``search.candidates``; 0: the whole vocabulary.
        replace_unknown: instead of ``search.replace_unknown``.
        max_source_tokens: instead of ``search.max_source_tokens``.
        too_long: instead of ``search.too_long``.

    Raises UserError.
    """
    from dist_embed.run.folder import read_run_config

    config = read_run_config(run_given(run_uri))
    # The machine here need not have the device that trained the run.
    instead: dict[str, Any] = {"device": "auto"}
    if workers is not None:
        instead["num_workers"] = whole_number_for(ClusterSection, "num_workers", "workers", workers)
    cluster = config.cluster.model_copy(update=instead)
    # Nothing is trained: an optimizer without state, which every device has.
    embedding = config.embedding.model_copy(
        update={"memory": "auto", "exchange": "fp32", "optimizer": "sgd"}
    )
    config = config.model_copy(update={"cluster": cluster, "embedding": embedding})
    instead = {}
    numbers = {"beam": beam, "candidates": candidates, "max_source_tokens": max_source_tokens}
    for key, value in numbers.items():
        if isinstance(value, str) and value == "auto" and key == "candidates":
            instead[key] = value
        elif value is not None:
            instead[key] = whole_number_for(SearchSection, key, key, value)
    if replace_unknown is not None:
        one_of("replace_unknown", replace_unknown, get_args(ReplaceUnknown))
        instead["replace_unknown"] = replace_unknown
    if too_long is not None:
        one_of("too_long", too_long, get_args(TooLong))
        instead["too_long"] = too_long
    config = config.model_copy(update={"search": config.search.model_copy(update=instead)})
    check(config)
    return config


def _on_workers(
    task: Task[R], run: RunGiven, launcher: LauncherChoice | None,
    on_event: Callable[[Event], None] | None, feed: Feed | None = None,
) -> R:  # fmt: skip
    """What workers give back that use a trained run."""
    on_event_given(on_event)
    require(*WORKERS_NEED)
    with quiet_environment(), shown_by(on_event, sys.stderr) as show:
        return _launched(task, run, launcher, show, feed)


def _launched(
    task: Task[R], run: RunGiven, launcher: LauncherChoice | None, show: Callable[[Event], None],
    feed: Feed | None,
) -> R:  # fmt: skip
    from dist_embed.api.trained_run import TrainedRun
    from dist_embed.cluster.fork_server import start_ahead

    if isinstance(run, Config):
        config = config_given(run, to_train=False)
    else:
        config = config_to_use(run.uri if isinstance(run, TrainedRun) else run)
        launcher = "local" if launcher is None else launcher
    if config.cluster.chosen_launcher(launcher) == "local" and not under_torchrun():
        start_ahead(config.cluster.device)
    with collector_off():
        from dist_embed.cluster.launch import cluster_address, launch
        from dist_embed.data.tokenizer_files import load_tokenizers

    config = with_absolute_paths(config, on_cluster=bool(cluster_address(config, launcher)))
    try:
        tokenizers = load_tokenizers(config.run.uri)
    except FileNotFoundError as exc:
        raise UserError(f"the run {config.run.uri} has no tokenizer: {exc}") from None
    sizes = {side: tokenizer.size for side, tokenizer in tokenizers.items()}
    word_tables = all(tokenizer.on_disk for tokenizer in tokenizers.values())
    del tokenizers  # not to be held beside the workers
    return launch(
        task, config, vocabulary_size=sizes, word_tables=word_tables, on_event=show,
        launcher=launcher, feed=feed,
    )  # fmt: skip
