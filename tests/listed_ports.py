"""What docs/ports.md says of what listens on other addresses than loopback."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "ports.md"
GLOO = "workers of several machines: gloo, at free ports"
UNDER_RAY = "under Ray: the store of the first worker, at a free port"
TORCHRUN = "torchrun's own stores, at `--rdzv-endpoint` and a free port, also with `--standalone`"
# Of these no test of ours can say anything.
OF_OTHERS = {"NCCL, on GPUs", "the nodes of a Ray cluster that you start"}
_UNDER_SLURM = re.compile(
    r"under Slurm: the store of the first worker, at (\d+) \+ the job's number modulo (\d+)"
)


def listed() -> dict[str, str]:
    """By what listens, where it does."""
    rows = re.findall(r"^\| (.+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    return {what: where for what, where in rows if what not in ("what", "---")}


def under_slurm() -> str:
    """The row of Slurm."""
    (found,) = filter(_UNDER_SLURM.fullmatch, listed())
    return found


def port_under_slurm(job: int) -> int:
    """As that row has it."""
    found = _UNDER_SLURM.fullmatch(under_slurm())
    assert found
    return int(found[1]) + job % int(found[2])
