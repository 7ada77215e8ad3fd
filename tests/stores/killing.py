"""Trainings of a second or two, whose workers are killed at a chosen point.

Two workers, forked from a process that has everything imported, train from step 0, or from a run
that has the checkpoints of steps 2 and 4, to step 8 and save every second step. Of two checkpoints
kept the save of step 6 removes the first.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from botocore.auth import S3SigV4Auth  # type: ignore[import-untyped]
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.credentials import Credentials  # type: ignore[import-untyped]
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from dist_embed.checkpoint import load, saver
from dist_embed.checkpoint.catalogue import (
    current_names,
    list_steps,
    manifest_names,
    open_checkpoints,
    read_manifest,
)
from dist_embed.checkpoint.chunk import DTYPES, Rows, byte_view
from dist_embed.checkpoint.manifest import OBJECTS, Manifest, ManifestName
from dist_embed.checkpoint.read import CheckpointReader
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.state import HostBuffers
from dist_embed.checkpoint.write import write_rows
from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.data.preparation import ensure_data
from dist_embed.observe.quiet import quiet_environment
from dist_embed.parallel import errors
from dist_embed.parallel.rendezvous import hosted_store
from dist_embed.run.metrics import MetricsLog, read_metrics
from dist_embed.storage import uri as storage
from dist_embed.storage.objects import Buffer, ObjectStore
from dist_embed.training import resume, worker
from dist_embed.training.results import TrainResult
from dist_embed.training.step import TrainStep
from dist_embed.training.tasks import Train
from tests.checkpoints import keeping
from tests.forks import forking
from tests.integration.conftest import TINY
from tests.stores.s3_server import KEY, SECRET
from tests.unit.small_corpus import one_is_this_process

WORKERS = 2
LAST_STEP = 8
# Several chunks in each worker's 50 KiB.
CHUNK_BYTES = 12 * 2**10
# Of gloo's first connection, five times its time-out (torch 2.13, pair.h: waitUntil), and some.
END_SECONDS = 5 * 30.0 + 60.0

Steps = tuple[int, ...]
Do = Callable[[], None]
Arm = Callable[[Do], None]

# The committed steps while that of step 6 is saved: before, meanwhile, and when step 2 is pruned.
OLD: Steps = (2, 4)
BOTH: Steps = (2, 4, 6)
NEW: Steps = (4, 6)


# Points ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """Where a worker calls `kill`, and which committed steps that may leave.

    Attributes:
        arm: makes this process call its argument there.
        first_only: only worker 0 gets there.
        leaves: when the worker that is there dies, or all do.
        spares: when it goes on and another dies.
        modes: whether it saves behind training, for which there is such a point.
        stores: the same, of stores.
        settings: of the ``checkpoint`` section.
    """

    arm: Arm
    first_only: bool = False
    leaves: tuple[Steps, ...] = (OLD,)
    spares: tuple[Steps, ...] = (OLD,)
    modes: tuple[bool, ...] = (True, False)
    stores: tuple[str, ...] = ("local", "s3")
    settings: dict[str, Any] = field(default_factory=dict)


def _fits(pattern: str, nth: int) -> Callable[[tuple[Any, ...]], bool]:
    """Tells the nth call with a text among its arguments in which the pattern is found."""
    count = itertools.count(1)

    def fits(arguments: tuple[Any, ...]) -> bool:
        found = any(isinstance(a, str) and re.search(pattern, a) for a in arguments)
        return (found or not pattern) and next(count) == nth

    return fits


def before(owner: Any, method: str, pattern: str = "", nth: int = 1) -> Arm:
    def arm(kill: Do) -> None:
        original, fits = getattr(owner, method), _fits(pattern, nth)

        def patched(*args: Any, **more: Any) -> Any:
            if fits(args):
                kill()
            return original(*args, **more)

        setattr(owner, method, patched)

    return arm


def after(owner: Any, method: str, pattern: str = "", nth: int = 1) -> Arm:
    def arm(kill: Do) -> None:
        original, fits = getattr(owner, method), _fits(pattern, nth)

        def patched(*args: Any, **more: Any) -> Any:
            value = original(*args, **more)
            if fits(args):
                kill()
            return value

        setattr(owner, method, patched)

    return arm


def amid_put(pattern: str) -> Arm:
    """Half of an object's bytes are on the disk, or sent."""

    def arm(kill: Do) -> None:
        original, fits = ObjectStore.put, _fits(pattern, 1)

        def patched(self: ObjectStore, name: str, parts: Iterable[Buffer]) -> None:
            if not fits((name,)):
                return original(self, name, parts)
            data = b"".join(parts)
            half = len(data) // 2

            def halves() -> Iterator[bytes]:
                yield data[:half]
                kill()
                yield data[half:]

            if self.is_local:
                return original(self, name, halves())
            with _upload(self, name, data, half):
                kill()
            return original(self, name, [data])

        ObjectStore.put = patched  # type: ignore[method-assign]

    return arm


