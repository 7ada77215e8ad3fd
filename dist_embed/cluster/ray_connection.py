"""A connection to a Ray cluster, or to a Ray of our own on this machine."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private import worker
from ray.exceptions import RayError
from ray.job_config import JobConfig

from dist_embed.cluster.ray_address import why_no_answer
from dist_embed.cluster.ray_aside import END_SECONDS, POLL_SECONDS
from dist_embed.cluster.ray_head import HeadFailed, own_ray
from dist_embed.cluster.ray_node import Node, quiet_node
from dist_embed.cluster.ray_private import private_ray, ray_settings
from dist_embed.errors import RunFailed, UserError
from dist_embed.parallel.stop import end_abruptly, handled_here
from dist_embed.parallel.threads import WaitedThread

CONNECT_SECONDS = 10.0
INIT_SECONDS = 300.0  # Ray's own limits are below
# Without its head Ray (2.60, rpc_client.h) ends a process that is connected after 60 s, with a line
# of its own. Its nodes end then too, which is noticed here, and told.
_WITHOUT_HEAD = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}


@contextmanager
def connected(address: str | None, num_workers: int, name: str = "") -> Iterator[Node]:
    """A connection to a cluster, or to a Ray of our own for the length of the block.

    Args:
        address: of the cluster; None: a Ray of our own.
        num_workers: for which that has slots.
        name: what the page of the connection on Ray's dashboard shows; a job that was submitted
            has one.

    Raises:
        UserError: this process is connected already; no cluster answers at the address, or one of
            another version.
        RunFailed: a Ray of our own did not start, or does not answer.
    """
    if ray.is_initialized():
        raise UserError(
            "this process is connected to a Ray already, and a run connects by itself: call "
            "ray.shutdown() first"
        )
    if address:
        if why := why_no_answer(address):
            raise UserError(
                f"no Ray cluster answers at {address!r} (cluster.address or RAY_ADDRESS): {why}"
            )
        with (
            ray_settings(_WITHOUT_HEAD),
            quiet_node(),
            _driver(address, name, is_own=False) as node,
        ):
            yield node
        return
    # As many CPU slots as workers: more workers than cores is slow, not wrong.
    cores = max(os.cpu_count() or 1, num_workers)
    try:
        with (
            private_ray(), own_ray(cores) as where, ray_settings(_WITHOUT_HEAD), quiet_node(),
            _driver(where, name, is_own=True) as node,
        ):  # fmt: skip
            yield node
    except HeadFailed as exc:
        raise RunFailed(f"no Ray could be started on this machine: {exc}") from exc


class _Job(JobConfig):
    """Workers look for modules where this process does. Ray (2.60, worker.py:connect) has them look
    into the working folder first, where a user's `tokenizers.py` may stand.
    """

    def _serialize(self) -> str:
        ours = {os.path.abspath(path) for path in sys.path}
        theirs: list[str] = self._py_driver_sys_path
        theirs[:] = [path for path in theirs if path in ours]
        serialized: str = super()._serialize()
        return serialized


@contextmanager
def _driver(address: str, name: str, *, is_own: bool) -> Iterator[Node]:
    """This process as a driver of the Ray at an address; gives the node that it is connected to."""
    failed: list[Exception] = []
    node: Node | None = None

    def connect() -> None:
        try:
            ray.init(
                address=address, log_to_driver=False, logging_level=logging.ERROR,
                job_config=_Job(metadata={"job_name": name} if name else None),
            )  # fmt: skip
        except Exception as exc:  # handed to the caller
            failed.append(exc)

    # In a thread: in the main one a signal would break off what cannot be taken up again.
    logging.getLogger("ray").setLevel(logging.ERROR)
    thread = WaitedThread(target=connect, daemon=True)
    try:
        # Ray's handler of SIGTERM prints a trace, and sets an alarm that aborts 3 s later (2.60,
        # C++, in whichever thread it is connected).
        with handled_here():
            give_up_at = time.monotonic() + INIT_SECONDS
            try:
                thread.start()
                while thread.is_alive() and time.monotonic() < give_up_at:
                    thread.join(POLL_SECONDS)
            finally:
                thread.join(CONNECT_SECONDS)
        if thread.is_alive():
            raise RunFailed(f"Ray at {address} has not answered within {INIT_SECONDS:.0f} s")
        if failed:
            raise _not_connected(address, failed[0], is_own=is_own) from failed[0]
        for library in ("ray", "ray.train", "ray.data", "ray.tune"):
            logging.getLogger(library).setLevel(logging.ERROR)
        node = Node()
        yield node
    finally:
        # To a node that is gone Ray cannot say goodbye, and ends this process before we have told
        # why (2.60, raylet_ipc_client.cc).
        if node is None or node.lives():
            _disconnect()


def _not_connected(address: str, error: Exception, *, is_own: bool) -> Exception:
    """What is raised of what `ray.init` has raised."""
    if not isinstance(error, ConnectionError | RayError | ValueError | RuntimeError):
        return error
    if is_own:
        return RunFailed(f"the Ray that was started on this machine does not answer: {error}")
    if "Version mismatch" in str(error):  # Ray 2.60, _private/utils.py:check_version_info
        told = " ".join(str(error).split())
        return UserError(f"the Ray cluster at {address} is of another version: {told}")
    return UserError(f"no Ray cluster answers at {address}: {error}")


def _disconnect() -> None:
    """Say goodbye to Ray, or leave without it: a head that stands still does not answer that either
    (2.60: not within 150 s), and the interpreter's end would wait for it again, or crash.
    """
    thread = WaitedThread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(END_SECONDS)
    if thread.is_alive():
        atexit.unregister(worker.shutdown)
        end_abruptly()
