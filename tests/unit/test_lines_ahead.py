"""Lines that are read before they are asked for."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from dist_embed.data.lines_ahead import LinesAhead
from dist_embed.errors import UserError


def until(there: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 30
    while not there():
        assert time.monotonic() < give_up_at
        time.sleep(0.005)


def taken(ahead: LinesAhead, most: int = 99) -> list[str]:
    """The next lines, once there are some."""
    found: list[str] = []
    until(lambda: bool(found.extend(ahead.take(most) or []) or found))
    return found


def test_lines_are_there_as_they_come() -> None:
    given: queue.Queue[str | None] = queue.Queue()
    ahead = LinesAhead(iter(given.get, None))
    assert ahead.take(9) == []  # and nobody waits for one
    given.put("a")
    assert taken(ahead) == ["a"]
    assert ahead.take(9) == []
    for line in ("b", "", "c"):
        given.put(line)
    until(lambda: given.empty())
    assert taken(ahead, 2) + taken(ahead, 1) == ["b", "", "c"]
    given.put(None)
    until(lambda: ahead.take(9) is None)
    assert ahead.take(9) is None


def test_no_more_are_read_than_have_room() -> None:
    read: list[int] = []

    def endless() -> Iterator[str]:
        for number in range(1_000_000):
            read.append(number)
            yield "x" * 1000

    ahead = LinesAhead(endless(), most_bytes=10 * sys.getsizeof("x" * 1000))
    until(lambda: len(read) == 11)
    time.sleep(0.05)
    assert len(read) == 11  # the last one is held by the thread
    assert len(taken(ahead, 4)) == 4
    until(lambda: len(read) == 15)
    ahead.close()
    assert not ahead._thread.is_alive()
    assert len(read) == 15


def test_a_line_larger_than_the_room_passes_alone() -> None:
    ahead = LinesAhead(["a", "x" * 5000, "b"], most_bytes=100)
    assert [taken(ahead)[0] for _ in range(3)] == ["a", "x" * 5000, "b"]


def test_an_error_of_reading_comes_after_the_lines_before_it() -> None:
    def bad() -> Iterator[str]:
        yield "a"
        raise UserError("line 2")

    ahead = LinesAhead(bad())
    assert not ahead.are_none(30)
    assert taken(ahead) == ["a"]
    for _ in range(2):
        with pytest.raises(UserError, match="line 2"):
            until(lambda: ahead.take(9) is None)


def test_it_is_known_early_that_there_are_none() -> None:
    assert LinesAhead([]).are_none(30)
    assert not LinesAhead([""]).are_none(30)
    given: queue.Queue[str | None] = queue.Queue()
    assert not LinesAhead(iter(given.get, None)).are_none(0.01)  # nobody knows yet

    def unreadable() -> Iterator[str]:
        raise UserError("no such file")
        yield

    with pytest.raises(UserError, match="no such file"):
        LinesAhead(unreadable()).are_none(30)