def amid_create(*, stored: bool) -> Arm:
    """Half of the manifest is sent; or the server has it and its reply is not read."""

    def arm(kill: Do) -> None:
        original = ObjectStore.create

        def patched(self: ObjectStore, name: str, data: bytes) -> None:
            with _upload(self, name, data, len(data) if stored else len(data) // 2) as connection:
                if stored:
                    connection.recv(1, socket.MSG_PEEK)
                kill()
            original(self, name, data)

        ObjectStore.create = patched  # type: ignore[method-assign]

    return arm


def _upload(store: ObjectStore, name: str, data: bytes, size: int) -> socket.socket:
    """A PUT of ``data`` of which only ``size`` bytes have been sent."""
    url = urlsplit(f"{os.environ['AWS_ENDPOINT_URL']}/{store._path(name)}")
    request = AWSRequest("PUT", url.geturl(), data=data)
    S3SigV4Auth(Credentials(KEY, SECRET), "s3", "us-east-1").add_auth(request)
    headers = {**request.headers, "Host": url.netloc, "Content-Length": len(data)}
    lines = [f"PUT {url.path} HTTP/1.1", *(f"{key}: {value}" for key, value in headers.items())]
    connection = socket.create_connection((url.hostname or "", url.port or 80), timeout=30)
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + data[:size])
    return connection


