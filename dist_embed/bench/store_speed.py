"""How fast a folder or an object store takes and gives what checkpoints are made of."""

from __future__ import annotations

import hashlib
import os
import time
from statistics import median
from typing import Any

from dist_embed.storage import uri as storage

_BYTES, _SMALL, _TIMES = 64 * 2**20, 1, 3


def measure_store(folder: str) -> dict[str, Any]:
    """The key ``store`` of a machine file, of objects as large as a checkpoint's below ``folder``.

    What was written is read from the system's cache where it is local: as after a restart it is
    not.
    """
    large, small = os.urandom(_BYTES), b"x" * _SMALL
    uri = storage.join(folder, "store-speed")

    def seconds(data: bytes | None) -> float:
        started = time.perf_counter()
        if data is None:
            storage.read_bytes(uri)
        else:
            storage.write_bytes(uri, data)
        return time.perf_counter() - started

    try:
        latency = median(seconds(small) for _ in range(_TIMES))
        put = median(seconds(large) for _ in range(_TIMES))
        get = median(seconds(None) for _ in range(_TIMES))
        started = time.perf_counter()
        hashlib.sha256(large)
        digest = time.perf_counter() - started
    finally:
        storage.remove(uri)
    size = 1e-9 * _BYTES
    return {
        "latency_ms": 1000 * latency,
        "put_gb_s": size / max(put - latency, 1e-9),
        "get_gb_s": size / get,
        "digest_gb_s": size / digest,
    }
