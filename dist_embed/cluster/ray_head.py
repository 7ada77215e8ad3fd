"""A Ray of our own on this machine, in a session of its own.

Ray starts its processes as children of the one that calls `ray.init`, where a signal to the process
group, or to every process of a Slurm step or a Ray job, reaches them too: without them no worker
can save. So a process between us starts them: deaf to the signals that ask a command to end, as all
below it are, and away from our terminal. They end with this process however that ends: the head
reads a pipe that closes then, and ends its whole session; if the head is killed, the kernel ends
Ray's node and this its workers (Ray 2.60, services.py:start_ray_process, `fate_share`).
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dist_embed.cluster.socket_folder import if_too_long
from dist_embed.parallel.collector import collector_off
from dist_embed.parallel.safe_path import safe_path
from dist_embed.parallel.stop import deaf_children, ends_abruptly

START_SECONDS = 300.0  # Ray's own limits are below
END_SECONDS = 20.0
_left: list[subprocess.Popen[str]] = []  # whose pipes are not to close before this process ends


class HeadFailed(Exception):
    """Ray could not be started; the message says why."""


@contextmanager
def own_ray(num_cpus: int) -> Iterator[str]:
    """A Ray with so many CPU slots for the length of a ``with`` block; gives its address.

    Raises:
        HeadFailed: it did not start.
        UserError: the folder of temporary files is too long for Ray's sockets.
    """
    # By -m it would look for modules in the working folder, too.
    program = (
        f"import sys; sys.path += [path for path in {sys.path!r} if path not in sys.path]; "
        f"from {__name__} import main; main()"
    )
    command = [sys.executable, "-c", program, str(num_cpus)]
    with tempfile.TemporaryFile("w+") as complaints:  # a pipe that nobody reads would fill up
        with safe_path(), deaf_children():
            head = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints,
                text=True, start_new_session=True,
            )  # fmt: skip
        assert head.stdin is not None
        assert head.stdout is not None
        try:
            if not select.select([head.stdout], [], [], START_SECONDS)[0]:
                raise HeadFailed(f"it has not answered within {START_SECONDS:.0f} s")
            address = head.stdout.readline().strip()
            if not address:
                code = head.wait(END_SECONDS)
                complaints.seek(0)
                said = complaints.read().strip()
                # Some 75 bytes below it (2.60, node.py, get_default_system_temp_dir).
                raise if_too_long(said, "RAY_TMPDIR", "TMPDIR") or HeadFailed(
                    said or f"exit code {code}"
                )
            yield address
        finally:
            if ends_abruptly():
                # It ends with this process, which a connection that is still there would end first.
                _left.append(head)
            else:
                _end(head)


def _end(head: subprocess.Popen[str]) -> None:
    assert head.stdin is not None
    assert head.stdout is not None
    with suppress(BrokenPipeError):
        head.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        head.wait(END_SECONDS)
    if head.returncode != 0:  # it did not end by itself, and has left others perhaps
        _kill_session(head.pid)
        head.wait(END_SECONDS)
    head.stdout.close()


def main() -> None:
    """Start Ray, print its address, and end with the process that started this one."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # What libraries print is not the address.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with collector_off(freeze=True):
        import ray

    try:
        context = ray.init(
            address="local", num_cpus=int(sys.argv[1]), include_dashboard=False,
            log_to_driver=False, logging_level=logging.ERROR,
        )  # fmt: skip
    except Exception as exc:  # told by the process that started this one
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
        _kill_session(os.getpid())
        os._exit(1)
    print(context.address_info["gcs_address"], file=answer, flush=True)
    threading.Event().wait()


def _end_with_parent() -> None:
    sys.stdin.read()
    _kill_session(os.getpid())
    os._exit(0)


def _kill_session(session: int) -> None:
    """End all processes of a session but this one; those that they start meanwhile too."""
    give_up_at = time.monotonic() + END_SECONDS / 2
    while (members := _members(session)) and time.monotonic() < give_up_at:
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _members(session: int) -> list[int]:
    """The living processes of a session but this one."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            with open(f"/proc/{name}/stat") as file:
                state, _, _, its_session = file.read().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z" and int(name) != os.getpid():
                found.append(int(name))
    return found
