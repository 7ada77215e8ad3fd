"""What is read from a profiler's trace, of a written one as a GPU's would be and of a real one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from dist_embed.bench.trace import WINDOW, Entry, TraceFigures, read_trace
from dist_embed.observe.phases import STEP

HOST, BACKWARD, DEVICE = (70, 70), (70, 71), (0, 7)


def event(cat: str, name: str, begin: float, end: float, where: Any = HOST) -> dict[str, Any]:
    pid, tid = where
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": 5e12 + begin,
            "dur": end - begin}  # fmt: skip


def window(*steps: tuple[float, float], cat: str = "user_annotation") -> list[dict[str, Any]]:
    return [event(cat, WINDOW, 1000, 2000), *(event(cat, STEP, *step) for step in steps)]


def figures(tmp_path: Path, events: list[dict[str, Any]]) -> TraceFigures:
    path = tmp_path / "trace.json.gz"
    others = [{"ph": "M", "name": "process_name", "pid": 70}, {"ph": "s", "cat": "ac2g", "ts": 1}]
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": [*others, *events]}).encode()))
    return read_trace(str(path))


def micros(entries: list[Entry]) -> list[tuple[str, str, float, float]]:
    return [(e.name, e.within, e.calls, pytest.approx(e.seconds * 1e6)) for e in entries]


def test_what_a_gpu_did_and_whom_the_host_waited_for(tmp_path: Path) -> None:
    found = figures(tmp_path, [
        # Not sorted, as in a file; what comes before the window does not count.
        event("kernel", "gemm", 900, 950, DEVICE),
        event("cuda_runtime", "cudaStreamSynchronize", 900, 990),
        *window((1010, 1400), (1400, 1800)),
        event("cuda_runtime", "cudaDeviceSynchronize", 1810, 1990),  # the window's end
        # Another stream, at the same time in part, and wholly.
        event("kernel", "gemm", 1100, 1200, DEVICE),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 1150, 1250, (0, 8)),
        event("gpu_memset", "Memset (Device)", 1160, 1170, (0, 9)),
        event("kernel", "gemm", 1300, 1500, DEVICE),
        event("gpu_user_annotation", STEP, 1100, 1500, DEVICE),
        event("gpu_user_annotation", WINDOW, 1100, 1500, DEVICE),
        # The loss is asked for in both steps.
        *(
            one
            for at in (1020, 1420)
            for one in (
                event("user_annotation", "## loss ##", at, at + 100),
                event("cpu_op", "aten::to", at + 10, at + 90),
                event("cpu_op", "aten::copy_", at + 20, at + 80),
                event("cuda_runtime", "cudaMemcpyAsync", at + 25, at + 30),
                event("cuda_runtime", "cudaStreamSynchronize", at + 30, at + 70),
            )
        ),
        # In another thread, while the first is within an operator.
        event("cuda_runtime", "cudaMalloc_v3020", 1430, 1437, BACKWARD),
        event("cuda_runtime", "cudaLaunchKernel", 1440, 1441, BACKWARD),
        event("cuda_driver", "cuLaunchKernel", 1442, 1444, BACKWARD),
        event("cuda_runtime", "cudaMallocAsync", 1450, 1451, BACKWARD),
    ])  # fmt: skip
    assert found.steps == 2
    assert found.seconds == pytest.approx(500e-6)
    assert found.busy_seconds == pytest.approx((150 + 200) * 1e-6 / 2)
    assert micros(found.on_device) == [
        ("gemm", "", 1.0, 150.0), ("Memcpy HtoD (Pinned -> Device)", "", 0.5, 50.0),
        ("Memset (Device)", "", 0.5, 5.0),
    ]  # fmt: skip
    assert micros(found.waits) == [
        ("cudaStreamSynchronize", "## loss ## › aten::copy_", 1.0, 40.0),
        ("cudaMalloc_v3020", "", 0.5, 3.5),
    ]
    assert micros(found.on_host) == [
        ("cudaDeviceSynchronize", "", 0.5, 90.0), ("cudaStreamSynchronize", "", 1.0, 40.0),
        ("aten::to", "", 1.0, 20.0), ("aten::copy_", "", 1.0, 15.0),
        ("cudaMemcpyAsync", "", 1.0, 5.0), ("cudaMalloc_v3020", "", 0.5, 3.5),
        ("cuLaunchKernel", "", 0.5, 1.0), ("cudaLaunchKernel", "", 0.5, 0.5),
        ("cudaMallocAsync", "", 0.5, 0.5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "waits"),
    [
        ("cudaDeviceSynchronize", True), ("cudaStreamSynchronize_ptsz", True),
        ("cudaEventSynchronize", True), ("cudaMemcpy", True), ("cudaMemcpy2D", True),
        ("cudaFree", True), ("cudaHostAlloc", True), ("cudaHostRegister", True),
        ("cudaMemcpyAsync", False), ("cudaMemcpy2DAsync", False), ("cudaMemsetAsync", False),
        ("cudaFreeAsync", False), ("cudaEventQuery", False), ("cudaStreamWaitEvent", False),
        ("cudaLaunchKernel", False), ("cudaEventRecord", False),
    ],
)  # fmt: skip
def test_calls_that_wait_are_told_from_those_that_do_not(
    call: str, waits: bool, tmp_path: Path
) -> None:
    found = figures(tmp_path, [*window((1000, 2000)), event("cuda_runtime", call, 1100, 1101)])
    assert bool(found.waits) == waits
    assert [entry.name for entry in found.on_host] == [call]


def test_a_device_that_did_nothing_was_not_busy(tmp_path: Path) -> None:
    found = figures(tmp_path, window((1100, 1200)))
    assert (found.busy_seconds, found.on_device, found.waits) == (None, [], [])
    assert found.seconds == pytest.approx(1e-3)


def test_a_trace_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no step"):
        figures(tmp_path, window())
    with pytest.raises(ValueError, match="2 windows of steps"):
        figures(tmp_path, [*window((1100, 1200)), *window()])
    with pytest.raises(ValueError, match="0 windows of steps"):
        figures(tmp_path, window((1100, 1200), cat="gpu_user_annotation"))


def test_a_trace_as_pytorch_writes_it(tmp_path: Path) -> None:
    matrix = torch.ones(40, 40)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        matrix.exp()
        with record_function(WINDOW):
            for _ in range(2):
                with record_function(STEP):
                    torch.nn.functional.linear(matrix, matrix)
                    matrix.sqrt()
            matrix.neg()
    path = str(tmp_path / "trace.json.gz")
    profiler.export_chrome_trace(path)
    found = read_trace(path)
    calls = {entry.name: entry.calls for entry in found.on_host}
    assert (found.steps, found.busy_seconds, found.waits) == (2, None, [])
    assert (calls["aten::linear"], calls["aten::sqrt"], calls["aten::neg"]) == (1.0, 1.0, 0.5)
    assert not {"aten::exp", STEP, WINDOW} & calls.keys()
    own = {entry.name: entry.seconds for entry in found.on_host}
    whole = {
        entry.key: entry.self_cpu_time_total / 1e6 / 2 for entry in profiler.key_averages()
    }  # fmt: skip
    for name, seconds in own.items():
        assert seconds == pytest.approx(whole[name], abs=1e-6)
    assert sum(own.values()) < found.seconds
