"""The Ray node that this process is connected to: whether it lives, and what it says."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import worker

from dist_embed.errors import RunFailed


class NodeLost(RunFailed):
    """The node has ended. Ray (2.60) ends a process that uses its connection then, without a word,
    and any that was connected when it notices by itself: within a minute.
    """

    def __init__(self) -> None:
        super().__init__(
            "the Ray node that this command was connected to has ended (its raylet): the same "
            "command goes on from the newest checkpoint, where there is a Ray again"
        )


class Node:
    """The node of this process's connection.

    Attributes:
        id: Ray's name of it.
    """

    def __init__(self) -> None:
        node = worker._global_node
        self.id: str = node.node_id
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(node.raylet_socket_name)
        self._line.setblocking(False)

    def lives(self) -> bool:
        """Whether it has not ended: it never says anything on this line, but closes it."""
        try:
            return bool(self._line.recv(1))
        except BlockingIOError:
            return True
        except ConnectionError:
            return False

    def check(self) -> None:
        """Raises NodeLost if it has ended."""
        if not self.lives():
            raise NodeLost


@contextmanager
def quiet_node() -> Iterator[None]:
    """What nodes have to say to drivers, such as a page about a node's end, goes to Ray's logger.
    Ray prints it, whatever is asked of it (2.60, worker.py:listen_error_messages).
    """

    def say(data: dict[str, Any], ignore_prefix: bool) -> None:
        logging.getLogger("ray").info("%s: %s", data["pid"], "\n".join(data["lines"]))

    printing = worker.print_to_stdstream
    worker.print_to_stdstream = say
    try:
        yield
    finally:
        worker.print_to_stdstream = printing
