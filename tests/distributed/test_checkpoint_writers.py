"""Workers that write one checkpoint: one is late, one prunes long, one says nothing more."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_embed.checkpoint import saver as saver_module
from dist_embed.checkpoint.catalogue import list_steps, open_checkpoints
from dist_embed.checkpoint.load import load_newest
from dist_embed.checkpoint.manifest import CheckpointError, IndexInfo
from dist_embed.checkpoint.parts import PartMissing, Parts
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.saver import Saver
from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.checkpoint.state import LiveTensor, TrainingState
from dist_embed.checkpoint.write import write_rows
from dist_embed.errors import StoreUnavailable
from dist_embed.parallel.errors import is_passing
from dist_embed.parallel.group import Group
from dist_embed.parallel.peers import peers_end_with_this_worker
from tests.checkpoints import keeping
from tests.distributed.pool import WorkerPool

# Shorter than what is waited for below.
EXCHANGE_SECONDS = 2.0
LONG_SECONDS = 3.0


def state_of(group: Group, step: int) -> TrainingState:
    rows = torch.full((4, 4), float(step + group.rank))
    table = LiveTensor(rows, 4 * group.rank, 4 * group.num_workers, replicated=False)
    return TrainingState(group, step, {"t": table})


def saver_of(
    group: Group, uri: str, lines: list[str], pruner: Pruner | None = None, **changes: Any
) -> Saver:
    store = open_checkpoints(uri)
    usual = {"max_failures": 0, "timeout_seconds": 30.0, "drain_seconds": 20.0}
    settings = CheckpointSection(**usual | changes)
    kept = pruner or Pruner(store, keeping(9, 0, 0, 24.0))
    return Saver(store, group, settings, kept, report=lines.append)


def impatient(group: Group) -> Group:
    """The same workers, in a group whose exchanges have little time."""
    timeout = timedelta(seconds=EXCHANGE_SECONDS)
    return replace(group, process_group=dist.new_group(backend="gloo", timeout=timeout))


def before_writing(act: Callable[[Group, int], None], group: Group) -> None:
    """Let ``act`` be called with the number of the save before a worker writes its part."""
    saves = iter(range(1, 99))

    def patched(*args: Any, **more: Any) -> list[IndexInfo]:
        act(group, next(saves))
        return write_rows(*args, **more)

    vars(saver_module)["write_rows"] = patched


def restore() -> None:
    vars(saver_module)["write_rows"] = write_rows


def check_loads(group: Group, uri: str, step: int) -> None:
    state = state_of(group, 99)
    assert load_newest(open_checkpoints(uri), state, print).step == step
    assert torch.equal(state.tensors["t"].data, state_of(group, step).tensors["t"].data)


def save_with_some_late(
    group: Group, uri: str, late: tuple[int, ...]
) -> tuple[list[str], list[int]]:
    """In the first save some workers are late by more than worker 0 waits for them.

    Returns what is told, and how many notes there are after each save.
    """

    def act(group: Group, number: int) -> None:
        if number == 1 and group.rank in late:
            time.sleep(0.8)

    before_writing(act, group)
    lines: list[str] = []
    saver = saver_of(group, uri, lines, timeout_seconds=0.2, max_failures=1)
    keys = []
    try:
        for step in (10, 20, 30):
            saver.save(state_of(group, step))
            saver.wait(30.0)
            keys.append(dist.distributed_c10d._get_default_store().num_keys())
            dist.barrier(group.process_group)
    finally:
        restore()
    check_loads(group, uri, 30)
    return lines, keys


@pytest.mark.parametrize(
    ("num_workers", "late", "told"), [(2, (1,), "worker 1"), (3, (1, 2), "workers 1, 2")]
)
def test_after_a_time_out_between_writers_the_next_save_goes_well(
    workers: WorkerPool, tmp_path: Path, num_workers: int, late: tuple[int, ...], told: str
) -> None:
    for lines, keys in workers.run(num_workers, save_with_some_late, str(tmp_path), late):
        assert keys[2] == keys[1]  # those of the save before are removed
        assert [line.split(" (")[0] for line in lines] == [
            "step 10: checkpoint NOT saved: worker 0: "
            f"{told} had not written all 0 s after worker 0",
            "training goes on; the next checkpoint is tried when it is due",
            "step 20: checkpoint saved",
            "step 30: checkpoint saved",
        ]
    assert list_steps(str(tmp_path)) == [20, 30]


def save_for_sure(saver: Saver, state: TrainingState) -> None:
    saver.save(state)
    saver.wait()
    saver.require(state.step)


def fail_on_some(group: Group, uri: str, errors: dict[int, Exception]) -> list[bool]:
    """Whether each error of two failed saves may pass: of the last step, then of the run."""

    def act(group: Group, number: int) -> None:
        if group.rank in errors:
            raise errors[group.rank]

    before_writing(act, group)
    saver, told = saver_of(group, uri, [], max_failures=1), []
    try:
        for step in (1, 2):
            with pytest.raises(CheckpointError, match=errors[1].args[-1]) as caught:
                save_for_sure(saver, state_of(group, step))
            told.append(is_passing(caught.value))
    finally:
        restore()
    return told


@pytest.mark.parametrize(
    ("errors", "passing"),
    [
        ({1: StoreUnavailable("could not write x")}, True),
        ({1: OSError(errno.EIO, "no answer")}, False),
        ({1: StoreUnavailable("could not write x"), 2: OSError(errno.EIO, "no answer")}, True),
    ],
)
def test_all_workers_say_the_same_of_whether_a_failed_save_may_pass(
    workers: WorkerPool, tmp_path: Path, errors: dict[int, Exception], passing: bool
) -> None:
    """Worker 0 only hears that another has failed, worker 2 has written its part, or has an error
    of its own: any of them may be the first to tell the launcher.
    """
    assert workers.run(3, fail_on_some, str(tmp_path), errors) == [[passing] * 2] * 3


class SlowPruner(Pruner):
    def prune(self, *args: Any, **more: Any) -> Any:
        time.sleep(LONG_SECONDS)
        return super().prune(*args, **more)


def save_while(group: Group, uri: str, what: str, asynchronous: bool) -> tuple[list[str], float]:
    """Save, where writing or pruning takes longer than an exchange may."""
    hurried = impatient(group)
    lines: list[str] = []
    pruner = None
    if what == "prune":
        pruner = SlowPruner(open_checkpoints(uri), keeping(1, 0, 0, 24.0))
    else:

        def act(group: Group, number: int) -> None:
            if group.rank == 1:
                time.sleep(LONG_SECONDS)

        before_writing(act, group)
    saver = saver_of(hurried, uri, lines, pruner, saving="behind" if asynchronous else "waiting")
    began = time.monotonic()
    try:
        saver.save(state_of(hurried, 1))
        saver.wait()
    finally:
        restore()
    return lines, time.monotonic() - began


@pytest.mark.parametrize(("what", "asynchronous"), [("prune", True), ("write", False)])
def test_what_takes_longer_than_an_exchange_may_does_not_end_the_run(
    workers: WorkerPool, tmp_path: Path, what: str, asynchronous: bool
) -> None:
    for lines, seconds in workers.run(2, save_while, str(tmp_path), what, asynchronous):
        assert lines[0].startswith("step 1: checkpoint saved")
        assert seconds > LONG_SECONDS
    assert list_steps(str(tmp_path)) == [1]


def wait_too_short(group: Group, uri: str) -> tuple[str, list[int]]:
    """Only worker 1's part takes longer than the wait may."""
    ready = threading.Event()

    def act(group: Group, number: int) -> None:
        if group.rank == 1:
            assert ready.wait(30)

    before_writing(act, group)
    saver = saver_of(group, uri, [])
    message = ""
    try:
        saver.save(state_of(group, 1))
        try:
            saver.wait(0.1)
        except CheckpointError as exc:
            message = str(exc)
        ready.set()
        assert saver._under_way is not None
        saver.wait()
    finally:
        restore()
    return message, list_steps(uri)


