"""What a store does wrong: checkpoints are saved and loaded all the same, or nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import s3fs
import torch

from dist_embed.checkpoint.catalogue import current_names, read_manifest
from dist_embed.checkpoint.load import load_newest
from dist_embed.checkpoint.manifest import CheckpointError
from dist_embed.checkpoint.read import CheckpointReader
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.saver import Saver
from dist_embed.checkpoint.state import LiveTensor, TrainingState
from dist_embed.errors import StoreUnavailable
from dist_embed.parallel.group import Group
from dist_embed.storage.objects import ObjectStore
from tests.checkpoints import keeping, saving
from tests.stores.fault_proxy import Fault, FaultProxy
from tests.stores.s3_server import S3Server, environment

ALONE = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
CHUNK, INDEX, MANIFEST = r"chunk-", r"index-", r"\.manifest"


@dataclass
class Bench:
    """A run of one worker on a store behind a proxy."""

    proxy: FaultProxy
    store: ObjectStore
    direct: ObjectStore  # the same folder, by another client, without the proxy
    conditional: bool  # whether the server honours If-None-Match
    lines: list[str] = field(default_factory=list)

    def saver(self, max_failures: int = 9, keep_last: int = 9) -> Saver:
        return Saver(
            self.store, ALONE, saving("behind", max_failures, 60.0, 60.0),
            Pruner(self.store, keeping(keep_last, 0, 0, 24.0)), report=self.lines.append,
        )  # fmt: skip

    def steps(self) -> list[int]:
        return [name.step for name in current_names(self.direct)]

    def assert_sound(self, *steps: int) -> None:
        """These steps are there, once each, and every byte of them, with the right rows."""
        assert self.steps() == list(steps)
        assert len(self.direct.names("manifests")) == len(steps)
        for name in current_names(self.direct):
            reader = CheckpointReader(self.direct, read_manifest(self.direct, name))
            reader.verify()
            assert reader.rows("table.t.weight", 0, 3).unique().item() == name.step


def state_of(step: int) -> TrainingState:
    weight = torch.full((9000, 64), float(step))  # 2.2 MiB, three blocks
    return TrainingState(ALONE, step, {"table.t.weight": LiveTensor(weight, 0, 9000, False)})


@pytest.fixture(params=["rclone", "moto"])
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    server = request.getfixturevalue("s3" if request.param == "rclone" else "moto")
    server.start()
    folder = f"s3://bucket/{time.monotonic_ns()}"
    for name, value in environment(server.url).items():
        monkeypatch.setenv(name, value)
    # Ten times as soon as in earnest.
    monkeypatch.setattr("dist_embed.storage.retry.FIRST_WAIT_SECONDS", 0.02)
    s3fs.S3FileSystem.clear_instance_cache()
    direct = ObjectStore(folder, retry_seconds=10.0)
    direct.names("manifests")  # connected now, so that it keeps this address
    with FaultProxy(server.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        store = ObjectStore(folder, retry_seconds=20.0)
        store.names("manifests")
        assert proxy.requests
        proxy.clear()
        yield Bench(proxy, store, direct, conditional=request.param == "moto")
    s3fs.S3FileSystem.clear_instance_cache()


# Where what fails is the way there and back, one server is enough; they differ in the condition
# under which a manifest is written.
in_memory_too = pytest.param("moto", marks=pytest.mark.heavy)
on_either = pytest.mark.parametrize("bench", ["rclone", in_memory_too], indirect=True)

ONE_BY_ONE = [
    Fault("PUT", CHUNK, times=3, status=503),
    Fault("PUT", INDEX, times=3, status=500),
    Fault("PUT", MANIFEST, times=3, status=503),
    Fault("GET", MANIFEST, times=3, status=503),
    Fault("GET", "list-type", times=3, status=503),
    Fault("PUT", CHUNK, times=2, reset_upload=100_000),
    Fault("PUT", MANIFEST, times=2, reset_upload=10),
    Fault("PUT", CHUNK, times=2, drop_reply=True),
    Fault("PUT", INDEX, times=1, drop_reply=True),
    Fault("PUT", MANIFEST, times=1, drop_reply=True),
    Fault("PUT", MANIFEST, times=3, drop_reply=True),
    Fault("PUT", "", times=None, delay=0.3),
]


@pytest.mark.parametrize(
    ("bench", "number"),
    [
        pytest.param(
            server, number,
            marks=pytest.mark.heavy if server == "moto" and fault.path != MANIFEST else (),
        )
        for number, fault in enumerate(ONE_BY_ONE)
        for server in ("rclone", "moto")
    ],
    indirect=["bench"],
)  # fmt: skip
def test_a_save_gets_through(bench: Bench, number: int) -> None:
    fault = ONE_BY_ONE[number]
    fault.hits = fault._seen = 0
    bench.proxy.add(fault)
    saver = bench.saver()
    saver.save(state_of(1))
    saver.wait()
    assert fault.hits > 0
    assert bench.lines[0].startswith("step 1: checkpoint saved"), bench.lines
    bench.assert_sound(1)


@on_either
def test_training_goes_on_while_the_store_is_away(bench: Bench) -> None:
    storm = bench.proxy.add(Fault(status=503, times=None))
    saver = bench.saver()
    saver.save(state_of(1))
    deadline = time.monotonic() + 60
    while storm.hits < 4:  # several attempts; training would be several steps on
        assert time.monotonic() < deadline
        assert saver._under_way is not None
        assert not saver.has_ended
        time.sleep(0.05)
    bench.proxy.remove(storm)
    saver.wait()
    bench.assert_sound(1)


@on_either
def test_a_store_that_stays_away_fails_the_save_in_bounded_time(bench: Bench) -> None:
    bench.store._retry_seconds = 1.0
    saver = bench.saver()
    saver.save(state_of(1))
    saver.wait()
    storm = bench.proxy.add(Fault(status=503, times=None))
    started = time.monotonic()
    saver.save(state_of(2))
    saver.wait()
    assert time.monotonic() - started < 60
    assert "step 2: checkpoint NOT saved: could not write" in bench.lines[-2]
    assert "within 1 s" in bench.lines[-2]
    assert "training goes on" in bench.lines[-1]
    bench.assert_sound(1)
    bench.proxy.remove(storm)
    saver.save(state_of(3))
    saver.wait()
    bench.assert_sound(1, 3)


@on_either
def test_a_store_that_stays_away_stops_the_run_in_the_end(bench: Bench) -> None:
    bench.store._retry_seconds = 0.5
    bench.proxy.add(Fault(status=503, times=None))
    saver = bench.saver(max_failures=1)
    saver.save(state_of(1))
    saver.wait()
    saver.save(state_of(2))
    with pytest.raises(CheckpointError, match=r"step 2 could not be saved: could not write"):
        saver.wait()
    assert bench.steps() == []


def test_a_server_that_is_killed_and_comes_back(s3: S3Server, bench: Bench) -> None:
    if bench.conditional:
        pytest.skip("the server in memory forgets when it is killed")
    bench.store._retry_seconds = 90.0  # a server on a busy machine takes its time to start
    saver = bench.saver()
    comeback = threading.Timer(1.0, s3.start)

    def kill(request: object) -> None:
        s3.kill()
        comeback.start()

    bench.proxy.add(Fault("PUT", MANIFEST, call=kill))
    saver.save(state_of(1))
    saver.wait()
    comeback.join()
    bench.assert_sound(1)


def test_of_two_writers_at_the_same_moment_one_manifest_stands(bench: Bench) -> None:
    rival_lines: list[str] = []
    rival = Saver(
        bench.direct, ALONE, saving("waiting", 9, 60.0, 60.0),
        Pruner(bench.direct, keeping(9, 0, 0, 24.0)), report=rival_lines.append,
    )  # fmt: skip
    # Between this writer's look and its put the other one publishes.
    bench.proxy.add(Fault("PUT", MANIFEST, call=lambda _: rival.save(state_of(1))))
    saver = bench.saver()
    saver.save(state_of(1))
    try:
        saver.wait()
        outcome = "saved"
    except CheckpointError as exc:
        outcome = str(exc)
    assert rival_lines[0].startswith("step 1: checkpoint saved")
    if bench.conditional:
        assert "another writer has saved step 1" in outcome
    bench.assert_sound(1)
    # A third that comes later is told on either server.
    with pytest.raises(CheckpointError, match="another writer has saved step 1"):
        rival.save(state_of(1))


LOAD_FAULTS = [
    Fault("GET", MANIFEST, times=3, status=503),
    Fault("GET", CHUNK, times=3, status=503),
    Fault("GET", INDEX, times=2, truncate_reply=50),
    Fault("GET", CHUNK, times=2, truncate_reply=100_000),
    Fault("GET", CHUNK, times=1, flip_reply=70_000),
    Fault("GET", "", times=None, delay=0.3),
]


@on_either
@pytest.mark.parametrize("number", range(len(LOAD_FAULTS)))
def test_a_load_gets_through(bench: Bench, number: int) -> None:
    saver = bench.saver()
    saver.save(state_of(1))
    saver.wait()
    fault = LOAD_FAULTS[number]
    fault.hits = fault._seen = 0
    bench.proxy.add(fault)
    state = state_of(9)
    state.step = 0
    assert load_newest(bench.store, state, bench.lines.append).step == 1
    assert fault.hits > 0
    assert state.tensors["table.t.weight"].data.unique().item() == 1
    assert not any("damaged" in line for line in bench.lines)


@on_either
def test_bytes_that_always_arrive_wrong_are_damage(bench: Bench) -> None:
    saver = bench.saver()
    for step in (1, 2):
        saver.save(state_of(step))
    saver.wait()
    newest = read_manifest(bench.direct, current_names(bench.direct)[-1])
    bench.proxy.add(Fault("GET", f"{newest.attempt}/{CHUNK}", times=None, flip_reply=70_000))
    state = state_of(9)
    assert load_newest(bench.store, state, bench.lines.append).step == 1
    assert "the checkpoint of step 2 is damaged and not used" in bench.lines[-1]
    assert state.tensors["table.t.weight"].data.unique().item() == 1


@on_either
def test_a_store_that_does_not_answer_is_no_damage(bench: Bench) -> None:
    saver = bench.saver()
    for step in (1, 2):
        saver.save(state_of(step))
    saver.wait()
    newest = read_manifest(bench.direct, current_names(bench.direct)[-1])
    bench.store._retry_seconds = 1.0
    bench.proxy.add(Fault("GET", f"{newest.attempt}/{CHUNK}", times=None, status=503))
    state = state_of(9)
    with pytest.raises(StoreUnavailable, match=r"could not read .* within 1 s"):
        load_newest(bench.store, state, bench.lines.append)
    assert state.step == 9
    assert state.tensors["table.t.weight"].data.unique().item() == 9


def test_what_cannot_be_removed_does_no_harm(bench: Bench) -> None:
    bench.store._retry_seconds = 1.0
    bench.proxy.add(Fault("DELETE", times=None, status=503))
    bench.proxy.add(Fault("POST", "delete", times=None, status=503))
    saver = bench.saver(keep_last=1)
    for step in (1, 2):
        saver.save(state_of(step))
    saver.wait()
    assert any("old checkpoints could not be removed" in line for line in bench.lines)
    bench.assert_sound(1, 2)
    bench.proxy.clear()
    saver.save(state_of(3))
    saver.wait()
    bench.assert_sound(3)
    assert len(bench.direct.names("objects")) == 1
