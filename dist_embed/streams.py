"""Text on a stream that may not be able to show it: who looks on must never end what runs."""

from __future__ import annotations

import codecs
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dist_embed.passwords import masked

_given_up: list[Any] = []  # streams that have failed, and nobody need look at


class Forgiving:
    """A stream to which any text may be written.

    Letters that its encoding lacks become question marks. Where there is none (None), or it is
    closed or fails, nothing is shown any more.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:
        """As the stream has it; it decides what a bar is drawn with."""
        name: Any = getattr(self._stream, "encoding", None)
        try:
            return codecs.lookup(name).name
        except (TypeError, LookupError):  # a stream of a script's own may say anything
            return "ascii"

    def write(self, text: str) -> None:
        """Write it, or what can be shown of it."""
        try:
            self._try("write", text)
        except UnicodeEncodeError:
            self._try("write", text.encode(self.encoding, "replace").decode(self.encoding))

    def flush(self) -> None:
        """What was written can be read."""
        self._try("flush")

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return bool(self._try("isatty"))

    def fileno(self) -> int:
        """Asked for a terminal's width, by who expects an error."""
        number: int = self._stream.fileno()
        return number

    def _try(self, method: str, *given: str) -> Any:
        try:
            return getattr(self._stream, method, lambda *given: None)(*given)
        except UnicodeEncodeError:
            raise
        except Exception:  # of whatever a script has put in the place of sys.stdout
            _given_up.append(self._stream)
            self._stream = None
            return None


def write_out(content: bytes) -> None:
    """Put bytes on standard output as they are: what may be kept as a file is the same on every
    screen. Text there is UTF-8. Nothing happens where there is no standard output.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
        if hasattr(sys.stdout, "buffer"):
            sys.stdout.buffer.write(content)
        else:  # a stream of a script's own
            sys.stdout.write(content.decode("utf-8", "replace"))
        sys.stdout.flush()
    except OSError as exc:
        exc.filename = exc.filename or "standard output"  # of a full disk the system says no more
        raise


def end_of_output() -> None:
    """See that all that was printed has arrived. Raises OSError where it has not, as on a full
    disk; not for what only shows how far something is.
    """
    stream = sys.stdout
    if stream is None or getattr(stream, "closed", False) or stream in _given_up:
        return
    try:
        stream.flush()
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, "standard output") from exc


def has_seen_enough(exc: BrokenPipeError) -> bool:
    """Whether it is of our output, whose reader has gone: of a pipe that is named, or of standard
    output. Pipes to processes break too, and that is a failure.
    """
    if exc.filename is not None:
        return True
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # errors are told unasked
    except (OSError, ValueError, AttributeError):  # none, closed, or of a script's own
        return False
    # A socket, as some programs give, hangs up.
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


_results_alone = False


@contextmanager
def results_alone() -> Iterator[None]:
    """For a ``with`` block nothing is shown of how far something is, or remarked."""
    global _results_alone
    before, _results_alone = _results_alone, True
    try:
        yield
    finally:
        _results_alone = before


def is_to_show() -> bool:
    """Whether progress and remarks are shown, see `results_alone`."""
    return not _results_alone


def say(line: str) -> None:
    """A remark, as a line on standard error, where it can be shown."""
    if is_to_show():
        say_error(line)


def say_error(line: str) -> None:
    """As `say`, of what ends a command: always."""
    stream = Forgiving(sys.stderr)
    stream.write(f"{masked(line)}\n")
    stream.flush()
