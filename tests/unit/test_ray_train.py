"""How the launcher for Ray waits for its workers, with stand-ins for Ray's part."""

from __future__ import annotations

import atexit
import inspect
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import pytest
import ray
from ray._private import worker
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RpcError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from dist_embed.cluster import (
    failure,
    ray_aside,
    ray_connection,
    ray_course,
    ray_fit,
    ray_group,
    ray_room,
    ray_train,
    ray_worker,
)
from dist_embed.cluster.failure import Failures, Start
from dist_embed.cluster.feed import Feed
from dist_embed.cluster.ray_group import GroupByEnvironment
from dist_embed.cluster.ray_mailbox import RayMailbox
from dist_embed.cluster.ray_node import NodeLost
from dist_embed.data.lines_ahead import LinesAhead
from dist_embed.errors import RunFailed, RunStopped, UserError
from dist_embed.parallel import hang, stop
from dist_embed.parallel.errors import Hangs
from tests.unit.broken_off import broken_off_start

BEGIN = {"kind": "begin", "start": 0, "node": "here"}
FAILURE = {
    "kind": "failure", "start": 0, "rank": 1, "teller": 1, "relayed": False, "is_cause": True,
    "is_passing": True, "is_conflict": False, "user_message": None, "trace": "lost",
}  # fmt: skip
BROKEN = FAILURE | {"is_cause": False}
FOR_GOOD = FAILURE | {"is_passing": False}


