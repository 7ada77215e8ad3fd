"""``dist-embed study``: run a study and write its page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_embed.cli.old_spellings import OldOption
from dist_embed.errors import RunFailed, UserError
from dist_embed.installed import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from dist_embed.observe.events import Event
    from dist_embed.study.outcome import Outcome
    from dist_embed.study.schema import ScalingStudy, Study, TrainingStudy

MOST_RUNS = 1000


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    text = "train what a study compares, then write a table, a plot and a page"
    parser = commands.add_parser("study", help=text, description=text)
    parser.add_argument("study", metavar="STUDY", help="such as configs/studies/width.yaml")
    parser.add_argument(
        "--output", metavar="FILE.md", help="write the page there, its plot beside it; default: "
        "page.md in the study's folder",
    )  # fmt: skip
    parser.add_argument(
        "--yes", action="store_true", help=f"also with more than {MOST_RUNS:,} runs"
    )
    parser.add_argument("--page", dest="output", action=OldOption, help=argparse.SUPPRESS)
    parser.set_defaults(call=_study)


def _study(arguments: argparse.Namespace) -> None:
    from dist_embed.storage import uri as storage
    from dist_embed.storage.trials import check_new_file
    from dist_embed.study.plan import load_study, number_of_runs
    from dist_embed.study.schema import TrainingStudy

    study = load_study(arguments.study)
    runs = number_of_runs(study)
    if runs > MOST_RUNS and not arguments.yes:
        raise UserError(
            f"{arguments.study}: {runs:,} runs are not allowed without --yes: at most {MOST_RUNS:,}"
        )
    if not arguments.output and not storage.is_local(study.folder):
        raise UserError(f"--output is needed: {study.folder} is no folder of this machine")
    page = Path(arguments.output or f"{storage.local_path(study.folder)}/page.md")
    if arguments.output and (page.suffix != ".md" or not page.parent.is_dir()):
        raise UserError(f"--output: {arguments.output!r} is not allowed: a .md file in a folder")
    if arguments.output:
        check_new_file(arguments.output, "--output")
    require("matplotlib", "scipy")  # before hours of training
    outcomes = _run(study)
    page.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(study, TrainingStudy):
        text = _comparison(study, outcomes, page)
    else:
        text = _scaling(study, outcomes, page)
    storage.write_given_text(str(page), text)
    print(f"→ {page}")
    failed = sum(outcome.row.get("state") == "failed" for outcome in outcomes)
    if failed:
        raise RunFailed(
            f"{failed} of {len(outcomes)} runs failed, see {page}: the same command tries again"
        )


def _run(study: Study) -> list[Outcome]:
    from dist_embed.observe.events import Screen
    from dist_embed.study.report import too_few_seeds
    from dist_embed.study.run import run_study
    from dist_embed.study.schema import TrainingStudy

    screen = Screen(sys.stdout)
    show: Callable[[Event], None] = screen.show
    try:
        if isinstance(study, TrainingStudy) and (said := too_few_seeds(study)):
            show({"kind": "line", "text": said})  # before hours of training
        return run_study(study, show)
    finally:
        screen.close()


def _scaling(study: ScalingStudy, outcomes: list[Outcome], page: Path) -> str:
    from dist_embed.study.report import command_of
    from dist_embed.study.results import read_results
    from dist_embed.study.scaling_page import plots_of, scaling_page
    from dist_embed.study.scaling_plot import draw_scaling, draw_simulated

    measured, beyond = plots_of(page)
    rows = [outcome.row for outcome in outcomes]
    drawn = draw_scaling(study, rows, str(measured))
    simulated = [row for row in read_results(study.folder) if row["state"] == "simulated"]
    beyond_drawn = draw_simulated(study, simulated, str(beyond))
    return scaling_page(
        study, outcomes, simulated, command=command_of(sys.argv[1:]),
        plot_name=measured.name if drawn else None,
        simulated_plot_name=beyond.name if beyond_drawn else None,
    )  # fmt: skip


def _comparison(study: TrainingStudy, outcomes: list[Outcome], page: Path) -> str:
    from dist_embed.study.plot import draw_study
    from dist_embed.study.report import command_of, left_out, study_page

    for said in left_out(study, outcomes):
        print(said)
    plot = None
    if study.plot:
        plot = page.with_suffix(".svg")
        draw_study(study, outcomes, str(plot))
    return study_page(
        study, outcomes, command=command_of(sys.argv[1:]), plot_name=plot.name if plot else None
    )
