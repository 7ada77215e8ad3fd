"""How the local launcher watches its workers, which stand-ins are, as is the clock."""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import signal
import sys
import time
from contextlib import ExitStack, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dist_embed.cluster import local
from dist_embed.cluster.feed import Feed
from dist_embed.data.lines_ahead import LinesAhead
from dist_embed.errors import RunFailed, RunStopped, UserError
from dist_embed.parallel import stop
from dist_embed.parallel.peers import peers_end_with_this_worker, peers_have_time
from dist_embed.parallel.safe_path import leave_out_working_folder, safe_path

FAILURE = {
    "kind": "failure", "rank": 1, "teller": 1, "relayed": False, "is_cause": True,
    "is_passing": False,
    "user_message": "no such file", "trace": "",
}  # fmt: skip


class Workers:
    """Two workers, as processes and as the mailbox of what they tell; ``course`` is what happened.

    Attributes:
        events: what they tell, at once.
        codes: with which each has ended.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, events: list[Any], codes: list[int | None]
    ) -> None:
        self.events, self.codes = events, codes
        self.now = 1000.0
        self.course: list[str] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def get(self, seconds: float) -> Any:
        if self.events:
            return self.events.pop(0)
        self.now += seconds
        return None

    def wait_for_the_rest(self) -> None:
        assert all(code is not None for code in self.codes)

    def terminate(self) -> None:
        self.course.append("told")

    def answer(self, answer: Any) -> None:
        self.course.append(f"answered {answer['lines']}")

    def watch(
        self, *, stop_seconds: float = 0.0, save_seconds: float = 0.0, feed: Feed | None = None
    ) -> Any:
        processes: list[Any] = [_Process(code, self) for code in self.codes]
        mailbox: Any = self
        show: Any = lambda event: self.course.append(event["text"])  # noqa: E731
        return local._watch(
            processes, mailbox, feed.taking(show) if feed else show, "LOGS", stop_seconds,
            save_seconds, feed,
        )  # fmt: skip


class _Process:
    def __init__(self, code: int | None, workers: Workers) -> None:
        self.exitcode = code
        self.terminate = workers.terminate

    def is_alive(self) -> bool:
        return self.exitcode is None


@pytest.mark.parametrize(
    ("events", "code", "seconds"), [([FAILURE], 1, 70.0), ([FAILURE], None, 70.0), ([], -9, 10.0)]
)
def test_a_save_gets_its_time_after_an_error_that_was_told(
    monkeypatch: pytest.MonkeyPatch, events: list[Any], code: int | None, seconds: float
) -> None:
    workers = Workers(monkeypatch, list(events), [None, code])
    with pytest.raises(UserError if events else RunFailed):
        workers.watch(save_seconds=60.0)
    assert workers.now - 1000.0 == pytest.approx(seconds, abs=0.5)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("code", "more"), [(-9, "; signal 9: killed, often for lack of memory"), (3, "")]
)
def test_a_worker_that_ended_without_a_word_is_told(
    monkeypatch: pytest.MonkeyPatch, rank: int, code: int, more: str
) -> None:
    codes: list[int | None] = [0, 0]
    codes[rank] = code
    workers = Workers(monkeypatch, [{"kind": "line", "text": "a line"}], codes)
    with pytest.raises(RunFailed) as told:
        workers.watch()
    assert str(told.value) == (
        f"worker {rank} was ended from outside (exit code {code}{more}); worker logs: LOGS"
    )
    assert workers.course == ["a line"]


def test_a_worker_that_was_ended_counts_before_one_whose_collective_broke(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And after one that says itself why it failed."""
    echo = FAILURE | {"is_cause": False, "user_message": None, "trace": "gloo: closed"}
    with pytest.raises(RunFailed, match="worker 0 was ended from outside"):
        Workers(monkeypatch, [echo], [-9, 1]).watch()
    with pytest.raises(RunFailed, match="worker 0 was ended from outside"):  # who told of it
        Workers(monkeypatch, [echo | {"rank": 0}], [-9, 1]).watch()
    with pytest.raises(UserError, match="no such file"):
        Workers(monkeypatch, [echo | {"rank": 0}, FAILURE], [-9, 1]).watch()
    with pytest.raises(RunFailed, match="worker 1 failed:\ngloo: closed"):
        Workers(monkeypatch, [echo], [0, 1]).watch()


