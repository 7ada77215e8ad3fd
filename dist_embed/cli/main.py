"""The ``dist-embed`` command: parse, call, print."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext

from dist_embed.cli import bench, checkpoint, compare, config, data, embeddings, run, study
from dist_embed.cluster.work import under_torchrun
from dist_embed.config.errors import RunFailed, RunStopped, UserError
from dist_embed.observe.quiet import quiet_environment, quiet_screen
from dist_embed.parallel.stop import exit_on_sigterm
from dist_embed.storage.retry import StorageError


def build_parser() -> argparse.ArgumentParser:
    """All commands."""
    parser = argparse.ArgumentParser(
        prog="dist-embed",
        description="Train word embeddings whose tables are too large for one device.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (run, compare, embeddings, study, data, checkpoint, bench, config):
        module.add_commands(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (the run failed), 2 (bad input), 130 or 143
    (interrupted or asked to stop).
    """
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse stops taking overrides at the first option; those behind it are taken here.
    if any(word.startswith("-") or not hasattr(arguments, "overrides") for word in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    quiet_environment()
    quiet_screen()
    try:
        # torchrun waits for workers that it asks to end, and a worker that waits for others in
        # native code would not hear the signal.
        with nullcontext() if under_torchrun() else exit_on_sigterm():
            arguments.call(arguments)
    except (UserError, StorageError) as exc:
        print(f"dist-embed: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dist-embed: interrupted; a run goes on from its newest checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        return 0
    except OSError as exc:  # names the file and what the system has against it
        print(f"dist-embed: {exc}", file=sys.stderr)
        return 2
    except RunStopped as exc:
        print(f"dist-embed: {exc}", file=sys.stderr)
        return 143
    except RunFailed as exc:
        print(f"dist-embed: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
