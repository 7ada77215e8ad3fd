"""What processes may leave behind: each other, semaphores, temporary files."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil


def living(processes: Iterable[psutil.Process], seconds: float = 60.0) -> list[psutil.Process]:
    """Those that have not ended within so long. A dead one has, whenever it is buried: some first
    processes of a machine come round every other second, those of many containers never.
    """
    until = time.monotonic() + seconds
    while left := [one for one in processes if _lives(one)]:
        if time.monotonic() > until:
            break
        time.sleep(0.02)
    return left


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Traces:
    """Of a process and all that it has started by now, while they live.

    Attributes:
        semaphores: files of named ones that they have mapped.
    """

    def __init__(self, pid: int, temporary: Path) -> None:
        process = psutil.Process(pid)
        self._temporary = temporary
        self._processes = [process, *process.children(recursive=True)]
        self.semaphores = {path for one in self._processes for path in _semaphores(one.pid)}

    def check_gone(self) -> None:
        """Nothing of it is there any more, once they have ended."""
        left = living(self._processes)
        for orphan in left:
            orphan.kill()
        assert left == []
        assert [path for path in self.semaphores if path.exists()] == []
        ours = ("pymp", "dist_embed")
        assert [p for p in self._temporary.iterdir() if p.name.startswith(ours)] == []


def shared_memory_of_nobody() -> set[Path]:
    """Files of shared memory that no process has mapped: what has ended left them."""
    files = set(Path("/dev/shm").iterdir())
    for process in psutil.process_iter():
        with suppress(OSError):  # it has ended, or is another user's
            mapped = Path(f"/proc/{process.pid}/maps").read_text()
            files = {file for file in files if str(file) not in mapped}
    return files


def _semaphores(pid: int) -> set[Path]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    fields = (line.split(maxsplit=5) for line in lines)
    return {Path(field[5]) for field in fields if len(field) == 6 and "/dev/shm/sem." in field[5]}
