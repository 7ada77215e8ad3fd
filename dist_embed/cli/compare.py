"""``dist-embed compare``: runs side by side, and how they translate rare words."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dist_embed.cli.bench_options import write_figures
from dist_embed.cli.trained_run import add_worker_options, check_output, run_config
from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.streams import say

if TYPE_CHECKING:
    from dist_embed.training.results import Evaluation
    from dist_embed.training.word_recall import Recall


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    text = "translate a split with each run; quality, and recall of words by how rare they are"
    parser = commands.add_parser("compare", help=text, description=text)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the runs' folders or URLs")
    parser.add_argument("--split", default="test", help="test (default) or validation")
    add_worker_options(parser)
    parser.add_argument("--output", metavar="FILE", help="write the figures there, as JSON")
    parser.set_defaults(call=_compare)


def _compare(arguments: argparse.Namespace) -> None:
    import torch

    from dist_embed.data.prepared_folder import prepared_folder
    from dist_embed.data.text_form import FORMS, in_form
    from dist_embed.data.tokenizer_files import load_tokenizers
    from dist_embed.data.training_words import count_target_words, unknown_share
    from dist_embed.parallel.device import device_name, resolve_device
    from dist_embed.training.word_recall import recall_by_count

    check_output(arguments.output)
    configs = {run: run_config(run, arguments) for run in arguments.runs}
    lowercase = any(config.tokenizer.lowercase for config in configs.values())

    targets = {run: load_tokenizers(config.run.uri)["target"] for run, config in configs.items()}
    # As with case: what one run cannot tell apart is one word for all.
    form = max((target.form for target in targets.values()), key=FORMS.index)

    def in_common_form(texts: list[str]) -> list[str]:
        return in_form(texts, form, lowercase=lowercase)

    data = {run: prepared_folder(config.data.uri) for run, config in configs.items()}
    references = _common_references(configs, data, arguments.split)
    _check_pieces({run: target.pieces for run, target in targets.items()})
    references = in_common_form(next(iter(targets.values())).uncut(references))
    # The same counts for all runs: those of the run that knows most of its training text.
    unknown = {run: unknown_share(data[run]) for run in configs}
    counted = min(unknown, key=lambda run: unknown[run])
    counts = count_target_words(data[counted], lowercase=lowercase, form=form)
    runs: dict[str, dict[str, Any]] = {}
    recalls: dict[str, list[Recall]] = {}
    for run, config in configs.items():
        runs[run] = {
            "tokenizer": config.tokenizer.kind,
            "target_vocabulary": targets[run].size,
            **asdict(_evaluated(run, config, data[run], arguments)),
        }
        del runs[run]["translations"]
        # A reference may hold the very text that unknown words are shown as.
        translations = in_common_form(runs[run].pop("scored"))
        recalls[run] = recall_by_count(translations, references, counts)
    _print_table(runs, recalls)
    print(
        f"\n{arguments.split}: {len(references):,} sentences. "
        "Perplexities of different vocabularies cannot be compared.\n"
        "Recall: the share of a bin's reference words that stand in the translation of their "
        f"sentence{', all in lowercase' if lowercase else ''}"
        f"{f', in the form {form}' if form != 'none' else ''}.\n"
        f"Words are counted in the training text of {counted}; what its vocabulary lacks "
        f"({unknown[counted]:.2%} of its tokens) counts as seen 0 times."
    )
    _print_signatures({run: found["bleu_signature"] for run, found in runs.items()})
    if arguments.output:
        figures = {
            "counted_in": counted,
            "unknown_share": unknown[counted],
            "lowercase": lowercase,
            "form": form,
            "runs": {
                run: found | {"recall": [asdict(one) for one in recalls[run]]}
                for run, found in runs.items()
            },
        }
        device = device_name(torch.device(resolve_device("auto")))
        write_figures(arguments, figures, device=device)


def _evaluated(run: str, config: Config, folder: str, arguments: argparse.Namespace) -> Evaluation:
    from dist_embed.api.inference import evaluate

    say(f"translating with {run}")
    return evaluate(config, split=arguments.split, data_folder=folder, launcher=arguments.launcher)


def _common_references(configs: dict[str, Config], data: dict[str, str], split: str) -> list[str]:
    """The references of a split, which must be those of all runs, and so must its sources."""
    from dist_embed.data.token_shards import PreparedData, read_texts

    texts: dict[str, tuple[list[str], list[str]]] = {}
    for run, config in configs.items():
        part = PreparedData.read(data[run]).held_out(split, config.data.uri)
        texts[run] = read_texts(data[run], part)
    first = next(iter(texts))
    for run, found in texts.items():
        if found != texts[first]:
            raise UserError(
                f"{first} and {run} cannot be compared: their {split} sentences are not the same "
                f"({len(texts[first][0]):,} and {len(found[0]):,} pairs, prepared in "
                f"{configs[first].data.uri} and {configs[run].data.uri})"
            )
    return texts[first][1]


def _check_pieces(pieces: dict[str, str]) -> None:
    """Of each run how words are put together from tokens, which must be one way."""
    if len(set(pieces.values())) > 1:
        raise UserError(
            "runs whose translations are put together in different ways cannot be compared: "
            + "; ".join(f"tokenizer.pieces={found} in {run}" for run, found in pieces.items())
        )


def _print_table(runs: dict[str, dict[str, Any]], recalls: dict[str, list[Recall]]) -> None:
    from dist_embed.cli.table import print_table

    def row(name: str, key: str, form: str) -> list[str]:
        return [name, "", *(format(found[key], form) for found in runs.values())]

    rows = [
        row("checkpoint of step", "step", ","),
        row("tokenizer", "tokenizer", ""),
        row("target vocabulary", "target_vocabulary", ","),
        row("perplexity", "perplexity", ".2f"),
        row("BLEU", "bleu", ".2f"),
        row("chrF", "chrf", ".2f"),
    ]
    for bins in zip(*recalls.values(), strict=True):
        one = bins[0]
        shares = ["" if r.share is None else f"{r.share:.1%}" for r in bins]
        rows.append([f"recall of words seen {_span(one)}", f"{one.words:,}", *shares])
    print_table(["", "words", *runs], rows)


def _span(one: Recall) -> str:
    if one.most is None:
        return f"> {one.least - 1:,}"
    return f"{one.least:,}" if one.least == one.most else f"{one.least:,}–{one.most:,}"


def _print_signatures(signatures: dict[str, str]) -> None:
    """How BLEU was computed."""
    if len(set(signatures.values())) == 1:
        print(f"BLEU is {next(iter(signatures.values()))}")
        return
    print("BLEU and chrF were computed in different ways and cannot be compared:")
    for run, signature in signatures.items():
        print(f"BLEU of {run} is {signature}")
