"""``launch/gpu.sh``: what is to be shown on a GPU, stage by stage, within a budget of seconds.

Imports nothing but Python's own modules: whether the others can be imported is its first stage.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dist_embed.bench.gpu_aims import aim_lines
from dist_embed.bench.gpu_stages import STAGES, Stage, Work
from dist_embed.storage.local_file import named

PROJECT = Path(__file__).parents[2]
LEAST_SECONDS = 15  # Python and the libraries take as long to begin
SLOWER = 4  # limits of stages are so many times as long on the CPU
GRACE_SECONDS = 5  # between SIGTERM and SIGKILL
TOLD_LINES = 30


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: in words, after how many seconds, and whether that is well."""

    stage: str
    told: str
    seconds: float
    well: bool


def main(argv: Sequence[str] | None = None, stages: Sequence[Stage] = STAGES) -> int:
    """Returns 0 where every stage that was asked for ended well, else 1. Bad arguments: 2."""
    arguments = _parser(stages).parse_args(argv)
    unknown = [name for name in arguments.stages if name not in {one.name for one in stages}]
    if unknown:
        names = ", ".join(one.name for one in stages)
        print(f"{unknown[0]} is not a stage; these are: {names}", file=sys.stderr)
        return 2
    out = Path(arguments.output).absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "log.txt").unlink(missing_ok=True)
        (out / "log.txt").touch()
    except OSError as exc:
        print(f"--output: nothing can be written there: {exc}", file=sys.stderr)
        return 1
    asked = [one for one in stages if not arguments.stages or one.name in arguments.stages]
    ends_at = time.monotonic() + arguments.budget
    outcomes: list[Outcome] = []
    with (
        tempfile.TemporaryDirectory(prefix="dist_embed-gpu-") as folder,
        (out / "log.txt").open("a") as log,
    ):
        corpus = Path(arguments.multi30k).absolute() if arguments.multi30k else None
        work = Work(arguments.device, Path(folder), out, corpus)
        for number, stage in enumerate(asked, start=1):
            outcome = _run(stage, work, log, ends_at - time.monotonic())
            print(f"-- {stage.name}: {outcome.told}, {outcome.seconds:.0f} s\n", flush=True)
            outcomes.append(outcome)
            if stage.needed and not outcome.well:
                outcomes += [Outcome(one.name, "left out", 0, False) for one in asked[number:]]
            # After every stage: whoever lends the machine may end the command at any time.
            summary = _write(out, work, outcomes)
            if len(outcomes) == len(asked):
                break
    print(summary, end="")
    return int(not all(one.well for one in outcomes))


def _parser(stages: Sequence[Stage]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/gpu.sh",
        description="Prove and measure dist_embed on one GPU.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="stages:\n" + "\n".join(f"  {one.name:12}{one.about}" for one in stages),
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="default: all, in this order")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda",
        help="cpu: the same at small sizes, to see that it runs; its figures mean nothing",
    )  # fmt: skip
    parser.add_argument("--budget", type=int, default=540, metavar="SECONDS", help="default 540")
    parser.add_argument(
        "--output", default=os.environ.get("OUT") or "gpu-results", metavar="FOLDER",
        help="for summary, log, figures and a profile; default: $OUT, else gpu-results",
    )  # fmt: skip
    parser.add_argument(
        "--multi30k", default=os.environ.get("MULTI30K_DIR"), metavar="FOLDER",
        help="the corpus to train on; default: $MULTI30K_DIR, else a generated one",
    )  # fmt: skip
    return parser


def _run(stage: Stage, work: Work, log: IO[str], left: float) -> Outcome:
    """Run a stage's commands one after the other. One that fails does not stop the next: each has
    figures of its own.
    """
    started = time.monotonic()
    limit = min(stage.seconds * (1 if work.device == "cuda" else SLOWER), left)
    if limit < LEAST_SECONDS:
        return Outcome(stage.name, "left out, no time", 0, False)
    print(f"== {stage.name}: {stage.about} (at most {limit:.0f} s)", file=log, flush=True)
    commands = stage.commands(work)
    told, well = "passed" if commands else "for a GPU alone", True
    for command in commands:
        code, last_line = _call(command, work, log, started + limit - time.monotonic())
        _write_figures(work)
        if code is None:
            told, well = f"not done within {limit:.0f} s", False
            break
        if code != 0:
            told, well = f"failed with exit code {code}", False
        if stage.counts:
            told += f": {last_line}"
    return Outcome(stage.name, told, time.monotonic() - started, well)


def _call(
    command: Sequence[str], work: Work, log: IO[str], seconds: float
) -> tuple[int | None, str]:
    """The exit code, None where the command was ended because it took longer; and its last line."""
    said = shlex.join(command)
    print(f"$ {said}", file=log, flush=True)
    print(f"$ {said}", flush=True)
    begin = os.fstat(log.fileno()).st_size
    # A session of its own: workers and their helpers end with the command.
    process = subprocess.Popen(
        command, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        env={**os.environ, **work.environment}, start_new_session=True,
    )  # fmt: skip
    code: int | None = None
    try:
        code = process.wait(max(seconds, 1))
    except subprocess.TimeoutExpired:
        pass
    finally:
        _end(process)
    lines = _lines_since(begin, Path(log.name))
    for line in lines[-TOLD_LINES:]:
        print(line, flush=True)
    return code, lines[-1] if lines else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command that still runs, and whatever it has left."""
    for number, grace in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _lines_since(begin: int, path: Path) -> list[str]:
    """What a command has written into the log, without blank lines and greetings of libraries."""
    with path.open("rb") as log:
        log.seek(begin)
        lines = log.read().decode(errors="replace").splitlines()
    return [line for line in lines if not _SAYS_NOTHING.search(line)]


# Blank lines, some of them in a colour, and with what FBGEMM and TorchRec greet.
_SAYS_NOTHING = re.compile(r"^(\s|\x1b\[\d*m)*$|compat_table|cannot determine|^WARNING:root")


def _write(out: Path, work: Work, outcomes: Sequence[Outcome]) -> str:
    """Write figures and summary as they are by now; returns the summary."""
    found = _write_figures(work)
    lines = [f"{one.stage:12}{one.seconds:5.0f} s  {one.told}" for one in outcomes]
    if work.device == "cuda":
        lines += ["", *aim_lines(found)]
    else:
        lines += ["", "on the CPU, at small sizes: the figures mean nothing"]
    summary = "\n".join(lines) + "\n"
    _put(out / "summary.txt", summary)
    return summary


def _write_figures(work: Work) -> dict[str, Any]:
    """Write what all commands have found by now into one file; returns it."""
    found: dict[str, Any] = {}
    for path in sorted(work.figures.glob("*.json")):
        with suppress(ValueError):  # its command was ended while it wrote
            found[path.stem] = json.loads(path.read_text())
    _put(work.out / "figures.json", json.dumps(found, indent=1) + "\n")
    return found


def _put(path: Path, text: str) -> None:
    """What is there stays until all is written; as `storage.uri`, whose libraries may lack here."""
    beside = path.with_name(f".{path.name}")
    with named(path):
        beside.write_text(text)
    beside.replace(path)


if __name__ == "__main__":
    # By an exception, so that a command that is under way is ended too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
