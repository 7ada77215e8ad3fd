"""How the launcher for Ray waits for its workers, with stand-ins for Ray's part."""

from __future__ import annotations

import inspect
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError

from dist_embed.cluster import ray_group, ray_train
from dist_embed.cluster.failure import Attempts
from dist_embed.cluster.ray_group import GroupByEnvironment
from dist_embed.cluster.ray_node import NodeLost
from dist_embed.errors import RunFailed, RunStopped
from dist_embed.parallel import stop

BEGIN = {"kind": "begin", "attempt": "a"}
FAILURE = {
    "kind": "failure", "attempt": "a", "rank": 1, "relayed": False, "is_cause": True,
    "is_passing": True, "user_message": None, "trace": "lost",
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_train, "POLL_SECONDS", 0.01)


class Fit:
    """A trainer that runs until it is told; ``course`` is what the launcher did.

    ``answers``: what workers tell once they are asked to stop, one event a look, while it goes on.
    ``goes_on``: whether it does not end by being asked.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *events: dict[str, Any],
        answers: tuple[dict[str, Any], ...] = (),
    ) -> None:
        self.ended = threading.Event()
        self.course: list[str] = []
        self.attempts = Attempts()
        self._events = list(events)
        self._answers = list(answers)
        self.goes_on = bool(answers)
        monkeypatch.setattr(ray_train, "stop_requested", lambda: True)
        monkeypatch.setattr(ray_train, "_end_controller", self._end_controller)

    def fit(self) -> None:
        self.ended.wait(60)

    def _end_controller(self) -> None:
        self.course.append("controller ended")
        self.ended.set()
        raise OSError("of Ray's")

    def deliver(self) -> None:
        while self._events:
            self.attempts.take(self._events.pop(0))
        if "asked" in self.course and self._answers:
            self.attempts.take(self._answers.pop(0))

    def run(self) -> Exception | None:
        trainer: Any = self

        def ask() -> None:
            self.course.append("asked")
            if not self.goes_on:
                self.ended.set()

        return ray_train._fit_in_thread(
            trainer, self.attempts, self.deliver,
            lambda event: self.course.append(event["text"]), ask, 60.0,
        )  # fmt: skip


@pytest.mark.parametrize("events", [[], [BEGIN, FAILURE]])
def test_a_run_that_waits_for_room_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, events: list[dict[str, Any]]
) -> None:
    fit = Fit(monkeypatch, *events)
    fit.goes_on = True  # there is nobody to hear that it should not
    started = time.monotonic()
    with pytest.raises(RunStopped, match="before the workers had begun"):
        fit.run()
    assert time.monotonic() - started < 30
    assert "controller ended" in fit.course  # by a thread, while the terminal is told


def test_workers_that_train_are_asked_before_the_terminal_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit = Fit(monkeypatch, BEGIN)
    assert fit.run() is None
    assert [what.split(":")[0] for what in fit.course] == ["asked", "asked to stop"]


def test_a_failure_for_good_is_told_though_the_run_is_asked_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit = Fit(monkeypatch, BEGIN, FAILURE | {"is_passing": False})
    assert fit.run() is None
    assert fit.attempts.is_final


def test_what_fails_after_the_request_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another worker's error comes a look later."""
    broken = FAILURE | {"is_cause": False}
    mistake = FAILURE | {"rank": 0, "is_passing": False}
    for answers in ((FAILURE,), (broken,), (broken, mistake)):
        fit = Fit(monkeypatch, BEGIN, answers=answers)
        assert fit.run() is None
        assert fit.attempts.failures == list(answers)
        # Nothing of it may ask Ray for anything while the connection ends.
        assert fit.course[-1] == "controller ended"
        assert not [one for one in threading.enumerate() if one.name == "fit"]


