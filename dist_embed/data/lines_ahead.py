"""Lines that a thread reads before they are asked for, within a bound of memory."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterable

END_SECONDS = 0.2


class LinesAhead:
    """Gives lines as they come: whoever takes them never waits for those that are still to come.

    Args:
        lines: read by the thread alone, which begins at once.
        most_bytes: of memory, that lines which wait to be taken may have; one may have more.
    """

    def __init__(self, lines: Iterable[str], *, most_bytes: int = 2**24) -> None:
        self._ready: deque[str] = deque()
        self._bytes = 0
        self._most_bytes = most_bytes
        self._error: BaseException | None = None
        self._ended = self._closed = False
        self._changed = threading.Condition()
        # A daemon: a read of a terminal or a pipe cannot be broken off.
        self._thread = threading.Thread(target=self._read, args=(lines,), name="lines", daemon=True)
        self._thread.start()

    def take(self, most: int) -> list[str] | None:
        """The next lines of those that are there, at most so many; none where none is there yet.
        None: there are no more.

        Raises what reading them has raised, once those before are taken.
        """
        with self._changed:
            taken = [self._ready.popleft() for _ in range(min(most, len(self._ready)))]
            self._bytes -= sum(map(sys.getsizeof, taken))
            self._changed.notify_all()
            if taken or not self._ended:
                return taken
            if self._error is not None:
                raise self._error
            return None

    def are_none(self, seconds: float) -> bool:
        """Whether it is known within so long that there is no line at all. Raises as `take`."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended, seconds)
            return not self._ready and self.take(0) is None

    def close(self) -> None:
        """Read no further."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(END_SECONDS)

    def _read(self, lines: Iterable[str]) -> None:
        try:
            for line in lines:
                if not self._put(line):
                    return
        except BaseException as exc:  # raised where the lines are taken
            self._error = exc
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, line: str) -> bool:
        """Once there is room for it; False: nobody takes it any more."""
        size = sys.getsizeof(line)
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._ready or self._bytes + size <= self._most_bytes
            )
            self._ready.append(line)
            self._bytes += size
            self._changed.notify_all()
            return not self._closed
