"""What a thread makes before it is asked for: in order, within its bound, with its errors."""

from __future__ import annotations

import atexit
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from dist_embed.data.read_ahead import ReadAhead
from tests.unit.broken_off import broken_off


def until(is_so: object, seconds: float = 20.0) -> None:
    """Wait until ``is_so()``, which comes to be so."""
    end = time.monotonic() + seconds
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come to be so"
        time.sleep(0.002)


class Counted:
    """Numbers, and how many of them were begun, and whether they were closed."""

    def __init__(self, count: int) -> None:
        self.begun = 0
        self.closed = False
        self._count = count

    def __iter__(self) -> Iterator[int]:
        try:
            for number in range(self._count):
                self.begun = number + 1
                yield number
        finally:
            self.closed = True


@pytest.mark.parametrize("ahead", [1, 3])
def test_the_next_one_begins_when_one_is_handed_out_and_no_more(ahead: int) -> None:
    counted = Counted(20)
    items = ReadAhead(iter(counted), ahead=ahead, name="one by one")
    for number in range(10):
        until(lambda number=number: counted.begun == number + ahead)
        time.sleep(0.01)
        assert counted.begun == number + ahead
        assert next(items) == number
    items.close()
    assert counted.closed
    assert "one by one" not in {thread.name for thread in threading.enumerate()}


def test_all_items_come_and_then_the_end() -> None:
    items = ReadAhead(iter(range(100)), ahead=2)
    assert list(items) == list(range(100))
    assert list(items) == []
    items.close()


def test_an_error_comes_after_what_was_made_and_each_time_again() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("bad block")

    items = ReadAhead(failing(), ahead=5)
    assert [next(items), next(items)] == [1, 2]
    for _ in range(3):
        with pytest.raises(OSError, match="bad block"):
            next(items)
    items.close()


def test_closing_wakes_who_waits() -> None:
    release = threading.Event()

    def stuck() -> Iterator[int]:
        release.wait(30)
        yield 1

    items = ReadAhead(stuck())
    told: list[BaseException] = []

    def ask() -> None:
        try:
            next(items)
        except RuntimeError as exc:
            told.append(exc)

    asking = threading.Thread(target=ask)
    asking.start()
    items.close(0.01)
    asking.join(30)
    assert "has been closed" in str(told[0])
    release.set()
    items.close()


def test_a_close_that_is_broken_off_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    release, forgotten = threading.Event(), list[object]()
    monkeypatch.setattr(atexit, "unregister", forgotten.append)

    def stuck() -> Iterator[int]:
        yield int(release.wait(60))

    items = ReadAhead(stuck())
    with broken_off():
        items.close(60)
    items.close(0.01)
    assert forgotten == []  # the interpreter's end waits for it
    release.set()
    items.close(60)
    assert len(forgotten) == 1


AT_EXIT = """
import time
from dist_embed.data.read_ahead import ReadAhead

def slow():
    for number in range(9):
        time.sleep(0.6)
        print(number, flush=True)
        yield number

next(ReadAhead(slow()))
time.sleep(0.1)  # the next one has begun
"""


def test_the_end_of_a_process_waits_for_the_item_that_is_being_made() -> None:
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "0\n1\n")
