from __future__ import annotations

import errno
import itertools
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_embed.checkpoint import saver as saver_module
from dist_embed.checkpoint import write
from dist_embed.checkpoint.catalogue import manifest_names
from dist_embed.checkpoint.load import load_checkpoint, load_newest
from dist_embed.checkpoint.manifest import (
    OBJECTS,
    CheckpointError,
    CheckpointLate,
    Index,
    ManifestName,
)
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.save_under_way import Save
from dist_embed.checkpoint.saver import Saver
from dist_embed.checkpoint.state import LiveTensor, TrainingState, own_rows
from dist_embed.errors import StoreUnavailable
from dist_embed.parallel import stop
from dist_embed.parallel.errors import is_passing
from dist_embed.storage.objects import Buffer, ObjectStore
from tests.checkpoints import keeping, saving
from tests.unit.broken_off import broken_off, broken_off_start
from tests.unit.gated_store import ONE, GatedStore, saver_of, state_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GatedStore]:
    store = GatedStore(str(tmp_path / "checkpoints"))
    yield store
    store.gate.set()


def check_saved(store: ObjectStore, step: int, generation: int = 0) -> None:
    """That the checkpoint of a step holds what `state_of` it does."""
    state, expected = state_of(0), state_of(step)
    load_checkpoint(store, ManifestName(step, generation), state)
    assert state.step == step
    assert state.scalars == expected.scalars
    for name, tensor in expected.tensors.items():
        assert torch.equal(state.tensors[name].data, tensor.data), name


def train_on(state: TrainingState) -> None:
    """Change everything in place."""
    for tensor in state.tensors.values():
        tensor.data.add_(1.0)
    state.step += 1
    state.scalars["position"]["batch"] += 1


def test_what_is_saved_is_the_state_at_the_time_of_the_call(store: GatedStore) -> None:
    saver, state = saver_of(store), state_of(5)
    for step in (5, 6):  # the second copy goes into the buffers of the first
        store.gate.clear()
        saver.save(state)
        train_on(state)
        assert saver._under_way is not None
        assert not saver.has_ended
        assert ManifestName(step, 0) not in manifest_names(store)
        store.gate.set()
        saver.wait()
        assert saver._under_way is None
        assert saver.saved_step == step
    assert store.steps == [5, 6]
    for step in (5, 6):
        check_saved(store, step)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_tensors_are_brought_up_to_date_before_they_are_read(
    store: GatedStore, asynchronous: bool
) -> None:
    saver, state = saver_of(store, asynchronous=asynchronous), state_of(5)
    # As of rows whose newest values lie in a cache: here, those of the next step.
    state.before_reading = lambda: train_on(state)
    saver.save(state)
    saver.wait()
    check_saved(store, 6)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_load_tells_that_the_tensors_have_other_values(store: GatedStore, in_place: bool) -> None:
    saver, state = saver_of(store), state_of(5)
    saver.save(state)
    saver.wait()
    loaded, seen = state_of(0), []
    loaded.after_writing = lambda: seen.append(loaded.tensors["table.t.weight"].data[49, 3].item())
    load_checkpoint(store, ManifestName(5, 0), loaded, in_place=in_place)
    assert seen == [5.0]


def test_narrow_rows_are_saved_as_they_are_and_load_as_nothing_else(store: GatedStore) -> None:
    rows = torch.randn(50, 4).half()
    narrow = TrainingState(ONE, 1, {"table.t.weight": LiveTensor(rows, 0, 50, replicated=False)})
    saver = saver_of(store)
    saver.save(narrow)
    saver.wait()
    again = torch.zeros(50, 4, dtype=torch.float16)
    into = {"table.t.weight": LiveTensor(again, 0, 50, replicated=False)}
    load_checkpoint(store, ManifestName(1, 0), TrainingState(ONE, 0, into))
    assert torch.equal(again, rows)
    wide = {"table.t.weight": LiveTensor(again.float(), 0, 50, replicated=False)}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(store, ManifestName(1, 0), TrainingState(ONE, 0, wide))
    assert "table.t.weight as F16 50 × 4" in str(caught.value)
    assert "asked for is F32 50 × 4" in str(caught.value)
    assert "embedding.weights" in str(caught.value)


