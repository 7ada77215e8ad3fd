"""How this process's allocator treats memory that a step frees and the next one needs again."""

from __future__ import annotations

import ctypes

# Numbers of glibc's mallopt(3), and the largest threshold it takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MMAP_BYTES = 32 * 2**20
_KEPT_BYTES = 256 * 2**20


def keep_freed_memory() -> None:
    """Keep up to 256 MiB of freed memory instead of giving it back to the system.

    A step on the CPU allocates tens of MiB of intermediate results and frees them. glibc gives
    them back, and the next step pays a page fault for every 4 KiB: some thousand a step, which took
    a tenth of the time in docs/benchmarks/large_vocabulary.md. Does nothing where there is no
    mallopt. Not collective.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