def test_workers_that_are_started_anew_import_nothing_from_the_working_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Started(Exception):
        pass

    class Fresh:
        pid = None

        def start(self) -> None:
            raise Started(os.environ.get("PYTHONSAFEPATH"))

    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=lambda **how: Fresh())
    monkeypatch.setattr(local, "worker_context", lambda device: context)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with pytest.raises(Started, match="1"):
        local.launch_local(len, (), num_workers=1, on_event=print, log_folder="", device="cuda")
    assert "PYTHONSAFEPATH" not in os.environ


@pytest.mark.parametrize("before", [None, "0"])
def test_blocks_of_several_threads_leave_the_safe_path_as_it_was(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    if before is not None:
        monkeypatch.setenv("PYTHONSAFEPATH", before)
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(safe_path())
        second.enter_context(safe_path())
        first.close()  # as a thread that began first and ends first
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert os.environ.get("PYTHONSAFEPATH") == before


@pytest.mark.parametrize(
    ("variable", "before", "after"),
    [("1", ["", "/a"], ["/a"]), ("1", ["/a", ""], ["/a", ""]), ("1", [], []),
     ("", ["", "/a"], ["", "/a"]), (None, ["", "/a"], ["", "/a"])],
)  # fmt: skip
def test_where_python_knows_no_safe_path_the_working_folder_is_left_out(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, before: list[str], after: list[str]
) -> None:
    monkeypatch.setattr(sys, "path", before)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    if variable is not None:
        monkeypatch.setenv("PYTHONSAFEPATH", variable)
    leave_out_working_folder()
    assert sys.path == after


def test_the_process_that_workers_are_forked_from_leaves_it_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("inference", "train"):  # they take seconds
        stand_in = ModuleType(f"dist_embed.training.{name}")
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    runpy.run_module("dist_embed.cluster.forked")
    gc.unfreeze()
    assert sys.path[0] != ""


def test_workers_that_do_not_stop_in_time_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "stop_requested", lambda: True)
    workers = Workers(monkeypatch, [], [None, 0])
    with pytest.raises(RunFailed, match="did not end within 5 s and were killed"):
        workers.watch(stop_seconds=5.0)
    assert workers.now - 1000.0 == pytest.approx(5.0, abs=0.5)
    assert workers.course.count("told") == 2  # once each, however often one looks


@pytest.mark.parametrize("stop", [False, True])
def test_a_result_that_was_told_is_not_lost_with_a_worker_that_does_not_end(
    monkeypatch: pytest.MonkeyPatch, stop: bool
) -> None:
    """Stuck in its farewell: all is saved."""
    monkeypatch.setattr(local, "stop_requested", lambda: stop)
    workers = Workers(monkeypatch, [{"kind": "result", "value": 7}], [0, None])
    assert workers.watch(stop_seconds=5.0) == 7
    assert workers.now - 1000.0 == pytest.approx(20.0, abs=0.5)


def test_workers_that_a_stop_found_before_they_had_begun_are_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "stop_requested", lambda: True)
    with pytest.raises(RunStopped, match="before the workers had begun"):
        Workers(monkeypatch, [], [-signal.SIGTERM, 0]).watch(stop_seconds=5.0)
    with pytest.raises(RunFailed, match="was ended from outside"):
        Workers(monkeypatch, [], [-signal.SIGTERM, -9]).watch(stop_seconds=5.0)
    # One that was done had its part done, whatever ended another one since.
    done = {"kind": "result", "value": 7}
    assert Workers(monkeypatch, [done], [0, -signal.SIGTERM]).watch(stop_seconds=5.0) == 7
    monkeypatch.setattr(local, "stop_requested", lambda: False)
    with pytest.raises(RunFailed, match="worker 1 was ended from outside"):
        Workers(monkeypatch, [done], [0, -signal.SIGTERM]).watch(stop_seconds=5.0)