def test_workers_look_for_modules_where_this_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not in the working folder, which Ray adds (2.60, worker.py:connect)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/ours", *sys.path])
    job = ray_connection._Job()
    job._py_driver_sys_path.extend(["/ours", os.path.abspath(os.curdir)])
    job._serialize()
    assert list(job._get_proto_job_config().py_driver_sys_path) == ["/ours"]
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # of an interactive Python
    job = ray_connection._Job()
    job._py_driver_sys_path.append(str(tmp_path))
    job._serialize()
    assert list(job._get_proto_job_config().py_driver_sys_path) == [str(tmp_path)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (ray_aside, ray_course, ray_fit):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    yield
    for start in Scripted.made:
        start.ended.set()
    Scripted.made.clear()
    for thread in threading.enumerate():
        if thread.name == "fit":
            thread.join(30)


class Result(NamedTuple):
    """Of a training."""

    stopped: bool


class Scripted:
    """What workers tell from their beginning, and once they are asked to stop, one event a look.

    Attributes:
        ends: how it ends of its own accord, once it has nothing more to tell, and has been asked
            to stop where it waits for that; ``goes on``: not; ``never``: whatever is done.
    """

    made: ClassVar[list[Scripted]] = []

    def __init__(
        self, *events: dict[str, Any], asked: tuple[dict[str, Any], ...] | None = None,
        ends: Exception | str | None = "goes on",
    ) -> None:  # fmt: skip
        self.events, self.asked, self.ends = list(events), asked, ends
        self.waits = asked is not None
        self.ended = threading.Event()
        self.made.append(self)

    def fit(self) -> None:
        self.ended.wait(60)
        if isinstance(self.ends, Exception):
            raise self.ends


class Launch:
    """A launcher of such starts; ``course`` is what it did, and was told.

    Attributes:
        stop: whether a signal has asked it to stop.
        leaving: nodes that are about to be taken away.
        slots: nodes of the workers' slots.
        room: for how many workers there is room, while others run.
        hears: what Ray is asked while workers run, beside that.
        stop_seconds: that workers get; 0: they do not train.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *starts: Scripted, stop: bool = False,
        budget: int = 0,
    ) -> None:  # fmt: skip
        self.course: list[str] = []
        self.settled: list[set[str]] = []
        self.starts = list(starts)
        self.stop = stop
        self.leaving: set[str] = set()
        self.slots = {"here"}
        self.room = 2
        self.node = Living()
        self.hears: Callable[[], None] = lambda: None
        self.waits: Callable[[Callable[[float], None]], None] = lambda rest: None
        self.limit = 60.0
        self.stop_seconds = 60.0
        self.feed: Feed | None = None
        self._budget = budget
        self._now: list[Scripted] = []
        monkeypatch.setattr(ray_fit, "stop_requested", lambda: self.stop)
        monkeypatch.setattr(ray_fit, "request_stop", lambda: setattr(self, "stop", True))
        monkeypatch.setattr(ray_fit, "end_controllers", self.end_controller)
        monkeypatch.setattr(ray_room, "Growth", self._growth)
        monkeypatch.setattr(ray_room, "nodes_of_slots", lambda: self.slots)
        monkeypatch.setattr(failure, "BACKOFF_SECONDS", 0.01)

    @contextmanager
    def _growth(self, room: Any, workers: int) -> Iterator[Any]:
        yield SimpleNamespace(possible=lambda leaving: max(workers, self.room))

    def _leaving(self) -> set[str]:
        self.hears()
        return self.leaving.copy()

    def end_controller(self) -> None:
        if self._now[-1].ended.is_set():
            self.course.append("slots free")
            return
        self.course.append("controller ended")
        if self._now[-1].ends != "never":
            self._now[-1].ended.set()
        raise OSError("of Ray's")

    def _trainer(self, workers: int, number: int) -> Any:
        self.course.append(f"{workers} workers")
        self._now.append(self.starts[number])
        return self._now[-1]

    def _wait(self, wanted: int, say: Any, rest: Callable[[float], None], *, again: bool) -> int:
        self.waits(rest)
        assert again == bool(self._now)
        return wanted

    def _settle(self, nodes: set[str], rest: Callable[[float], None]) -> None:
        self.settled.append(nodes)
        assert nodes <= {"here", "elsewhere"}

    def _take(self, seconds: float) -> list[dict[str, Any]]:
        self.node.check()
        start = self._now[-1]
        if start.events:
            return [start.events.pop(0)]
        if start.ends not in ("goes on", "never") and not start.waits:
            start.ended.set()
        return []

    def _stop(self, number: int) -> None:
        self.course.append("asked")
        start = self._now[number]
        start.waits = False
        if start.asked is None:
            start.ended.set()
        else:
            start.events += start.asked

    def _answer(self, number: int, answer: dict[str, Any]) -> None:
        self.course.append(f"start {number} hears {answer['lines']}")

    def run(self) -> Any:
        mail: Any = SimpleNamespace(stop=self._stop, take=self._take, answer=self._answer)
        room: Any = SimpleNamespace(
            wait=self._wait, leaving=self._leaving, settle=self._settle, timeout_seconds=self.limit,
        )  # fmt: skip
        trainer: Any = self._trainer
        node: Any = self.node
        show: Any = lambda event: self.course.append(event["text"])  # noqa: E731
        if self.feed:
            show = self.feed.taking(show)
        around = ray_fit.Surroundings(node, room, show, self.stop_seconds, self.feed)
        course = ray_course.Course(trainer, mail, around, Failures(self._budget), "LOGS")
        return course.run(2)


def result(number: int = 0, *, stopped: bool = False) -> dict[str, Any]:
    return {"kind": "result", "start": number, "value": Result(stopped)}


@pytest.mark.parametrize("events", [[], [BEGIN, FAILURE]])
def test_a_run_that_waits_for_room_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, events: list[dict[str, Any]]
) -> None:
    launch = Launch(monkeypatch, Scripted(*events, asked=()))  # there is nobody to hear it
    monkeypatch.setattr(ray_fit, "POLL_SECONDS", 0.05)
    threading.Timer(1.0 if events else 0.5, lambda: setattr(launch, "stop", True)).start()
    before = r"were started again \(worker 1 failed: lost\)" if events else "had begun"
    with pytest.raises(RunStopped, match=f"before the workers {before}"):
        launch.run()
    assert "controller ended" in launch.course  # by a thread, while the terminal is told


def test_what_asks_ray_is_waited_for_where_a_signal_comes_as_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray ends a process whose connection ends while a thread asks it."""
    course: list[str] = []

    def ask(rest: ray_aside.Rest) -> None:
        try:
            while True:
                rest(0.1)
        finally:
            course.append("asked")

    def connect(**settings: Any) -> None:
        time.sleep(0.3)
        course.append("connected")

    broken_off_start("aside", monkeypatch)
    node: Any = SimpleNamespace(lives=lambda: True, check=lambda: None)
    with pytest.raises(SystemExit), ray_aside.Aside(ask, node, print, 60.0):
        pass
    assert course == ["asked"]
    monkeypatch.setattr(ray, "init", connect)
    monkeypatch.setattr(ray_connection, "_disconnect", lambda: course.append("disconnected"))
    broken_off_start("Thread", monkeypatch)
    with pytest.raises(SystemExit), ray_connection._driver("here", "", is_own=True):
        pass
    assert course == ["asked", "connected", "disconnected"]


def test_a_head_that_stands_still_leaves_the_command_able_to_hear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(ray_aside, "END_SECONDS", 0.1)
    monkeypatch.setattr(ray_aside, "SILENT_SECONDS", 0.5)
    launch = Launch(monkeypatch, Scripted(BEGIN, BEGIN, asked=(result(stopped=True),), ends=None))
    launch.hears = lambda: goes_on.wait(60) and None
    threading.Timer(2.0, lambda: setattr(launch, "stop", True)).start()
    assert launch.run() == Result(stopped=True)
    said = [line.split(":")[0] for line in launch.course]
    assert said == ["2 workers", "Ray's head has not answered for 0 s", "asked", "asked to stop"]

    waiting = Launch(monkeypatch, Scripted())
    waiting.waits = lambda rest: goes_on.wait(60) and None
    threading.Timer(0.2, lambda: setattr(waiting, "stop", True)).start()
    with pytest.raises(RunStopped, match="before the workers had begun"):
        waiting.run()
    goes_on.set()


def test_where_no_workers_train_the_head_s_silence_has_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    goes_on = threading.Event()
    for name, seconds in {"END": 0.1, "SILENT": 0.05}.items():
        monkeypatch.setattr(ray_aside, f"{name}_SECONDS", seconds)
    for where in ("waits", "_trainer", "hears"):
        launch = Launch(monkeypatch, Scripted())
        launch.limit = 0.3
        setattr(launch, where, lambda *_: goes_on.wait(60) and None)
        with pytest.raises(RunFailed, match=r"Ray's head has not answered for 0 s \(cluster\.time"):
            launch.run()
    goes_on.set()


def test_workers_that_do_not_end_after_the_result_are_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_fit, "FAREWELL_SECONDS", 0.2)
    launch = Launch(monkeypatch, Scripted(BEGIN, BEGIN, result()))
    assert launch.run() == Result(stopped=False)
    assert launch.course == ["2 workers", "controller ended", "slots free"]


