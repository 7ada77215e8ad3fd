"""The processes that prepare data."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any

import psutil
import pytest
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models

from dist_embed.data import encoding
from dist_embed.data import processes as module
from dist_embed.data.processes import ProcessEnded, Processes, process_bytes, processes
from dist_embed.data.table_tokenizer import TableTokenizer
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.data.words_folder import some_words
from tests.left_behind import living

KILLED = r"one of \d process.* set data\.num_processes"
# A pipe holds far less.
LARGE = b"x" * 4_000_000


def end_by_signal(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_process_that_is_killed_is_told_as_such() -> None:
    with (
        processes(2) as pool,
        pytest.raises(ProcessEnded, match=KILLED),
    ):
        list(pool.map(end_by_signal, ((number,) for number in range(100))))


def blocked_signals(block: bytes) -> set[int]:
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_processes_that_cannot_start_are_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not as a reader of the command's output that has gone."""
    monkeypatch.setattr("multiprocessing.spawn._python_exe", b"/bin/false")
    with pytest.raises(ProcessEnded, match=KILLED), processes(2) as pool:
        list(pool.map(len, [("abc",)] * 20))

    def without_tracker(*given: Any, **how: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("dist_embed.data.processes.ProcessPoolExecutor", without_tracker)
    with pytest.raises(ProcessEnded, match=KILLED):
        Processes(2)


def test_a_process_that_is_killed_between_two_blocks_is_told_as_such() -> None:
    """Python 3.12 and 3.13 then wait for the other processes in a call of `submit`, having sent
    SIGTERM: they must hear it, and no other signal.
    """
    seen = []

    def blocks() -> Iterator[tuple[bytes]]:
        for _ in range(4):
            yield (b"",)
        os.kill(next(iter(pool._executor._processes)), signal.SIGKILL)
        time.sleep(0.3)
        yield (b"",)

    with pytest.raises(ProcessEnded, match=KILLED), processes(2) as pool:
        seen.extend(pool.map(blocked_signals, blocks()))
    assert seen[0] == {signal.SIGINT, signal.SIGHUP}


def end_within_the_result(block: bytes) -> bytes:
    def write_and_end(handle: int, data: bytes) -> int:
        os.write(handle, data[:1000])
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    connection.Connection._send.__defaults__ = (write_and_end,)  # type: ignore[attr-defined]
    return LARGE


def test_a_process_that_is_killed_while_it_sends_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.2)
    with pytest.raises(ProcessEnded, match=KILLED), processes(1) as pool:
        list(pool.map(end_within_the_result, [(b"",)]))


def write_slowly(block: bytes, file: Path, seconds: float) -> None:
    file.write_text("begun")
    time.sleep(seconds)
    file.write_text("done")


def test_a_signal_does_not_wait_for_blocks(tmp_path: Path) -> None:
    """Before Python 3.11.5 a block that is being sent was waited for, though nobody reads it."""
    file = tmp_path / "block"

    def blocks() -> Iterator[tuple[bytes, Path, float]]:
        for _ in range(2):
            yield LARGE, file, 60.0
        while not file.exists():
            time.sleep(0.01)
        time.sleep(0.2)
        raise SystemExit(143)

    started = time.monotonic()
    with pytest.raises(SystemExit), processes(1) as pool:
        list(pool.map(write_slowly, blocks()))
    assert time.monotonic() - started < 50
    assert file.read_text() == "begun"


def test_the_end_waits_for_blocks_that_have_begun(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(3)]
    with processes(1) as pool:
        next(pool.map(write_slowly, ((b"", file, 0.2) for file in files)))
    assert [file.read_text() for file in files[:2]] == ["done", "done"]


def test_no_more_processes_than_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    pool = Processes(0)
    assert pool.number == 1
    pool.close()


@pytest.mark.parametrize(("room", "number"), [(0, 1), (process_bytes() * 3, 3), (2**50, 64)])
def test_no_more_processes_than_there_is_memory_for(
    monkeypatch: pytest.MonkeyPatch, room: int, number: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("dist_embed.data.processes.available_bytes", lambda: room)
    monkeypatch.setattr("dist_embed.data.processes.usable_cores", lambda: 64)
    pool = Processes(0)
    assert pool.number == number
    pool.close()
    pool = Processes(2)
    assert pool.number == 2  # as a user says
    pool.close()


def tokenizer_of(kind: str, size: int) -> Tokenizer:
    """One of so many pieces: letters, and each of them behind pieces that there are."""
    pieces, merges = list("abcdefghijklmnopqrstuvwxyz"), []
    for start in itertools.islice(pieces, size // 26):
        merges += [(start, letter) for letter in pieces[:26]]
        pieces += [start + letter for letter in pieces[:26]]
    if kind == "unigram":
        # As in one that was trained, what a piece begins with need not be one.
        scores = [(piece + piece[0], -len(piece) / 7) for piece in pieces]
        return Tokenizer(HFTokenizer(models.Unigram(scores)))
    return Tokenizer(HFTokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges)))


def private_bytes() -> int:
    """Of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize(("kind", "shared"), [("bpe", True), ("unigram", False)])
def test_tokenizers_of_pieces_count_for_each_process(
    monkeypatch: pytest.MonkeyPatch, kind: str, shared: bool
) -> None:
    held, foretold = [], []
    for size in (1_000, 60_000):
        source = tokenizer_of(kind, size)
        handed = (source, source if shared else tokenizer_of(kind, size))
        with processes(1, encoding._keep_tokenizers, handed) as pool:
            held += pool.map(private_bytes, [()])
        foretold.append(process_bytes(handed))
    growth, expected = held[1] - held[0], foretold[1] - foretold[0]
    print(f"{kind}: {growth / 2**20:.0f} MiB, {expected / 2**20:.0f} foretold")
    assert 0.4 * expected < growth < 1.1 * expected
    monkeypatch.setattr("dist_embed.data.processes.available_bytes", lambda: foretold[1] * 3)
    monkeypatch.setattr("dist_embed.data.processes.usable_cores", lambda: 64)
    pool = Processes(0, encoding._keep_tokenizers, handed)
    assert pool.number == 3
    pool.close()


def test_mapped_words_count_for_no_process(tmp_path: Path) -> None:
    path_of_text = {"lowercase": False, "split_punctuation": True}
    small, large = (
        TableTokenizer.write(str(tmp_path / str(size)), some_words(size), **path_of_text)
        for size in (10, 100_000)
    )
    assert abs(process_bytes((large,)) - process_bytes((small,))) < 1000


def test_a_killed_command_leaves_no_process_behind() -> None:
    code = (
        "import os, time\n"
        "from dist_embed.data.processes import Processes\n"
        "if __name__ == '__main__':\n"
        "    pool = Processes(2)\n"
        "    print(*set(pool.map(os.getpid, [()] * 20)), flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert workers
    parent.kill()
    parent.wait()
    alive = living(workers, 30.0)
    for process in alive:
        process.kill()
    assert not alive
