"""This process's resident memory and its peak, from Linux."""

from __future__ import annotations


def reset_peak() -> int:
    """Forget the peak of resident memory; returns the bytes that are resident now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """The peak since `reset_peak`, or since the process began."""
    return _status("VmHWM")


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key} line")