def test_who_is_given_up_asks_ray_for_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that does would end the process while the connection ends."""
    monkeypatch.setattr(ray_train, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(ray_train, "END_SECONDS", 0.2)
    fit = Fit(monkeypatch, BEGIN, FAILURE | {"is_passing": False})
    asked: list[float] = []
    monkeypatch.setattr(ray_train, "_end_controller", lambda: asked.append(time.monotonic()))
    fit.goes_on = True
    assert fit.run() is None
    count = len(asked)
    assert count
    time.sleep(0.3)
    assert len(asked) == count
    fit.ended.set()


def test_of_a_node_that_is_lost_nothing_more_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would end this process before anything is told."""
    fit = Fit(monkeypatch, BEGIN)
    monkeypatch.setattr(fit, "deliver", Living(looks=2).check)
    monkeypatch.setattr(ray_train, "stop_requested", lambda: False)
    with pytest.raises(NodeLost):
        fit.run()
    assert fit.course == []
    fit.ended.set()


def test_a_slow_answer_of_ray_is_waited_for_before_the_connection_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ends the controller asks Ray too, and may still do so when that has ended."""
    fit = Fit(monkeypatch, BEGIN, FAILURE | {"is_passing": False})
    answered: list[bool] = []

    def slow() -> None:
        fit.ended.set()
        time.sleep(0.3)
        answered.append(True)

    monkeypatch.setattr(ray_train, "_end_controller", slow)
    fit.goes_on = True
    assert fit.run() is None
    assert answered


@pytest.mark.parametrize("failures", [[], [FAILURE], [FAILURE | {"is_cause": False}]])
def test_a_run_without_a_result_ends_with_the_failure_that_was_told(
    monkeypatch: pytest.MonkeyPatch, failures: list[dict[str, Any]]
) -> None:
    def fit(trainer: object, attempts: Attempts, *more: object) -> None:
        for event in [BEGIN, *failures]:
            attempts.take(event)

    actor = SimpleNamespace(remote=lambda: SimpleNamespace(stop=SimpleNamespace(remote=None)))
    context = SimpleNamespace(get_node_id=lambda: "0" * 56)
    for name, stand_in in {
        "cluster_resources": lambda: {"CPU": 2.0},
        "get_runtime_context": lambda: context,
        "remote": lambda **how: lambda kind: actor,
    }.items():
        monkeypatch.setattr(ray, name, stand_in)
    monkeypatch.setattr(ray_train, "connected", lambda *where: nullcontext())
    asked: dict[str, Any] = {}
    monkeypatch.setattr(ray_train, "TorchTrainer", lambda work, **how: asked.update(how))
    monkeypatch.setattr(ray_train, "_fit_in_thread", fit)
    with pytest.raises(RunFailed, match="worker 1 failed" if failures else "told no result"):
        ray_train.launch_ray(
            print, lambda device: (device,), name="night", num_workers=2, address=None,
            device="cpu", timeout_seconds=150.0, max_failures=7, on_event=print, log_folder="",
        )  # fmt: skip
    assert asked["train_loop_config"]["args"] == ("cpu",)
    assert asked["train_loop_config"]["name"] == asked["run_config"].name == "night"
    assert isinstance(asked["torch_config"], GroupByEnvironment)
    assert (asked["scaling_config"].num_workers, asked["scaling_config"].use_gpu) == (2, False)
    failing = asked["run_config"].failure_config
    # Ray waits a minute each time for room for the workers.
    assert (failing.max_failures, failing.controller_failure_limit) == (7, 3)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_workers_tell_bears_the_name_of_their_start(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """So that a failure which passed is not taken for one of the workers that came after it."""
    told: list[dict[str, Any]] = []
    mailbox = SimpleNamespace(
        put=SimpleNamespace(remote=told.append), is_stopped=SimpleNamespace(remote=lambda: None)
    )
    groups = iter([b"\x01\x02", b"\x03\x04"])
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    monkeypatch.setattr(
        ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: rank)
    )
    monkeypatch.setattr(
        ray.util, "get_current_placement_group", lambda: SimpleNamespace(id=next(groups))
    )

    def fail(*_: Any) -> None:
        raise OSError("passing")

    def work(given: int, emit: Callable[[dict[str, Any]], None]) -> int:
        emit({"kind": "line"})
        return given + 1

    with pytest.raises(OSError, match="passing"):
        ray_train._ray_worker({"mailbox": mailbox, "name": "night", "target": fail, "args": ()})
    ray_train._ray_worker({"mailbox": mailbox, "name": "night", "target": work, "args": (4,)})
    names = [(event["kind"], event.get("attempt")) for event in told]
    assert names == [
        ("begin", "0102"), ("failure", "0102"), ("begin", "0304"), ("line", None),
        *([("result", "0304")] if rank == 0 else []),
    ]  # fmt: skip
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
    assert course == [("_host", 0), ("_take_place", "all")]
    (store,) = ray_group._hosted  # which lives as long as the first worker does
    assert os.environ == {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.2", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    ray_group._hosted.clear()


def test_ray_has_what_the_controller_is_ended_by() -> None:
    """Private names, as what else ends by them would be told by no test: Ray 2.60."""
    from ray._private import state, worker
    from ray.train.v2._internal.execution.controller import TrainController

    assert TrainController.__qualname__ == "TrainController"
    assert "core_worker.kill_actor(" in inspect.getsource(ray.kill)
    assert "job_id" in inspect.signature(state.actors).parameters
    assert hasattr(worker.global_worker, "current_job_id")


def remote(*answers: Any) -> Any:
    """A method of an actor that answers so, in this order; an error is raised."""
    left = list(answers)

    def call() -> Callable[[], Any]:
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

    def __init__(self, looks: float = math.inf) -> None:
        self._looks = looks

    def check(self) -> None:
        self._looks -= 1
        if self._looks < 0:
            raise NodeLost


@pytest.mark.usefixtures("get")
def test_events_that_come_late_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[Any] = [GetTimeoutError(), ("first",)]
    mailbox = SimpleNamespace(take=remote(late, [("second",)]))
    deliveries = ray_train._Deliveries(mailbox, Living())
    now = iter([0.0, 1.0, 61.0, *range(100, 200)])  # of the first call, and of later ones
    monkeypatch.setattr(ray_train, "time", SimpleNamespace(monotonic=lambda: next(now)))
    assert [deliveries.take() for _ in range(3)] == [[], ("first",), ("second",)]


@pytest.mark.usefixtures("get")
def test_a_node_that_ends_is_noticed_while_its_answer_is_waited_for() -> None:
    for answers in ([GetTimeoutError()] * 9, [ActorDiedError()]):
        mailbox = SimpleNamespace(take=remote(answers))
        with pytest.raises(NodeLost):
            ray_train._Deliveries(mailbox, Living(looks=1)).take()


@pytest.mark.usefixtures("get")
def test_a_launcher_without_its_mailbox_has_failed() -> None:
    mailbox = SimpleNamespace(take=remote(ActorDiedError()))
    with pytest.raises(RunFailed, match="has lost its workers"):
        ray_train._Deliveries(mailbox, Living()).take()


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
    mailbox = SimpleNamespace(is_stopped=remote(*answers))
    listener = threading.Thread(
        target=ray_train._listen_for_stop, args=(mailbox, threading.Event()), daemon=True
    )
    listener.start()
    listener.join(30)
    assert not listener.is_alive()
    assert stop.stop_requested() == asked


@pytest.mark.parametrize("lives", [True, False])
def test_ray_is_left_alone_where_the_node_has_ended(
    monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    """It would end this process."""
    course: list[str] = []
    monkeypatch.setattr(ray, "init", lambda **how: course.append("connected"))
    monkeypatch.setattr(ray, "shutdown", lambda: course.append("left"))
    monkeypatch.setattr(ray_train, "Node", lambda: SimpleNamespace(lives=lambda: lives))
    with pytest.raises(NodeLost), ray_train._driver("here:7"):
        raise NodeLost
    assert course == ["connected", *(["left"] if lives else [])]
