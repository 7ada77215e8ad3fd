"""``dist-embed train``, ``evaluate``, ``translate``, ``history`` and ``quickstart``."""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from dist_embed.cli.config import add_config_arguments
from dist_embed.cli.trained_run import add_worker_options, check_output, on_workers, run_config
from dist_embed.config.load import load_config
from dist_embed.config.schema import Config
from dist_embed.errors import RunStopped
from dist_embed.parallel.stop import taken_signal


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    train = commands.add_parser("train", help="train a run, from its newest checkpoint on")
    add_config_arguments(train)
    train.add_argument("--launcher", choices=("ray", "local"), help="instead of cluster.launcher")
    train.add_argument(
        "--force", action="store_true",
        help="go on in a run folder whose configuration differs, with the new values",
    )  # fmt: skip
    train.set_defaults(call=lambda a: _train(a.config, a.overrides, a.launcher, a.force))

    evaluate = commands.add_parser("evaluate", help="loss, BLEU and chrF of a run on a split")
    _add_run_arguments(evaluate)
    evaluate.add_argument("--split", default="test", help="test (default) or validation")
    evaluate.add_argument("--output", metavar="FILE", help="write the translations there")
    evaluate.set_defaults(call=_evaluate)

    translate = commands.add_parser("translate", help="translate lines of text with a run")
    _add_run_arguments(translate)
    translate.add_argument("--input", default="-", metavar="FILE", help="default: standard input")
    translate.add_argument("--output", default="-", metavar="FILE", help="default: standard output")
    translate.set_defaults(call=_translate)

    history = commands.add_parser("history", help="the course of a run: a row per validation")
    history.add_argument("run", metavar="RUN", help="the run's folder or URL")
    history.set_defaults(call=_history)

    quickstart = commands.add_parser("quickstart", help="train and evaluate the small example")
    add_config_arguments(quickstart)
    quickstart.set_defaults(call=_quickstart)


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run's folder or URL")
    parser.add_argument("--step", type=int, help="checkpoint; default: lowest validation loss")
    add_worker_options(parser)


def _train(
    path: str, overrides: list[str], launcher: Any = None, force: bool = False
) -> tuple[Config, dict[str, Any]]:
    from dist_embed.cluster.fork_server import start_ahead
    from dist_embed.cluster.work import TRAIN, under_torchrun

    config = load_config(path, overrides)
    if (launcher or config.cluster.chosen_launcher) == "local" and not under_torchrun():
        start_ahead(config.cluster.device)
    from dist_embed.cluster.launch import cluster_address, launch, stop_seconds
    from dist_embed.config.paths import with_absolute_paths
    from dist_embed.data.preparation import ensure_data
    from dist_embed.observe.events import Screen
    from dist_embed.run.folder import check_run_folder, only_training

    config = with_absolute_paths(config, on_cluster=bool(cluster_address(config, launcher)))
    stream = sys.stdout
    if under_torchrun():
        # This process is a worker, whose output goes to the run's log; ours stays on the screen.
        stream = os.fdopen(os.dup(1), "w", buffering=1)
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    screen = Screen(stream)
    vocabulary_size: dict[str, int] = {}
    word_tables = False
    options: dict[str, Any] = {}
    is_first = not under_torchrun() or os.environ["RANK"] == "0"
    with only_training(config.run.uri) if is_first else nullcontext():
        if is_first:
            # The other workers wait for worker 0 when they join the group.
            data = ensure_data(config, lambda text: screen.show({"kind": "line", "text": text}))
            vocabulary_size, options = data.vocabulary_size, {"data_folder": data.folder_uri}
            word_tables = data.word_tables
            check_run_folder(config, data, force=force)
        try:
            result = launch(
                TRAIN, config, options, vocabulary_size=vocabulary_size,
                word_tables=word_tables, on_event=screen.show, launcher=launcher,
                stop_seconds=stop_seconds(config),
            )  # fmt: skip
        finally:
            screen.close()
    if vocabulary_size and not (result["stopped"] and result["resumed_at"] == result["steps"]):
        screen.show({"kind": "line", "text": _training_summary(config, result)})
    if result["stopped"]:
        raise RunStopped(
            f"stopped as asked after step {result['steps']}; the same command goes on from there"
        )
    return config, result


