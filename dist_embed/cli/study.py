"""``dist-embed study``: run a study and write its page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_embed.cli.old_spellings import OldOption
from dist_embed.errors import UserError
from dist_embed.installed import require

if TYPE_CHECKING:
    from dist_embed.study.schema import TrainingStudy


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    text = "train what a study compares, then write a table, a plot and a page"
    parser = commands.add_parser("study", help=text, description=text)
    parser.add_argument("study", metavar="STUDY", help="such as configs/studies/width.yaml")
    parser.add_argument(
        "--output", metavar="FILE.md", help="write the page there, its plot beside it; default: "
        "page.md in the study's folder",
    )  # fmt: skip
    parser.add_argument("--page", dest="output", action=OldOption, help=argparse.SUPPRESS)
    parser.set_defaults(call=_study)


def _study(arguments: argparse.Namespace) -> None:
    from dist_embed.storage import uri as storage
    from dist_embed.study.plan import load_study

    study = load_study(arguments.study)
    if not arguments.output and not storage.is_local(study.folder):
        raise UserError(f"--output is needed: {study.folder} is no folder of this machine")
    page = Path(arguments.output or f"{storage.local_path(study.folder)}/page.md")
    if arguments.output and (page.suffix != ".md" or not page.parent.is_dir()):
        raise UserError(f"--output: {arguments.output!r} is not allowed: a .md file in a folder")
    require("matplotlib", "scipy")  # before hours of training
    text = _training(study, page)
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
