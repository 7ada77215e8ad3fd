"""What the launching side makes of tasks of Ray, without one."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError, TaskUnschedulableError, WorkerCrashedError

from dist_embed.cluster import ray_aside
from dist_embed.cluster import ray_tasks as module
from dist_embed.cluster.ray_node import NodeLost
from dist_embed.cluster.ray_tasks import MOST_AT_ONCE, RayTasks
from dist_embed.data.executor import in_order
from dist_embed.data.text.rows import CorpusError
from dist_embed.errors import RunFailed, UserError


class LivingNode:
    """A node that lives."""

    def lives(self) -> bool:
        return True

    def check(self) -> None:
        if not self.lives():
            raise NodeLost


NODE: Any = LivingNode()


class FakeRay:
    """Tasks that are done once they are asked for; counts those under way."""

    def __init__(self, slots: int) -> None:
        self.slots, self.under_way, self.most = slots, 0, 0
        self.ready = True
        self.seconds = 1e9  # in which one more of several has ended, where the first is not ready
        self.now = 0.0
        self.cancelled: list[Any] = []

    def put(self, value: object) -> object:
        return value

    def begin(self, function: Callable[..., Any], setup: object, args: tuple[object, ...]) -> Any:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return lambda: function(*args)

    def wait(
        self, tasks: list[Any], timeout: float, num_returns: int = 1
    ) -> tuple[list[Any], list[Any]]:
        self.now += 0 if self.ready else timeout
        assert num_returns == len(tasks)
        if num_returns == 1:
            return (tasks, []) if self.ready else ([], tasks)
        ended = int(self.now // self.seconds)
        return tasks[:ended], tasks[ended:]

    def get(self, task: Any) -> Any:
        self.under_way -= 1
        return task()

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.slots)}

    def cancel(self, task: Any, *, force: bool) -> None:
        assert force
        self.cancelled.append(task)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay(slots=3)
    monkeypatch.setattr(module, "ray", fake)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: fake.now))
    monkeypatch.setattr(module, "_task", SimpleNamespace(remote=fake.begin))
    return fake


def numbers(upto: int) -> Iterator[tuple[int]]:
    return ((number,) for number in range(upto))


def test_results_come_in_order_and_few_tasks_are_under_way() -> None:
    begun: list[object] = []
    results = in_order(numbers(9), lambda args: begun.append(args) or args, lambda t: t, lambda: 2)
    for number in range(9):
        assert next(results) == (number,)
        assert len(begun) <= number + 4
    assert len(begun) == 9
    assert list(results) == []


@pytest.mark.parametrize(
    ("slots", "num_tasks", "most"), [(3, 0, 4), (3, 1, 2), (9999, 0, MOST_AT_ONCE + 1)]
)
def test_few_tasks_are_under_way(fake: FakeRay, slots: int, num_tasks: int, most: int) -> None:
    fake.slots = slots
    with RayTasks("memory://nowhere", NODE, num_tasks, 9.0).pool() as pool:
        assert list(pool.map(abs, numbers(200))) == list(range(200))
    assert fake.most == most
    assert fake.cancelled == []


def test_a_cluster_that_grows_gets_more_to_do(fake: FakeRay) -> None:
    with RayTasks("memory://nowhere", NODE, 0, 9.0).pool() as pool:
        results = pool.map(abs, numbers(50))
        next(results)
        fake.slots = 7
        list(results)
    assert fake.most == 8


def test_a_head_that_stands_still_as_a_task_begins_has_a_limit(
    fake: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one's function goes by it."""
    goes_on = threading.Event()
    for name, seconds in {"END": 0.1, "SILENT": 0.05, "POLL": 0.01}.items():
        monkeypatch.setattr(ray_aside, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(module, "_task", SimpleNamespace(remote=lambda *_: goes_on.wait(60)))
    with (
        pytest.raises(RunFailed, match=r"Ray's head has not answered for 0 s \(cluster\.timeout"),
        RayTasks("memory://nowhere", NODE, 0, 0.2).pool() as pool,
    ):
        list(pool.map(abs, numbers(3)))
    goes_on.set()


def test_the_head_is_asked_aside_for_the_first_task_alone(
    fake: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread for each would be dear."""
    here: list[bool] = []

    def begin(*given: Any) -> Any:
        here.append(threading.current_thread() is threading.main_thread())
        return fake.begin(*given)

    monkeypatch.setattr(module, "_task", SimpleNamespace(remote=begin))
    with RayTasks("memory://nowhere", NODE, 2, 9.0).pool() as pool:
        for _ in range(2):
            assert list(pool.map(abs, numbers(3))) == [0, 1, 2]
    assert here == [False, *[True] * 5]


def bad_text() -> None:
    raise RayTaskError("_call", "the traceback", CorpusError("x, line 3: not valid UTF-8"))


def lost() -> None:
    raise WorkerCrashedError


def no_place() -> None:
    raise TaskUnschedulableError("nowhere")


@pytest.mark.parametrize(
    ("function", "kind", "told"),
    [(bad_text, CorpusError, "^x, line 3: not valid UTF-8$"),
     (lost, RunFailed, r"^a task that prepares data was lost 4 times.*memory: [^\n]+$"),
     (no_place, RunFailed, r"^Ray could not run a task that prepares data: .*nowhere$")],
)  # fmt: skip
def test_what_a_task_raises_is_told_in_one_line_and_ends_the_others(
    fake: FakeRay, function: Callable[[], None], kind: type[Exception], told: str
) -> None:
    with (
        pytest.raises(kind) as raised,
        RayTasks("memory://nowhere", NODE, 0, 9.0).pool() as pool,
    ):
        list(pool.map(function, [()] * 9))
    assert type(raised.value) is kind
    assert re.search(told, str(raised.value))
    assert len(fake.cancelled) == 3  # beside the one that failed


def test_no_task_is_waited_for_for_ever(fake: FakeRay) -> None:
    fake.ready = False
    fake.seconds = 6.0  # the first is not, but while others end nobody loses patience
    with (
        pytest.raises(
            RunFailed, match=r"has ended for 9 s \(cluster\.timeout_seconds\): .* longer$"
        ),
        RayTasks("memory://nowhere", NODE, 0, 9.0).pool() as pool,
    ):
        list(pool.map(abs, numbers(3)))
    assert fake.now == pytest.approx(18 + 9, abs=2)
    assert len(fake.cancelled) == 3


def test_a_node_that_ends_is_told_soon_and_ray_is_asked_nothing_more(
    fake: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would end this process before it has told why."""

    class EndingNode(LivingNode):
        def lives(self) -> bool:
            return fake.now < 3

    node: Any = EndingNode()
    fake.ready = False
    tasks = RayTasks("memory://nowhere", node, 0, 600.0)
    with pytest.raises(NodeLost), tasks.pool() as pool:
        list(pool.map(abs, numbers(9)))
    assert 3 <= fake.now < 6
    assert fake.cancelled == []
    monkeypatch.delattr(FakeRay, "put")
    with pytest.raises(NodeLost), tasks.pool():
        pass


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    setup = module._Setup("name", str(tmp_path / "scratch"), [])
    told = rf"node \S+ of the Ray cluster does not see {tmp_path}/scratch.* data\.uri must be a URL"
    with pytest.raises(UserError, match=told):
        module._call(abs, setup, (1,))


def test_a_node_with_another_version_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    (folder / "version").write_text("0.99.0")
    setup = module._Setup("name", str(folder), [])
    with pytest.raises(UserError, match=r"but the command has 0\.99\.0: install the same on both"):
        module._call(abs, setup, (1,))


def test_what_hands_over_lies_in_a_folder_that_goes(tmp_path: Path) -> None:
    with RayTasks(str(tmp_path), NODE, 0, 9.0).scratch("words-", "words are counted") as folder:
        Path(folder, "spill-0").write_text("words")
        assert Path(folder).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_removed_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ClientError(Exception):
        """As a store's client has it."""

    def remove(uri: str) -> None:
        raise ClientError(uri)

    monkeypatch.setattr(module.storage, "remove", remove)
    done = []
    with RayTasks(str(tmp_path), NODE, 0, 9.0).scratch("words-", "words are counted") as folder:
        done.append(folder)
    assert done


def test_tasks_import_no_pytorch() -> None:
    """In each process of a cluster it would take seconds, and hundreds of megabytes."""
    code = (
        "import sys, dist_embed.cluster.ray_tasks, dist_embed.data.encoding\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