def _training_summary(config: Config, result: dict[str, Any]) -> str:
    if result["resumed_at"] == result["steps"]:
        return f"already trained: {result['steps']} steps in {config.run.uri}"
    line = f"trained {result['steps'] - result['resumed_at']} steps"
    speed = _tokens_per_second(config.run.uri, after_step=result["resumed_at"])
    if speed:
        line += f" at {speed:,.0f} target tokens/s"
    if result["skipped_steps"]:
        line += f", {result['skipped_steps']} skipped as not finite"
    return f"{line}; peak memory of worker 0: {result['peak_memory_bytes'] / 2**30:.2f} GiB"


def _tokens_per_second(run_uri: str, after_step: int = 0) -> float | None:
    """Median over the run's log lines of later steps."""
    from dist_embed.run.metrics import read_metrics

    found = [
        line["tokens_per_second"]
        for line in read_metrics(run_uri)
        if "tokens_per_second" in line and line["step"] > after_step
    ]
    return statistics.median(found) if found else None


def _evaluate(arguments: argparse.Namespace) -> None:
    from dist_embed.cluster.work import EVALUATE

    check_output(arguments.output)
    config = run_config(arguments.run, arguments)
    result = on_workers(
        EVALUATE, config,
        {"split": arguments.split, "step": arguments.step, "against_exact": True},
        arguments.launcher,
    )  # fmt: skip
    _print_quality(result)
    if arguments.output:
        text = "".join(f"{translation}\n" for translation in result["translations"])
        Path(arguments.output).write_text(text, encoding="utf-8")


def _print_quality(result: dict[str, Any]) -> None:
    print(
        f"{result['split']}, checkpoint of step {result['step']}: loss {result['loss']:.4f}, "
        f"perplexity {result['perplexity']:.2f}\n"
        f"BLEU {result['bleu']:.2f}  chrF {result['chrf']:.2f}  "
        f"({result['sentences']} sentences, {result['sentences_per_second']:.1f} sentences/s)\n"
        f"BLEU is {result['bleu_signature']}"
    )
    if found := result["against_exact"]:
        print(
            f"candidate lists against all words, on {found['sentences']} of the sentences: BLEU "
            f"{found['bleu']:.2f} against {found['exact_bleu']:.2f}, {found['same']} translations "
            "are the same"
        )


def _translate(arguments: argparse.Namespace) -> None:
    from dist_embed.cluster.work import TRANSLATE
    from dist_embed.data.corpus import decoded_lines, read_lines

    check_output(arguments.output)
    config = run_config(arguments.run, arguments)
    if arguments.input == "-":
        texts = list(decoded_lines(sys.stdin.buffer, "standard input"))
    else:
        texts = list(read_lines(arguments.input))
    options = {"texts": texts, "step": arguments.step}
    answers = on_workers(TRANSLATE, config, options, arguments.launcher) if texts else []
    lines = "".join(f"{answer}\n" for answer in answers)
    if arguments.output == "-":
        sys.stdout.buffer.write(lines.encode())
        sys.stdout.flush()
    else:
        Path(arguments.output).write_text(lines, encoding="utf-8")


def _history(arguments: argparse.Namespace) -> None:
    from dist_embed.cli.table import print_table
    from dist_embed.run.folder import read_run_config
    from dist_embed.run.history import course_of, ways_of_scoring
    from dist_embed.run.metrics import read_metrics

    read_run_config(arguments.run)  # a clear message where there is no run
    rows = course_of(read_metrics(arguments.run))
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


def _quickstart(arguments: argparse.Namespace) -> None:
    from dist_embed.cluster.work import EVALUATE
    from dist_embed.data.token_shards import PreparedData, read_texts

    config, _ = _train(arguments.config, arguments.overrides)
    if taken_signal():  # in the last step
        raise RunStopped("trained; stopped as asked before the test set was translated")
    print("\ntranslating the held-out test set")
    result = on_workers(EVALUATE, config, {"split": "test", "step": None}, "local")
    folder = result["data_folder"]
    data = PreparedData.read(folder)
    sources, references = read_texts(folder, data.splits["test"])
    examples = zip(sources, result["translations"], references, strict=True)
    for source, translation, reference in islice(examples, 2):
        print(f"  source       {source}")
        print(f"  translation  {translation}")
        print(f"  reference    {reference}")
    _print_quality(result)
    speed = _tokens_per_second(config.run.uri)
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