def test_a_wait_that_is_too_short_on_one_worker_is_so_on_all(
    workers: WorkerPool, tmp_path: Path
) -> None:
    told = workers.run(2, wait_too_short, str(tmp_path))
    assert told == [("the checkpoint of step 1 was not written within 0 s", [1])] * 2


def end_by_an_error(group: Group, uri: str, killed: bool) -> tuple[float, list[int]]:
    """A run that fails while worker 1 writes, or, as if it were killed, says nothing more."""
    saver_module.QUIET_SECONDS = 0.5
    over = threading.Event()

    def act(group: Group, number: int) -> None:
        if group.rank == 1:
            assert over.wait(30 if killed else 0.1) == killed

    before_writing(act, group)
    saver = saver_of(group, uri, [], drain_seconds=1.0 if killed else 20.0)
    try:
        saver.save(state_of(group, 1))
        began = time.monotonic()
        if group.is_first:
            saver.close()
        took = time.monotonic() - began
        dist.barrier(group.process_group)
        over.set()
        saver.close()  # no thread is to outlive the test
    finally:
        restore()
        saver_module.QUIET_SECONDS = 10.0
    return took, list_steps(uri)


@pytest.mark.parametrize("killed", [True, False])
def test_at_an_error_the_save_under_way_is_ended_unless_nobody_is_heard_of(
    workers: WorkerPool, tmp_path: Path, killed: bool
) -> None:
    (took, steps), _ = workers.run(2, end_by_an_error, str(tmp_path), killed)
    assert steps == ([] if killed else [1])
    assert (0.5 if killed else 0.0) < took < 10


