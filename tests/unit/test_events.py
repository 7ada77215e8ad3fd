from __future__ import annotations

import contextlib
import errno
import gc
import io
import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dist_embed.observe.events import (
    Reporter,
    Screen,
    duration,
    shown_by,
    silent_reporter,
    watched_by,
)
from dist_embed.streams import say, write_out


def progress(step: int, **changes: Any) -> dict[str, Any]:
    values = {"loss": 2.5, "tokens_per_second": 12345.6, "eta_seconds": 125.0, "max_steps": 100}
    return {"kind": "progress", "step": step} | values | changes


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (5.4, "0:05"), (59.6, "1:00"), (123, "2:03"), (3599.9, "1:00:00"),
     (3723, "1:02:03"), (360_000, "100:00:00")],
)  # fmt: skip
def test_durations_are_like_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_are_plain_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    screen.show({"kind": "line", "text": "hello"})
    screen.show(progress(100))
    screen.close()
    assert stream.getvalue() == ("hello\nstep 100/100  loss 2.500  12,346 tokens/s  ETA 2:05\n")


def test_a_notebook_has_a_bar_and_lines_above_it() -> None:
    class OutStream(io.StringIO):
        pass

    OutStream.__module__ = "ipykernel.iostream"
    stream = OutStream()
    with shown_by(None, stream) as show:
        show(progress(50))
        show({"kind": "line", "text": "hello"})
    said = stream.getvalue()
    assert " 50%|" in said
    assert "\nhello\n" in said.replace("\r", "\n").replace(" \n", "\n")
    assert said.endswith("\n")  # the bar has ended with the block


def test_events_go_to_the_caller_s_function_where_there_is_one() -> None:
    taken: list[Any] = []
    with shown_by(taken.append, None) as show:
        show({"kind": "line", "text": "hello"})
    assert taken == [{"kind": "line", "text": "hello"}]


def test_what_is_told_can_be_read_at_once() -> None:
    written = io.BytesIO()
    screen = Screen(io.TextIOWrapper(written))
    screen.show({"kind": "line", "text": "hello"})
    assert written.getvalue() == b"hello\n"
    screen.show(progress(100))
    assert written.getvalue().endswith(b"ETA 2:05\n")


def test_a_run_goes_on_when_nobody_reads_what_it_shows() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", closefd=False) as stream:
        screen = Screen(stream)
        for step in (1, 100):
            screen.show({"kind": "line", "text": "hello"})
            screen.show(progress(step))
        screen.close()
        with pytest.raises(BrokenPipeError):
            stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # what is left can be written there
    os.close(writer)


def test_progress_is_a_line_every_ten_seconds_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    screen = Screen(stream)
    for step in range(1, 101):
        screen.show(progress(step))
        now += 1.0
    steps = [
        int(line.split("/")[0].removeprefix("step ")) for line in stream.getvalue().splitlines()
    ]
    assert steps == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100]


def test_the_first_progress_shows_right_after_the_machine_has_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 3.0)  # seconds since boot
    stream = io.StringIO()
    Screen(stream).show(progress(1))
    assert "step 1/100" in stream.getvalue()


def read_terminal(outer: int) -> str:
    """What was written to a terminal whose other end is closed; it comes in pieces."""
    shown = b""
    with contextlib.suppress(OSError):  # Linux' way of saying that nothing more will come
        while piece := os.read(outer, 65536):
            shown += piece
    os.close(outer)
    return shown.decode()


def test_a_terminal_shows_a_bar_and_lines_above_it() -> None:
    outer, inner = os.openpty()
    with os.fdopen(inner, "w") as stream:
        screen = Screen(stream)
        screen.show(progress(25))
        screen.show({"kind": "line", "text": "a line between"})
        screen.show(progress(50))
        screen.close()
        screen.close()  # twice does no harm
    shown = read_terminal(outer)
    assert "25%" in shown
    assert "loss 2.500, 12,346 tokens/s, ETA 2:05" in shown
    assert "a line between\r\n" in shown
    assert "50/100" in shown