def test_a_synchronous_save_is_done_when_it_returns(store: GatedStore) -> None:
    reports: list[str] = []
    saver, state = saver_of(store, reports, asynchronous=False), state_of(5)
    store.gate.clear()
    threading.Timer(0.2, store.gate.set).start()
    saver.save(state)
    assert saver._under_way is None
    train_on(state)
    check_saved(store, 5)
    assert len(reports) == 1
    found = re.fullmatch(
        r"step 5: checkpoint saved \(0\.0 MiB in (.*) s, training stood (.*) s\)", reports[0]
    )
    assert found
    assert 0.15 < float(found[1]) < float(found[2]) + 0.06  # rounded otherwise


def test_training_stands_for_pruning_too_where_it_waits_for_it(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune = Pruner.prune
    monkeypatch.setattr(Pruner, "prune", lambda *a, **b: time.sleep(0.3) or prune(*a, **b))
    reports: list[str] = []
    saver_of(store, reports, asynchronous=False).save(state_of(5))
    found = re.search(r"MiB in (.*) s, training stood (.*) s", reports[0])
    assert found
    assert float(found[2]) > float(found[1]) + 0.2


def test_the_size_and_the_times_of_a_save_are_told(store: GatedStore) -> None:
    reports: list[str] = []
    saver, state = saver_of(store, reports), state_of(1)
    state.tensors["model.large"] = LiveTensor.whole(torch.zeros(2**20))
    store.gate.clear()
    began = time.monotonic()
    saver.save(state)
    stood = time.monotonic() - began
    time.sleep(0.2)
    store.gate.set()
    saver.wait()
    took = time.monotonic() - began
    found = re.fullmatch(
        r"step 1: checkpoint saved \(4\.0 MiB in (.*) s, training stood (.*) s\)", reports[0]
    )
    assert found
    assert 0.1 <= float(found[1]) <= took + 0.1
    assert float(found[2]) <= stood + 0.01


def test_what_went_wrong_is_told_in_a_line_and_logged_with_its_trace(
    store: GatedStore, caplog: pytest.LogCaptureFixture
) -> None:
    reports: list[str] = []
    saver = saver_of(store, reports, max_failures=0, asynchronous=False)
    store.error = RuntimeError("Timed out\nframe #0: of another language")
    with pytest.raises(CheckpointError, match="earlier checkpoints are as they were"):
        saver.save(state_of(1))
    assert reports == ["step 1: checkpoint NOT saved: RuntimeError: Timed out"]
    assert "step 1 not saved" in caplog.text
    assert "in put" in caplog.text
    store.error = OSError()
    with pytest.raises(CheckpointError, match="OSError: "):
        saver.save(state_of(2))


def test_after_a_chunk_that_fails_no_more_are_written(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "write_rows", partial(write.write_rows, chunk_bytes=16))
    store.error, puts = OSError(errno.EIO, "Input/output error"), list[str]()
    put = store.put

    def slowly(name: str, parts: Iterable[Buffer]) -> None:
        puts.append(name)
        time.sleep(0.01)
        put(name, parts)

    monkeypatch.setattr(store, "put", slowly)
    saver_of(store, asynchronous=False).save(state_of(1))
    assert len(puts) < 20  # of 52


def test_nobody_waits_for_a_thread_at_the_interpreter_s_end(store: GatedStore) -> None:
    saver, before = saver_of(store, drain_seconds=0.0), threading.enumerate()
    store.gate.clear()
    saver.save(state_of(1))
    while not store.manifests_before:
        time.sleep(0.001)  # until a chunk is being written
    threads = [thread for thread in threading.enumerate() if thread not in before]
    assert {thread.name for thread in threads} == {"checkpoint", "store"}
    assert all(thread.daemon for thread in threads)
    store.gate.set()
    saver.wait()


def test_one_save_at_a_time(store: GatedStore) -> None:
    saver = saver_of(store)
    store.gate.clear()
    saver.save(state_of(1))
    threading.Timer(0.3, store.gate.set).start()
    saver.save(state_of(2))  # waits for the first
    assert saver.saved_step == 1
    saver.save(state_of(3))
    saver.wait()
    assert [len(before) for before in store.manifests_before.values()] == [0, 1, 2]
    for step in (1, 2, 3):
        check_saved(store, step)


def test_old_checkpoints_go_after_the_new_one_is_there(store: GatedStore) -> None:
    saver = saver_of(store, keep_last=1)
    for step in (1, 2):
        saver.save(state_of(step))
        saver.wait()
    assert store.steps == [2]
    assert len(store.names(OBJECTS)) == 1
    store.error = StoreUnavailable("no answer")
    saver.save(state_of(3))
    saver.wait()
    assert store.steps == [2]
    check_saved(store, 2)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_failures_are_reported_and_borne_up_to_their_limit(
    store: GatedStore, asynchronous: bool
) -> None:
    reports: list[str] = []
    saver = saver_of(store, reports, asynchronous=asynchronous, max_failures=2)

    def save(step: int) -> None:
        saver.save(state_of(step))
        saver.wait()

    store.error = StoreUnavailable("could not write x within 5 s")
    for step in (1, 2):
        save(step)
    assert reports == [
        line for step in (1, 2) for line in (
            f"step {step}: checkpoint NOT saved: could not write x within 5 s",
            "training goes on; the next checkpoint is tried when it is due",
        )
    ]  # fmt: skip
    assert store.steps == []
    with pytest.raises(
        CheckpointError, match="step 2 is trained but not saved: could not write x"
    ) as caught:
        saver.require(2)
    # By the cause is told whether it may go well when it is tried again (under Ray).
    assert is_passing(caught.value)
    # Nothing of the error is kept whose frames hold bytes of chunks.
    cause = caught.value.__cause__
    assert cause is not None
    assert (cause.__traceback__, cause.__cause__) == (None, None)
    assert saver._before is not None
    assert saver._before.error is None
    # One that goes well ends the row.
    store.error = None
    save(3)
    saver.require(3)
    store.error = OSError(errno.EIO, "Input/output error")
    save(4)
    save(5)
    with pytest.raises(
        CheckpointError,
        match=r"step 6 could not be saved: .*Input/output error.*newest checkpoint is that of ste"
        r"p 3",
    ) as caught:
        save(6)
    assert caught.value.__cause__ is store.error
    assert store.steps == [3]
    check_saved(store, 3)
    # It can be tried once more, as the end of a run does.
    store.error = None
    save(7)
    check_saved(store, 7)


def test_a_failure_of_an_earlier_save_is_raised_by_the_next(store: GatedStore) -> None:
    saver = saver_of(store, max_failures=0)
    store.error = StoreUnavailable("no answer")
    saver.save(state_of(1))
    with pytest.raises(CheckpointError, match="step 1 could not be saved: no answer"):
        saver.save(state_of(2))
    assert saver._under_way is None


@pytest.mark.parametrize(
    ("number", "asynchronous"),
    [(errno.ENOSPC, True), (errno.EDQUOT, False), (errno.EFBIG, True)],
)
def test_a_full_disk_ends_the_run_at_once(
    store: GatedStore, number: int, asynchronous: bool
) -> None:
    saver = saver_of(store, asynchronous=asynchronous, max_failures=99)

    def save(step: int) -> None:
        saver.save(state_of(step))
        saver.wait()

    save(1)
    store.error = OSError(number, "the disk is full", "chunk-0")
    with pytest.raises(CheckpointError, match=r"step 2 could not be saved: .*disk is full.*step 1"):
        save(2)
    assert store.steps == [1]
    check_saved(store, 1)


def test_another_writer_ends_the_run_at_once(store: GatedStore) -> None:
    other = saver_of(ObjectStore(store.uri), asynchronous=False)
    other.save(state_of(1))
    saver = saver_of(store, max_failures=99)
    late = state_of(1)
    train_on(late)
    late.step = 1
    saver.save(late)
    with pytest.raises(CheckpointError, match=r"another writer has saved step 1 .*run\.uri\?"):
        saver.wait()
    check_saved(store, 1)


def test_another_writer_that_comes_in_between_ends_the_run_too(store: GatedStore) -> None:
    saver = saver_of(store, max_failures=99)
    store.gate.clear()
    saver.save(state_of(1))
    saver_of(ObjectStore(store.uri), asynchronous=False).save(state_of(1))
    store.gate.set()
    with pytest.raises(CheckpointError, match="another writer has saved step 1"):
        saver.wait()
    assert len(manifest_names(store)) == 1
    check_saved(store, 1)


def test_a_damaged_one_is_followed_by_the_next_generation_and_removed(store: GatedStore) -> None:
    saver_of(store, asynchronous=False).save(state_of(1))
    damaged = frozenset({ManifestName(1, 0)})
    saver = saver_of(store, damaged=damaged)
    saver.save(state_of(1))
    saver.wait()
    assert manifest_names(store) == [ManifestName(1, 1)]
    assert len(store.names(OBJECTS)) == 1
    check_saved(store, 1, generation=1)
    # Its excuse is used up.
    saver.save(state_of(1))
    with pytest.raises(CheckpointError, match="another writer"):
        saver.wait()


def damaged_run(store: GatedStore) -> frozenset[ManifestName]:
    """A run whose checkpoints of steps 2 and 3 are damaged; it goes on from step 1."""
    saver = saver_of(store, asynchronous=False)
    for step in (1, 2, 3):
        saver.save(state_of(step))
    for step in (2, 3):
        for chunk in Path(store.uri).glob(f"{OBJECTS}/step-{step:09d}*/chunk*"):
            chunk.write_bytes(b"x")
    loaded = load_newest(store, state_of(0), lambda line: None)
    assert loaded.step == 1
    return loaded.damaged


def fail_once(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, *, after: bool = False, nth: int = 1
) -> None:
    """Let the nth call of a method raise, before it has done anything or after."""
    original, calls = getattr(owner, method), itertools.count(1)

    def patched(*args: Any, **more: Any) -> Any:
        failing = next(calls) == nth
        if failing and not after:
            raise OSError(errno.EIO, "Input/output error")
        value = original(*args, **more)
        if failing:
            raise OSError(errno.EIO, "Input/output error")
        return value

    monkeypatch.setattr(owner, method, patched)


@pytest.mark.parametrize(
    ("owner", "method", "nth"),
    # Before anything is removed; a manifest gone, its objects not; both gone, another not.
    [(Pruner, "prune", 1), (ObjectStore, "remove_folder", 1), (ObjectStore, "remove", 2)],
)
def test_damaged_ones_are_remembered_until_they_are_removed(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, nth: int
) -> None:
    reports: list[str] = []
    saver = saver_of(store, reports, asynchronous=False, damaged=damaged_run(store))
    fail_once(monkeypatch, owner, method, nth=nth)
    saver.save(state_of(2))
    assert "old checkpoints could not be removed: " in reports[1]
    saver.save(state_of(3))
    # What follows a damaged one is never taken for it.
    saver.save(state_of(4))
    names = [ManifestName(1, 0), ManifestName(2, 1), ManifestName(3, 1), ManifestName(4, 0)]
    assert manifest_names(store) == names
    for name in names:
        check_saved(store, name.step, name.generation)
    assert [line.split(" (")[0] for line in reports[2:]] == [
        f"step {step}: checkpoint saved" for step in (3, 4)
    ]


@pytest.mark.parametrize("there", [True, False])
def test_a_checkpoint_that_was_told_as_failed_is_no_second_job_s(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """The manifest's write failed, or only its confirmation; then the step is saved again."""
    reports: list[str] = []
    saver = saver_of(store, reports, asynchronous=False)
    fail_once(monkeypatch, ObjectStore, "create", after=there)
    saver.save(state_of(1))
    assert "NOT saved" in reports[0]
    assert store.steps == [1] * there
    saver.save(state_of(1))
    saver.require(1)
    assert manifest_names(store) == [ManifestName(1, int(there))]
    check_saved(store, 1, generation=int(there))
    # Of others it still is one.
    for other in (saver_of(store, asynchronous=False), saver):
        with pytest.raises(CheckpointError, match="another writer has saved step 1"):
            other.save(state_of(1))


def test_a_manifest_that_is_written_late_is_no_second_job_s(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The put of a save that was told as failed reaches the store amid that of the next one."""
    create, late = store.create, list[tuple[str, bytes]]()

    def patched(name: str, data: bytes) -> None:
        if not late:
            late.append((name, data))
            raise StoreUnavailable("no answer")
        if len(late) == 1:
            create(*late[0])
            late.append((name, data))
        create(name, data)

    monkeypatch.setattr(store, "create", patched)
    saver = saver_of(store, asynchronous=False)
    saver.save(state_of(1))
    assert store.steps == []
    saver.save(state_of(1))
    saver.require(1)
    assert manifest_names(store) == [ManifestName(1, 1)]  # the late one is pruned
    check_saved(store, 1, generation=1)


def test_a_failure_of_one_s_own_excuses_nobody_else(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = saver_of(store, asynchronous=False)
    fail_once(monkeypatch, ObjectStore, "create")
    saver.save(state_of(1))
    saver_of(store, asynchronous=False).save(state_of(1))
    for spoiled in (False, True):
        if spoiled:
            path = Path(store.uri) / ManifestName(1, 0).path
            path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(CheckpointError, match="another writer has saved step 1"):
            saver.save(state_of(1))


@pytest.mark.parametrize("how", ["removed", "shortened", "lengthened"])
def test_nothing_is_published_unless_all_that_it_names_is_there(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """As where somebody prunes with 0 hours, or the folder is another on each machine."""
    monkeypatch.setattr(write, "CHUNKS_PER_INDEX", 2)
    monkeypatch.setattr(saver_module, "write_rows", partial(write.write_rows, chunk_bytes=300))

    def damage(name: str) -> None:
        (path,) = Path(store.uri).glob(f"{OBJECTS}/*/{name}")
        data = path.read_bytes()
        path.unlink()
        if how != "removed":
            path.write_bytes(data[:-1] if how == "shortened" else data + b"x")

    reports: list[str] = []
    saver = saver_of(store, reports, asynchronous=False, max_failures=9)
    for name, index in (
        ("index-00000-0000.json", "0000"), ("index-00000-0001.json", "0001"),
        ("chunk-00000-000001.safetensors", "0000"), ("chunk-00000-000002.safetensors", "0001"),
    ):  # fmt: skip
        store.before_listing = partial(damage, name)
        saver.save(state_of(1))
        assert "step 1: checkpoint NOT saved: " in reports[-2]
        assert "does not find what worker 0 has written there" in reports[-2]
        assert f"/index-00000-{index}.json, " in reports[-2]
        count = "2" if index == "0000" else r"\d"
        expected = {
            ("index", "removed"): r"bytes of it: none instead of \d+\)",
            ("index", "shortened"): r"bytes of it: \d+ instead of \d+\)",
            ("index", "lengthened"): r"bytes of it: \d+ instead of \d+\)",
            ("chunk", "removed"): rf"json, chunks listed in it: \d instead of {count}, bytes of th",
            ("chunk", "shortened"): r"json, bytes of these chunks: \d+ instead of \d+\)",
            ("chunk", "lengthened"): r"json, bytes of these chunks: \d+ instead of \d+\)",
        }
        assert re.search(expected[name[:5], how], reports[-2]), reports[-2]
        shutil.rmtree(Path(store.uri) / OBJECTS)
    assert store.steps == []
    store.before_listing = lambda: None
    saver.save(state_of(2))
    check_saved(store, 2)


def test_a_prune_that_takes_too_long_is_broken_off_and_the_save_counts(store: GatedStore) -> None:
    reports: list[str] = []
    began, answer = threading.Event(), threading.Event()

    class Hanging(ObjectStore):
        def remove(self, name: str) -> None:
            began.set()
            assert answer.wait(60)
            super().remove(name)

    earlier = saver_of(store, asynchronous=False)
    for step in (1, 2, 3):
        earlier.save(state_of(step))
    pruner = Pruner(Hanging(store.uri), keeping(1, 0, 0, 1.0))
    saver = Saver(
        store,
        ONE,
        saving("behind", 0, 30.0, 30.0),
        pruner,
        report=reports.append,
    )
    saver.save(state_of(4))
    assert began.wait(30)
    assert not saver.has_ended
    saver.wait(0.1)
    assert saver.saved_step == 4
    hung = saver._before
    assert hung is not None
    # The next ones go well, and leave pruning to the one after it.
    for step in (5, 6):
        saver.save(state_of(step))
        saver.wait()
    answer.set()
    assert hung.thread is not None
    hung.thread.join(30)
    assert store.steps == [2, 3, 4, 5, 6]
    saver.save(state_of(7))
    saver.wait()
    assert store.steps == [7]
    assert [line.split(" (")[0] for line in reports] == [
        "step 4: checkpoint saved",
        "old checkpoints are still being removed; it is broken off",
        "step 5: checkpoint saved",
        "old checkpoints are not removed: the store has not answered yet",
        "step 6: checkpoint saved",
        "old checkpoints are not removed: the store has not answered yet",
        "step 4: old checkpoints could not be removed: broken off, there was no time for it",
        "step 7: checkpoint saved",
    ]


def test_a_wait_has_a_limit(store: GatedStore) -> None:
    saver = saver_of(store, timeout_seconds=0.1)
    store.gate.clear()
    saver.save(state_of(1))
    began = time.monotonic()
    with pytest.raises(CheckpointLate, match="step 1 was not written within 0 s"):
        saver.wait(0.05)
    with pytest.raises(CheckpointLate, match="step 1 was not written within 0 s"):
        saver.wait()  # twice the time-out
    assert time.monotonic() - began > 0.2
    assert saver._under_way is not None
    store.gate.set()
    saver.wait(30)
    check_saved(store, 1)


def test_a_save_goes_on_where_the_wait_for_it_is_broken_off(store: GatedStore) -> None:
    """As by Ctrl-C in a notebook: what is saved next must not take its buffers."""
    saver = saver_of(store)
    store.gate.clear()
    saver.save(state_of(1))
    with broken_off():
        saver.wait()
    assert not saver.has_ended
    threading.Timer(0.1, store.gate.set).start()
    saver.save(state_of(2))
    saver.wait()
    for step in (1, 2):
        check_saved(store, step)


def test_a_save_goes_on_where_its_start_is_broken_off(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = saver_of(store)
    store.gate.clear()
    with monkeypatch.context() as patched:
        broken_off_start("checkpoint", patched)
        with pytest.raises(SystemExit):
            saver.save(state_of(1))
    assert saver.step_under_way == 1
    threading.Timer(0.1, store.gate.set).start()
    saver.save(state_of(2))
    saver.wait()
    for step in (1, 2):
        check_saved(store, step)


def test_a_synchronous_save_has_a_limit_too_and_that_is_all_its_time(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "GIVE_UP_SECONDS", 0.01)
    store.gate.clear()
    saver = saver_of(store, asynchronous=False, timeout_seconds=0.1, drain_seconds=60.0)
    with pytest.raises(CheckpointError, match="step 1 was not written within 0 s"):
        saver.save(state_of(1))
    began = time.monotonic()
    saver.close()  # as the training loop does after any error
    assert time.monotonic() - began < 30
    assert saver._under_way is not None
    assert saver._under_way.given_up.is_set()


@pytest.mark.parametrize("limit", [None, 0.3])
def test_a_slow_store_gets_its_time_unless_there_is_a_limit(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch, limit: float | None
) -> None:
    monkeypatch.setattr(saver_module, "write_rows", partial(write.write_rows, chunk_bytes=16))
    monkeypatch.setattr(saver_module, "MEETING_SECONDS", 0.02)
    put = store.put

    def slowly(name: str, parts: Iterable[Buffer]) -> None:
        time.sleep(0.05)
        put(name, parts)

    monkeypatch.setattr(store, "put", slowly)
    saver = saver_of(store, timeout_seconds=0.5)
    began = time.monotonic()
    saver.save(state_of(1))
    if limit is None:
        saver.wait()
        assert time.monotonic() - began > 2 * 0.5
        check_saved(store, 1)
    else:
        with pytest.raises(CheckpointError, match="step 1 was not written within 0 s"):
            saver.wait(limit)
        saver.close()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_who_is_asked_to_stop_while_it_waits_has_the_time_to_drain(
    store: GatedStore, asynchronous: bool
) -> None:
    saver = saver_of(store, asynchronous=asynchronous, drain_seconds=0.2)
    store.gate.clear()
    began = time.monotonic()
    threading.Timer(0.1, stop.request_stop).start()
    with stop.stop_on_signals():
        if asynchronous:
            saver.save(state_of(1))
        with pytest.raises(CheckpointError, match="step 1 was not written within 0 s"):
            saver.save(state_of(2 if asynchronous else 1))  # waits for the first
    assert 0.3 <= time.monotonic() - began < 20


def test_a_thread_that_does_not_start_is_no_save(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    saver = saver_of(store)
    with monkeypatch.context() as failing:
        failing.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            saver.save(state_of(1))
    assert saver.step_under_way is None
    saver.close()
    saver.save(state_of(1))
    saver.wait()
    check_saved(store, 1)


def test_a_save_that_is_given_up_writes_no_more(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "write_rows", partial(write.write_rows, chunk_bytes=100))
    monkeypatch.setattr(saver_module, "GIVE_UP_SECONDS", 0.01)
    saver = saver_of(store, drain_seconds=0.0)
    store.gate.clear()
    saver.save(state_of(1))
    saver.close()
    store.gate.set()
    saver.wait(30)
    assert store.steps == []
    assert "given up" in saver._last_reason


def test_close_gives_the_last_save_its_time_and_no_more(store: GatedStore) -> None:
    saver = saver_of(store, drain_seconds=0.05)
    saver.close()
    store.gate.clear()
    saver.save(state_of(1))
    saver.close()
    assert store.steps == []
    patient = saver_of(store)
    patient.save(state_of(2))
    threading.Timer(0.1, store.gate.set).start()
    patient.close()
    assert 2 in store.steps
    check_saved(store, 2)


def test_chunks_are_listed_in_their_order_and_counted_as_they_end(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one takes longest: its object is there last."""
    put, counted = store.put, threading.Event()

    def patched(name: str, parts: Iterable[Buffer]) -> None:
        assert not name.endswith("-000000.safetensors") or counted.wait(30)
        put(name, parts)

    monkeypatch.setattr(store, "put", patched)
    rows = own_rows(state_of(1))
    write.write_rows(store, "step-1", rows, 0, chunk_bytes=100, on_chunk=counted.set)
    index = Index.model_validate_json(store.read(f"{OBJECTS}/step-1/index-00000-0000.json"))
    names = [chunk.name for chunk in index.chunks]
    assert len(names) > 2
    assert names == sorted(names)


def test_conclude_takes_in_a_save_that_has_ended(store: GatedStore) -> None:
    reports: list[str] = []
    saver = saver_of(store, reports)
    saver.save(state_of(1))
    deadline = time.monotonic() + 60
    while not saver.has_ended and time.monotonic() < deadline:
        time.sleep(0.005)
    assert saver._under_way is not None
    assert reports == []
    saver.conclude()
    assert saver._under_way is None
    assert reports[0].startswith("step 1: checkpoint saved")


def test_a_save_is_not_taken_for_one_before_it_that_hangs(store: GatedStore) -> None:
    """As where `wait` breaks it off just when it begins to prune."""
    saver, save = saver_of(store), Save(1, "attempt", 0.0, 0.0)
    save.thread = threading.current_thread()
    saver._before = save
    assert saver._prune(save) == []
    (note,) = saver._prune(Save(2, "another", 0.0, 0.0))
    assert "the store has not answered yet" in note


def test_what_fails_beside_the_save_is_only_noted(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[str] = []
    order: list[str] = []

    def flush() -> None:
        order.append(f"flushed before {len(store.manifests_before)} attempts")
        raise OSError(errno.EIO, "no metrics")

    def fail(*args: Any, **more: Any) -> Any:
        raise StoreUnavailable("no listing")

    monkeypatch.setattr(Pruner, "prune", fail)
    saver = saver_of(store, reports, beforehand=flush)
    saver.save(state_of(1))
    saver.wait()
    assert order == ["flushed before 0 attempts"]
    check_saved(store, 1)
    assert reports[0].startswith("step 1: checkpoint saved")
    assert "no metrics" in reports[1]
    assert reports[2] == "old checkpoints could not be removed: no listing"


def test_leftovers_that_were_removed_are_told(store: GatedStore) -> None:
    (Path(store.uri) / OBJECTS / "step-000000001-20200102T030405Z-0123abcd").mkdir(parents=True)
    reports: list[str] = []
    saver_of(store, reports, asynchronous=False).save(state_of(1))
    assert reports[1:] == ["removed what 1 unfinished saves had left behind"]


def test_values_that_no_manifest_may_hold_are_refused_before_anything_is_written(
    store: GatedStore,
) -> None:
    saver, state = saver_of(store), state_of(1)
    state.scalars["loss"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        saver.save(state)
    assert store.names(OBJECTS) == []
    saver.save(state_of(1))
    saver.wait()
    check_saved(store, 1)
