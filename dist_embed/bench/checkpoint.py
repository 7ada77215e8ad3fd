"""Saving and loading a row-sharded table: this project, the store's client alone, PyTorch's DCP."""

from __future__ import annotations

import gc
import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from dist_embed.bench.memory import peak_bytes, reset_peak
from dist_embed.bench.workers import TIMEOUT_SECONDS, meet
from dist_embed.checkpoint.catalogue import current_names, open_checkpoints, read_manifest
from dist_embed.checkpoint.chunk import Rows, byte_view, cut_into_chunks
from dist_embed.checkpoint.load import load_newest
from dist_embed.checkpoint.read import READ_THREADS, CheckpointReader
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.saver import Saver
from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.checkpoint.state import HostBuffers, LiveTensor, TrainingState
from dist_embed.checkpoint.write import WRITE_THREADS
from dist_embed.cluster.local import launch_local
from dist_embed.embedding.plan import shard_of
from dist_embed.errors import RunFailed
from dist_embed.observe.events import Emit
from dist_embed.parallel.collectives import same_text_from_first
from dist_embed.parallel.device import device_name
from dist_embed.parallel.group import Group, joined_group
from dist_embed.storage import uri as storage
from dist_embed.storage.clients import filesystem


def measure_checkpoint(
    uris: list[str], *, num_rows: int, width: int, num_workers: int, rounds: int,
    device: Literal["cpu", "cuda"], say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Seconds and memory of every way of saving and loading, on each of ``uris`` in turns.

    A table of ``num_rows`` × ``width`` float32 with one float32 of optimizer state per row, split
    over ``num_workers`` processes of one thread, each on a ``device`` of its own. Of several rounds
    the median counts.
    """
    figures: dict[str, Any] = launch_local(
        _measure,
        (uris, num_rows, width, rounds, device),
        num_workers=num_workers,
        on_event=lambda event: say(event["text"]),
        log_folder="this screen",
        device=device,
    )
    return figures


@dataclass
class _Bench:
    """One worker's state and what it has measured: {store: {what: values}}; ``memory`` by kind of
    memory.
    """

    group: Group
    emit: Emit
    weight: Tensor
    momentum: Tensor
    num_rows: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    bytes_read_per_needed: float = 0.0

    @property
    def first_row(self) -> int:
        return shard_of(self.num_rows, self.group.rank, self.group.num_workers).first_row

    def pieces(self) -> list[list[Rows]]:
        """This worker's rows in chunks, as a save cuts them, in the host's memory."""
        rows = [Rows("weight", 0, self.weight.cpu()), Rows("momentum", 0, self.momentum.cpu())]
        return list(cut_into_chunks(rows))

    @contextmanager
    def loading(self, what: str) -> Iterator[None]:
        """`timed`, of what is to bring back the rows as they are. Raises RunFailed where it does
        not.
        """
        own = (self.weight, self.momentum)
        before = [_some_of(tensor) for tensor in own]
        for tensor in own:
            tensor.zero_()
        with self.timed(what):
            yield
        if not all(map(torch.equal, before, map(_some_of, own))):
            raise RunFailed(f"{what}: what was loaded is not what was saved")

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Seconds until the slowest worker is done, and the most memory a worker takes for it."""
        gc.collect()
        meet(self.group)
        before = reset_peaks(self.group.device)
        started = time.perf_counter()
        yield
        seconds = meet(self.group) - started
        after = peaks(self.group.device)
        extra = torch.tensor([after[kind] - before[kind] for kind in before], dtype=torch.float64)
        extra = extra.to(self.group.device)
        dist.all_reduce(extra, op=dist.ReduceOp.MAX, group=self.group.process_group)
        self.seconds.setdefault(what, []).append(seconds)
        for kind, value in zip(before, extra.tolist(), strict=True):
            self.memory.setdefault(kind, {}).setdefault(what, []).append(value)
        if self.group.is_first:
            self.emit({"kind": "line", "text": f"  {what}: {seconds:.2f} s"})


def _some_of(tensor: Tensor) -> Tensor:
    return tensor[:: max(1, len(tensor) // 1000)].clone()


def reset_peaks(device: torch.device) -> dict[str, int]:
    """Forget the peaks of memory; returns by kind the bytes that are taken now.

    ``resident``: what the system counts as this process's. On a GPU also ``pinned``: what PyTorch
    has got from the driver of the host's memory, in use or kept, in its sizes (powers of two; the
    system need not count them as resident); and ``device``: what tensors hold of the GPU's.
    """
    taken = {"resident": reset_peak()}
    if device.type == "cuda":
        torch.cuda.reset_peak_host_memory_stats()
        torch.cuda.reset_peak_memory_stats(device)
        taken["pinned"] = torch.cuda.host_memory_stats()["allocated_bytes.current"]
        taken["device"] = torch.cuda.memory_allocated(device)
    return taken


def peaks(device: torch.device) -> dict[str, int]:
    """By kind as `reset_peaks` gives them the most since then."""
    found = {"resident": peak_bytes()}
    if device.type == "cuda":
        found["pinned"] = torch.cuda.host_memory_stats()["allocated_bytes.peak"]
        found["device"] = torch.cuda.max_memory_allocated(device)
    return found


def _give_back_pinned(device: torch.device) -> None:
    """Pinned memory that nobody uses goes back to the system, so that who needs some gets it anew.

    PyTorch 2.11 has no public name for it.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch._C._host_emptyCache()


def _measure(
    uris: list[str],
    num_rows: int,
    width: int,
    rounds: int,
    device: Literal["cpu", "cuda"],
    emit: Emit,
) -> dict[str, Any]:
    torch.set_num_threads(1)
    with joined_group(device, TIMEOUT_SECONDS) as group:
        shard = shard_of(num_rows, group.rank, group.num_workers)
        torch.manual_seed(group.rank)
        weight = torch.randn(shard.num_rows, width, device=group.device)
        momentum = torch.rand(shard.num_rows, device=group.device)
        found: dict[str, Any] = {}
        folder = same_text_from_first(f"dist_embed-bench-{secrets.token_hex(4)}", group)
        for uri in uris:
            own = storage.join(uri, folder)  # nothing else there is ours to remove
            bench = _Bench(group, emit, weight, momentum, num_rows)
            for number in range(rounds):
                if group.is_first:
                    emit({"kind": "line", "text": f"{uri}, round {number + 1}"})
                # Each is first, second and last in turn: who comes first may find the freed blocks
                # of the disk, and blocks never written before can be three times slower.
                for place in range(len(_SIDES)):
                    name, side = _SIDES[(place + number) % len(_SIDES)]
                    side(bench, storage.join(own, name))
            if group.is_first:
                storage.remove(own)
            extra = {
                kind: {what: max(values) for what, values in by_phase.items()}
                for kind, by_phase in bench.memory.items()
            }
            found[uri] = {
                "seconds": {what: median(values) for what, values in bench.seconds.items()},
                "all_rounds": bench.seconds,
                "extra_bytes": extra,
                "bytes_read_per_needed": bench.bytes_read_per_needed,
            }
        total = 4 * num_rows * (width + 1)
        return {
            "rows": num_rows, "width": width, "workers": group.num_workers, "total_bytes": total,
            "shard_bytes": weight.nbytes + momentum.nbytes, "stores": found,
            "device": device_name(group.device),
        }  # fmt: skip


def _raw_client(bench: _Bench, uri: str) -> None:
    """The same bytes in the same pieces and threads through the client alone, nothing checked."""
    fs, root = filesystem(uri)
    local = storage.is_local(uri)
    pieces = bench.pieces()
    names = [f"{root}/{bench.group.rank}-{n}" for n in range(len(pieces))]
    if local:
        os.makedirs(root, exist_ok=True)

    def put(name: str, piece: list[Rows]) -> None:
        if local:
            with open(name, "wb", buffering=0) as file:
                for rows in piece:
                    file.write(byte_view(rows.data))
                os.fsync(file.fileno())
        else:
            fs.pipe_file(name, b"".join(byte_view(rows.data) for rows in piece), chunksize=2**29)

    with bench.timed("client put"), ThreadPoolExecutor(WRITE_THREADS) as threads:
        list(threads.map(put, names, pieces))
    del pieces
    with bench.timed("client get"), ThreadPoolExecutor(READ_THREADS) as threads:
        for size in threads.map(lambda name: len(fs.cat_file(name)), names):
            assert size
    _remove(bench.group, uri)


def _ours(bench: _Bench, uri: str) -> None:
    group = bench.group
    store = open_checkpoints(uri)
    live = {
        "table.t.weight": LiveTensor(bench.weight, bench.first_row, bench.num_rows, False),
        "table.t.momentum1": LiveTensor(bench.momentum, bench.first_row, bench.num_rows, False),
    }

    def saver(asynchronous: bool, buffers: HostBuffers | None = None) -> Saver:
        settings = CheckpointSection(
            saving="behind" if asynchronous else "waiting", max_failures=0,
            timeout_seconds=TIMEOUT_SECONDS, drain_seconds=TIMEOUT_SECONDS, keep_last=9,
            keep_best=0,
        )  # fmt: skip
        return Saver(
            store, group, settings, Pruner(store, settings), buffers=buffers, report=lambda _: None
        )

    synchronous = saver(False)
    with bench.timed("save"):
        synchronous.save(TrainingState(group, 1, live))
    _give_back_pinned(group.device)
    buffers = HostBuffers()
    behind = saver(True, buffers)
    for step, what in ((2, "stall, first"), (3, "stall")):
        with bench.timed(what):
            behind.save(TrainingState(group, step, live))
        with bench.timed(f"{what}: until written"):
            behind.wait()
    with bench.loading("load"):  # through the copy's memory, as a run does that loads again
        load_newest(store, TrainingState(group, 0, live), lambda _: None, buffers=buffers)
    del behind, synchronous, buffers
    _give_back_pinned(group.device)
    with bench.loading("load, first"):
        load_newest(store, TrainingState(group, 0, live), lambda _: None)
    manifest = read_manifest(store, current_names(store)[-1])
    parts = group.num_workers + 1
    reader = CheckpointReader(store, manifest)
    shards = [
        shard_of(bench.num_rows, part, parts)
        for part in range(group.rank, parts, group.num_workers)
    ]
    needed = 0
    with bench.timed(f"load by {parts} workers"):
        for shard in shards:
            rows = [
                Rows(name, shard.first_row, torch.empty(shard.num_rows, *tensor.data.shape[1:]))
                for name, tensor in live.items()
            ]
            needed += sum(r.size_bytes for r in rows)
            reader.fill(rows)
            del rows
    ratio = torch.tensor(reader.bytes_read / needed, device=group.device)
    dist.all_reduce(ratio, op=dist.ReduceOp.MAX, group=group.process_group)
    bench.bytes_read_per_needed = float(ratio)
    _remove(group, uri)


def _dcp(bench: _Bench, uri: str) -> None:
    mesh = init_device_mesh(bench.group.device.type, (bench.group.num_workers,))
    state = {
        "weight": _distributed(bench, bench.weight, mesh),
        "momentum": _distributed(bench, bench.momentum, mesh),
    }
    with bench.timed("DCP save"):
        state_dict_saver.save(state, storage_writer=FsspecWriter(uri, thread_count=WRITE_THREADS))
    with bench.loading("DCP load"):
        state_dict_loader.load(state, storage_reader=FsspecReader(uri))
    _remove(bench.group, uri)


def _distributed(bench: _Bench, own: Tensor, mesh: DeviceMesh) -> DTensor:
    """The whole table to DCP, whose rows the number of workers need not divide."""
    shape = torch.Size([bench.num_rows, *own.shape[1:]])
    return DTensor.from_local(
        own, mesh, [Shard(0)], run_check=False, shape=shape, stride=own.stride()
    )


_SIDES = (("raw", _raw_client), ("ours", _ours), ("dcp", _dcp))


def _remove(group: Group, uri: str) -> None:
    meet(group)
    if group.is_first:
        storage.remove(uri)
    meet(group)
