"""The ``dist-embed`` command: parse, call, print.

What takes long to import is imported when signals are handled already.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any, NoReturn, TypeGuard

from dist_embed.cli.old_spellings import (
    in_new_words,
    refuse_no_output,
    take_output_by_place,
    with_missing_output,
)
from dist_embed.errors import RunFailed, causes
from dist_embed.parallel.collector import collector_off
from dist_embed.parallel.stop import (
    end_at_once_with,
    ending_signal,
    ends_abruptly,
    exit_on_signals,
    taken_signal,
    tell_launcher_in_the_end,
)
from dist_embed.parallel.torchrun import under_torchrun
from dist_embed.passwords import masked
from dist_embed.streams import end_of_output, has_seen_enough, results_alone, say, say_error

_MODULES = (
    "run", "plan", "jobs", "compare", "explore", "export", "study", "report", "data", "checkpoint",
    "bench", "config",
)  # fmt: skip
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def build_parser() -> argparse.ArgumentParser:
    """All commands."""
    parser = _Parser(
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


class _Parser(argparse.ArgumentParser):
    """Of the command and of each command in it: what all of them take, at any place."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.add_argument(
            "--quiet", action="store_true", default=argparse.SUPPRESS,
            help="no progress and no remarks: results and errors alone",
        )  # fmt: skip

    def print_help(self, file: Any = None) -> None:
        """Argparse's own passes over what cannot be written."""
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        """It repeats what was typed."""
        super().error(masked(message))


class _Version(argparse.Action):
    """Argparse's own would look the version up for every command."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> None:
        from importlib.metadata import version

        print(f"dist-embed {version('dist_embed')}")
        parser.exit()


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (the run failed, or nothing can be written where
    it was to be), 2 (bad input), or 128 and the number of the signal that ended it or asked it to
    stop: 143 (SIGTERM), 130 (SIGINT), 129 (SIGHUP).

    Without ``argv`` it is the process's own command: when it is done, signals end what is left of
    it, with this exit code. For the main thread.
    """
    with _signals_handled(for_good=argv is None):
        code = _command(argv)
    if argv is None:
        end_at_once_with(code)
        _let_go_of_output()
        if ends_abruptly():
            os._exit(code)
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
        end_of_output()
    except BaseException as exc:
        # Whatever it has become on its way: libraries turn what ends an import, or a wait, into
        # errors of their own.
        number = ending_signal()
        if number is None:
            return _code_of(exc)
        say_error(
            f"dist-embed: ended by {signal.Signals(number).name}; a run of this command goes on "
            "from what it has saved"
        )
        return 128 + number
    return 0


def _run(argv: list[str] | None) -> None:
    with collector_off():
        parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may stand next
        _complete(parser)
    words, said = in_new_words(sys.argv[1:] if argv is None else argv)
    try:
        arguments, rest = parser.parse_known_args(with_missing_output(words))
    except SystemExit:  # --help, --version
        end_of_output()
        raise
    with results_alone() if "quiet" in arguments else nullcontext():
        _call(parser, arguments, rest, said)


def _complete(parser: argparse.ArgumentParser) -> None:
    from dist_embed.installed import require

    require("argcomplete")
    from argcomplete import autocomplete

    autocomplete(parser, exclude=["run-job"])


def _call(
    parser: argparse.ArgumentParser,
    arguments: argparse.Namespace,
    rest: list[str],
    said: str | None,
) -> None:
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
    from dist_embed.errors import DistEmbedError, NotWritable, RunStopped
    from dist_embed.installed import missing_package

    if isinstance(exc, BrokenPipeError) and has_seen_enough(exc):
        return 0
    exc = missing_package(exc) or _beyond_limits(exc) or exc
    if not isinstance(exc, DistEmbedError | OSError):
        raise exc
    if _is_of_print(exc):
        exc.filename = "standard output"
    say_error(f"dist-embed: {exc}")
    if isinstance(exc, RunStopped):
        return 128 + (taken_signal() or signal.SIGTERM)  # none: a worker alone was asked
    failed = isinstance(exc, RunFailed | NotWritable | BrokenPipeError) or _has_no_room(exc)
    return 1 if failed else 2  # an OSError names the file and what is wrong


def _beyond_limits(exc: BaseException) -> Exception | None:
    """What is told of memory, threads or open files that this process does not get; None: it is
    another error. PyTorch's are RuntimeErrors (2.13, alloc_cpu.cpp).
    """
    if isinstance(exc, OSError) and exc.errno in (errno.EMFILE, errno.ENFILE):
        return RunFailed(f"{exc}; more are allowed by `ulimit -n`")
    if not isinstance(exc, MemoryError | RuntimeError):
        return None
    said = str(exc).split("\n")[0]
    if isinstance(exc, MemoryError) or "can't allocate memory" in said:
        return RunFailed(f"out of memory{said and f': {said}'}")
    if said == "can't start new thread":
        return RunFailed(f"{said}: no memory for it, or a limit: ulimit -u, or the container's")
    return None


def _is_of_print(exc: BaseException) -> TypeGuard[OSError]:
    """Whether a command has printed into a full disk: the system does not say where it wrote, and
    commands write nothing else without a name.
    """
    if not isinstance(exc, OSError) or exc.filename is not None or exc.errno not in _NO_ROOM:
        return False
    *_, (frame, _) = traceback.walk_tb(exc.__traceback__)
    name: str = frame.f_globals["__name__"]
    return name.startswith(("__main__", "dist_embed.cli", "dist_embed.bench"))


def _has_no_room(exc: BaseException) -> bool:
    """Whether a disk was full, or only to be read: nothing is wrong with what was given."""
    return any(isinstance(one, OSError) and one.errno in _NO_ROOM for one in causes(exc))


def _replace_lacking_letters() -> None:
    """What the screen's encoding has no letter for is shown as a question mark, and no error."""
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper) or stream.closed:
            continue
        if stream.errors in ("strict", "surrogateescape"):  # the latter in the locale C
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
