"""`dist_embed.train`."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

from dist_embed.api.given import config_given, on_event_given, profile_given
from dist_embed.arguments import true_or_false
from dist_embed.cluster.settings import LauncherChoice
from dist_embed.config.paths import with_absolute_paths
from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.installed import WORKERS_NEED, require
from dist_embed.observe.events import Event, shown_by, watched_by
from dist_embed.observe.quiet import quiet_environment
from dist_embed.parallel.collector import collector_off
from dist_embed.parallel.torchrun import is_first_process, under_torchrun
from dist_embed.storage.retry import retrying_for
from dist_embed.storage.trials import check_writable
from dist_embed.training.results import TrainingStopped, TrainResult
from dist_embed.training.tasks import Train


def train(
    config: Config,
    *,
    launcher: LauncherChoice | None = None,
    force: bool = False,
    profile: tuple[int, int] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> TrainResult:
    """Train a run to its last step, from its newest checkpoint if there is one.

    Workers are processes of their own, which do not run the caller's script again. Ctrl-C, SIGTERM
    and SIGHUP ask them to end after their step, with a checkpoint; a second Ctrl-C ends them at
    once. Under torchrun this process is a worker: from here on all that it prints goes to the
    run's log.

    Args:
        config: of the run; see `dist_embed.load_config`.
        launcher: instead of ``config.cluster.launcher``.
        force: go on in a run's folder whose configuration differs, with the new values.
        profile: the first and the last step, at most 100, that are recorded by torch.profiler: a
            trace of each worker in the run's folder, ``profile/worker-K.json.gz``.
        on_event: takes what is to be shown, see `observe.events`; by default it is printed, with a
            bar on a terminal and in a notebook.

    Raises:
        UserError: something that was given cannot be used; the message says what and why.
        TrainingStopped: it was asked to stop; the same call goes on from there. RunStopped where no
            worker had begun.
        RunFailed: a worker failed.
    """
    config = config_given(config)
    on_event_given(on_event)
    true_or_false("force", force)
    if profile is not None:
        profile = profile_given(profile, config.train.max_steps)
    require(*WORKERS_NEED)
    with (
        quiet_environment(), shown_by(on_event, sys.stdout) as show,
        retrying_for(config.checkpoint.retry_seconds),
    ):  # fmt: skip
        result = _trained(config, launcher, force, profile, show)
    if result.stopped:
        raise TrainingStopped(
            f"stopped as asked after step {result.steps}; started again, the run goes on from "
            "there",
            result,
        )
    return result


def _trained(
    config: Config,
    launcher: LauncherChoice | None,
    force: bool,
    profile: tuple[int, int] | None,
    show: Callable[[Event], None],
) -> TrainResult:
    from dist_embed.cluster.fork_server import start_ahead

    if config.cluster.chosen_launcher(launcher) == "local" and not under_torchrun():
        start_ahead(config.cluster.device)  # beside the imports that follow
    with collector_off():
        from dist_embed.checkpoint.catalogue import list_steps
        from dist_embed.cluster.launch import cluster_address, launch
        from dist_embed.cluster.preparing import executor_of
        from dist_embed.cluster.stopping import stop_seconds
        from dist_embed.data.preparation import ensure_data
        from dist_embed.run.folder import check_run_folder, only_training
        from dist_embed.training.vector_files import check_vectors

    config = with_absolute_paths(config, on_cluster=bool(cluster_address(config, launcher)))
    vocabulary_size: dict[str, int] = {}
    starts: list[Event] = []  # of the workers

    def seen(event: Event) -> None:
        if "resumed_at" in event:
            starts.append(event)
        show(event)

    word_tables, task, first = False, Train(profile=profile), is_first_process()
    if first:
        check_writable(config.run.uri, "run.uri")
    with only_training(config.run.uri) if first else nullcontext():
        if first:  # the others wait for it when they join the group
            if not list_steps(config.run.uri):  # else rows come from the checkpoint
                check_vectors(config)
            data = ensure_data(
                config, lambda text: show({"kind": "line", "text": text}),
                executor_at=executor_of(config, launcher, trains=True), watch=watched_by(show),
            )  # fmt: skip
            vocabulary_size, word_tables = data.vocabulary_size, data.word_tables
            sentences = data.splits["train"].sentences
            task = replace(task, data_folder=data.folder_uri, sentences=sentences)
            check_run_folder(config, data, force=force)
            if profile:
                _check_not_made(profile, config.run.uri)
        result = launch(
            task, config, vocabulary_size=vocabulary_size, word_tables=word_tables, on_event=seen,
            launcher=launcher, stop_seconds=stop_seconds(config),
        )  # fmt: skip
    if first:
        if starts:  # the first counts, whatever has been lost since
            skipped = starts[-1]["skipped_steps"] - starts[0]["skipped_steps"]
            result = replace(
                result, resumed_at=starts[0]["resumed_at"],
                skipped_steps=result.skipped_steps + skipped,
            )  # fmt: skip
        speed = tokens_per_second(config.run.uri, after_step=result.resumed_at)
        result = replace(result, tokens_per_second=speed)
    return result


def _check_not_made(profile: tuple[int, int], run_uri: str) -> None:
    from dist_embed.checkpoint.catalogue import list_steps

    newest = max(list_steps(run_uri), default=0)
    if newest >= profile[0]:
        raise UserError(
            f"profile: the steps {profile[0]} to {profile[1]} cannot be recorded: {run_uri} has a "
            f"checkpoint of step {newest}, and goes on with step {newest + 1}"
        )


def tokens_per_second(run_uri: str, after_step: int = 0) -> float | None:
    """Median over the run's log lines of later steps; None where there are none."""
    from dist_embed.run.metrics import figures, read_metrics

    found = figures(
        (line for line in read_metrics(run_uri) if line["step"] > after_step), "tokens_per_second"
    )
    return statistics.median(found) if found else None
