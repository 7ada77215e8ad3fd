"""Who works on the parts of a preparation: processes of this machine (`processes`), or whatever
else a caller hands down, such as a cluster (``cluster/ray_tasks.py``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

Result = TypeVar("Result")
Task = TypeVar("Task")
Arguments = tuple[object, ...]


class Pool(Protocol):
    """Runs a function on the parts of a stream, several at a time."""

    def map(
        self, function: Callable[..., Result], arguments: Iterable[Arguments]
    ) -> Iterator[Result]:
        """The results in order. Few parts are under way at once, whatever the stream's length.

        ``function`` is importable. Raises what it raises.
        """


class Executor(Protocol):
    """What a preparation runs on."""

    def pool(
        self, initializer: Callable[..., None] | None = None, arguments: Arguments = ()
    ) -> AbstractContextManager[Pool]:
        """A pool for the length of a ``with`` block, whose processes call ``initializer`` first."""

    def scratch(self, prefix: str, what: str) -> AbstractContextManager[str]:
        """A folder for the length of a ``with`` block that all processes of pools can use.

        Its name begins with ``prefix``; ``what`` is done there, for messages.
        """


# Of a preparation into the folder that it is given.
ExecutorAt = Callable[[str], AbstractContextManager[Executor]]


def in_order(
    arguments: Iterable[Arguments],
    begin: Callable[[Arguments], Task],
    result: Callable[[Task], Result],
    at_once: Callable[[], int],
) -> Iterator[Result]:
    """The result of each of a stream of arguments, with at most one task more than ``at_once()``
    under way.
    """
    under_way: deque[Task] = deque()
    for args in arguments:
        while len(under_way) > at_once():
            yield result(under_way.popleft())
        under_way.append(begin(args))
    while under_way:
        yield result(under_way.popleft())
