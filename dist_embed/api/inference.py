"""`dist_embed.evaluate` and `dist_embed.translate`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from dist_embed.cluster.settings import LauncherChoice
from dist_embed.config.checks import check
from dist_embed.config.paths import with_absolute_paths
from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.installed import WORKERS_NEED, require
from dist_embed.model.settings import ReplaceUnknown
from dist_embed.observe.events import Event, shown_by
from dist_embed.observe.quiet import quiet_environment
from dist_embed.parallel.torchrun import under_torchrun
from dist_embed.storage import uri as storage
from dist_embed.training.results import Evaluation, Translations
from dist_embed.training.tasks import Evaluate, Task, Translate

R = TypeVar("R")


def evaluate(
    run: str | Config,
    *,
    split: str = "test",
    step: int | None = None,
    training_tokens: int | None = None,
    against_exact: bool = False,
    data_folder: str | None = None,
    launcher: LauncherChoice | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Evaluation:
    """Loss and translation quality of a run's checkpoint on a held-out split.

    Args:
        run: the run's folder or URL, whose workers are then processes of this machine; or a
            configuration as it is, that of the training or one of `config_to_use`.
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
    task = Evaluate(split, step, training_tokens, against_exact, data_folder)
    return _on_workers(task, run, launcher, on_event)


def translate(
    run: str | Config,
    lines: Sequence[str],
    *,
    step: int | None = None,
    launcher: LauncherChoice | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Translations:
    """Translate lines of text with a run's checkpoint.

    Arguments and errors are those of `evaluate`. Each call starts workers, which takes seconds:
    give it many lines at once.
    """
    if not lines:
        return Translations(None, [])
    return _on_workers(Translate(list(lines), step), run, launcher, on_event)


def config_to_use(
    run_uri: str,
    *,
    workers: int | None = None,
    beam: int | None = None,
    candidates: int | Literal["auto"] | None = None,
    replace_unknown: ReplaceUnknown | None = None,
) -> Config:
    """The configuration of a trained run, to use it on this machine and not to train it.

    Args:
        run_uri: the run's folder or URL.
        workers: instead of as many as trained it.
        beam: instead of ``search.beam``.
        candidates: instead of ``search.candidates``; 0: the whole vocabulary.
        replace_unknown: instead of ``search.replace_unknown``.

    Raises UserError.
    """
    from dist_embed.run.folder import read_run_config

    config = read_run_config(storage.absolute(run_uri))
    workers = workers if workers is not None else config.cluster.num_workers
    if workers < 1:
        raise UserError(f"--workers: {workers} is not allowed: at least 1")
    # The machine here need not have the device that trained the run.
    cluster = config.cluster.model_copy(update={"num_workers": workers, "device": "auto"})
    # Nothing is trained: an optimizer without state, which every device has.
    embedding = config.embedding.model_copy(
        update={"memory": "auto", "exchange": "fp32", "optimizer": "sgd"}
    )
    config = config.model_copy(update={"cluster": cluster, "embedding": embedding})
    for option, value, least in (
        ("beam", beam, 1), ("candidates", candidates, 0), ("replace_unknown", replace_unknown, None)
    ):  # fmt: skip
        if value is None:
            continue
        if least is not None and isinstance(value, int) and value < least:
            raise UserError(
                f"--{option.replace('_', '-')}: {value} is not allowed: at least {least}"
            )
        search = config.search.model_copy(update={option: value})
        config = config.model_copy(update={"search": search})
    check(config)
    return config


def _on_workers(
    task: Task[R], run: str | Config, launcher: LauncherChoice | None,
    on_event: Callable[[Event], None] | None,
) -> R:  # fmt: skip
    """What workers give back that use a trained run."""
    require(*WORKERS_NEED)
    quiet_environment()
    from dist_embed.cluster.fork_server import start_ahead

    if isinstance(run, Config):
        config = run
    else:
        config = config_to_use(run)
        launcher = "local" if launcher is None else launcher
    if config.cluster.chosen_launcher(launcher) == "local" and not under_torchrun():
        start_ahead(config.cluster.device)
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
    with shown_by(on_event, sys.stderr) as show:
        return launch(
            task, config, vocabulary_size=sizes, word_tables=word_tables, on_event=show,
            launcher=launcher,
        )  # fmt: skip