def test_who_saves_to_go_on_has_as_long_as_who_saves_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what such workers hold, if they must be ended all the same, is free for those after."""
    monkeypatch.setattr(ray_fit, "FAREWELL_SECONDS", 1.0)
    for seconds, ended in ((60.0, []), (0.3, ["controller ended", "slots free"])):
        late = Scripted(BEGIN, BEGIN, asked=(result(stopped=True),))
        launch = Launch(monkeypatch, late, Scripted(BEGIN | {"start": 1}, result(1), ends=None))
        launch.room, launch.stop_seconds = 5, seconds
        threading.Timer(2.0, late.ended.set).start()
        assert launch.run() == Result(stopped=False)
        assert [what for what in launch.course if "room for" not in what] == [
            "2 workers", "asked", *ended, "5 workers",
        ]  # fmt: skip


def test_where_workers_that_have_saved_cannot_be_ended_none_are_started_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, seconds in {"END_SECONDS": 0.2, "POLL_SECONDS": 0.05}.items():
        monkeypatch.setattr(ray_fit, name, seconds)
    launch = Launch(
        monkeypatch, Scripted(BEGIN, BEGIN, asked=(result(stopped=True),), ends="never")
    )
    launch.room, launch.stop_seconds = 5, 0.3
    with pytest.raises(RunFailed, match=r"have saved, .* the same command goes on from there"):
        launch.run()
    assert launch.course[-1] == "what runs the workers could not be ended: OSError: of Ray's"


def test_where_workers_that_have_failed_cannot_be_ended_none_are_started_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_fit, "END_SECONDS", 0.2)
    monkeypatch.setattr(ray_fit, "FAREWELL_SECONDS", 0.1)
    # Its result, told after the failure, counts no more, and lets nobody wait for the rest.
    launch = Launch(monkeypatch, Scripted(BEGIN, BEGIN, FAILURE, result(), ends="never"), budget=5)
    with pytest.raises(
        RunFailed, match=r"^the workers have failed \(worker 1 failed: lost\), but did not end, "
    ):
        launch.run()
    assert launch.course == [
        "2 workers", *["controller ended"] * launch.course.count("controller ended"),
        "what runs the workers could not be ended: OSError: of Ray's",
    ]  # fmt: skip


def test_slots_that_could_not_be_given_free_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Ray has other names for what we end them by."""
    monkeypatch.setattr(ray_fit, "END_SECONDS", 0.1)
    launch = Launch(monkeypatch, Scripted(BEGIN, result(), ends=ActorDiedError()))

    def renamed() -> None:
        raise AttributeError("no kill_actor")

    monkeypatch.setattr(ray_fit, "end_controllers", renamed)
    assert launch.run() == Result(stopped=False)
    assert launch.course == [
        "2 workers", "what runs the workers could not be ended: AttributeError: no kill_actor",
    ]  # fmt: skip


def test_a_result_that_was_told_counts_though_the_workers_end_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All is saved: that the others did not end in time is no failure of the run."""
    monkeypatch.setattr(ray_fit, "FAREWELL_SECONDS", 0.5)
    launch = Launch(monkeypatch, Scripted(BEGIN, BEGIN, asked=(result(stopped=True),)))
    launch.stop_seconds = 0.1
    _stopped_once_begun(monkeypatch, launch)
    assert launch.run() == Result(stopped=True)


def test_where_the_command_s_own_node_is_to_go_the_run_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It cannot go on elsewhere."""
    launch = Launch(monkeypatch, Scripted(BEGIN, BEGIN, asked=(result(stopped=True),), ends=None))
    launch.leaving = {launch.node.id, "here"}
    assert launch.run() == Result(stopped=True)
    assert launch.course == [
        "2 workers", "the node of this command is about to be taken away", "asked",
        "asked to stop: the run ends after its step",
    ]  # fmt: skip


def test_a_run_that_is_asked_to_stop_starts_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(monkeypatch, stop=True)
    with pytest.raises(RunStopped, match="before the workers had begun"):
        launch.run()
    assert launch.course == ["asked to stop: the run ends after its step"]


def test_workers_that_train_are_asked_before_the_terminal_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch = Launch(monkeypatch, Scripted(BEGIN, result(stopped=True)))
    _stopped_once_begun(monkeypatch, launch)
    assert launch.run() == Result(stopped=True)
    assert [what.split(":")[0] for what in launch.course] == ["2 workers", "asked", "asked to stop"]


def _stopped_once_begun(monkeypatch: pytest.MonkeyPatch, launch: Launch) -> None:
    """The launcher is asked to stop as soon as its workers have begun."""
    take = Start.take

    def taken(start: Start, event: dict[str, Any]) -> dict[str, Any] | None:
        launch.stop = True
        return take(start, event)

    monkeypatch.setattr(Start, "take", taken)


def test_what_fails_after_the_request_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another worker's error comes a look later."""
    mistake = FOR_GOOD | {"rank": 0, "user_message": "no such file"}
    for answers, told in (
        ((FAILURE,), "worker 1 failed"), ((BROKEN,), "worker 1 failed"),
        ((BROKEN, mistake), "no such file"),
    ):  # fmt: skip
        launch = Launch(monkeypatch, Scripted(BEGIN, BEGIN, asked=answers), budget=9)
        _stopped_once_begun(monkeypatch, launch)
        with pytest.raises(RunFailed if told != "no such file" else UserError, match=told):
            launch.run()
        # Nothing of it may ask Ray for anything while the connection ends.
        assert launch.course[-2:] == ["controller ended", "slots free"]
        assert not [one for one in threading.enumerate() if one.name == "fit"]


LOST = WorkerGroupError("lost", {1: WorkerHealthCheckFailedError("gone", ActorDiedError())})


