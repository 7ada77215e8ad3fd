"""``dist-embed report``: runs and studies as one page."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from dist_embed.errors import UserError
from dist_embed.installed import require


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    text = "runs and studies as one page of charts, to be opened in a browser"
    parser = commands.add_parser("report", help=text, description=text)
    parser.add_argument(
        "sources", nargs="+", metavar="RUN|STUDY",
        help="folders or URLs of runs, or of studies, or studies' files",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="FILE.html", default="report.html", help="default: report.html"
    )
    parser.add_argument(
        "--words", metavar="WORD", nargs="+", default=[],
        help="their neighbours, in every checkpoint that is there (reads whole tables)",
    )  # fmt: skip
    parser.add_argument(
        "--charts", metavar="FOLDER", help="write each chart there too, as .svg and .png"
    )
    parser.add_argument(
        "--machine", metavar="NAME|FILE",
        help="plan the runs for it, as dist-embed plan does, beside their phases",
    )  # fmt: skip
    parser.set_defaults(call=_report)


def _report(arguments: argparse.Namespace) -> None:
    from dist_embed.report.report import report
    from dist_embed.storage import uri as storage
    from dist_embed.storage.trials import check_new_file, check_new_folder

    if Path(arguments.output).suffix != ".html":
        raise UserError(f"--output: {arguments.output!r} is not allowed: a .html file")
    check_new_file(arguments.output, "--output")
    folder = Path(arguments.charts) if arguments.charts else None
    if folder and not folder.is_dir():
        raise UserError(f"--charts: {arguments.charts!r} is not allowed: no such folder")
    if folder:
        check_new_folder(arguments.charts, "--charts")
    require("matplotlib")
    command = shlex.join(["dist-embed", *sys.argv[1:]])
    text = report(
        arguments.sources, command=command, words=arguments.words, charts=folder,
        machine=arguments.machine,
    )  # fmt: skip
    storage.write_given_text(arguments.output, text)
    print(f"→ {arguments.output}")
