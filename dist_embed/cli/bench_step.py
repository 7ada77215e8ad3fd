"""``dist-embed bench step``: where the time of a training step goes; and ``bench phases``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from dist_embed.cli.bench_options import add_output_option, at_least, write_figures
from dist_embed.cli.config import add_config_arguments
from dist_embed.config.load import load_config
from dist_embed.errors import UserError

if TYPE_CHECKING:
    from dist_embed.training.tasks import Task

_LINES = 15
_NAME_LENGTH = 90


def add_kinds(kinds: Any) -> None:
    """Add this module's measurements."""
    parser = kinds.add_parser(
        "step", help="where the time of a configuration's training step goes, by torch.profiler"
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--steps", type=at_least(1), default=10,
        help="so many are timed, and as many recorded; default 10",
    )  # fmt: skip
    parser.add_argument(
        "--profile", metavar="FOLDER", required=True,
        help="write the trace there, as trace.json.gz: for chrome://tracing or ui.perfetto.dev",
    )  # fmt: skip
    add_output_option(parser)
    parser.set_defaults(call=_step)

    parser = kinds.add_parser(
        "phases", help="what it costs training steps that runs record their phases"
    )
    add_config_arguments(parser)
    parser.add_argument("--steps", type=at_least(1), default=30, help="of a round; default 30")
    parser.add_argument(
        "--rounds", type=at_least(1), default=10, help="of both in turn; default 10"
    )
    add_output_option(parser)
    parser.set_defaults(call=_phases)


def _step(arguments: argparse.Namespace) -> None:
    from dist_embed.bench.tasks import ProfileSteps
    from dist_embed.cli.table import print_table
    from dist_embed.storage.trials import check_new_folder

    check_new_folder(arguments.profile, "--profile")
    folder = Path(arguments.profile).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    found = _found(arguments, partial(ProfileSteps, arguments.steps, str(folder / "trace.json.gz")))
    print(
        f"{found['workers']} workers on {found['device']}; {found['steps']} steps of "
        f"{found['tokens_per_step']:,.0f} target tokens; trace of worker 0: {found['trace']}"
    )
    for header, rows in _tables(found):
        print()
        print_table(header, rows)
    write_figures(arguments, found, device=found["device"])
    if found["on_cuda"] and found["device_busy_seconds"] is None:
        raise UserError(
            f"{found['trace']}: torch.profiler has recorded nothing of the GPU, only of the host; "
            "CUPTI cannot be used here"
        )


def _phases(arguments: argparse.Namespace) -> None:
    from dist_embed.bench.tasks import PhaseCost
    from dist_embed.cli.table import print_table

    found = _found(arguments, partial(PhaseCost, arguments.rounds, arguments.steps))
    print(
        f"{found['workers']} workers on {found['device']}; {arguments.rounds} rounds of "
        f"{found['steps']} steps"
    )
    rows = [
        [what, f"{median(found[key]) * 1e3:.3f}", f"{min(found[key]) * 1e3:.3f}"]
        for what, key in (
            ("recorded", "seconds_recorded"), ("not recorded", "seconds_not_recorded"),
        )
    ]  # fmt: skip
    print_table(["phases", "ms a step, median", "least"], rows)
    print(f"recording takes {found['share']:.2%} of a step, the median over rounds")
    write_figures(arguments, found, device=found["device"])


def _found(
    arguments: argparse.Namespace, task_of: Callable[[str], Task[dict[str, Any]]]
) -> dict[str, Any]:
    """What a task on the configuration's data finds."""
    from dist_embed.cluster.launch import launch
    from dist_embed.config.paths import with_absolute_paths
    from dist_embed.data.preparation import ensure_data

    config = load_config(arguments.config, arguments.overrides)
    config = with_absolute_paths(config, on_cluster=False)
    data = ensure_data(config, print)
    return launch(
        task_of(data.folder_uri), config, vocabulary_size=data.vocabulary_size,
        word_tables=data.word_tables, on_event=lambda event: print(event["text"]),
        launcher="local",
    )  # fmt: skip


def _tables(found: dict[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """What to print: heads and rows."""
    seconds, busy = found["seconds_per_step"], found["device_busy_seconds"]
    recorded = found["seconds_per_step_recorded"]
    times = [
        ["a step", f"{seconds * 1e3:.2f}"],
        ["a step that is recorded", f"{recorded * 1e3:.2f}"],
    ]
    if busy is not None:
        times += [
            ["in which the device computes or copies", f"{busy * 1e3:.2f}"],
            ["the device is idle, of a step that is not recorded",
             f"{found['device_idle_share']:.1%}"],
        ]  # fmt: skip
    tables = [(["", "ms"], times)]
    named = sum(found["phases"].values())
    tables.append((
        ["phase", "ms a step", "share"],
        [[name, f"{spent * 1e3:.3f}", f"{spent / named:.1%}"]
         for name, spent in found["phases"].items() if spent],
    ))  # fmt: skip
    what, longest, whole = "on the device", found["on_device"], busy
    if busy is None:
        what, longest, whole = "on the host", found["on_host"], recorded
    tables.append((
        [f"longest {what}", "ms a step", "share", "calls a step"],
        [[_short(one["name"]), f"{one['seconds'] * 1e3:.3f}", f"{one['seconds'] / whole:.1%}",
          f"{one['calls']:.1f}"] for one in longest[:_LINES]],
    ))  # fmt: skip
    if found["on_cuda"]:
        tables.append((
            ["the host may wait in", "within", "calls a step", "ms a step"],
            [[one["name"], _short(one["within"]), f"{one['calls']:.1f}",
              f"{one['seconds'] * 1e3:.3f}"] for one in found["waits"]],
        ))  # fmt: skip
        tables.append((
            ["the host waits, as PyTorch warns", "times in a step"],
            [[place, str(times)] for place, times in sorted(found["waits_by_place"].items())],
        ))  # fmt: skip
    return tables


def _short(name: str) -> str:
    """A kernel's name without what most of them have, and not longer than a line."""
    name = re.sub(r"^void |at::native::|\(anonymous namespace\)::", "", name)
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"
