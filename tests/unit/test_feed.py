"""Lines that workers ask the launching process for."""

from __future__ import annotations

import time

import pytest

from dist_embed.cluster.feed import Feed
from dist_embed.data.lines_ahead import LinesAhead
from dist_embed.observe.events import Event


class Workers:
    """Ask a feed, and tell what has become of its lines; what it writes and shows is kept."""

    def __init__(self, lines: list[str]) -> None:
        self.written: list[str] = []
        self.shown: list[Event] = []
        self.feed = Feed(LinesAhead(lines), self.written.extend)
        self.tell = self.feed.taking(self.shown.append)

    def want(self, number: int, most: int = 2) -> Event:
        self.tell({"kind": "wanted", "number": number, "most": most})
        give_up_at = time.monotonic() + 30
        while (answer := self.feed.answer()) is None:
            assert time.monotonic() < give_up_at
        return answer

    def give_back(self, *lines: str, cut: tuple[int, ...] = ()) -> None:
        self.tell({"kind": "translated", "lines": [*lines], "cut": [*cut]})


def test_lines_are_given_once_and_written_in_order() -> None:
    workers = Workers(["a", "b", "c"])
    assert workers.feed.answer() is None  # nobody has asked
    assert workers.want(0, 2) == {"number": 0, "first": 1, "lines": ["a", "b"]}
    assert workers.feed.answer() is None
    workers.give_back("A", "B")
    assert workers.written == ["A", "B"]
    assert workers.want(1) == {"number": 1, "first": 3, "lines": ["c"]}
    workers.give_back("C")
    assert workers.want(2) == {"number": 2, "first": 4, "lines": []}
    assert workers.written == ["A", "B", "C"]
    workers.tell({"kind": "line", "text": "else"})
    assert workers.shown == [{"kind": "line", "text": "else"}]


@pytest.mark.parametrize("asked_again", [False, True])
def test_workers_that_are_started_again_get_what_was_not_translated(asked_again: bool) -> None:
    workers = Workers(["a", "b", "c", "d", "e"])
    workers.want(0)
    workers.give_back("A", "B")
    workers.want(1)
    if asked_again:  # and was lost before it was answered
        workers.tell({"kind": "wanted", "number": 2, "most": 2})
    for _ in range(2):  # also what they have not asked for yet
        assert workers.want(0) == {"number": 0, "first": 3, "lines": ["c", "d"]}
    workers.give_back("C")  # the first of them, before one that is refused
    assert workers.want(1) == {"number": 1, "first": 4, "lines": ["d"]}
    workers.give_back("D")
    assert workers.want(2)["lines"] == ["e"]
    assert workers.written == ["A", "B", "C", "D"]


def test_lines_that_were_cut_are_counted() -> None:
    workers = Workers(["a", "b", "c"])
    workers.want(0)
    workers.give_back("A", "B")
    assert workers.feed.cut is None
    workers.want(1)
    workers.give_back("C", cut=(3,))
    assert workers.feed.cut == (1, 3)
    workers.give_back(cut=(7, 8))
    assert workers.feed.cut == (3, 3)


def test_nothing_more_is_given_to_who_writes_into_nothing() -> None:
    def closed(lines: list[str]) -> None:
        raise BrokenPipeError

    feed = Feed(LinesAhead(["a", "b"]), closed)
    tell = feed.taking(print)
    with pytest.raises(BrokenPipeError):
        tell({"kind": "translated", "lines": ["A"], "cut": []})
