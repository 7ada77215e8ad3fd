"""``dist-embed study``: run a study and write its page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_embed.errors import UserError
from dist_embed.installed import require

if TYPE_CHECKING:
    from dist_embed.study.schema import OneHotStudy, TrainingStudy


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    text = "train what a study compares, then write a table, a plot and a page"
    parser = commands.add_parser("study", help=text, description=text)
    parser.add_argument("study", metavar="FILE", help="such as configs/studies/width.yaml")
    parser.add_argument(
        "--page", metavar="FILE.md", help="write the page there, its plot beside it; default: "
        "page.md in the study's folder",
    )  # fmt: skip
    parser.set_defaults(call=_study)


def _study(arguments: argparse.Namespace) -> None:
    from dist_embed.storage import uri as storage
    from dist_embed.study.plan import load_study
    from dist_embed.study.schema import TrainingStudy

    study = load_study(arguments.study)
    if not arguments.page and not storage.is_local(study.folder):
        raise UserError(f"--page is needed: {study.folder} is no folder of this machine")
    page = Path(arguments.page or f"{storage.local_path(study.folder)}/page.md")
    if arguments.page and (page.suffix != ".md" or not page.parent.is_dir()):
        raise UserError(f"--page: {arguments.page!r} is not allowed: a .md file in a folder")
    require("matplotlib", "scipy")  # before hours of training
    if isinstance(study, TrainingStudy):
        text = _training(study, page)
    else:
        text = _one_hot(study, page)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    print(f"→ {page}")


def _training(study: TrainingStudy, page: Path) -> str:
    from dist_embed.observe.events import Screen
    from dist_embed.study.plot import draw_study
    from dist_embed.study.report import command_of, left_out, study_page, too_few_seeds
    from dist_embed.study.run import run_study

    screen = Screen(sys.stdout)
    try:
        if said := too_few_seeds(study):  # before hours of training
            screen.show({"kind": "line", "text": said})
        outcomes = run_study(study, screen.show)
    finally:
        screen.close()
    for said in left_out(study, outcomes):
        print(said)
    plot = None
    if study.plot:
        page.parent.mkdir(parents=True, exist_ok=True)
        plot = page.with_suffix(".svg")
        draw_study(study, outcomes, str(plot))
    return study_page(
        study, outcomes, command=command_of(sys.argv[1:]), plot_name=plot.name if plot else None
    )


def _one_hot(study: OneHotStudy, page: Path) -> str:
    from dist_embed.study.one_hot import draw_one_hot, one_hot_table, run_one_hot
    from dist_embed.study.report import command_of, made_on

    figures, machine = run_one_hot(study, print)
    page.parent.mkdir(parents=True, exist_ok=True)
    plot = page.with_suffix(".svg")
    draw_one_hot(figures, str(plot))
    return "\n".join(
        [
            f"# {study.title}\n",
            study.question.strip() + "\n",
            f"```bash\n{command_of(sys.argv[1:])}\n```\n",
            f"A batch of {study.tokens:,} words drawn by Zipf's law, vectors of width "
            f"{study.width}, float32; forward and backward, the median of {study.rounds} after "
            "one that is not counted. Memory is the peak with matrix and gradient. Each way and "
            "size in a process of its own.\n",
            one_hot_table(figures),
            f"![milliseconds of a batch]({plot.name})\n",
            made_on([machine]),
        ]
    )