def fail_while_first_writes(group: Group, uri: str, case: str) -> tuple[float, list[int]]:
    """What worker 1, whose part is written, finds when `close` has returned."""
    over = threading.Event()

    def act(group: Group, number: int) -> None:
        if group.is_first:
            over.wait(30 if case == "silent" else 1.5)

    saver_module.QUIET_SECONDS = 0.5  # half of the time there is to drain is longer
    vars(saver_module)["peers_end_with_this_worker"] = lambda: case != "local"
    before_writing(act, group)
    saver = saver_of(group, uri, [], drain_seconds=3.0 if case == "silent" else 20.0)
    try:
        saver.save(state_of(group, 1))
        began = time.monotonic()
        if not group.is_first:
            saver.close()
        took, steps = time.monotonic() - began, list_steps(uri)
        dist.barrier(group.process_group)
        over.set()
        saver.close()  # no thread is to outlive the test
    finally:
        restore()
        saver_module.QUIET_SECONDS = 10.0
        vars(saver_module)["peers_end_with_this_worker"] = peers_end_with_this_worker
    return took, steps


@pytest.mark.parametrize("case", ["others", "silent", "local"])
def test_the_first_to_fail_waits_for_the_save_of_others(
    workers: WorkerPool, tmp_path: Path, case: str
) -> None:
    """Its end would have them killed; the local launcher gives them their time itself."""
    _, (took, steps) = workers.run(2, fail_while_first_writes, str(tmp_path), case)
    assert steps == ([1] if case == "others" else [])
    assert took < 10


def make_progress(group: Group) -> list[str]:
    """Worker 1 takes longer than is waited for without news, and is heard of meanwhile."""
    parts = Parts("an attempt", group)
    if group.rank == 1:
        for _ in range(12):
            time.sleep(0.1)
            parts.note_progress()
    parts.note_written([index_of(f"index-0000{group.rank}-0000.json")])
    if group.rank == 1:
        return []
    return [index.name for index in collect(parts, 30.0, 0.5, hurried=True)]


def collect(
    parts: Parts, timeout_seconds: float, quiet_seconds: float, *, hurried: bool
) -> list[IndexInfo]:
    event = threading.Event()
    if hurried:
        event.set()
    return parts.collect(timeout_seconds, quiet_seconds, hurried=event)


def index_of(name: str, **rows: list[int]) -> IndexInfo:
    return IndexInfo(
        name=name, size_bytes=1, sha256="0" * 64, num_chunks=1, chunk_bytes=1, rows=rows
    )


def test_who_makes_progress_is_waited_for_at_the_end(workers: WorkerPool) -> None:
    names, _ = workers.run(2, make_progress)
    assert names == ["index-00000-0000.json", "index-00001-0000.json"]


def leave_notes(group: Group) -> tuple[bool, list[str], list[int]]:
    """Long lists arrive, failures are told, and nothing stays in the store."""
    store = dist.distributed_c10d._get_default_store()
    before = store.num_keys()
    earlier: Parts | None = None
    told, keys, arrived = [], [], False
    # A store takes 8 MiB at once.
    long = [index_of("i", **{f"{n:0390d}": [0, n] for n in range(11_000)})]
    long *= 2
    for number, failing in enumerate([None, 1, 0, None]):
        dist.barrier(group.process_group)
        parts = earlier = Parts(f"attempt {number}", group, earlier)
        parts.note_progress()
        if failing == group.rank:
            parts.note_failed()
        else:
            parts.note_written(long if number == group.rank else [])
        if group.is_first:
            try:
                found = collect(parts, 20.0, 10.0, hurried=False)
                told.append("all there")
                if number == 0:
                    arrived = found == long
            except PartMissing as exc:
                told.append(str(exc))
        dist.barrier(group.process_group)
        keys.append(store.num_keys() - before)
    return arrived, told, keys


def test_notes_arrive_whole_and_do_not_pile_up(workers: WorkerPool) -> None:
    (arrived, told, keys), _ = workers.run(2, leave_notes)
    assert arrived
    assert told == ["all there", "worker 1 has failed", "worker 0 has failed", "all there"]
    # Those of the last attempt: each worker's progress, end, and pieces of its list.
    assert keys[1:] == [5, 5, 6]