def test_failures_that_may_pass_are_outlived(monkeypatch: pytest.MonkeyPatch) -> None:
    again = {"start": 1}
    launch = Launch(
        monkeypatch, Scripted(BEGIN, ends=LOST),
        Scripted(BEGIN | again, FAILURE | again, ends=LOST),
        Scripted(BEGIN | {"start": 2}, result(2), ends=None), budget=2,
    )  # fmt: skip
    assert launch.run() == Result(stopped=False)
    assert launch.course == [
        "2 workers",
        "workers are started again in 0 s: worker 1 was lost (1 of 2 times in 24 h)",
        "2 workers",
        "workers are started again in 0 s: worker 1 failed: lost (2 of 2 times in 24 h)",
        "2 workers",
    ]  # fmt: skip


def test_a_request_between_two_starts_is_told_with_what_came_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch = Launch(monkeypatch, Scripted(BEGIN, ends=LOST), budget=2)
    monkeypatch.setattr(failure, "BACKOFF_SECONDS", 60.0)
    show = launch.course.append

    class Course(list[str]):
        def append(self, line: str) -> None:
            show(line)
            launch.stop = "started again" in line

    launch.course = Course()
    with pytest.raises(RunStopped, match=r"the workers were started again \(worker 1 was lost\)"):
        launch.run()
    told = Launch(monkeypatch, Scripted(BEGIN, FAILURE), budget=2)
    threading.Timer(0.5, lambda: setattr(told, "stop", True)).start()
    with pytest.raises(RunStopped, match=r"were started again \(worker 1 failed: lost\)"):
        told.run()


def test_where_no_room_is_left_the_first_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(monkeypatch, Scripted(BEGIN, ends=LOST), budget=2)

    def full(rest: object) -> None:
        if launch._now:
            raise RunFailed("no room")

    launch.waits = full
    with pytest.raises(RunFailed, match=r"^no room\nthe first failure .*: worker 1 was lost$"):
        launch.run()


def test_an_error_of_ray_s_where_room_is_waited_for_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch = Launch(monkeypatch, Scripted())

    def broken(rest: object) -> None:
        raise RpcError("unavailable")

    launch.waits = broken
    with pytest.raises(RunFailed, match=r"^Ray could not be asked: RpcError: unavailable"):
        launch.run()


def test_where_others_were_faster_room_is_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is no failure of the run's, but does not go on for ever."""
    taken = ControllerError(WorkerGroupStartupTimeoutError(2))
    monkeypatch.setattr(ray_course, "MOST_LOST_ROOM", 2)
    launch = Launch(
        monkeypatch, *(Scripted(ends=taken) for _ in range(2)),
        Scripted(BEGIN | {"start": 2}, result(2), ends=None),
    )  # fmt: skip
    assert launch.run() == Result(stopped=False)
    assert launch.course[1:3] == [
        "slots free", "workers are started again in 0 s: the room was gone (1 of 2 times in 24 h)"
    ]  # fmt: skip
    launch = Launch(monkeypatch, *(Scripted(ends=taken) for _ in range(3)))
    with pytest.raises(RunFailed, match="timed out"):
        launch.run()


def test_where_what_runs_the_workers_is_lost_they_are_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it held is given free before."""
    launch = Launch(
        monkeypatch, Scripted(BEGIN, ends=ActorDiedError()),
        Scripted(BEGIN | {"start": 1}, result(1), ends=None), budget=1,
    )  # fmt: skip
    assert launch.run() == Result(stopped=False)
    lost = "what Ray Train runs the workers by was lost (its controller)"
    assert launch.course == [
        "2 workers", "slots free",
        f"workers are started again in 0 s: {lost} (1 of 1 times in 24 h)", "2 workers",
    ]  # fmt: skip
    launch = Launch(monkeypatch, Scripted(BEGIN, ends=ActorDiedError()))
    with pytest.raises(RunFailed, match=r"^what Ray Train runs the workers by was lost"):
        launch.run()
    launch = Launch(monkeypatch, Scripted(BEGIN, ends=ValueError("of Ray's own")), budget=5)
    with pytest.raises(RunFailed, match=r"^Ray Train failed: ValueError: of Ray's own"):
        launch.run()


def test_lines_that_lost_workers_had_are_given_to_those_after_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the lost ones tell late counts no more: a line is neither lost nor written twice."""

    def wanted(start: int, number: int = 0) -> dict[str, Any]:
        return {"kind": "wanted", "number": number, "most": 1, "start": start}

    def made(start: int, line: str) -> dict[str, Any]:
        return {"kind": "translated", "lines": [line], "cut": [], "start": start}

    again = {"start": 1}
    launch = Launch(
        monkeypatch,
        Scripted(BEGIN, wanted(0), made(0, "A"), wanted(0, 1), wanted(0, 2), ends=LOST),
        Scripted(
            BEGIN | again, made(0, "late"), wanted(1), made(1, "B"), wanted(1, 1), result(1),
            ends=None,
        ), budget=1,
    )  # fmt: skip
    written: list[str] = []
    ahead = LinesAhead(["a", "b"])
    ahead._thread.join(30)
    launch.feed = Feed(ahead, written.extend)
    assert launch.run() == Result(stopped=False)
    assert [line for line in launch.course if "hears" in line] == [
        "start 0 hears ['a']", "start 0 hears ['b']", "start 0 hears ['b']", "start 1 hears ['b']",
        "start 1 hears []",
    ]  # fmt: skip
    assert written == ["A", "B"]


