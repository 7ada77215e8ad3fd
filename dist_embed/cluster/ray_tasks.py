"""Data prepared by tasks of a Ray cluster: they call the functions that processes of one machine
would, and what they hand to each other lies beside the data, where all nodes reach it.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from dist_embed.cluster.ray_aside import Aside
from dist_embed.data.executor import Arguments, in_order
from dist_embed.errors import RunFailed, UserError
from dist_embed.installed import check_version, own_version
from dist_embed.storage import uri as storage

if TYPE_CHECKING:
    from dist_embed.cluster.ray_node import Node
    from dist_embed.parallel.settings import DeviceChoice

Result = TypeVar("Result")

# What Ray raises of a task whose process or node was lost.
_LOSSES = (WorkerCrashedError, NodeDiedError, LocalRayletDiedError, OutOfMemoryError)
# Times a task is begun again whose process or node was lost.
RETRIES = 3
# Their blocks of text wait in the memory of the node that reads the corpus, some 15 MB each. It
# reads as fast as about twenty tasks encode.
MOST_AT_ONCE = 64
# Between looks whether the node lives, while a task is waited for.
LOOK_SECONDS = 1.0


@contextmanager
def ray_tasks(
    folder_uri: str,
    *,
    address: str,
    num_tasks: int,
    timeout_seconds: float,
    slots: tuple[int, DeviceChoice] | None = None,
) -> Iterator[RayTasks]:
    """An executor on the Ray at an address, for what is prepared into a folder.

    Args:
        folder_uri: all nodes can write to it.
        address: of the cluster.
        num_tasks: that run at once; 0: one for each CPU slot of the cluster.
        timeout_seconds: in which some task that is under way ends.
        slots: how many the cluster must have, and on which device, for what comes afterwards.

    Raises:
        UserError: nothing answers at the address; too few slots; on use, a node does not see the
            folder.
        RunFailed: on use, a task was lost too often, or none ended in time; NodeLost: the node of
            this process has ended.
    """
    # Imports PyTorch, which tasks, in whose processes this module is imported too, do not need.
    from dist_embed.cluster.ray_connection import connected
    from dist_embed.cluster.ray_room import kind_of_slots

    scratch_uri = storage.join(folder_uri, "scratch")
    with connected(address, 1) as node:
        if slots is not None:
            _aside(lambda: kind_of_slots(*slots, lambda text: None), node, timeout_seconds)
        storage.write_text(storage.join(scratch_uri, _MARK), own_version())
        try:
            yield RayTasks(scratch_uri, node, num_tasks, timeout_seconds)
        finally:
            _remove(scratch_uri)


class RayTasks:
    """An `Executor`; see `ray_tasks`."""

    def __init__(
        self, scratch_uri: str, node: Node, num_tasks: int, timeout_seconds: float
    ) -> None:
        self._scratch_uri, self._node, self._num_tasks = scratch_uri, node, num_tasks
        self._timeout_seconds = timeout_seconds

    @contextmanager
    def pool(
        self, initializer: Callable[..., None] | None = None, arguments: Arguments = ()
    ) -> Iterator[TaskPool]:
        """See `Executor`. An error or a signal ends the tasks that are under way."""
        self._node.check()
        setup = _Setup(secrets.token_hex(8), self._scratch_uri, [ray.put((initializer, arguments))])
        pool = TaskPool(setup, self._node, self._num_tasks, self._timeout_seconds)
        try:
            yield pool
        except BaseException:
            pool.cancel()
            raise

    @contextmanager
    def scratch(self, prefix: str, what: str) -> Iterator[str]:
        """See `Executor`."""
        folder = storage.join(self._scratch_uri, f"{prefix}{secrets.token_hex(8)}")
        if storage.is_local(folder):
            storage.make_folder(storage.local_path(folder))
        try:
            yield folder
        finally:
            _remove(folder)


class TaskPool:
    """A `Pool` of tasks.

    Ray is called while the node of this process lives alone: afterwards Ray would end the process
    before it has told why, see `NodeLost`.
    """

    def __init__(self, setup: _Setup, node: Node, num_tasks: int, timeout_seconds: float) -> None:
        self._setup, self._node, self._num_tasks = setup, node, num_tasks
        self._timeout_seconds = timeout_seconds
        self._under_way: set[Any] = set()
        self._has_begun = False

    def map(
        self, function: Callable[..., Result], arguments: Iterable[Arguments]
    ) -> Iterator[Result]:
        """See `Pool`; raises as `ray_tasks` says, too."""

        def begin(args: Arguments) -> Any:
            self._node.check()

            def submit() -> Any:
                return _task.remote(function, self._setup, args)

            # The function of a first task goes by the head (Ray 2.60), those after it do not.
            task = submit() if self._has_begun else self._aside(submit)
            self._has_begun = True
            self._under_way.add(task)
            return task

        return in_order(arguments, begin, self._result, self._at_once)

    def _at_once(self) -> int:
        self._node.check()
        return min(self._num_tasks or self._slots(), MOST_AT_ONCE)

    def _slots(self) -> int:
        """Asked for again each time: nodes come and go."""
        return int(self._aside(ray.cluster_resources).get("CPU", 0))

    def _aside(self, do: Callable[[], Result]) -> Result:
        return _aside(do, self._node, self._timeout_seconds)

    def _result(self, task: Any) -> Any:
        since, before = time.monotonic(), 0
        self._node.check()
        while not ray.wait([task], timeout=min(LOOK_SECONDS, self._timeout_seconds))[0]:
            self._node.check()
            # Others may be under way for longer than this one, and end before it.
            ended = self._ended()
            if ended != before:
                since, before = time.monotonic(), ended
            if time.monotonic() - since > self._timeout_seconds:
                raise RunFailed(
                    "no task that prepares data has ended for "
                    f"{self._timeout_seconds:.0f} s (cluster.timeout_seconds): the Ray cluster had "
                    "no CPU slot free, or too little memory for it, or each takes longer"
                )
        self._under_way.discard(task)
        try:
            return ray.get(task)
        except RayTaskError as exc:  # by the function; its own traceback is in this one's message
            raise exc.cause from exc
        except _LOSSES as exc:
            raise RunFailed(
                f"a task that prepares data was lost {RETRIES + 1} times, with its process or "
                f"node, often for lack of memory: {_first_line(exc)}"
            ) from exc
        except RayError as exc:
            raise RunFailed(
                f"Ray could not run a task that prepares data: {_first_line(exc)}"
            ) from exc

    def _ended(self) -> int:
        """How many of the tasks under way have ended."""
        tasks = list(self._under_way)
        return len(ray.wait(tasks, num_returns=len(tasks), timeout=0)[0])

    def cancel(self) -> None:
        """End the tasks that are under way; those of a node that has ended, Ray ends."""
        for task in self._under_way:
            if not self._node.lives():
                return
            with suppress(RayError):
                ray.cancel(task, force=True)


class _Setup:
    """What a process does before the first task of a pool: ``shared`` holds the reference of the
    initializer and its arguments, in a list so that Ray does not fetch them for every task.
    """

    def __init__(self, name: str, scratch_uri: str, shared: list[Any]) -> None:
        self.name, self.scratch_uri, self.shared = name, scratch_uri, shared


def _aside(do: Callable[[], Result], node: Node, timeout_seconds: float) -> Result:
    """What ``do`` returns, which asks Ray's head."""
    with Aside(lambda rest: do(), node, lambda text: None, timeout_seconds) as asking:
        return asking.result(node.check)


_MARK = "version"  # the command's; seen by all nodes
_ready_for = ""  # the pool that this process has been set up for


def _call(function: Callable[..., Result], setup: _Setup, args: Arguments) -> Result:
    """A task. Ray uses a process again for the next one."""
    global _ready_for
    if _ready_for != setup.name:
        _begin(setup)
        _ready_for = setup.name
    return function(*args)


_task = ray.remote(num_cpus=1, max_retries=RETRIES)(_call)


def _begin(setup: _Setup) -> None:
    try:
        written_by = storage.read_text(storage.join(setup.scratch_uri, _MARK))
    except FileNotFoundError:
        raise UserError(
            f"node {socket.gethostname()} of the Ray cluster does not see {setup.scratch_uri}, "
            "which another node has written: data.uri must be a URL, or a folder that all share"
        ) from None
    check_version(written_by, "the command has")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tasks are the parallelism
    initializer, arguments = ray.get(setup.shared[0])
    if initializer is not None:
        initializer(*arguments)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _remove(folder: str) -> None:
    # What is done counts, or an error before; the next preparation removes what is left. Clients of
    # stores have errors of their own kinds.
    with suppress(Exception):
        storage.remove(folder)