def test_a_signal_is_nothing_to_workers_that_get_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "stop_requested", lambda: True)
    workers = Workers(monkeypatch, [{"kind": "result", "value": 7}], [0, 0])
    assert workers.watch() == 7
    assert workers.course == []


def test_nobody_is_waited_for_when_all_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(monkeypatch, [FAILURE], [0, 1])
    with pytest.raises(UserError, match="no such file"):
        workers.watch(save_seconds=60.0)
    assert workers.now - 1000.0 < 1


def test_workers_are_asked_to_stop_before_the_terminal_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "stop_requested", lambda: True)
    workers = Workers(monkeypatch, [{"kind": "result", "value": 7}], [0, 0])
    assert workers.watch(stop_seconds=5.0) == 7
    assert [what.split(":")[0] for what in workers.course] == ["told", "told", "asked to stop"]


def test_worker_0_is_answered_once_there_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"kind": "wanted", "number": 0, "most": 9}
    written: list[str] = []
    ahead = LinesAhead(["a", "b"])
    assert not ahead.are_none(30)
    events = [
        wanted, {"kind": "translated", "lines": ["A", "B"], "cut": []}, wanted | {"number": 1},
        {"kind": "result", "value": 7},
    ]  # fmt: skip
    workers = Workers(monkeypatch, events, [0, 0])
    ahead._thread.join(30)
    assert workers.watch(feed=Feed(ahead, written.extend)) == 7
    assert workers.course == ["answered ['a', 'b']", "answered []"]
    assert written == ["A", "B"]


def test_workers_are_started_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of forks is deaf itself; processes that are started anew inherit this one's mask."""
    blocked: list[set[int]] = []
    process = SimpleNamespace(
        start=lambda: blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())), pid=None
    )
    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=lambda **_: process)
    monkeypatch.setattr(local, "worker_context", lambda device: context)
    monkeypatch.setattr(local, "_watch", lambda *_: "done")
    assert (
        local.launch_local(print, (), num_workers=2, on_event=print, log_folder="", device="cuda")
        == "done"
    )
    assert blocked == [set(stop.SIGNALS)] * 2


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "refused"), BrokenPipeError(),
                                   EOFError("unexpected EOF")])  # fmt: skip
def test_a_server_of_forks_that_has_ended_is_told(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> None:
        raise error

    process = SimpleNamespace(start=start, pid=None)
    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=lambda **_: process)
    monkeypatch.setattr(local, "worker_context", lambda device: context)
    with pytest.raises(RunFailed, match=rf"no worker can be started \({type(error).__name__}"):
        local.launch_local(print, (), num_workers=1, on_event=print, log_folder="", device="cpu")


def test_what_was_started_is_ended_and_waited_for() -> None:
    course: list[str] = []

    def process(name: str, pid: int | None) -> Any:
        return SimpleNamespace(
            pid=pid, kill=lambda: course.append(f"{name} killed"),
            join=lambda: course.append(f"{name} gone"),
        )  # fmt: skip

    local._end([process("one", 7), process("two", 8), process("never started", None)])
    assert course == ["one killed", "two killed", "one gone", "two gone"]


def test_only_the_local_launcher_leaves_the_others_time_after_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert peers_end_with_this_worker()
    for name, value in peers_have_time().items():
        monkeypatch.setenv(name, value)
    assert not peers_end_with_this_worker()


class Ended(Exception):
    """Instead of the end of a worker's process."""