def test_workers_that_ray_cannot_start_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    full = ControllerError(WorkerGroupStartupFailedError("startup timed out\nmore of it"))
    launch = Launch(
        monkeypatch, Scripted(ends=full), Scripted(BEGIN | {"start": 1}, result(1), ends=None),
        budget=1,
    )  # fmt: skip
    assert launch.run() == Result(stopped=False)
    assert launch.course[1:3] == [
        "slots free",  # which Ray Train leaves taken
        "workers are started again in 0 s: startup timed out (1 of 1 times in 24 h)",
    ]


def test_what_a_worker_could_not_tell_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    no_package = ModuleNotFoundError("No module named 'dist_embed'")
    launch = Launch(
        monkeypatch, Scripted(BEGIN, ends=WorkerGroupError("failed", {1: no_package})), budget=5
    )
    with pytest.raises(RunFailed, match=r"^worker 1 failed:\nModuleNotFoundError: No module"):
        launch.run()
    assert launch.course == ["2 workers"]


CONFLICT = FOR_GOOD | {"is_conflict": True, "trace": "another writer has saved step 5"}


def test_a_conflict_with_an_earlier_start_s_save_passes_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A save of workers that have ended may be published by the store after the next ones began."""
    starts = [
        Scripted(BEGIN | {"start": number}, CONFLICT | {"start": number}, ends=LOST)
        for number in (1, 2)
    ]
    launch = Launch(monkeypatch, Scripted(BEGIN, ends=LOST), *starts, budget=9)
    with pytest.raises(RunFailed, match="another writer has saved step 5"):
        launch.run()
    assert len(launch._now) == 3
    first = Launch(monkeypatch, Scripted(BEGIN, CONFLICT), budget=9)
    with pytest.raises(RunFailed, match="another writer has saved step 5"):
        first.run()  # of another job


@pytest.mark.parametrize("ends", [LOST, ActorDiedError()])
def test_a_result_that_was_told_counts_whatever_ends_afterwards(
    monkeypatch: pytest.MonkeyPatch, ends: Exception
) -> None:
    complete = Launch(monkeypatch, Scripted(BEGIN, result(), ends=ends))
    assert complete.run() == Result(stopped=False)
    asked = Launch(monkeypatch, Scripted(BEGIN, BEGIN, asked=(result(stopped=True),), ends=ends))
    _stopped_once_begun(monkeypatch, asked)
    assert asked.run() == Result(stopped=True)


def test_workers_that_have_saved_to_go_on_do_so_whatever_ends_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch = Launch(
        monkeypatch, Scripted(BEGIN, BEGIN, asked=(result(stopped=True),), ends=LOST),
        Scripted(BEGIN | {"start": 1}, result(1), ends=None),
    )  # fmt: skip
    launch.room = 5
    assert launch.run() == Result(stopped=False)
    assert [line for line in launch.course if line.endswith("workers")] == [
        "2 workers",
        "5 workers",
    ]


TAKEN_AWAY = "workers are started again in 0 s: a node was taken away before the workers had saved"


def _announced_and_gone(
    launch: Launch, node: str, *, ends: Exception = LOST, once: str = "2 workers"
) -> None:
    """The node is announced to go once the launcher has done this, and goes; so the start ends."""
    start = launch.starts[0]

    def hear() -> None:
        if launch.leaving:
            launch.leaving = set()
            start.ends = ends
            start.ended.set()
        elif once in launch.course and not start.ended.is_set():
            launch.leaving = {node}

    launch.hears = hear


@pytest.mark.parametrize("begun", [[], [BEGIN | {"node": "elsewhere"}], [BEGIN]])
def test_a_node_that_goes_as_announced_while_workers_start_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, begun: list[dict[str, Any]]
) -> None:
    """Whether or not the worker there had begun."""
    failed = ControllerError(WorkerGroupStartupFailedError("a node has ended"))
    launch = Launch(
        monkeypatch, Scripted(*begun), Scripted(BEGIN | {"start": 1}, result(1), ends=None)
    )
    _announced_and_gone(launch, "here", ends=failed)
    assert launch.run() == Result(stopped=False)
    assert launch.course == ["2 workers", "slots free", TAKEN_AWAY, "2 workers"]


def test_a_node_that_goes_as_announced_after_workers_were_asked_to_grow_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch = Launch(
        monkeypatch, Scripted(BEGIN, BEGIN, asked=()),
        Scripted(BEGIN | {"start": 1}, result(1), ends=None),
    )  # fmt: skip
    launch.room = 5
    _announced_and_gone(launch, "here", once="asked")
    assert launch.run() == Result(stopped=False)
    assert launch.course[1:3] == [
        "asked",
        "there is room for 5 workers: the workers save after their step, and the run goes on",
    ]
    assert TAKEN_AWAY in launch.course


def test_a_node_that_goes_as_announced_excuses_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for events, node, told in (
        ([BEGIN, FAILURE], "here", "worker 1 failed"), ([BEGIN], "another", "worker 1 was lost"),
    ):  # fmt: skip
        launch = Launch(monkeypatch, Scripted(*events))
        _announced_and_gone(launch, node)
        with pytest.raises(RunFailed, match=told):
            launch.run()


def test_workers_that_do_not_train_are_not_asked_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would begin anew."""
    launch = Launch(monkeypatch, Scripted(BEGIN, BEGIN, BEGIN, result(), ends=None))
    launch.stop_seconds, launch.room, launch.leaving = 0.0, 5, {"here"}
    assert launch.run() == Result(stopped=False)
    assert launch.course == ["2 workers"]


def test_the_last_failure_is_told_and_beside_it_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    again = {"start": 1}
    launch = Launch(
        monkeypatch, Scripted(BEGIN, ends=LOST),
        Scripted(BEGIN | again, FAILURE | again, ends=LOST),
        budget=1,
    )  # fmt: skip
    with pytest.raises(RunFailed) as caught:
        launch.run()
    assert str(caught.value) == (
        "worker 1 failed:\nlost\n(worker logs: LOGS)\n"
        "the first failure was another one: worker 1 was lost"
    )