class Closed(io.StringIO):
    """A terminal that has been closed: every write fails."""

    def __init__(self) -> None:
        super().__init__()
        self.tried = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.tried += 1
        raise OSError(errno.EIO, "Input/output error")


def test_a_run_goes_on_when_its_terminal_has_closed() -> None:
    stream = Closed()
    screen = Screen(stream)
    screen.show(progress(1))
    screen.show({"kind": "line", "text": "hello"})
    assert stream.tried > 0
    gc.collect()  # a bar that was not begun ends with it
    tried = stream.tried
    for step in (2, 100):
        screen.show({"kind": "line", "text": "hello"})
        screen.show(progress(step))
    screen.close()
    assert stream.tried == tried  # it is let alone


def test_a_bar_that_cannot_be_ended_is_no_error() -> None:
    outer, inner = os.openpty()
    stream = os.fdopen(inner, "w")
    screen = Screen(stream)
    screen.show(progress(25))
    os.close(outer)
    screen.close()
    with contextlib.suppress(OSError):
        stream.close()


class Odd:
    """What a script may have put in the place of sys.stdout."""

    def __init__(self) -> None:
        self.written = ""

    def write(self, text: str) -> None:
        self.written += text


class Broken(Odd):
    def write(self, text: str) -> None:
        raise RuntimeError("not today")

    def isatty(self) -> bool:
        return True


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("make", [lambda: None, closed, Broken, Odd])
def test_no_screen_ends_a_run(make: Any) -> None:
    stream = make()
    with shown_by(None, stream) as show:
        for step in (1, 100):
            show(progress(step))
            show({"kind": "line", "text": "hello"})
    if type(stream) is Odd:
        assert stream.written.endswith("ETA 2:05\nhello\n")


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "a ?? ?"), ("latin-1", "a \xe9? ?")])
@pytest.mark.parametrize("terminal", [False, True])
def test_letters_that_a_screen_lacks_are_replaced(
    encoding: str, shown: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding)
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    with shown_by(None, stream) as show:
        show(progress(50))
        show({"kind": "line", "text": "a \xe9\u4e00 \ud800"})
        show(progress(100))
    assert f"{shown}\n" in written.getvalue().decode(encoding)
    assert "100/100" in written.getvalue().decode(encoding)


def test_a_stream_may_name_an_encoding_that_there_is_not() -> None:
    stream = Odd()
    stream.encoding = "of-my-own"  # type: ignore[attr-defined]
    with shown_by(None, stream) as show:
        show({"kind": "line", "text": "hello"})
    assert stream.written == "hello\n"


def test_bytes_go_to_a_stream_of_text_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    write_out("a \xe9\n".encode())
    assert stream.getvalue() == "a \xe9\n"


def test_a_line_on_standard_error_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Odd()
    for one in (None, closed(), Broken(), stream):
        monkeypatch.setattr("sys.stderr", one)
        say("hello")
    assert stream.written == "hello\n"


def test_events_of_other_kinds_are_not_shown() -> None:
    stream = io.StringIO()
    Screen(stream).show({"kind": "failure", "text": "x"})
    assert stream.getvalue() == ""


def test_a_reporter_sends_plain_events() -> None:
    sent: list[dict[str, Any]] = []
    reporter = Reporter(sent.append)
    reporter.line("x")
    reporter.progress(step=1, max_steps=2)
    assert sent == [
        {"kind": "line", "text": "x"},
        {"kind": "progress", "step": 1, "max_steps": 2},
    ]


def test_a_silent_reporter_drops_everything(capfd: pytest.CaptureFixture[str]) -> None:
    silent_reporter().line("x")
    silent_reporter().progress(step=1)
    assert capfd.readouterr() == ("", "")


