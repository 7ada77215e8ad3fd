"""``dist-embed bench step``: where the time of a training step goes."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from dist_embed.cli.bench_options import add_output_option, at_least, write_figures
from dist_embed.cli.config import add_config_arguments
from dist_embed.config.load import load_config
from dist_embed.errors import UserError

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


def _step(arguments: argparse.Namespace) -> None:
    from dist_embed.bench.tasks import ProfileSteps
    from dist_embed.cli.table import print_table
    from dist_embed.cluster.launch import launch
    from dist_embed.config.paths import with_absolute_paths
    from dist_embed.data.preparation import ensure_data

    folder = Path(arguments.profile).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(arguments.config, arguments.overrides)
    config = with_absolute_paths(config, on_cluster=False)
    data = ensure_data(config, print)
    task = ProfileSteps(arguments.steps, str(folder / "trace.json.gz"), data.folder_uri)
    found = launch(
        task, config, vocabulary_size=data.vocabulary_size, word_tables=data.word_tables,
        on_event=lambda event: print(event["text"]), launcher="local",
    )  # fmt: skip
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