@pytest.mark.parametrize("budget", [0, 5])
def test_what_would_come_again_ends_the_run(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    launch = Launch(monkeypatch, Scripted(BEGIN, FOR_GOOD), budget=budget)
    with pytest.raises(RunFailed, match="worker 1 failed"):
        launch.run()
    assert launch.course == ["2 workers", "controller ended", "slots free"]


def test_workers_of_a_node_that_leaves_save_and_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often: it is no failure. Nor is it one where they had no time to save."""
    launch = Launch(
        monkeypatch, Scripted(BEGIN, BEGIN, asked=(result(stopped=True),), ends=None),
        Scripted(*[BEGIN | {"start": 1}] * 2, asked=(), ends=LOST),
        Scripted(BEGIN | {"start": 2}, result(2), ends=None),
    )  # fmt: skip
    launch.leaving = {"here", "another"}
    launch.starts[2].events[0]["node"] = "elsewhere"
    assert launch.run() == Result(stopped=False)
    save = (
        "a node is about to be taken away: the workers save after their step, and the run goes on"
    )
    assert launch.course == [
        "2 workers", "asked", save, "2 workers", "asked", save,
        "workers are started again in 0 s: a node was taken away before the workers had saved",
        "2 workers",
    ]  # fmt: skip
    assert launch.settled == [{"here"}]


def test_a_run_that_ends_while_it_is_asked_to_go_on_elsewhere_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch = Launch(monkeypatch, Scripted(BEGIN, BEGIN, asked=(result(),), ends=None))
    launch.leaving = {"here"}
    assert launch.run() == Result(stopped=False)


def test_where_there_is_room_for_more_they_save_and_go_on_as_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch = Launch(
        monkeypatch, Scripted(BEGIN, BEGIN, asked=(result(stopped=True),), ends=None),
        Scripted(BEGIN | {"start": 1}, result(1), ends=None),
    )  # fmt: skip
    launch.room = 5
    assert launch.run() == Result(stopped=False)
    assert launch.course == [
        "2 workers", "asked",
        "there is room for 5 workers: the workers save after their step, and the run goes on",
        "5 workers",
    ]  # fmt: skip


def test_who_is_given_up_asks_ray_for_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that does would end the process while the connection ends."""
    launch = Launch(monkeypatch, Scripted(BEGIN, FOR_GOOD))
    monkeypatch.setattr(ray_fit, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(ray_fit, "END_SECONDS", 0.2)
    asked: list[float] = []

    def ask() -> None:
        asked.append(time.monotonic())
        raise OSError("of Ray's")

    monkeypatch.setattr(ray_fit, "end_controllers", ask)
    with pytest.raises(RunFailed):
        launch.run()
    count = len(asked)
    assert count
    time.sleep(0.3)
    assert len(asked) == count


def test_of_a_node_that_is_lost_nothing_more_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would end this process before anything is told."""
    launch = Launch(monkeypatch, Scripted(BEGIN))
    launch.node = Living(looks=2)
    with pytest.raises(NodeLost):
        launch.run()
    assert launch.course == ["2 workers"]


def test_a_slow_answer_of_ray_is_waited_for_before_the_connection_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ends the controller asks Ray too, and may still do so when that has ended."""
    launch = Launch(monkeypatch, Scripted(BEGIN, FOR_GOOD))
    answered: list[bool] = []

    def slow() -> None:
        launch.starts[0].ended.set()
        time.sleep(0.3)
        answered.append(True)

    monkeypatch.setattr(ray_fit, "end_controllers", slow)
    with pytest.raises(RunFailed):
        launch.run()
    assert answered


def test_ray_train_is_asked_for_workers_as_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(get_node_id=lambda: "0" * 56)
    resources = {"CPU": 2.0}
    for name, stand_in in {
        "cluster_resources": lambda: resources,
        "nodes": list,
        "get_runtime_context": lambda: context,
        "remote": lambda **how: lambda kind: SimpleNamespace(remote=lambda: "mailbox"),
    }.items():
        monkeypatch.setattr(ray, name, stand_in)
    monkeypatch.setattr(ray_train, "connected", lambda *where: nullcontext(node))
    asked: dict[str, Any] = {}
    node = Living()
    monkeypatch.setattr(ray_train, "_Trainer", lambda work, **how: asked.update(how))
    courses: list[Any] = []

    class Stand:
        def __init__(self, trainer: Callable[[int, int], Any], *more: Any) -> None:
            trainer(3, 7)
            courses.append(more)

        def run(self, workers: int) -> int:
            return workers

    monkeypatch.setattr(ray_train, "Course", Stand)
    how: dict[str, Any] = {
        "name": "night", "address": None, "device": "cpu", "timeout_seconds": 150.0,
        "replace_seconds": 5.0, "max_failures": 7, "on_event": print, "log_folder": "LOGS",
        "stop_seconds": 9.0,
    }  # fmt: skip
    given = (print, lambda device: (device,))
    assert ray_train.launch_ray(*given, min_workers=2, max_workers=4, **how) == 4
    loop = asked["train_loop_config"]
    assert loop == ray_worker.work_for(print, ("cpu",), "mailbox", 7, "night")
    assert asked["run_config"].name == "night-7"  # each start's own
    assert isinstance(asked["backend_config"], GroupByEnvironment)
    assert (asked["scaling_config"].num_workers, asked["scaling_config"].use_gpu) == (3, False)
    failing = asked["run_config"].failure_config
    # What follows from a failure is decided by us.
    assert (failing.max_failures, failing.controller_failure_limit) == (0, 0)
    assert failing.max_preemption_failures == 0
    ((mail, around, failures, log_folder),) = courses
    assert (mail._mailbox, around.node, failures._budget) == ("mailbox", node, 7)
    assert (around.show, around.stop_seconds, log_folder) == (print, 9.0, "LOGS")
    with pytest.raises(UserError, match=r"needs 3 CPUs .* the Ray cluster has 2"):
        ray_train.launch_ray(*given, min_workers=3, max_workers=4, **how)
    how["device"] = "auto"
    ray_train.launch_ray(*given, min_workers=2, max_workers=4, **how)
    assert not asked["scaling_config"].use_gpu
    resources["GPU"] = 3.0
    ray_train.launch_ray(*given, min_workers=3, max_workers=4, **how)
    assert asked["scaling_config"].use_gpu
    # A run of GPUs is not to go on by CPUs because one is missing.
    with pytest.raises(UserError, match=r"4 GPUs .* has 3; cluster\.device=cpu trains on CPUs$"):
        ray_train.launch_ray(*given, min_workers=4, max_workers=4, **how)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_workers_tell_bears_the_name_of_their_start(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """So that a failure which passed is not taken for one of the workers that came after it."""
    told: list[dict[str, Any]] = []
    mailbox = SimpleNamespace(
        put=SimpleNamespace(remote=told.append),
        is_stopped=SimpleNamespace(remote=lambda start: None),
    )
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    monkeypatch.setattr(
        ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: rank)
    )
    monkeypatch.setattr(
        ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here")
    )

    def fail(*_: Any) -> None:
        raise OSError("passing")

    def work(given: int, emit: Callable[[dict[str, Any]], None]) -> int:
        emit({"kind": "line"})
        return given + 1

    with pytest.raises(OSError, match="passing"):
        ray_worker.work(ray_worker.work_for(fail, (), mailbox, 1, "night"))
    ray_worker.work(ray_worker.work_for(work, (4,), mailbox, 2, "night"))
    handed = ray_worker.work_for(work, (4,), mailbox, 3, "night")
    with pytest.raises(UserError, match=r"has dist_embed .*, but the command has 0\.99\.0"):
        ray_worker.work(handed | {"version": "0.99.0", "sealed": b"which may not open there"})
    assert told.pop(-1)["kind"] == "failure"
    assert told.pop(-1)["start"] == 3
    names = [(event["kind"], event.get("start")) for event in told]
    assert names == [
        ("begin", 1), ("failure", 1), ("begin", 2), ("line", 2),
        *([("result", 2)] if rank == 0 else []),
    ]  # fmt: skip
    assert told[0]["node"] == "here"
    assert [event.get("value") for event in told if event["kind"] == "result"] == [5] * (1 - rank)


def test_workers_of_ray_find_their_group_by_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = {"world_rank": 3, "local_rank": 1, "world_size": 4, "local_world_size": 2}
    methods = {f"get_{name}": lambda value=value: value for name, value in place.items()}
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(**methods))
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.2")
    monkeypatch.setattr(os, "environ", {})
    course: list[tuple[str, Any]] = []

    class Workers:
        def execute_single(self, rank: int, function: Callable[..., Any], *given: Any) -> Any:
            course.append((function.__name__, rank))
            return function(*given)

        def execute(self, function: Callable[..., Any], *given: Any) -> None:
            course.append((function.__name__, "all"))
            function(*given)

    GroupByEnvironment().backend_cls().on_start(Workers(), GroupByEnvironment())
    assert course == [("_import_ahead", "all"), ("_host", 0), ("_take_place", "all")]
    (store,) = ray_group._hosted  # which lives as long as the first worker does
    assert os.environ == {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.2", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    ray_group._hosted.clear()


def test_processes_that_do_nothing_for_a_run_are_not_started() -> None:
    """Ray 2.60 has the callbacks that start them, by private names, and others that are kept."""
    alike: dict[str, Any] = {"backend_config": GroupByEnvironment()}
    every = DataParallelTrainer(print, **alike)._create_default_callbacks()
    kept = ray_train._Trainer(print, **alike)._create_default_callbacks()
    left_out = {type(one).__name__ for one in every} - {type(one).__name__ for one in kept}
    assert left_out == {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert {"BackendSetupCallback", "AcceleratorSetupCallback"} <= {
        type(one).__name__ for one in kept
    }


def test_a_head_that_stands_still_is_left_without_a_goodbye(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    goes_on, forgotten = threading.Event(), []
    monkeypatch.setattr(ray_connection, "END_SECONDS", 0.1)
    monkeypatch.setattr(ray, "shutdown", lambda: goes_on.wait(60))
    monkeypatch.setattr(atexit, "unregister", forgotten.append)
    monkeypatch.setattr(stop, "_abruptly", False)
    ray_connection._disconnect()
    assert forgotten == [worker.shutdown]  # which the interpreter's end would wait for
    assert stop.ends_abruptly()
    goes_on.set()
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    ray_connection._disconnect()
    assert len(forgotten) == 1


def test_ray_has_what_the_controller_is_ended_by() -> None:
    """Private names, as what else ends by them would be told by no test: Ray 2.60."""
    from ray._private import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.train.v2._internal.execution.controller import TrainController

    assert hasattr(PlacementGroupTableData(), "creator_actor_id")
    assert PlacementGroupTableData().bundles.add().node_id == b""
    removing = inspect.getsource(ray.util.remove_placement_group)
    assert "core_worker.remove_placement_group(" in removing
    assert "get_placement_group_table" in inspect.getsource(state.state.placement_group_table)
    assert TrainController.__qualname__ == "TrainController"
    assert "core_worker.kill_actor(" in inspect.getsource(ray.kill)
    assert "job_id" in inspect.signature(state.actors).parameters
    assert hasattr(worker.global_worker, "current_job_id")


def test_ray_has_what_room_is_seen_by() -> None:
    """Likewise."""
    from ray._private import state

    assert callable(state.available_resources_per_node)
    assert callable(state.state.get_draining_nodes)
    assert '"bundles_to_node_id"' in inspect.getsource(state.state._gen_placement_group_info)


def remote(*answers: Any) -> Any:
    """A method of an actor that answers so, in this order; an error is raised."""
    left = list(answers)

    def call(*_: Any) -> Callable[[], Any]:
        answer = left.pop(0) if left else None
        # The answer to one call is asked for until it is there.
        return lambda: answer.pop(0) if isinstance(answer, list) and answer else answer

    return SimpleNamespace(remote=call)


@pytest.fixture
def get(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(reference: Callable[[], Any], timeout: float) -> Any:
        answer = reference()
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray, "get", get)


class Living:
    """A node that ends after so many looks."""

    id = "the command's"

    def __init__(self, looks: float = math.inf) -> None:
        self._looks = looks

    def lives(self) -> bool:
        return self._looks >= 0

    def check(self) -> None:
        self._looks -= 1
        if self._looks < 0:
            raise NodeLost


@pytest.mark.usefixtures("get")
def test_events_that_come_late_are_not_lost() -> None:
    late: list[Any] = [GetTimeoutError()]
    mailbox = SimpleNamespace(take=remote([*late, ("first",)], [("second",)]))
    mail = ray_fit.Mail(mailbox, Living())
    assert [mail.take(0.0) for _ in range(3)] == [[], ("first",), ("second",)]
    patient = ray_fit.Mail(SimpleNamespace(take=remote([*late * 3, ("last",)])), Living())
    assert patient.take(60.0) == ("last",)  # as nobody asks again


@pytest.mark.usefixtures("get")
def test_a_node_that_ends_is_noticed_while_its_answer_is_waited_for() -> None:
    for answers in ([GetTimeoutError()] * 9, [ActorDiedError()]):
        mailbox = SimpleNamespace(take=remote(answers))
        with pytest.raises(NodeLost):
            ray_fit.Mail(mailbox, Living(looks=1)).take(60.0)


@pytest.mark.usefixtures("get")
def test_a_launcher_without_its_mailbox_has_failed() -> None:
    mailbox = SimpleNamespace(take=remote(ActorDiedError()))
    with pytest.raises(RunFailed, match="what workers tell this command by was lost"):
        ray_fit.Mail(mailbox, Living()).take(0.0)


@pytest.mark.usefixtures("get")
@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([GetTimeoutError(), ActorUnavailableError("busy", b"0" * 16), False, True], True),
        ([ActorDiedError(), True], False),
    ],
)
def test_a_worker_listens_for_the_request_while_there_is_a_launcher(
    monkeypatch: pytest.MonkeyPatch, answers: list[Any], asked: bool
) -> None:
    monkeypatch.setattr(stop, "_requested", False)
    monkeypatch.setattr(ray_worker, "POLL_SECONDS", 0.01)
    mailbox = SimpleNamespace(is_stopped=remote(*answers))
    listener = threading.Thread(
        target=ray_worker._listen_for_stop, args=(mailbox, 0, threading.Event()), daemon=True
    )
    listener.start()
    listener.join(30)
    assert not listener.is_alive()
    assert stop.stop_requested() == asked


def test_an_answer_is_for_the_start_that_has_asked_and_can_be_taken_again() -> None:
    mailbox = RayMailbox()
    assert mailbox.answered(0, 0) is None
    answer = {"number": 3, "lines": ["a"]}
    mailbox.answer(1, answer)
    assert [mailbox.answered(1, 3) for _ in range(2)] == [answer] * 2
    assert mailbox.answered(0, 3) is mailbox.answered(1, 2) is None


@pytest.mark.usefixtures("get")
def test_a_worker_asks_until_it_is_answered_or_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_worker, "ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 1))
    monkeypatch.setattr(
        ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here")
    )
    mailbox = SimpleNamespace(put=remote(), answered=remote(None, None, {"number": 5}))

    def work(emit: Any, receive: Any) -> None:
        assert receive(5, 30.0) == {"number": 5}
        assert receive(6, 0.05) is None

    ray_worker.work(ray_worker.work_for(work, (), mailbox, 1, "night", receives=True))


@pytest.mark.usefixtures("get")
def test_what_ends_a_worker_from_another_thread_is_told_with_the_name_of_its_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the time that it ends, and as what may pass."""
    monkeypatch.setattr(hang, "_tell", None)
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 1))
    monkeypatch.setattr(
        ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here")
    )
    told: list[dict[str, Any]] = []
    put = SimpleNamespace(remote=lambda event: lambda: told.append(event))  # told once waited for

    def work(emit: Any) -> None:
        assert hang._tell is not None
        hang._tell(Hangs("stuck"))

    ray_worker.work(ray_worker.work_for(work, (), SimpleNamespace(put=put), 4, "night"))
    _, failed = told
    assert (failed["kind"], failed["start"], failed["teller"]) == ("failure", 4, 1)
    assert failed["is_cause"]
    assert failed["is_passing"]