@pytest.mark.parametrize(
    ("rank", "fails", "receives"), [(0, False, True), (0, True, False), (2, False, False)]
)
def test_a_worker_knows_its_place_and_tells_its_result_or_failure(
    monkeypatch: pytest.MonkeyPatch, rank: int, fails: bool, receives: bool
) -> None:
    course: list[Any] = []

    def end(code: int) -> None:
        course.append(f"exit {code}")
        raise Ended

    system = SimpleNamespace(environ={}, _exit=end)
    monkeypatch.setattr(local, "os", system)
    for name in ("hear_sigterm", "end_with_parent"):
        monkeypatch.setattr(local, name, lambda name=name: course.append(name))
    writer: Any = SimpleNamespace(
        send=course.append, poll=lambda seconds: seconds > 1, recv=lambda: {"number": 3}
    )

    def target(first: int, second: int, emit: Any, *receive: Any) -> int:
        assert [(one(3, 1.0), one(3, 2.0)) for one in receive] == [(None, {"number": 3})] * receives
        course.append(dict(system.environ))
        emit("a line")
        if fails:
            raise UserError("no such file")
        return first + second

    with pytest.raises(Ended) if fails else nullcontext():
        local._child(target, (3, 4), rank, 5, 1234, writer, receives)
    before, environment, line, *rest = course[:2], *course[2:]
    assert before == ["hear_sigterm", "end_with_parent"]
    assert environment == {
        "RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "5", "LOCAL_WORLD_SIZE": "5",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1234", "TORCHELASTIC_USE_AGENT_STORE": "True",
        **peers_have_time(),
    }  # fmt: skip
    assert line == "a line"
    if fails:
        failure, *rest = rest
        assert (failure["rank"], failure["user_message"]) == (rank, "no such file")
    elif rank == 0:
        result, *rest = rest
        assert result == {"kind": "result", "value": 7}
    assert rest == (["exit 1"] if fails else [])


def test_workers_are_numbered_and_given_what_the_launcher_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[dict[str, Any]] = []
    watched: list[Any] = []
    course: list[str] = []
    process = SimpleNamespace(
        start=lambda: course.append("started"), pid=7, kill=lambda: course.append("killed"),
        join=lambda: None,
    )  # fmt: skip
    context = SimpleNamespace(
        Pipe=multiprocessing.Pipe, Process=lambda **how: made.append(how) or process
    )
    devices: list[str] = []
    monkeypatch.setattr(local, "worker_context", lambda device: devices.append(device) or context)
    monkeypatch.setattr(local, "hosted_store", lambda: SimpleNamespace(port=1234))

    def watch(*given: Any) -> None:
        watched.append(given)
        raise RunFailed("worker 1 failed")

    monkeypatch.setattr(local, "_watch", watch)
    with pytest.raises(RunFailed):
        local.launch_local(
            print, (1, 2), num_workers=2, on_event=print, log_folder="LOGS", stop_seconds=3.0,
            save_seconds=4.0, device="cuda",
        )  # fmt: skip
    assert [how["args"][:-2] for how in made] == [
        (print, (1, 2), rank, 2, 1234) for rank in range(2)
    ]
    assert all(how["args"][-2].closed for how in made)  # here: the process has its own
    assert [how["args"][-1] for how in made] == [False, False]
    # Those of a launcher that is gone must not stay.
    assert all(how["target"] is local._child and how["daemon"] for how in made)
    assert [(what[0], *what[2:]) for what in watched] == [
        ([process] * 2, print, "LOGS", 3.0, 4.0, None)
    ]
    assert devices == ["cuda"]
    assert course == ["started", "started", "killed", "killed"]


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_a_signal_is_taken_only_for_workers_that_get_time_to_stop(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    context = SimpleNamespace()
    monkeypatch.setattr(local, "worker_context", lambda device: context)
    heard: list[Any] = []
    monkeypatch.setattr(local, "_watch", lambda *_: heard.append(signal.getsignal(signal.SIGTERM)))
    before = signal.getsignal(signal.SIGTERM)
    local.launch_local(
        print, (), num_workers=0, on_event=print, log_folder="", stop_seconds=seconds
    )
    assert (heard[0] != before) == (seconds > 0)
