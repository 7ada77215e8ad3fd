"""What a measurement is kept in: a JSON file with machine and versions."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dist_embed.embedding.memory import GIB
from dist_embed.parallel.machine import usable_cores
from dist_embed.storage.uri import output_file

_PACKAGES = ("dist_embed", "torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "ray", "numpy")


def machine(device: str) -> dict[str, Any]:
    """What a reader needs to compare figures."""
    return {
        "device": device,
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def write_json(path: str, command: str, device: str, figures: dict[str, Any]) -> None:
    """Write the figures of one command into a file of this machine, or what else has its name."""
    content = {"command": command, "machine": machine(device), "figures": figures}
    with output_file(path) as file:
        file.write(f"{json.dumps(content, indent=1)}\n".encode())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