def amid_removal(pattern: str) -> Arm:
    """Half of a folder's objects are gone."""

    def arm(kill: Do) -> None:
        original, fits = ObjectStore.remove_folder, _fits(pattern, 1)

        def patched(self: ObjectStore, folder: str) -> None:
            if fits((folder,)):
                entries = self.entries(folder)
                for entry in entries[: len(entries) // 2]:
                    self.remove(entry.name)
                kill()
            original(self, folder)

        ObjectStore.remove_folder = patched  # type: ignore[method-assign]

    return arm


def amid_host_copy(kill: Do) -> None:
    original = HostBuffers.copies

    def patched(self: HostBuffers, rows: list[Any]) -> list[Any]:
        original(self, rows[: len(rows) // 2])
        kill()
        return original(self, rows)

    HostBuffers.copies = patched  # type: ignore[method-assign]


class _Reached(dict[str, Any]):
    """Calls ``do`` when half of the items have been asked for."""

    def __init__(self, items: dict[str, Any], do: Do) -> None:
        super().__init__(items)
        self._left, self._do = len(items) // 2, do

    def __getitem__(self, key: str) -> Any:
        self._left -= 1
        if self._left == 0:
            self._do()
        return super().__getitem__(key)


def amid_live_copy(kill: Do) -> None:
    original = load.load_checkpoint

    def patched(store: ObjectStore, name: ManifestName, state: Any, **more: Any) -> int:
        tensors = state.tensors
        state.tensors = _Reached(tensors, kill)
        try:
            return original(store, name, state, **more)
        finally:
            state.tensors = tensors

    load.load_checkpoint = patched


# A dead attempt that every run here starts with; its files are not old enough to be removed unless
# `leftover_hours` is 0.
DEAD = "step-000000004-20200101T000000Z-deadbeef"
_published = partial(Point, first_only=True, leaves=(BOTH,))
_COMMITTED = (BOTH, NEW)
_ANY = (OLD, BOTH, NEW)

POINTS = {
    # Resuming.
    "manifests not listed": Point(before(ObjectStore, "names", "manifests"), first_only=True),
    "manifest not read": Point(before(ObjectStore, "read", "manifests/"), first_only=True),
    "manifest read": Point(after(ObjectStore, "read", "manifests/"), first_only=True),
    "index not read": Point(before(ObjectStore, "read", "/index-")),
    "amid reading chunks": Point(after(ObjectStore, "read_into", "/chunk-", nth=3)),
    "all proven, nothing copied": Point(after(CheckpointReader, "fill")),
    "amid copying to live tensors": Point(amid_live_copy),
    "loaded": Point(after(resume, "load_newest")),
    "amid writing the run's folder": Point(after(storage, "write_text", nth=2), first_only=True),
    "metrics cut back": Point(after(storage, "write_text", r"metrics\.jsonl"), first_only=True),
    # Training.
    "amid a step": Point(after(TrainStep, "_dense_half")),
    "amid a step with a save behind it": Point(
        after(TrainStep, "_dense_half", nth=3), modes=(True,), leaves=_ANY, spares=_ANY
    ),
    # Saving. When worker 1 is killed it may have written its part: then worker 0 may publish.
    "before the host copy": Point(before(HostBuffers, "copies"), modes=(True,)),
    "amid the host copy": Point(amid_host_copy, modes=(True,)),
    "before the metrics are uploaded": Point(
        before(MetricsLog, "flush"), first_only=True, spares=_ANY
    ),
    "before the first chunk": Point(before(ObjectStore, "put", "/chunk-"), spares=_ANY),
    "amid a chunk": Point(amid_put("/chunk-"), spares=_ANY),
    "between chunks": Point(after(ObjectStore, "put", "/chunk-", nth=2), spares=_ANY),
    "before the index": Point(before(ObjectStore, "put", "/index-"), spares=_ANY),
    "amid the index": Point(amid_put("/index-"), spares=_ANY),
    "after the index": Point(after(ObjectStore, "put", "/index-"), spares=_ANY),
    "before looking who has saved this step": Point(
        before(ObjectStore, "names", "manifests", nth=2), first_only=True, spares=_COMMITTED
    ),
    "before the manifest": Point(before(ObjectStore, "create"), first_only=True, spares=_COMMITTED),
    "manifest written, not linked": Point(
        before(os, "link"), first_only=True, spares=_COMMITTED, stores=("local",)
    ),
    "manifest linked, folder not synced": _published(
        after(os, "link"), spares=_COMMITTED, stores=("local",)
    ),
    "amid sending the manifest": Point(
        amid_create(stored=False), first_only=True, spares=_COMMITTED, stores=("s3",)
    ),
    "manifest stored, reply unread": _published(
        amid_create(stored=True), spares=_COMMITTED, stores=("s3",)
    ),
    "after the manifest": _published(after(ObjectStore, "create"), spares=_COMMITTED),
    # Pruning; worker 1 need not be there, but a run that ends by an error breaks it off.
    "before pruning": _published(before(Pruner, "prune"), spares=_COMMITTED),
    "amid reading manifests to prune": _published(
        before(ObjectStore, "read", "manifests/", nth=3), spares=_COMMITTED
    ),
    "before the old manifest is removed": _published(before(ObjectStore, "remove"), spares=(NEW,)),
    "old manifest removed, its objects not": _published(
        before(ObjectStore, "remove_folder"), leaves=(NEW,), spares=(NEW,)
    ),
    "amid removing objects": _published(
        amid_removal("step-000000002-"), leaves=(NEW,), spares=(NEW,)
    ),
    "amid removing leftovers": _published(
        amid_removal(DEAD), leaves=(NEW,), spares=(NEW,), settings={"leftover_hours": 0.0}
    ),
    "after pruning": _published(after(Pruner, "prune"), leaves=(NEW,), spares=(NEW,)),
    # Worker 0 may still prune when worker 1 is here.
    "saved, nobody told": Point(
        before(saver.Saver, "conclude"), leaves=_COMMITTED, spares=_COMMITTED
    ),
}


@dataclass(frozen=True)
class Kill:
    """Worker ``rank`` kills ``victims``, itself among them or not, when it is at ``point``.

    Attributes:
        delay: without a point, this long after it has started; the store is slowed down then.
        signal: what is sent to them.
        hang: seconds that the worker stays at the point, if it lives.
    """

    point: str
    rank: int
    victims: tuple[int, ...]
    delay: float = 0.0
    signal: int = signal.SIGKILL
    hang: float = 0.0


# Workers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """Worker 0's result, if it came so far; every worker's exit code and traceback."""

    result: TrainResult | None
    codes: list[int]
    traces: list[str]


@quiet_environment()
def train(config: Config, environment: dict[str, str], kill: Kill | None = None) -> Ended:
    """Train with ``WORKERS`` workers; returns when all have ended. None of them may hang."""
    context = forking()
    store = hosted_store()
    pipes = [context.Pipe(duplex=False) for _ in range(WORKERS)]
    processes = [
        context.Process(
            target=_work, daemon=True,
            args=(rank, store.port, config, environment, kill, sender),
        )
        for rank, (_, sender) in enumerate(pipes)
    ]  # fmt: skip
    try:
        for process, (_, sender) in zip(processes, pipes, strict=True):
            process.start()
            sender.close()
        deadline = time.monotonic() + END_SECONDS
        answers = [_answer(receiver, deadline) for receiver, _ in pipes]
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        hung = [rank for rank, process in enumerate(processes) if process.exitcode is None]
        assert not hung, f"workers {hung} have not ended within {END_SECONDS:.0f} s: {answers}"
    finally:
        for process in processes:
            process.kill()
            process.join()
        for receiver, _ in pipes:
            receiver.close()
    codes = [process.exitcode or 0 for process in processes]
    return Ended(answers[0][0], codes, [trace for _, trace in answers])


def _answer(receiver: Connection, deadline: float) -> tuple[TrainResult | None, str]:
    try:
        if receiver.poll(max(0.0, deadline - time.monotonic())):
            result, trace = receiver.recv()
            return result, trace
    except EOFError:
        return None, "killed"
    return None, "no answer"


def _work(
    rank: int,
    port: int,
    config: Config,
    environment: dict[str, str],
    kill: Kill | None,
    answer: Connection,
) -> None:
    os.environ.update(
        environment,
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORKERS),
        LOCAL_WORLD_SIZE=str(WORKERS), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )  # fmt: skip
    here = pytest.MonkeyPatch()  # it refuses names that are not there any more
    here.setattr(saver, "write_rows", partial(write_rows, chunk_bytes=CHUNK_BYTES))
    here.setattr(errors, "CAUSE_WAIT_SECONDS", 0.2)  # nobody reads the causes here
    here.setattr(saver.Saver, "_quiet_seconds", 0.2)  # who says nothing has been killed
    if kill is not None:
        end = _end_of(kill, rank, TCPStore("127.0.0.1", port, is_master=False))
        if not kill.point:
            _slow_down(random.Random(f"{kill.delay} {rank}"))
        if rank != kill.rank:
            pass
        elif kill.point:
            POINTS[kill.point].arm(end)
        else:
            timer = threading.Timer(kill.delay, end)
            timer.daemon = True
            timer.start()
    try:
        result = worker.run_worker(Train(), config, lambda event: None)
    except BaseException:
        answer.send((None, traceback.format_exc()))
        os._exit(1)
    answer.send((result, ""))
    os._exit(0)


def _end_of(kill: Kill, rank: int, store: TCPStore) -> Do:
    """What kills the victims, once; returns, if at all, when those killed are gone."""
    store.set(f"pid/{rank}", str(os.getpid()))
    others = {
        victim: os.pidfd_open(int(store.get(f"pid/{victim}")))
        for victim in kill.victims
        if victim != rank
    }
    once = threading.Lock()

    def end() -> None:
        if not once.acquire(blocking=False):
            return
        for process in others.values():
            signal.pidfd_send_signal(process, kill.signal)
            if kill.signal == signal.SIGKILL:
                select.select([process], [], [])
        if rank in kill.victims:
            os.kill(os.getpid(), kill.signal)
        time.sleep(kill.hang)

    return end


def _slow_down(chance: random.Random) -> None:
    """Makes calls of the store take up to 20 ms longer, so that a save lasts as long as a step."""
    for method in ("put", "create", "read", "read_into", "names", "remove", "remove_folder"):
        original = getattr(ObjectStore, method)

        def patched(*args: Any, _original: Any = original, **more: Any) -> Any:
            time.sleep(chance.uniform(0.0, 0.02))
            return _original(*args, **more)

        setattr(ObjectStore, method, patched)


# Runs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a run lies: its URI, the folder behind it, and what its workers need to get there."""

    uri: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def fill(self, base: Path) -> None:
        """Make the run a copy of that in ``base``."""
        shutil.copytree(base, self.folder)


def configuration(
    data_uri: str, run_uri: str, *, max_steps: int = LAST_STEP, **checkpoint: Any
) -> Config:
    """A run as the module's docstring says it."""
    sections: dict[str, dict[str, Any]] = {
        name: dict(values) for name, values in TINY.items() if isinstance(values, dict) and name
    }
    sections["data"] |= {"uri": data_uri, "max_tokens": 100}
    sections["run"] = {"uri": run_uri}
    sections["train"] |= {"max_steps": max_steps, "log_every": 1, "evaluate_every": 100}
    sections["cluster"] |= {"device": "cpu", "timeout_seconds": 30.0}
    sections["checkpoint"] = {
        "every_steps": 2, "keep_last": 2, "keep_best": 0, "retry_seconds": 30.0,
        "timeout_seconds": 30.0, "drain_seconds": 20.0, **checkpoint,
    }  # fmt: skip
    return config_from_dict(sections)


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint."""

    tensors: dict[str, bytes]
    scalars: dict[str, Any]


def saved(store: ObjectStore, manifest: Manifest) -> Saved:
    """A checkpoint, whole and proven."""
    reader = CheckpointReader(store, manifest)
    reader.verify()
    rows = [
        Rows(name, 0, torch.empty(info.shape, dtype=DTYPES[info.dtype]))
        for name, info in manifest.tensors.items()
    ]
    reader.fill(rows)
    return Saved({r.tensor: bytes(byte_view(r.data)) for r in rows}, manifest.scalars)


def losses(run_uri: str) -> list[tuple[int, float]]:
    """Step and loss of every line that has one, in the order of the lines."""
    return [(line["step"], line["loss"]) for line in read_metrics(run_uri) if "loss" in line]


@dataclass(frozen=True)
class Whole:
    """A run that nothing befell: its losses, and its checkpoint of every step."""

    losses: list[tuple[int, float]]
    saved: dict[int, Saved]
    seconds: float

    @classmethod
    def train(cls, config: Config) -> Whole:
        began = time.monotonic()
        ended = train(config, {})
        seconds = time.monotonic() - began
        assert ended.codes == [0, 0], ended.traces
        store = open_checkpoints(config.run.uri)
        manifests = [read_manifest(store, name) for name in manifest_names(store)]
        return cls(losses(config.run.uri), {m.step: saved(store, m) for m in manifests}, seconds)


@dataclass(frozen=True)
class Material:
    """What all runs here share.

    Attributes:
        data_uri: prepared data.
        whole: the run that they are compared with.
        base: folder of a run that ended after step 5, with a dead attempt and half a line in it.
    """

    data_uri: str
    whole: Whole
    base: Path

    def configuration(self, place: Place, **more: Any) -> Config:
        return configuration(self.data_uri, place.uri, **more)


@functools.cache
def material(folder: Path) -> Material:
    """Made in ``folder``, once."""
    data_uri, run, base = (str(folder / name) for name in ("data", "whole", "base"))
    # Else a step whose save is due while that of the one before is under way has none of its own.
    config = configuration(data_uri, run, every_steps=1, keep_last=LAST_STEP, saving="waiting")
    with one_is_this_process(1):
        ensure_data(config, lambda line: None)
    whole = Whole.train(config)
    shutil.copytree(run, base)
    store = open_checkpoints(base)
    for name in manifest_names(store):
        attempt = f"{base}/checkpoints/{OBJECTS}/{read_manifest(store, name).attempt}"
        if name.step not in OLD:
            store.remove(name.path)
            shutil.rmtree(attempt)
        elif name.step == 4:
            shutil.copytree(attempt, f"{base}/checkpoints/{OBJECTS}/{DEAD}")
    metrics = Path(base) / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= 5]
    metrics.write_text("".join(kept) + kept[-1][:20])
    return Material(data_uri, whole, Path(base))


def check_committed(place: Place, whole: Whole) -> Steps:
    """That every committed checkpoint is the uninterrupted run's, bit for bit, and that cleaning
    finds all of what nothing refers to and nothing else. Returns their steps.
    """
    # The files of a server are read behind its back, which is faster.
    store = open_checkpoints(str(place.folder))
    names = current_names(store)
    steps = tuple(name.step for name in names)
    assert steps == tuple(list_steps(place.uri))
    referred = set()
    for name in names:
        manifest = read_manifest(store, name)
        assert saved(store, manifest) == whole.saved[name.step], name
        referred.add(manifest.attempt)
    pruned = Pruner(store, keeping(2, 0, 0, 0.0)).prune(dry=True)
    assert set(pruned.leftovers) == set(store.names(OBJECTS)) - referred
    assert tuple(pruned.steps) == steps[:-2]
    return steps


def check_end(steps: Steps, resumed_at: int) -> None:
    """That a run that went on from a step ends with its last checkpoint and the one before."""
    if 4 <= resumed_at <= 6:  # step 6 is the first that is saved, or was
        assert steps == (6, LAST_STEP)
    else:  # one may have been due while another was under way
        assert len(steps) == 2
        assert steps[-1] == LAST_STEP


def check_goes_on(config: Config, place: Place, whole: Whole, newest: int) -> None:
    """That the same command goes on from step ``newest`` to the uninterrupted run's end, and that
    nothing of dead attempts stays when it is cleaned up.
    """
    ended = train(config, place.environment)
    assert ended.codes == [0, 0], ended.traces
    assert ended.result is not None
    assert ended.result.resumed_at == newest
    assert ended.result.steps == LAST_STEP
    assert losses(place.uri) == whole.losses
    store = open_checkpoints(place.uri)
    Pruner(store, keeping(2, 0, 0, 0.0)).prune()
    check_end(check_committed(place, whole), newest)
    attempts = {read_manifest(store, name).attempt for name in manifest_names(store)}
    # An upload that is cut short leaves an empty folder on the server, see `Pruner`.
    assert {name for name in store.names(OBJECTS) if store.entries(f"{OBJECTS}/{name}")} == attempts