def test_redirected_output_holds_native_writes_too(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "worker.log"
    code = f"""
import logging, os, sys, warnings
from pathlib import Path
from dist_embed.observe.quiet import quiet_tables, redirect_output, storage
make, made = storage.make_folder, []
storage.make_folder = lambda folder: (made.append(folder), make(folder))
print("before")
library = logging.getLogger("torch.fx._symbolic_trace")
library.propagate = False
sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)  # the screen, as under torchrun
library.addHandler(logging.StreamHandler())
quiet_tables()
library.warning("is_fx_tracing will return true: not to be shown")
redirect_output(Path({str(log)!r}))
os.write(1, b"native out\\n")
os.write(2, b"native err\\n")
os.system("echo from a child")
print("python out")
print("durable", *made)
logging.getLogger("some.library").info("logged")
warnings.warn("warned")
quiet_tables()
library.warning("is_fx_tracing will return true: to be logged")
sys.stderr = sys.__stderr__
sys.stdout.flush()
logging.getLogger().handlers[0].stream.close()
1 / 0
"""
    log.parent.mkdir()
    log.write_text("an earlier start\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("before\n", "", 1)
    text = log.read_text()
    assert text.startswith("an earlier start\n")
    for part in (
        "native out", "native err", "from a child", "python out", "some.library INFO logged",
        "warned", "to be logged", "ZeroDivisionError", f"durable {log.parent}",
    ):  # fmt: skip
        assert part in text


def test_the_environment_of_a_user_is_not_overridden() -> None:
    code = (
        "import os; from dist_embed.observe.quiet import quiet_environment\n"
        "before = os.environ.copy()\n"
        "with quiet_environment():\n"
        "    names = 'RAY_USAGE_STATS_ENABLED', 'RAY_DEDUP_LOGS'\n"
        "    print(*[os.environ[name] for name in names])\n"
        "    os.environ['PYTHONBREAKPOINT'] = 'a library'\n"
        "    del os.environ['RAY_DEDUP_LOGS']\n"
        "    os.environ['AWS_SESSION_TOKEN'] = 'renewed meanwhile'\n"
        "assert os.environ == {**before, 'AWS_SESSION_TOKEN': 'renewed meanwhile'}\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=clean | {"RAY_DEDUP_LOGS": "1"},
    )  # fmt: skip
    assert done.stdout == "0 1\n"


def reading(show: Any, pairs: int) -> list[int]:
    return list(watched_by(show)("counting words", range(pairs)))


def test_how_far_a_text_is_read_is_a_line_a_minute_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count(0, 0.01)  # seconds, each time it is looked at
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    screen = Screen(stream)
    assert reading(screen.show, 20_000) == list(range(20_000))
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 4
    assert all(re.fullmatch(r"counting words: [\d,]+ pairs", line) for line in lines)
    assert reading(screen.show, 100) == list(range(100))
    assert len(stream.getvalue().splitlines()) == len(lines)


def test_what_is_short_by_itself_is_shown_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 0.01)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    watch = watched_by(Screen(stream).show)
    for number in range(10_000):
        assert list(watch(f"file {number}", [b""], "MiB")) == [b""]
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 4
    assert all(re.fullmatch(r"file \d+: 1 MiB", line) for line in lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_of_short_things_stays_until_something_else_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count(0, 1.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    stream = Terminal()
    screen = Screen(stream)
    watch = watched_by(screen.show)
    for number in range(10):
        list(watch(f"file {number}", [b""], "MiB"))
    assert re.search(r"\rfile 9: 1 MiB, \d\d:\d\d *$", stream.getvalue())
    screen.show({"kind": "line", "text": "done"})
    assert stream.getvalue().endswith("\rdone\n")


def test_how_far_a_text_is_read_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 1.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    stream = Terminal()
    with shown_by(None, stream) as show:
        reading(show, 100)
        list(watched_by(show)("a digest", range(3), "MiB"))
        show({"kind": "line", "text": "done"})
    for told in ("counting words: 100 pairs", "a digest: 3 MiB"):
        assert re.search(rf"\r{told}, \d\d:\d\d *\r", stream.getvalue())
    assert stream.getvalue().endswith("\rdone\n")  # in the place of the bar


def test_what_reads_a_text_hears_how_far_it_is() -> None:
    events: list[Any] = []
    assert reading(events.append, 3) == [0, 1, 2]
    event = {"kind": "reading", "what": "counting words", "unit": "pairs"}
    assert events == [{**event, "number": 3, "ended": True}]
