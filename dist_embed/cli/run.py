"""``dist-embed train``, ``evaluate``, ``translate``, ``history`` and ``quickstart``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from itertools import islice
from typing import TYPE_CHECKING, Any

from dist_embed.cli.config import add_config_arguments
from dist_embed.cli.lines import lines_from, lines_to
from dist_embed.cli.trained_run import add_worker_options, check_output, run_config
from dist_embed.config.load import load_config
from dist_embed.config.schema import Config
from dist_embed.errors import RunStopped
from dist_embed.parallel.stop import taken_signal
from dist_embed.parallel.torchrun import is_first_process, under_torchrun

if TYPE_CHECKING:
    from dist_embed.training.results import Evaluation, TrainResult


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    train = commands.add_parser("train", help="train a run, from its newest checkpoint on")
    add_config_arguments(train)
    train.add_argument("--launcher", choices=("ray", "local"), help="instead of cluster.launcher")
    train.add_argument(
        "--force", action="store_true",
        help="go on in a run folder whose configuration differs, with the new values",
    )  # fmt: skip
    train.add_argument(
        "--profile", metavar="N..M", type=_steps,
        help="record the steps N to M, as 100..104: RUN/profile/worker-K.json.gz, for "
        "ui.perfetto.dev",
    )  # fmt: skip
    train.set_defaults(call=_train_given)
    # Without help it is not listed: what a job of Ray calls, whose environment has the rest.
    commands.add_parser("run-job").set_defaults(call=_run_job)

    evaluate = commands.add_parser("evaluate", help="loss, BLEU and chrF of a run on a split")
    _add_run_arguments(evaluate)
    evaluate.add_argument("--split", default="test", help="test (default) or validation")
    evaluate.add_argument("--output", metavar="FILE", help="write the translations there")
    evaluate.set_defaults(call=_evaluate)

    translate = commands.add_parser("translate", help="translate lines of text with a run")
    _add_run_arguments(translate)
    translate.add_argument("--input", default="-", metavar="FILE", help="default: standard input")
    translate.add_argument(
        "--output", default="-", metavar="FILE",
        help="written beside, and under its name once all is translated; default: standard "
        "output, line by line as they are translated",
    )  # fmt: skip
    translate.set_defaults(call=_translate)

    history = commands.add_parser("history", help="the course of a run: a row per validation")
    history.add_argument("run", metavar="RUN", help="the run's folder or URL")
    history.add_argument(
        "--machine", metavar="NAME|FILE",
        help="plan the run for it, as dist-embed plan does, beside its phases",
    )  # fmt: skip
    history.set_defaults(call=_history)

    quickstart = commands.add_parser("quickstart", help="train and evaluate the small example")
    add_config_arguments(quickstart)
    quickstart.set_defaults(call=_quickstart)


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run's folder or URL")
    parser.add_argument("--step", type=int, help="checkpoint; default: lowest validation loss")
    add_worker_options(parser)


def _train_given(arguments: argparse.Namespace) -> None:
    from dist_embed.jobs.arrived import check_sender

    check_sender()  # another version's configuration may have other keys
    config = load_config(arguments.config, arguments.overrides)
    _train(config, arguments.launcher, arguments.force, arguments.profile)


def _run_job(arguments: argparse.Namespace) -> None:
    del arguments
    from dist_embed.jobs.arrived import config_of_job

    _train(config_of_job())


def _train(
    config: Config,
    launcher: Any = None,
    force: bool = False,
    profile: tuple[int, int] | None = None,
) -> tuple[Config, TrainResult]:
    from dist_embed.api.training import train
    from dist_embed.config.paths import with_absolute_paths
    from dist_embed.observe.events import Screen
    from dist_embed.training.results import TrainingStopped

    stream = sys.stdout
    if under_torchrun():
        # This process is a worker, whose output goes to the run's log; ours stays on the screen.
        stream = os.fdopen(os.dup(1), "w", buffering=1)
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    screen = Screen(stream)
    stopped: TrainingStopped | None = None
    try:
        result = train(
            config, launcher=launcher, force=force, profile=profile, on_event=screen.show
        )
    except TrainingStopped as exc:
        stopped, result = exc, exc.result
    finally:
        screen.close()
    if is_first_process() and not (stopped and result.resumed_at == result.steps):
        screen.show({"kind": "line", "text": _training_summary(result)})
    if stopped:
        raise stopped
    return with_absolute_paths(config, on_cluster=False), result


def _steps(text: str) -> tuple[int, int]:
    first, _, last = text.partition("..")
    if not (first.isdecimal() and last.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: two numbers, as 100..104")
    return int(first), int(last)


def _training_summary(result: TrainResult) -> str:
    if result.resumed_at == result.steps:
        return f"already trained: {result.steps} steps in {result.run_uri}"
    line = f"trained {result.steps - result.resumed_at} steps"
    if result.tokens_per_second:
        line += f" at {result.tokens_per_second:,.0f} target tokens/s"
    if result.skipped_steps:
        line += f", {result.skipped_steps} skipped as not finite"
    return f"{line}; peak memory of worker 0: {result.peak_memory_bytes / 2**30:.2f} GiB"


def _evaluate(arguments: argparse.Namespace) -> None:
    from dist_embed.api.inference import evaluate

    check_output(arguments.output)
    found = evaluate(
        run_config(arguments.run, arguments), split=arguments.split, step=arguments.step,
        against_exact=True, launcher=arguments.launcher,
    )  # fmt: skip
    _print_quality(found)
    if arguments.output:
        with lines_to(arguments.output) as write:
            write(found.translations)


def _print_quality(found: Evaluation) -> None:
    print(
        f"{found.split}, checkpoint of step {found.step}: loss {found.loss:.4f}, "
        f"perplexity {found.perplexity:.2f}\n"
        f"BLEU {found.bleu:.2f}  chrF {found.chrf:.2f}  "
        f"({found.sentences} sentences, {found.sentences_per_second:.1f} sentences/s)\n"
        f"BLEU is {found.bleu_signature}"
    )
    if compared := found.against_exact:
        print(
            f"candidate lists against all words, on {compared.sentences} of the sentences: BLEU "
            f"{compared.bleu:.2f} against {compared.exact_bleu:.2f}, {compared.same} translations "
            "are the same"
        )


def _translate(arguments: argparse.Namespace) -> None:
    from dist_embed.api.inference import translate_stream

    check_output(arguments.output)
    lines = lines_from(arguments.input)
    with lines_to(arguments.output) as write:
        translate_stream(
            run_config(arguments.run, arguments), lines, write, step=arguments.step,
            launcher=arguments.launcher,
        )  # fmt: skip


def _history(arguments: argparse.Namespace) -> None:
    from dist_embed.cli.table import print_table
    from dist_embed.run.folder import read_run_config
    from dist_embed.run.history import course_of, phases_of, ways_of_scoring
    from dist_embed.run.metrics import read_metrics

    config = read_run_config(arguments.run)  # a clear message where there is no run
    planned = None
    if arguments.machine:
        from dist_embed.planning.phases import planned_phases

        planned = planned_phases(config, arguments.machine)
    lines = read_metrics(arguments.run)
    rows = course_of(lines)
    print_table(
        ["step", "epoch", "minutes in steps", "wall minutes", "tokens/s", "perplexity", "BLEU"],
        [
            [
                f"{row.step:,}",
                str(row.epoch),
                f"{row.step_minutes:.1f}",
                f"{row.wall_minutes:.1f}",
                f"{row.tokens_per_second:,.0f}",
                f"{row.perplexity:.2f}",
                "" if row.bleu is None else f"{row.bleu:.2f}",
            ]
            for row in rows
        ],
    )
    for line in ways_of_scoring(rows):
        print(line)
    if phases := phases_of(lines):
        step = sum(phases.values())
        header = ["phase of a step, mean of worker 0", "ms", "share"]
        table = [[name, f"{1e3 * s:.1f}", f"{s / step:.1%}"] for name, s in phases.items()]
        if planned:
            header.append("planned, ms")
            table = [[*row, f"{1e3 * planned.seconds.get(row[0], 0.0):.1f}"] for row in table]
        print()
        print_table(header, table)
        if planned:
            print(f"planned for {planned.machine}")
    elif planned:
        print("no plan beside it: the run has told nothing of the phases of its steps")


def _quickstart(arguments: argparse.Namespace) -> None:
    from dist_embed.api.inference import evaluate
    from dist_embed.api.training import tokens_per_second
    from dist_embed.data.token_shards import PreparedData, read_texts
    from dist_embed.observe.events import printable

    config, _ = _train(load_config(arguments.config, arguments.overrides))
    if taken_signal():  # in the last step
        raise RunStopped("trained; stopped as asked before the test set was translated")
    print("\ntranslating the held-out test set")
    found = evaluate(config, launcher="local")
    folder = found.data_folder
    data = PreparedData.read(folder)
    sources, references = read_texts(folder, data.splits["test"])
    examples = zip(sources, found.translations, references, strict=True)
    for source, translation, reference in islice(examples, 2):
        print(f"  source       {printable(source)}")
        print(f"  translation  {printable(translation)}")
        print(f"  reference    {printable(reference)}")
    _print_quality(found)
    speed = tokens_per_second(config.run.uri)
    print(f"training: {speed:,.0f} target tokens/s" if speed else "")
    run, untied = (shlex.quote(f"{config.run.uri}{ending}") for ending in ("", "-untied"))
    texts = shlex.quote(f"{folder}/text/test.source.txt")
    print(
        "\nNext:\n"
        f"  bash launch/run.sh checkpoint list {run}\n"
        f"  head -3 {texts} | bash launch/run.sh translate {run}\n"
        f"  bash launch/run.sh train {shlex.quote(arguments.config)} model.share_embeddings=none "
        f"run.uri={untied}\n"
        "  bash launch/run.sh bench baseline configs/quickstart.yaml\n"
        "  bash launch/test.sh"
    )
