"""Text on a stream that may not be able to show it: who looks on must never end what runs."""

from __future__ import annotations

import codecs
import sys
from typing import Any


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


def say(line: str) -> None:
    """A line on standard error, where it can be shown."""
    stream = Forgiving(sys.stderr)
    stream.write(f"{line}\n")
    stream.flush()
