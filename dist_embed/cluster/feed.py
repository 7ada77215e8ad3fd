"""Lines that workers ask the launching process for, some at a time, and what they make of them.

Worker 0 tells that lines are wanted, and hears some as soon as there are any; what has become of
them it tells before it asks again. So those of one answer are under way at most, are given again
where workers are started again, and nothing is lost or made twice.
"""

from __future__ import annotations

from collections.abc import Callable

from dist_embed.data.lines_ahead import LinesAhead
from dist_embed.observe.events import Event


class Feed:
    """The launching process's end.

    Args:
        lines: to be given.
        write: takes what has become of them, in order. Nothing more is given until it returns.

    Attributes:
        cut: numbers of lines that were too long, how many and the first; None: none was.
    """

    def __init__(self, lines: LinesAhead, write: Callable[[list[str]], None]) -> None:
        self.cut: tuple[int, int] | None = None
        self._lines = lines
        self._write = write
        self._given: list[str] = []  # of which nothing has been heard yet
        self._written = 0
        self._wanted: Event | None = None

    def taking(self, show: Callable[[Event], None]) -> Callable[[Event], None]:
        """What takes events of workers: those that are for this, and others to ``show``."""

        def take(event: Event) -> None:
            if event["kind"] == "wanted":
                self._wanted = event
            elif event["kind"] == "translated":
                self._take(event["lines"], event["cut"])
            else:
                show(event)

        return take

    def answer(self) -> Event | None:
        """What worker 0 is to hear, once, if it waits for lines and there are any: first those
        that it, or one before it, has been given and not told of. Without ``lines`` there are no
        more; ``first`` is the number of the first one, from 1.

        Raises what reading them does.
        """
        if self._wanted is None:
            return None
        if not self._given:
            taken = self._lines.take(self._wanted["most"])
            if taken == []:
                return None
            self._given = taken or []
        number, self._wanted = self._wanted["number"], None
        return {"number": number, "first": self._written + 1, "lines": [*self._given]}

    def _take(self, lines: list[str], cut: list[int]) -> None:
        self._write(lines)
        del self._given[: len(lines)]
        self._written += len(lines)
        if cut:
            count, first = self.cut or (0, cut[0])
            self.cut = count + len(cut), first
