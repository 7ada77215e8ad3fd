"""The ``dist-embed`` command: parse, call, print.

What takes long to import is imported when signals are handled already.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from dist_embed.cli.old_spellings import (
    in_new_words,
    refuse_no_output,
    take_output_by_place,
    with_missing_output,
)
from dist_embed.parallel.collector import collector_off
from dist_embed.parallel.stop import (
    end_at_once_with,
    ending_signal,
    exit_on_signals,
    taken_signal,
    tell_launcher_in_the_end,
)
from dist_embed.parallel.torchrun import under_torchrun
from dist_embed.streams import say

_MODULES = (
    "run", "plan", "jobs", "compare", "explore", "export", "study", "report", "data", "checkpoint",
    "bench", "config",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """All commands."""
    parser = argparse.ArgumentParser(
        prog="dist-embed",
        description="Train word embeddings whose tables are too large for one device.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="print it"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in _MODULES:
        import_module(f"dist_embed.cli.{name}").add_commands(commands)
    return parser


class _Version(argparse.Action):
    """Argparse's own would look the version up for every command."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> None:
        from importlib.metadata import version

        print(f"dist-embed {version('dist_embed')}")
        parser.exit()


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (the run failed), 2 (bad input), or 128 and the
    number of the signal that ended it or asked it to stop: 143 (SIGTERM), 130 (SIGINT), 129
    (SIGHUP).

    Without ``argv`` it is the process's own command: when it is done, signals end what is left of
    it, with this exit code. For the main thread.
    """
    with _signals_handled(for_good=argv is None):
        code = _command(argv)
    if argv is None:
        end_at_once_with(code)
        _let_go_of_output()
    return code


@contextmanager
def _signals_handled(*, for_good: bool) -> Iterator[None]:
    if under_torchrun():
        # torchrun waits for workers that it asks to end, and a worker that waits for others in
        # native code would not hear the signal.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        tell_launcher_in_the_end()
        yield
        return
    with exit_on_signals(for_good=for_good):
        yield


def _command(argv: list[str] | None) -> int:
    _replace_lacking_letters()
    try:
        _run(argv)
    except BaseException as exc:
        # Whatever it has become on its way: libraries turn what ends an import, or a wait, into
        # errors of their own.
        number = ending_signal()
        if number is None:
            return _code_of(exc)
        say(
            f"dist-embed: ended by {signal.Signals(number).name}; a run goes on from its newest "
            "checkpoint"
        )
        return 128 + number
    return 0


def _run(argv: list[str] | None) -> None:
    with collector_off():
        parser = build_parser()
    words, said = in_new_words(sys.argv[1:] if argv is None else argv)
    arguments, rest = parser.parse_known_args(with_missing_output(words))
    if said:
        say(f"dist-embed: {said}")
        take_output_by_place(arguments, rest)
    else:
        refuse_no_output(arguments, rest)
    # argparse stops taking overrides at the first option; those behind it are taken here.
    if any(word.startswith("-") or not hasattr(arguments, "overrides") for word in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    from dist_embed.observe import quiet
    from dist_embed.storage.temporary import remove_abandoned
    from dist_embed.storage.uri import check_working_folder

    check_working_folder()
    remove_abandoned()
    quiet.quiet_screen()
    with quiet.quiet_environment():
        arguments.call(arguments)


def _code_of(exc: BaseException) -> int:
    """The exit code of a command that ended with an error, which is told; raises what is a bug."""
    from dist_embed.errors import DistEmbedError, RunFailed, RunStopped
    from dist_embed.installed import missing_package

    if isinstance(exc, BrokenPipeError):  # the reader of our output has seen enough
        return 0
    exc = missing_package(exc) or exc
    if not isinstance(exc, DistEmbedError | OSError):
        raise exc
    say(f"dist-embed: {exc}")
    if isinstance(exc, RunStopped):
        return 128 + (taken_signal() or signal.SIGTERM)  # none: a worker alone was asked
    return 1 if isinstance(exc, RunFailed) else 2  # an OSError names the file and what is wrong


def _replace_lacking_letters() -> None:
    """What the screen's encoding has no letter for is shown as a question mark, and no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.closed and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _let_go_of_output() -> None:
    """Where nobody reads it any more: the interpreter's last flush would change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None or stream.closed:  # as `>&-` leaves it
            continue
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
